//! Decryption of a capture by Wireshark with the key log of a member: an
//! implementation that shares nothing with the one under test.

use crate::Result;
use crate::process::output;
use anyhow::{Context, ensure};
use std::path::Path;

/// What Wireshark made of the capture.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Protected IKE messages that were decrypted, with a right integrity check.
    pub ike: usize,
    /// Protected IKE messages that were not.
    pub ike_failed: usize,
    /// ESP packets that became an IP packet of the right length.
    pub esp: usize,
    /// ESP packets that did not.
    pub esp_failed: usize,
}

/// Decrypts `capture` with the tables in `profile`: files named
/// `ikev2_decryption_table` and `esp_sa`, in the format of Wireshark.
///
/// Wireshark does not check the ICV of ESP with GCM, but nothing other than
/// the right key and the nonce from salt and IV (RFC 4106 §4) makes an IP
/// packet of the right length out of a ciphertext.
pub fn decode(capture: &Path, profile: &Path) -> Result<Decoded> {
    let mut decoded = Decoded::default();
    let protected = "isakmp.nextpayload == 46 || isakmp.nextpayload == 53";
    let of_ike = ["isakmp.enc.decrypted", "isakmp.ikev2.integrity_checksum"];
    for line in fields(capture, profile, protected, &of_ike)? {
        let (decrypted, wrong) = line.split_once('\t').unwrap_or((&line, ""));
        if !decrypted.is_empty() && wrong.is_empty() {
            decoded.ike += 1;
        } else {
            decoded.ike_failed += 1;
        }
    }
    for line in fields(capture, profile, "esp", &["esp.decrypted_data"])? {
        if is_ip(&line) {
            decoded.esp += 1;
        } else {
            decoded.esp_failed += 1;
        }
    }
    Ok(decoded)
}

fn fields(capture: &Path, profile: &Path, filter: &str, fields: &[&str]) -> Result<Vec<String>> {
    let directory = profile.to_str().context("path")?;
    let file = capture.to_str().context("path")?;
    let decode = "esp.enable_encryption_decode:TRUE";
    let mut command = vec![
        "tshark", "-n", "-r", file, "-Y", filter, "-o", decode, "-T", "fields",
    ];
    for field in fields {
        command.extend(["-e", field]);
    }
    let output = output(&command, &[("WIRESHARK_CONFIG_DIR", directory)])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && !errors.contains("UAT"),
        "tshark: {errors}"
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}

/// Hexadecimal text that begins with an IP header whose length fits, with ESP
/// padding, trailer and ICV behind it.
fn is_ip(hex: &str) -> bool {
    let number = |at: usize, length: usize| {
        let digits = hex.get(at * 2..(at + length) * 2)?;
        usize::from_str_radix(digits, 16).ok()
    };
    let length = match hex.as_bytes().first() {
        Some(b'4') => number(2, 2),
        Some(b'6') => number(4, 2).map(|payload| payload + 40),
        _ => None,
    };
    // At least two octets of trailer and 16 of ICV; padding up to 255 octets.
    length.is_some_and(|length| (length + 18..=length + 18 + 255).contains(&(hex.len() / 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ip_packets_of_the_right_length_count() {
        let packet = |first: &str, total: &str, length: usize| {
            format!("{first}00{total}{}", "00".repeat(length - 4))
        };
        assert!(is_ip(&packet("45", "0028", 40 + 20)));
        assert!(!is_ip(&packet("45", "0029", 40 + 18)));
        assert!(!is_ip(&packet("95", "0028", 40 + 20)));
        assert!(is_ip(&format!("600000000010{}", "00".repeat(34 + 16 + 20))));
        assert!(!is_ip(""));
    }
}

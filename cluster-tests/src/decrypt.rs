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
    /// ESP packets that were decrypted, with a right integrity check.
    pub esp: usize,
    /// ESP packets that did not.
    pub esp_failed: usize,
}

/// Decrypts `capture` with the tables in `profile`: files named
/// `ikev2_decryption_table` and `esp_sa`, in the format of Wireshark.
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
    for line in fields(capture, profile, "esp", &["esp.icv_good"])? {
        if matches!(line.as_str(), "1" | "True") {
            decoded.esp += 1;
        } else {
            decoded.esp_failed += 1;
        }
    }
    Ok(decoded)
}

/// What Wireshark finds wrong with IKE messages of `capture`, inside them too where `profile` has the keys.
pub fn dissect(capture: &Path, profile: &Path) -> Result<Vec<String>> {
    let wrong = "isakmp && (_ws.malformed || _ws.expert.severity == error)";
    fields(
        capture,
        profile,
        wrong,
        &["frame.number", "_ws.expert.message"],
    )
}

fn fields(capture: &Path, profile: &Path, filter: &str, fields: &[&str]) -> Result<Vec<String>> {
    let directory = profile.to_str().context("path")?;
    let file = capture.to_str().context("path")?;
    let mut command = vec!["tshark", "-n", "-r", file, "-Y", filter, "-T", "fields"];
    command.extend(["-o", "esp.enable_encryption_decode:TRUE"]);
    command.extend(["-o", "esp.enable_authentication_check:TRUE"]);
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

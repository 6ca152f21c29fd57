//! Decryption of a capture by Wireshark with the key log of a member: an
//! implementation that shares nothing with the one under test.

use crate::Result;
use crate::process::output;
use anyhow::{Context, ensure};
use std::path::Path;

/// What Wireshark made of the capture.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Protected IKE messages whose payloads were decrypted.
    pub ike: usize,
    /// Protected IKE messages that were not.
    pub ike_failed: usize,
    /// ESP packets whose integrity check was right.
    pub esp: usize,
    /// ESP packets that were not opened, or whose check was wrong.
    pub esp_failed: usize,
}

/// Decrypts `capture` with the tables in `profile`: files named
/// `ikev2_decryption_table` and `esp_sa`, in the format of Wireshark.
pub fn decode(capture: &Path, profile: &Path) -> Result<Decoded> {
    let directory = profile.to_str().context("path")?;
    let file = capture.to_str().context("path")?;
    let fields = |filter: &str, field: &str| -> Result<Vec<String>> {
        let command = [
            "tshark",
            "-n",
            "-r",
            file,
            "-Y",
            filter,
            "-T",
            "fields",
            "-e",
            field,
            "-o",
            "esp.enable_encryption_decode:TRUE",
            "-o",
            "esp.enable_authentication_check:TRUE",
        ];
        let output = output(&command, &[("WIRESHARK_CONFIG_DIR", directory)])?;
        ensure!(
            output.status.success(),
            "tshark: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().map(str::to_owned).collect())
    };
    let sealed = fields(
        "isakmp.enc.contained || isakmp.enc.decrypted",
        "isakmp.enc.decrypted",
    )?;
    let ike = sealed.iter().filter(|line| !line.is_empty()).count();
    let esp = fields("esp", "esp.icv_good")?;
    let good = esp
        .iter()
        .filter(|line| matches!(line.as_str(), "1" | "True"))
        .count();
    Ok(Decoded {
        ike,
        ike_failed: sealed.len() - ike,
        esp: good,
        esp_failed: esp.len() - good,
    })
}

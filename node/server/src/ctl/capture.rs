//! `evergate ctl capture`.

use super::{Arguments, Client, said, spi64, tables};
use crate::wireshark;
use evergate_proto::admin::{
    CaptureChunk, CaptureEnd, CaptureEndReason, CaptureRequest, capture_request::Target,
};
use serde_json::json;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use tonic::Request;

/// What Wireshark needs to know besides the keys.
const PREFERENCES: &str =
    "esp.enable_encryption_decode: TRUE\nesp.enable_authentication_check: TRUE\n";

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// A Child SA, or an IKE SA with all its Child SAs, by our SPI (0x and hexadecimal, or decimal)
    #[arg(long, value_parser = spi64)]
    sa: u64,
    /// End after so many packets
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    count: u64,
    /// End after so many seconds, at most 3600
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Keep so many bytes of each packet
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    snaplen: u32,
    /// Write to this file, instead of the standard output
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Also write the keys of the SAs, into a directory FILE.keys that Wireshark takes as WIRESHARK_CONFIG_DIR
    #[arg(long, requires = "write")]
    keys: bool,
}

/// Captures until the end, or until it is interrupted.
pub(super) async fn run(
    client: &mut Client,
    arguments: &Arguments,
    options: &Options,
) -> Result<String, String> {
    if options.write.is_none() && io::stdout().is_terminal() {
        return Err("a capture is not for a terminal: name a file by --write, or pipe it".into());
    }
    let request = CaptureRequest {
        target: Some(match u32::try_from(options.sa) {
            Ok(spi) => Target::Child(spi),
            Err(_) => Target::Ike(options.sa),
        }),
        packets: options.count,
        seconds: options.seconds,
        snaplen: options.snaplen,
        keys: options.keys,
    };
    let begun = client.capture(Request::new(request)).await;
    let mut chunks = begun.map_err(|s| said(arguments, &s))?.into_inner();
    let mut files = Files::open(options)?;
    let end = loop {
        let chunk = tokio::select! {
            chunk = chunks.message() => chunk.map_err(|s| said(arguments, &s))?,
            _ = tokio::signal::ctrl_c() => break None,
        };
        let Some(chunk) = chunk else {
            return Err("the capture broke off: the member ended the call".into());
        };
        files.take(&chunk)?;
        if chunk.end.is_some() {
            break chunk.end;
        }
    };
    let summary = summary(arguments, end.as_ref());
    if options.write.is_none() {
        let _ = write!(io::stderr(), "{summary}");
        return Ok(String::new());
    }
    Ok(summary)
}

fn summary(arguments: &Arguments, end: Option<&CaptureEnd>) -> String {
    let reason = match end.map(CaptureEnd::reason) {
        None => "interrupted",
        Some(CaptureEndReason::Unspecified) => "unknown",
        Some(CaptureEndReason::Full) => "full",
        Some(CaptureEndReason::Time) => "time",
        Some(CaptureEndReason::Gone) => "gone",
        Some(CaptureEndReason::Elsewhere) => "elsewhere",
    };
    let (packets, lost) = (end.map(|e| e.packets), end.map(|e| e.lost));
    let line = match (packets, lost) {
        (Some(packets), Some(lost)) => {
            format!("{packets} packets, {lost} missing; ended: {reason}\n")
        }
        _ => format!("ended: {reason}\n"),
    };
    let value = json!({ "packets": packets, "lost": lost, "reason": reason });
    tables::either(arguments.json, &value, line)
}

/// Where a capture goes. All is for its owner alone: it has the packets in the clear.
struct Files {
    capture: Box<dyn Write>,
    name: String,
    keys: Option<[(File, PathBuf); 2]>,
}

fn private(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600);
    let opened = opened.open(path);
    opened.map_err(|e| format!("cannot write {}: {e}", path.display()))
}

impl Files {
    fn open(options: &Options) -> Result<Self, String> {
        let Some(path) = &options.write else {
            return Ok(Self {
                capture: Box::new(io::stdout()),
                name: "to the standard output".into(),
                keys: None,
            });
        };
        Ok(Self {
            capture: Box::new(private(path)?),
            name: path.display().to_string(),
            keys: options.keys.then(|| keys(path)).transpose()?,
        })
    }

    fn take(&mut self, chunk: &CaptureChunk) -> Result<(), String> {
        let written = self.capture.write_all(&chunk.pcapng);
        written
            .and_then(|()| self.capture.flush())
            .map_err(|e| format!("cannot write {}: {e}", self.name))?;
        let lines = [&chunk.esp_sa, &chunk.ikev2_decryption_table];
        for ((file, path), lines) in self.keys.iter_mut().flatten().zip(lines) {
            let written = file.write_all(lines.as_bytes());
            written.map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        Ok(())
    }
}

/// The tables of keys beside a capture, and what makes Wireshark use them.
fn keys(capture: &Path) -> Result<[(File, PathBuf); 2], String> {
    let mut directory = capture.as_os_str().to_owned();
    directory.push(".keys");
    let directory = PathBuf::from(directory);
    let failed = |e| format!("cannot make {}: {e}", directory.display());
    if !fs::exists(&directory).map_err(failed)? {
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(failed)?;
    }
    let mut preferences = private(&directory.join("preferences"))?;
    preferences
        .write_all(PREFERENCES.as_bytes())
        .map_err(failed)?;
    let table = |name| {
        let path = directory.join(name);
        Ok::<_, String>((private(&path)?, path))
    };
    Ok([table(wireshark::ESP_TABLE)?, table(wireshark::IKE_TABLE)?])
}

//! An OCSP responder: that of OpenSSL, for the lower authority of a [`Pki`].

use crate::Result;
use crate::lab::Lab;
use crate::pki::{Certificate, Key, Pki};
use crate::process::{Process, tail};
use crate::{secs, until};
use anyhow::Context;
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose};
use std::fmt::Write;

/// The port of responders.
const PORT: u16 = 8889;

/// What a responder knows of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is good.
    Good,
    /// It was revoked.
    Revoked,
}

/// A running responder.
#[derive(Debug)]
pub struct Responder {
    process: Process,
}

impl Responder {
    /// Starts one on `host`; of other certificates it knows nothing. Its own certificate is by the authority whose certificates it knows.
    pub fn start(
        lab: &Lab,
        host: &str,
        pki: &Pki,
        known: &[(&Certificate, Status)],
    ) -> Result<Self> {
        let own = pki.issue_with("ocsp.test", Key::P256, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        })?;
        let mut index = String::new();
        for (certificate, status) in known {
            // Status, end, when it was revoked, serial number, file, subject.
            let (letter, revoked) = match status {
                Status::Good => ('V', ""),
                Status::Revoked => ('R', "250101000000Z"),
            };
            let serial = format!("{:04X}", certificate.serial);
            let _ = writeln!(
                index,
                "{letter}\t21200101000000Z\t{revoked}\t{serial}\tunknown\t/CN=x"
            );
        }
        // One for each: what a log says is of its own responder.
        let dir = lab.dir_of(&format!("ocsp-{host}"))?;
        let file = dir.join("index.txt");
        std::fs::write(&file, index)?;
        let (namespace, port) = (lab.namespace(host), PORT.to_string());
        let [file, between, certificate, key] =
            [&file, &own.between, &own.own, &own.key].map(|path| path.to_str().context("path"));
        let command = [
            "ip",
            "netns",
            "exec",
            &namespace,
            "openssl",
            "ocsp",
            "-port",
            &port,
            "-index",
            file?,
            "-CA",
            between?,
            "-rsigner",
            certificate?,
            "-rkey",
            key?,
            "-nmin",
            "10",
            "-text",
        ];
        let log = dir.join("log");
        let process = Process::start(&command, &[], &log)?;
        until(secs(30), "the responder listens", || {
            Ok(tail(&log, 50).contains("aiting for OCSP client connections"))
        })?;
        Ok(Self { process })
    }

    /// Sends it a signal: one that is stopped accepts connections and does not answer.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}

/// Names the responder in a certificate (authorityInfoAccess, RFC 5280 §4.2.2.1).
pub fn name_responder(params: &mut CertificateParams) {
    const AUTHORITY_INFO_ACCESS: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 1];
    const OCSP: [u8; 10] = [6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
    // All of it is shorter than 128 bytes.
    let tlv = |tag: u8, value: &[u8]| {
        [&[tag, u8::try_from(value.len()).unwrap_or_default()], value].concat()
    };
    let uri = tlv(0x86, format!("http://127.0.0.1:{PORT}/").as_bytes());
    let access = tlv(0x30, &tlv(0x30, &[&OCSP[..], &uri].concat()));
    let extension = CustomExtension::from_oid_content(&AUTHORITY_INFO_ACCESS, access);
    params.custom_extensions.push(extension);
}

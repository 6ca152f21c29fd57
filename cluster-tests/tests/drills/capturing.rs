//! `ctl capture`: what Wireshark reads in it, and what it costs the traffic when nobody reads it.

use anyhow::{Context, ensure};
use evergate_cluster_tests::decrypt::{Decoded, decode};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{Family::V4, PROTECTED, inside, walk};
use evergate_cluster_tests::member::binary;
use evergate_cluster_tests::process::run;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, millis, secs, until};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A `ctl capture` that runs beside the drill.
struct Capturing(Child);

impl Capturing {
    fn start(duo: &Duo, args: &[&str]) -> Result<Self> {
        let socket = duo.member.dir().join("admin.sock");
        let captures = duo.member.log()?.matches("a capture of").count();
        let child = Command::new(binary()?)
            .args(["ctl", "--json", "--socket"])
            .arg(socket)
            .arg("capture")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let begun = Self(child);
        until(secs(10), "the capture begins", || {
            Ok(duo.member.log()?.matches("a capture of").count() > captures)
        })?;
        Ok(begun)
    }

    /// Waits for its end: what it wrote to the standard output, and to the standard error.
    fn end(mut self) -> Result<(Vec<u8>, String)> {
        let (mut out, mut said) = (Vec::new(), String::new());
        self.0
            .stdout
            .take()
            .context("stdout")?
            .read_to_end(&mut out)?;
        self.0
            .stderr
            .take()
            .context("stderr")?
            .read_to_string(&mut said)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}: {said}");
        Ok((out, said))
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fields of all packets of a file, as Wireshark sees them.
fn fields(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let file = file.to_str().context("path")?;
    let mut command = vec!["tshark", "-n", "-r", file, "-Y", filter, "-T", "fields"];
    command.extend(["-o", "ip.check_checksum:TRUE"]);
    for field in fields {
        command.extend(["-e", field]);
    }
    let text = run(&command)?;
    let split = |line: &str| line.split('\t').map(str::to_owned).collect();
    Ok(text.lines().map(split).collect())
}

#[test]
fn wireshark_sees_both_sides_of_a_child_sa() -> Result<()> {
    let duo = Duo::start(&Setup::new(V4))?;
    duo.peer.initiate(C1, C1)?;
    let spis = duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    let spi = format!("0x{:08x}", spis.child.iter().next().context("a child")?.0);
    let file = duo.member.dir().join("child.pcapng");
    let name = file.to_str().context("path")?;
    let args = ["--sa", &spi, "--count", "2000", "--write", name];
    let (said, _) = Capturing::start(&duo, &args)?.end()?;
    let said: serde_json::Value = serde_json::from_slice(&said)?;
    assert_eq!(
        (&said["packets"], &said["reason"]),
        (&2000.into(), &"full".into())
    );
    assert_eq!(said["lost"], 0);
    flow.stop().has_no_duplicate()?;
    let closed = both_sides(&file)?;
    // No keys, unless they are asked for.
    assert!(!duo.member.dir().join("child.pcapng.keys").exists());
    let keyless = decode(&file, duo.member.dir())?;
    assert_eq!((keyless.esp, keyless.esp_failed), (0, closed));
    let unknown = duo
        .member
        .ctl(&["capture", "--sa", "0x0000beef", "--write", name]);
    let refusal = unknown.err().context("there is no such SA")?.to_string();
    assert!(refusal.contains("no Child SA 0x0000beef"), "{refusal}");
    duo.finish()?;
    Ok(())
}

/// So many packets the member takes at a time, where they had to wait: a capture may end between both sides of these.
const BATCH: usize = 64;

/// Each datagram is there in the clear and as ESP, in both directions, and sequence numbers grow by one. How many there are as ESP.
fn both_sides(file: &Path) -> Result<usize> {
    let names = [
        "frame.interface_name",
        "ip.src",
        "esp.sequence",
        "ip.checksum.status",
    ];
    let mut clear: BTreeMap<String, usize> = BTreeMap::new();
    let mut sequences: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for packet in fields(file, "ip", &names)? {
        let [side, source, sequence, checksum] = &packet[..] else {
            anyhow::bail!("{packet:?}");
        };
        assert!(matches!(checksum.as_str(), "1" | "Good"), "{packet:?}");
        match side.as_str() {
            "clear" => *clear.entry(source.clone()).or_default() += 1,
            "encrypted" => sequences
                .entry(source.clone())
                .or_default()
                .push(sequence.parse()?),
            other => anyhow::bail!("interface {other}"),
        }
    }
    let ends = [inside(1)[0].clone(), PROTECTED[0].to_owned()];
    assert!(
        clear.keys().all(|source| ends.contains(source)),
        "{clear:?}"
    );
    assert_eq!((clear.len(), sequences.len()), (2, 2), "{sequences:?}");
    for numbers in sequences.values() {
        let steps = numbers.windows(2).all(|w| w[1] == w[0] + 1);
        assert!(steps && numbers.len() > 50, "{numbers:?}");
    }
    let (clear, closed): (usize, usize) =
        (clear.values().sum(), sequences.values().map(Vec::len).sum());
    assert!(clear.abs_diff(closed) <= BATCH + 2, "{clear} and {closed}");
    Ok(closed)
}

#[test]
fn a_capture_of_an_ike_sa_follows_it_and_has_keys_if_asked() -> Result<()> {
    let duo = Duo::start(&Setup::new(V4))?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let flow = duo.traffic(V4, 10)?;
    let id = duo.member.sas()?[0].spis;
    let own = format!("0x{:016x}", id.1);
    let file = duo.member.dir().join("ike.pcapng");
    let name = file.to_str().context("path")?;
    let args = ["--sa", &own, "--seconds", "12", "--keys", "--write", name];
    let capture = Capturing::start(&duo, &args)?;
    flow.runs(50, secs(20))?;
    duo.peer.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    flow.runs(50, secs(20))?;
    duo.peer.rekey_ike(C1)?;
    duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
    flow.runs(50, secs(20))?;
    duo.member.rekey_child(C1)?;
    flow.runs(50, secs(20))?;
    let (said, _) = capture.end()?;
    let said: serde_json::Value = serde_json::from_slice(&said)?;
    assert_eq!(
        (&said["reason"], &said["lost"]),
        (&"time".into(), &0.into())
    );
    flow.stop().has_no_duplicate()?;
    let keys = duo.member.dir().join("ike.pcapng.keys");
    let Decoded {
        ike,
        ike_failed,
        esp,
        esp_failed,
    } = decode(&file, &keys)?;
    // Of the new IKE SA a message may pass before its keys are looked for, but they are there in the end.
    assert!(ike >= 6 && esp >= 200, "{ike} messages, {esp} packets");
    assert_eq!((ike_failed, esp_failed), (0, 0));
    for path in walk(&keys)? {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path)?.permissions());
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    assert!(duo.member.log()?.contains("capture-keys"));
    duo.finish()?;
    Ok(())
}

#[test]
fn a_slow_reader_loses_its_capture_and_no_traffic() -> Result<()> {
    let duo = Duo::start(&Setup::new(V4))?;
    duo.peer.initiate(C1, C1)?;
    let spis = duo.agree(1)?;
    let spi = format!("0x{:08x}", spis.child.iter().next().context("a child")?.0);
    let (a, b) = (inside(1)[0].clone(), PROTECTED[0]);
    let flow = Flow::start(&duo.lab, ("peer1", &a), ("host", b), millis(2), 1200)?;
    flow.runs(10, secs(20))?;
    // Nobody reads the pipe until it is over.
    let capture = Capturing::start(&duo, &["--sa", &spi, "--seconds", "3600"])?;
    flow.runs(4000, secs(60))?;
    flow.stop().is_lossless()?;
    duo.member.terminate(C1)?;
    let (file, said) = capture.end()?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let number = |key: &str| said[key].as_u64().unwrap_or(0);
    assert_eq!(said["reason"], "gone");
    assert!(number("lost") > 1000, "{said}");
    let path = duo.member.dir().join("slow.pcapng");
    std::fs::write(&path, file)?;
    let packets = fields(&path, "ip", &["frame.number"])?.len();
    assert_eq!(packets as u64, number("packets"), "the file is whole");
    duo.finish()?;
    Ok(())
}

//! The capture decrypted by Wireshark with the member's key log: every message
//! decodes, and nothing that was secret is at rest in the clear.

use evergate_cluster_tests::connection::SECRET;
use evergate_cluster_tests::decrypt::{Decoded, decode};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{Family::V4, walk};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs, until};

#[test]
fn wireshark_opens_everything_with_the_key_log() -> Result<()> {
    let mut duo = Duo::start(&Setup::new(V4))?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let flow = duo.traffic(V4, 10)?;
    flow.runs(50, secs(20))?;
    duo.member.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    duo.peer.rekey_ike(C1)?;
    duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
    flow.runs(50, secs(20))?;
    duo.member.kill9()?;
    duo.member.start_again(&[])?;
    flow.runs(50, secs(20))?;
    duo.agree(1)?;
    let report = flow.stop();
    let keys = duo.member.dir().join("keys");
    // The capture may be a while behind.
    let mut decoded = Decoded::default();
    until(secs(30), "the capture has all of it", || {
        decoded = decode(&duo.capture.copy()?, &keys)?;
        anyhow::ensure!(decoded.ike >= 8 && decoded.esp >= 300, "{decoded:?}");
        Ok(true)
    })?;
    assert_eq!(
        (decoded.ike_failed, decoded.esp_failed),
        (0, 0),
        "{decoded:?}"
    );
    report.has_no_duplicate()?;
    nothing_at_rest(&duo)?;
    duo.finish()?;
    Ok(())
}

/// Neither the pre-shared key nor a key of the key log is in the state or the log.
fn nothing_at_rest(duo: &Duo) -> Result<()> {
    let mut secrets = vec![SECRET.as_bytes().to_vec()];
    for file in walk(&duo.member.dir().join("keys"))? {
        let text = std::fs::read_to_string(file)?;
        for word in text.split(|c: char| !c.is_ascii_hexdigit()) {
            // SPIs are shorter than any key.
            if word.len() >= 32 && word.len() % 2 == 0 {
                let key = (0..word.len())
                    .step_by(2)
                    .map(|i| u8::from_str_radix(&word[i..i + 2], 16));
                secrets.push(key.collect::<std::result::Result<_, _>>()?);
                secrets.push(word.as_bytes().to_vec());
            }
        }
    }
    assert!(secrets.len() > 8, "the key log is empty");
    let mut files = walk(&duo.member.dir().join("state"))?;
    files.push(duo.member.log_path());
    assert!(files.len() > 1);
    for file in files {
        let bytes = std::fs::read(&file)?;
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "a secret is in {}", file.display());
        }
    }
    Ok(())
}

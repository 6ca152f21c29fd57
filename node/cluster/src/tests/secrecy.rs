//! No key in the clear at rest.

use super::*;
use std::{fs, path::Path as FsPath};

fn files(dir: &FsPath, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

fn holds(content: &[u8], secret: &[u8]) -> bool {
    content.windows(secret.len()).any(|w| w == secret)
}

#[tokio::test]
async fn no_secret_is_in_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let secret = b"a key that must not be seen";
    let key = [7; 32];
    let config = Config {
        snapshot_entries: 5,
        ..config()
    };
    let replica = open_dir(config, dir.path()).await.unwrap();
    taken(&replica).await;
    for n in 0..8 {
        replica.propose(vec![put(1, sa(n, secret))]).await.unwrap();
    }
    assert!(holds(&snapshot(&replica), secret), "the state has it");
    snapshot_written(&replica).await;
    replica.close().await;
    let mut found = Vec::new();
    files(dir.path(), &mut found);
    assert!(
        found.iter().any(|(name, _)| name.contains("snapshot-")) && found.len() >= 4,
        "{}",
        found.len()
    );
    for (name, content) in found {
        // A part of it would do harm as well.
        for part in [&secret[..8], &secret[10..20], &key[..16]] {
            assert!(!holds(&content, part), "{name}");
        }
    }
}

#[tokio::test]
async fn no_secret_is_in_debug_texts() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    taken(&replica).await;
    let secret = b"a key that must not be seen";
    replica.propose(vec![put(1, sa(1, secret))]).await.unwrap();
    let text = format!(
        "{replica:?} {:?} {:?}",
        config(),
        replica.read(|s| format!("{s:?} {:?}", s.sa(SaId(1)).unwrap().phase))
    );
    assert!(
        !text.contains("a key") && !text.contains("97, 32, 107"),
        "{text}"
    );
}

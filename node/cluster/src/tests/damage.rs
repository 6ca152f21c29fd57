//! Whatever happens to the files: the same state, or an error that says so. Never another state, never a panic.

use super::*;
use std::{
    fs,
    path::{Path as FsPath, PathBuf},
};

/// A store with a snapshot and some entries after it, and the snapshot bytes of its state.
async fn store(dir: &FsPath) -> Vec<u8> {
    let config = Config {
        snapshot_entries: 12,
        ..config()
    };
    let replica = open_dir(config, dir).await.unwrap();
    taken(&replica).await;
    for n in 0..20 {
        let secret: Vec<u8> = (0..200)
            .map(|b: u32| u8::try_from((b * 31 + n * 17) % 251).unwrap())
            .collect();
        replica.propose(vec![put(1, sa(n, &secret))]).await.unwrap();
    }
    let before = snapshot(&replica);
    snapshot_written(&replica).await;
    assert_eq!(replica.stats().snapshots, 1);
    replica.close().await;
    before
}

fn copy(from: &FsPath, to: &FsPath) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(root: &FsPath, dir: &FsPath, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
}

/// Opens a damaged copy of a store. Returns whether it recovered.
async fn recovers(
    original: &FsPath,
    expected: &[u8],
    what: &str,
    damage: impl FnOnce(&FsPath),
) -> bool {
    let dir = tempfile::tempdir().unwrap();
    copy(original, dir.path());
    damage(dir.path());
    match open_dir(config(), dir.path()).await {
        Ok(replica) => {
            assert!(snapshot(&replica) == expected, "another state after {what}");
            replica.close().await;
            // What recovered once stays so.
            let again = open_dir(config(), dir.path())
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(
                snapshot(&again) == expected,
                "another state the second time after {what}"
            );
            again.close().await;
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                !text.is_empty() && matches!(error, JoinError::Store(_) | JoinError::Log(_)),
                "{what}: {text}"
            );
            false
        }
    }
}

fn scaled() -> usize {
    std::env::var("EVERGATE_DAMAGE_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40)
}

#[tokio::test]
async fn flipped_and_missing_bytes_never_give_another_state() {
    let dir = tempfile::tempdir().unwrap();
    let expected = store(dir.path()).await;
    let mut all = Vec::new();
    files(dir.path(), dir.path(), &mut all);
    assert!(all.len() >= 4, "{all:?}");
    let (mut recovered, mut refused) = (0, 0);
    for name in &all {
        let content = fs::read(dir.path().join(name)).unwrap();
        // Where there is something: sled's file is mostly zeros.
        let places: Vec<usize> = (0..content.len()).filter(|n| content[*n] != 0).collect();
        let rounds = scaled().min(places.len());
        for round in 0..rounds {
            let at = places[(round * places.len() / rounds + round * 7) % places.len()];
            let flip = |root: &FsPath| {
                let mut changed = content.clone();
                changed[at] ^= 1 << (round % 8);
                fs::write(root.join(name), changed).unwrap();
            };
            let cut = |root: &FsPath| fs::write(root.join(name), &content[..at]).unwrap();
            for ok in [
                recovers(
                    dir.path(),
                    &expected,
                    &format!("a flip at {at} of {}", name.display()),
                    flip,
                )
                .await,
                recovers(
                    dir.path(),
                    &expected,
                    &format!("a cut at {at} of {}", name.display()),
                    cut,
                )
                .await,
            ] {
                *(if ok { &mut recovered } else { &mut refused }) += 1;
            }
        }
        let gone = |root: &FsPath| fs::remove_file(root.join(name)).unwrap();
        recovers(
            dir.path(),
            &expected,
            &format!("the loss of {}", name.display()),
            gone,
        )
        .await;
    }
    assert!(
        recovered > 0 && refused > 0,
        "{recovered} recovered, {refused} refused"
    );
}

#[tokio::test]
async fn an_older_log_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open_dir(config(), dir.path()).await.unwrap();
    taken(&replica).await;
    replica.close().await;
    let old = tempfile::tempdir().unwrap();
    copy(&dir.path().join("log"), old.path());
    let replica = open_dir(config(), dir.path()).await.unwrap();
    taken(&replica).await;
    replica.close().await;
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    copy(old.path(), &dir.path().join("log"));
    let error = open_dir(config(), dir.path())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ends at entry 2, but entry 3") && error.contains("move the directory"),
        "{error}"
    );
}

#[tokio::test]
async fn leftovers_of_a_crash_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let expected = store(dir.path()).await;
    let leftovers = |root: &FsPath| {
        fs::write(root.join("snapshots/unfinished"), b"half a snapshot").unwrap();
        fs::write(
            root.join("snapshots/snapshot-00000000000000000099"),
            b"not whole",
        )
        .unwrap();
        fs::write(root.join("log/snap.00000000.generating"), b"half").unwrap();
    };
    assert!(recovers(dir.path(), &expected, "leftovers", leftovers).await);
    // A lost `meta` beside a log is not taken for a new store.
    assert!(
        !recovers(dir.path(), &expected, "the loss of meta", |root| {
            fs::remove_file(root.join("meta")).unwrap()
        })
        .await
    );
}

//! Configuration files: what an operator writes.
//!
//! The source is that of the `evergate` binary. Its crate is not built for this, because it needs everything that a gateway needs, and the
//! configuration takes very little of it: reading keys, three types of the cluster, and defaults of the data plane.

#[path = "../../../node/server/src/config/mod.rs"]
#[allow(dead_code, unused_imports)]
mod document;
#[path = "../../../node/server/src/credentials/keys.rs"]
#[allow(dead_code)]
pub(crate) mod keys;
#[path = "../../../node/cluster/src/lease/mod.rs"]
#[allow(dead_code)]
pub mod lease;
#[path = "../../../node/dataplane/src/config.rs"]
#[allow(dead_code)]
pub mod plane;

/// Stands for `evergate_cluster::raft`, which is Raft.
pub mod raft {
    use std::time::Duration;

    /// See there.
    pub const MAX_VOTERS: usize = 7;

    /// See there.
    #[derive(Clone, Debug)]
    pub struct Node {
        /// See there.
        pub name: String,
        /// See there.
        pub address: String,
    }

    /// See there.
    #[derive(Clone, Copy, Debug)]
    pub struct Timing {
        /// See there.
        pub heartbeat: Duration,
        /// See there.
        pub election_min: Duration,
        /// See there.
        pub election_max: Duration,
    }

    impl Default for Timing {
        fn default() -> Self {
            let [heartbeat, election_min, election_max] = [20, 60, 100].map(Duration::from_millis);
            Self {
                heartbeat,
                election_min,
                election_max,
            }
        }
    }
}

use evergate_ike::config::Policy;
use evergate_state::Command;
use rcgen::{CertificateParams, KeyPair};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// The policy that a document of ours says.
///
/// # Panics
/// If it is refused.
pub(crate) fn policy(text: &str, directory: &std::path::Path) -> Policy {
    match document::parse(text, directory) {
        Ok(config) => config.policy,
        Err(problems) => panic!("{}", document::render("our own", &problems)),
    }
}

/// Reads a document. Whatever is wrong has a place in it.
///
/// # Panics
/// If a problem has no place.
pub(crate) fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    // Documents name files, which are read: only those that are made for this.
    if ["/dev", "/proc", "/sys", "\\", ".."]
        .iter()
        .any(|no| text.contains(no))
    {
        return;
    }
    let problems = match document::parse(text, files()) {
        Ok(config) => {
            let set = Command::SetPolicy {
                expected: 0,
                policy: Arc::new(config.policy),
            };
            let written = postcard::to_stdvec(&set).expect("plain values");
            assert_eq!(
                postcard::from_bytes(&written),
                Ok(set),
                "what is replicated is what was read"
            );
            config.warnings
        }
        Err(problems) => {
            assert!(
                problems
                    .iter()
                    .any(|p| p.severity == document::Severity::Error),
                "refused for no reason"
            );
            problems
        }
    };
    let lines = text.matches('\n').count() + 1;
    for problem in &problems {
        assert!(
            (1..=lines).contains(&problem.line),
            "{problem} is in no line"
        );
        assert!(!problem.to_string().contains('\n'));
    }
    let _ = document::render("evergate.toml", &problems);
}

/// A directory with the files that documents may name.
fn files() -> &'static PathBuf {
    static FILES: OnceLock<PathBuf> = OnceLock::new();
    FILES.get_or_init(|| {
        let directory = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../target/fuzz/work/files"
        ));
        let made = make_files(&directory);
        made.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        directory
    })
}

/// Several processes may do this at once: each file is there whole or not at all.
fn make_files(directory: &std::path::Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec!["gw.example".to_owned()]).expect("a name");
    let own = own.self_signed(&key).expect("a certificate");
    let all = [
        ("ca.pem", own.pem()),
        ("own.pem", own.pem()),
        ("own.key", key.serialize_pem()),
        ("psk", "a secret\n".to_owned()),
    ];
    for (name, text) in all {
        let new = directory.join(format!("{name}.{}", std::process::id()));
        fs::write(&new, text)?;
        fs::rename(new, directory.join(name))?;
    }
    Ok(())
}

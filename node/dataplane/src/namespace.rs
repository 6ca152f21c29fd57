//! Network namespaces for unit tests.

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own. Without root there is none.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let tested = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(error) => eprintln!("skipped: no network namespace: {error}"),
    });
    tested.join().expect("it holds");
}

//! Two ends of IKE SAs in virtual time, each committing as a member does, and everything that can happen between and to them.

/// Says what happens, where `EVERGATE_FUZZ_TRACE` is set.
macro_rules! trace {
    ($($what:tt)*) => {
        if crate::sa::tracing() {
            eprintln!($($what)*);
        }
    };
}

mod checks;
mod end;
mod pair;
mod plant;
mod script;
mod states;

pub(crate) use pair::Pair;
pub use script::sa;
pub(crate) use script::{SETUPS, document, op, policies};
pub(crate) use states::States;

fn tracing() -> bool {
    static TRACING: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *TRACING.get_or_init(|| std::env::var_os("EVERGATE_FUZZ_TRACE").is_some())
}

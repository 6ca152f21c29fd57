//! Points at which a drill can make the process die, as if by `kill -9`, at exactly the worst moment.
//!
//! Without the feature `drills`, [`hit`] is nothing. With it, the environment variable `EVERGATE_FAILPOINT` names the point and
//! optionally the how-manieth passage is meant: `after-append` or `after-append:7`, `after-commit:IKE_AUTH:2`.

/// Passes a point. The process may not survive it.
#[cfg(not(feature = "drills"))]
#[inline(always)]
pub fn hit(_name: &str) {}

/// Passes a point. The process may not survive it.
#[cfg(feature = "drills")]
pub fn hit(name: &str) {
    armed::hit(name);
}

#[cfg(feature = "drills")]
mod armed {
    use nix::{sys::signal, unistd::Pid};
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    struct Point {
        name: String,
        /// Passages that are left, the deadly one included.
        left: AtomicU64,
    }

    static POINT: OnceLock<Option<Point>> = OnceLock::new();

    pub(super) fn hit(name: &str) {
        let point = POINT.get_or_init(|| {
            std::env::var("EVERGATE_FAILPOINT")
                .ok()
                .and_then(|text| parse(&text))
        });
        let Some(point) = point.as_ref().filter(|p| p.name == name) else {
            return;
        };
        if point.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // No destructor, no flush, no farewell. The signal arrives before the call returns.
            let _ = signal::kill(Pid::this(), signal::Signal::SIGKILL);
        }
    }

    /// What follows the last colon counts only if it is a number: names have colons of their own.
    fn parse(text: &str) -> Option<Point> {
        let numbered = text
            .rsplit_once(':')
            .and_then(|(name, nth)| Some((name, nth.parse().ok()?)));
        let (name, nth) = numbered.unwrap_or((text, 1));
        (nth > 0 && !name.is_empty()).then(|| Point {
            name: name.to_owned(),
            left: AtomicU64::new(nth),
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_may_have_colons() {
            let parsed = |text| parse(text).map(|p| (p.name, p.left.into_inner()));
            let point = |name: &str, nth| Some((name.to_owned(), nth));
            assert_eq!(parsed("after-append"), point("after-append", 1));
            assert_eq!(parsed("after-append:7"), point("after-append", 7));
            assert_eq!(
                parsed("after-commit:IKE_AUTH"),
                point("after-commit:IKE_AUTH", 1)
            );
            assert_eq!(
                parsed("after-commit:IKE_AUTH:2"),
                point("after-commit:IKE_AUTH", 2)
            );
            assert_eq!(parsed("after-append:0"), None);
            assert_eq!(parsed(""), None);
        }
    }
}

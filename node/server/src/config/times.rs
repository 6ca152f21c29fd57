//! When IKE SAs and Child SAs are replaced.

use super::{validate::Check, values::Text};
use std::time::Duration;
use toml::Spanned;

/// When an IKE SA is replaced without anything said about it.
const REKEY_TIME: Duration = Duration::from_secs(4 * 3600);

/// The times of the IKE SAs of a connection.
pub(super) struct IkeTimes {
    pub(super) rekey: Duration,
    pub(super) reauth: Duration,
    pub(super) over: Duration,
    pub(super) rand: Duration,
}

impl Check<'_> {
    /// When IKE SAs are rekeyed, authenticated again and deleted, with what is not given.
    pub(super) fn ike_times(
        &mut self,
        rekey: Option<Text<Duration>>,
        reauth: Option<Text<Duration>>,
        over: Option<Text<Duration>>,
        rand: Option<Spanned<Text<Duration>>>,
    ) -> IkeTimes {
        let reauth = reauth.map_or(Duration::ZERO, |t| t.0);
        // Who wants new authentications gets new keys with them.
        let unless_given = match reauth.is_zero() {
            true => REKEY_TIME,
            false => Duration::ZERO,
        };
        let rekey = rekey.map_or(unless_given, |t| t.0);
        let longer = rekey.max(reauth);
        let over = over.map_or(longer / 10, |t| t.0);
        let rand = self.rand_time(rand, over, longer);
        IkeTimes {
            rekey,
            reauth,
            over,
            rand,
        }
    }

    pub(super) fn rand_time(
        &mut self,
        given: Option<Spanned<Text<Duration>>>,
        default: Duration,
        rekey_time: Duration,
    ) -> Duration {
        let Some(given) = given else {
            return default.min(rekey_time);
        };
        let value = given.get_ref().0;
        if value > rekey_time {
            self.error(
                given.span(),
                "rand_time is longer than rekey_time, expected less",
            );
        }
        value
    }
}

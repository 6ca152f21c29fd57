//! Generations of a cluster.

use evergate_ike::env::UnixMillis;
use std::{fmt, str::FromStr};

/// Which life of a cluster this is. State that was rolled back would use numbers again, so a cluster that was restored, or that goes on without its
/// majority, is another one: it has none of the SAs, and talks to no member of a former generation.
///
/// The one that was founded later is the later one, whatever the numbers say: two members could both have been made the first of a second generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation {
    /// When it was founded, in milliseconds of Unix time; zero for the first generation.
    pub founded: u64,
    /// Counts generations, from 1.
    pub number: u64,
}

impl Generation {
    /// Of a cluster that was formed by its members.
    pub const FIRST: Self = Self {
        founded: 0,
        number: 1,
    };

    /// The one after it. It is later also if the clock was set back.
    #[must_use]
    pub fn next(self, now: UnixMillis) -> Self {
        Self {
            founded: now.0.max(self.founded.saturating_add(1)),
            number: self.number.saturating_add(1),
        }
    }
}

impl Default for Generation {
    fn default() -> Self {
        Self::FIRST
    }
}

/// As members tell it to each other: `NUMBER@FOUNDED`.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.founded)
    }
}

/// A text is no generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no generation")]
pub struct NoGeneration;

impl FromStr for Generation {
    type Err = NoGeneration;

    fn from_str(text: &str) -> Result<Self, NoGeneration> {
        let (number, founded) = text.split_once('@').ok_or(NoGeneration)?;
        let parse = |digits: &str| digits.parse().map_err(|_| NoGeneration);
        Ok(Self {
            founded: parse(founded)?,
            number: parse(number)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_is_later_whatever_the_clock_says() {
        let second = Generation::FIRST.next(UnixMillis(1000));
        let third = second.next(UnixMillis(10));
        assert!(Generation::FIRST < second && second < third);
        assert_eq!((second.number, third.number), (2, 3));
        // Two were founded from the same one.
        assert!(second < Generation::FIRST.next(UnixMillis(1001)));
        // From an old backup, when others had gone on twice already.
        assert!(third < Generation::FIRST.next(UnixMillis(5000)));
    }

    #[test]
    fn a_generation_reads_as_it_is_written() {
        let second = Generation::FIRST.next(UnixMillis(1000));
        assert_eq!(second.to_string(), "2@1000");
        assert_eq!("2@1000".parse(), Ok(second));
        for wrong in ["", "2", "2@", "@1000", "2@x", "-1@0"] {
            assert_eq!(wrong.parse::<Generation>(), Err(NoGeneration), "{wrong:?}");
        }
    }
}

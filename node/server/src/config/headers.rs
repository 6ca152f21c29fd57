//! Which way DSCP is copied between inner and outer headers.

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use std::fmt;

/// Which way DSCP is copied, as swanctl.conf says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyDscp {
    /// From the inner to the outer header.
    pub(crate) out: bool,
    /// From the outer to the inner header.
    pub(crate) inwards: bool,
}

impl Default for CopyDscp {
    fn default() -> Self {
        Self {
            out: true,
            inwards: false,
        }
    }
}

const EXPECTED: &str = "\"out\", \"in\", \"yes\" or \"no\"";

impl<'de> Deserialize<'de> for CopyDscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = CopyDscp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CopyDscp, E> {
                let (out, inwards) = match text {
                    "out" => (true, false),
                    "in" => (false, true),
                    "yes" => (true, true),
                    "no" => (false, false),
                    _ => {
                        return Err(E::custom(format_args!(
                            "{text:?} is no way to copy DSCP, expected {EXPECTED}"
                        )));
                    }
                };
                Ok(CopyDscp { out, inwards })
            }

            /// Outwards or not at all.
            fn visit_bool<E: de::Error>(self, out: bool) -> Result<CopyDscp, E> {
                Ok(CopyDscp {
                    out,
                    inwards: false,
                })
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

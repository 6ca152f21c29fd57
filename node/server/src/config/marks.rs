//! Firewall marks and the help of network cards, as swanctl.conf says them.

use super::{
    document::{self, Dataplane, PlaneKind},
    values::Textual,
};
use evergate_ike::config::{HwOffload, Mark, Marks};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use std::fmt;

/// A mark, or such a one that is the same as that of the other key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetMark {
    /// This one.
    To(Mark),
    /// The value of `mark_in` or `mark_out`, and these bits of it.
    Same(u32),
}

/// A mark that is matched, as a number or a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirewallMark(pub(crate) Mark);

const EXPECTED: &str = "a number, or \"VALUE/MASK\" with numbers such as 0xe6";

impl SetMark {
    fn of(self, other: Mark) -> Mark {
        match self {
            Self::To(mark) => mark,
            Self::Same(mask) => Mark {
                value: other.value & mask,
                mask,
            },
        }
    }
}

/// What is said in one text.
fn read(text: &str) -> Result<SetMark, String> {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    let mask = number(mask)?;
    match value {
        "%same" => Ok(SetMark::Same(mask)),
        "%unique" | "%unique-dir" => Err(format!(
            "{value} would be another mark on each member and after each rekey"
        )),
        value => {
            let value = number(value)?;
            if value & !mask != 0 {
                return Err(format!("mark {text:?} has bits outside of its mask"));
            }
            Ok(SetMark::To(Mark { value, mask }))
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a number of 32 bits"))
}

struct Reader;

impl Visitor<'_> for Reader {
    type Value = SetMark;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SetMark, E> {
        read(text).map_err(|e| E::custom(format_args!("{e}, expected {EXPECTED}")))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<SetMark, E> {
        let value = u32::try_from(number).map_err(|_| {
            E::custom(format_args!(
                "{number} is not a number of 32 bits, expected {EXPECTED}"
            ))
        })?;
        let mask = u32::MAX;
        Ok(SetMark::To(Mark { value, mask }))
    }
}

impl<'de> Deserialize<'de> for SetMark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for FirewallMark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match SetMark::deserialize(deserializer)? {
            SetMark::To(mark) => Ok(Self(mark)),
            SetMark::Same(_) => Err(de::Error::custom(format_args!(
                "%same is the same as nothing here, expected {EXPECTED}"
            ))),
        }
    }
}

impl Textual for HwOffload {
    const EXPECTED: &'static str = "\"no\", \"auto\", \"crypto\", or \"yes\" for \"crypto\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(Self::No),
            "auto" => Ok(Self::Auto),
            "yes" | "crypto" => Ok(Self::Crypto),
            "packet" => Err(
                "\"packet\" leaves the counting of sequence numbers to the card, which the kernel must see to"
                    .to_owned(),
            ),
            _ => Err(format!("{text:?} is no help of a network card")),
        }
    }
}

/// The marks of a child.
pub(super) fn of(c: &document::Child) -> Marks {
    let matched = |m: &Option<toml::Spanned<FirewallMark>>| {
        m.as_ref().map_or_else(Mark::default, |m| m.get_ref().0)
    };
    let set = |m: &Option<toml::Spanned<SetMark>>, other| {
        let set = m.as_ref().map(|m| m.get_ref().of(other));
        set.unwrap_or_default()
    };
    let (mark_in, mark_out) = (matched(&c.mark_in), matched(&c.mark_out));
    Marks {
        mark_in,
        mark_out,
        set_mark_in: set(&c.set_mark_in, mark_in),
        set_mark_out: set(&c.set_mark_out, mark_out),
    }
}

/// What the data plane of this file cannot do of it: where, and why.
pub(super) fn problems(
    c: &document::Child,
    plane: &Dataplane,
) -> Vec<(std::ops::Range<usize>, String)> {
    let mut found = Vec::new();
    if plane.kind == PlaneKind::Userspace {
        let places = [
            ("mark_in", c.mark_in.as_ref().map(toml::Spanned::span)),
            ("mark_out", c.mark_out.as_ref().map(toml::Spanned::span)),
            (
                "set_mark_in",
                c.set_mark_in.as_ref().map(toml::Spanned::span),
            ),
            (
                "set_mark_out",
                c.set_mark_out.as_ref().map(toml::Spanned::span),
            ),
        ];
        for (name, span) in places {
            found.extend(span.map(|span| (span, format!("{name} needs a data plane of kind xfrm: in user space packets come and go by a device, where they have no marks of their Child SA"))));
        }
        if let Some(offload) = &c.hw_offload
            && offload.get_ref().0 == HwOffload::Crypto
        {
            let what = "hw_offload needs a data plane of kind xfrm, or to be \"auto\": network cards help the kernel";
            found.push((offload.span(), what.to_owned()));
        }
    }
    let ours = plane.mark.0;
    if let Some(set) = &c.set_mark_out
        && plane.kind == PlaneKind::Xfrm
        && of(c).set_mark_out.mask & ours.mask != 0
    {
        let what = format!(
            "set_mark_out has bits of the mark of [dataplane], {:#x}/{:#x}, by which the routes know outer packets, expected bits beside its mask",
            ours.value, ours.mask
        );
        found.push((set.span(), what));
    }
    found
}

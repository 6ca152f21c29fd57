//! Values that are written as text, each parsed once into what it means.

use evergate_ike::{
    config::{
        Childless, EnableTcp, Fragmentation, MAX_ROUNDS, Mode, RevocationPolicy, SendCert,
        StartAction, Unique,
    },
    identity::{IdPattern, Identity},
    proposal::{EspProposal, IkeProposal, parse_esp, parse_ike},
    secret::Secret,
    selector::SelectorTemplate,
    signature::Constraint,
};
use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use toml::Spanned;

/// A table, or an array of tables: what holds in each round of authentication, in their order.
#[derive(Debug)]
pub(super) struct Rounds<T>(pub(super) Vec<T>);

impl<T: Default> Default for Rounds<T> {
    fn default() -> Self {
        Self(vec![T::default()])
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Rounds<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Rounds<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a table, or an array of 1 to {MAX_ROUNDS} tables")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let only = T::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Rounds(vec![only]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(round) = seq.next_element()? {
                    all.push(round);
                }
                if all.is_empty() || all.len() > MAX_ROUNDS {
                    return Err(de::Error::invalid_length(all.len(), &self));
                }
                Ok(Rounds(all))
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// Something that is written as a text.
pub(super) trait Textual: Sized {
    /// What is expected, for messages: "expected …".
    const EXPECTED: &'static str;

    /// Reads it; the error says what is wrong, without "expected …".
    fn read(text: &str) -> Result<Self, String>;
}

/// A value that is written as a text.
#[derive(Clone, Debug)]
pub(crate) struct Text<T>(pub(crate) T);

impl<'de, T: Textual> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<T: Textual> Visitor<'_> for Reader<T> {
            type Value = Text<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let wrong = |e| E::custom(format_args!("{e}, expected {}", T::EXPECTED));
                T::read(text).map(Text).map_err(wrong)
            }
            // The values themselves are not shown: they may have been meant as secrets.
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
                Err(E::custom(format_args!(
                    "a number stands here, expected {}",
                    T::EXPECTED
                )))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                self.visit_i64(0)
            }
        }
        deserializer.deserialize_str(Reader(PhantomData))
    }
}

/// A table whose keys are names that the operator chose, in the order of the document.
#[derive(Clone, Debug)]
pub(super) struct Named<T>(pub(super) Vec<(Spanned<String>, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Named<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table for each name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Named(entries))
            }
        }
        deserializer.deserialize_map(Reader(PhantomData))
    }
}

impl Textual for Duration {
    const EXPECTED: &'static str = "a duration such as \"30s\", \"5m\", \"4h\" or \"1d\"";

    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration");
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" if number == 0 => 0,
            _ => return Err(wrong()),
        };
        // A century is more than any lifetime, and leaves room to add such times.
        let millis = number
            .checked_mul(unit)
            .filter(|m| *m < 100 * 366 * 86_400_000);
        millis
            .map(Self::from_millis)
            .ok_or_else(|| format!("{text:?} is too long"))
    }
}

impl Textual for IpAddr {
    const EXPECTED: &'static str = "an IP address";

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is not an IP address"))
    }
}

impl Textual for SocketAddr {
    const EXPECTED: &'static str = "an IP address and a port such as \"198.51.100.1:4510\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is not an address with a port"))
    }
}

impl Textual for IpNet {
    const EXPECTED: &'static str =
        "an IP address with the length of its prefix such as \"192.0.2.2/24\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is not an address with a prefix"))
    }
}

/// Outer addresses as a connection names them: one address, a network, or anything.
#[derive(Clone, Debug)]
pub(super) struct Outer(pub(super) Vec<IpNet>);

impl Textual for Outer {
    const EXPECTED: &'static str = "an IP address, a network in CIDR notation or \"%any\"";

    fn read(text: &str) -> Result<Self, String> {
        if text == "%any" {
            return Ok(Self(vec![
                IpNet::new_assert([0, 0, 0, 0].into(), 0),
                IpNet::new_assert([0_u16; 8].into(), 0),
            ]));
        }
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net| Self(vec![net.trunc()]))
            .map_err(|_| format!("{text:?} is no address (names are not resolved)"))
    }
}

/// The same of a peer, which may also be a name.
#[derive(Clone, Debug)]
pub(super) enum Remote {
    /// Addresses.
    Nets(Vec<IpNet>),
    /// A name for the system's resolver.
    Name(String),
}

impl Textual for Remote {
    const EXPECTED: &'static str =
        "an IP address, a network in CIDR notation, the name of a host or \"%any\"";

    fn read(text: &str) -> Result<Self, String> {
        if let Ok(Outer(nets)) = Outer::read(text) {
            return Ok(Self::Nets(nets));
        }
        // What looks like a mistyped address is none (RFC 3696 §2: a top-level domain is not all digits).
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        let last = name.rsplit('.').next().unwrap_or_default();
        let good = name.len() <= 253
            && name.split('.').all(label)
            && !last.chars().all(|c| c.is_ascii_digit());
        match good {
            true => Ok(Self::Name(text.to_owned())),
            false => Err(format!("{text:?} is neither an address nor a name")),
        }
    }
}

/// One proposal, or several where the text is `default`.
#[derive(Clone, Debug)]
pub(super) struct Proposals<P>(pub(super) Vec<P>);

impl Textual for Proposals<IkeProposal> {
    const EXPECTED: &'static str =
        "an IKE proposal such as \"aes256gcm16-prfsha384-x25519\" or \"default\"";

    fn read(text: &str) -> Result<Self, String> {
        parse_ike(text)
            .map(Self)
            .map_err(|e| format!("{text:?}: {e}"))
    }
}

impl Textual for Proposals<EspProposal> {
    const EXPECTED: &'static str = "an ESP proposal such as \"aes256gcm16-x25519\" or \"default\"";

    fn read(text: &str) -> Result<Self, String> {
        parse_esp(text)
            .map(Self)
            .map_err(|e| format!("{text:?}: {e}"))
    }
}

impl Textual for Identity {
    const EXPECTED: &'static str =
        "an identity such as \"gw.example.org\", \"user@example.org\" or \"192.0.2.1\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e| format!("{e}"))
    }
}

impl Textual for IdPattern {
    const EXPECTED: &'static str =
        "an identity such as \"gw.example.org\", \"*.example.org\", \"*@example.org\" or \"%any\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e| format!("{e}"))
    }
}

impl Textual for SelectorTemplate {
    const EXPECTED: &'static str =
        "a traffic selector such as \"10.1.0.0/16\", \"10.1.0.1[tcp/80]\" or \"dynamic\"";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e| format!("{e}"))
    }
}

/// How an end authenticates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Auth {
    /// With a pre-shared key.
    Psk,
    /// With a signature.
    Pubkey(Constraint),
}

impl Textual for Auth {
    const EXPECTED: &'static str =
        "\"psk\", \"pubkey\", or a kind of signature such as \"ecdsa\" or \"rsa/pss-sha256\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "psk" => Ok(Self::Psk),
            text => text.parse().map(Self::Pubkey).map_err(|_| {
                format!("{text:?} is not a method of authentication that is supported")
            }),
        }
    }
}

impl Textual for Mode {
    const EXPECTED: &'static str = "\"tunnel\" or \"transport\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "tunnel" => Ok(Self::Tunnel),
            "transport" => Ok(Self::Transport),
            _ => Err(format!("{text:?} is not a mode")),
        }
    }
}

impl Textual for Childless {
    const EXPECTED: &'static str = "\"allow\", \"prefer\", \"force\" or \"never\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "prefer" => Ok(Self::Prefer),
            "force" => Ok(Self::Force),
            "never" => Ok(Self::Never),
            _ => Err(format!("{text:?} is no way to set up IKE SAs")),
        }
    }
}

impl Textual for EnableTcp {
    const EXPECTED: &'static str = "\"no\", \"fallback\" or \"yes\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(Self::No),
            "fallback" => Ok(Self::Fallback),
            "yes" => Ok(Self::Yes),
            _ => Err(format!("{text:?} does not say when to use TCP")),
        }
    }
}

impl Textual for SendCert {
    const EXPECTED: &'static str = "\"always\", \"ifasked\" or \"never\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "ifasked" => Ok(Self::IfAsked),
            "never" => Ok(Self::Never),
            _ => Err(format!("{text:?} does not say when to send certificates")),
        }
    }
}

impl Textual for Unique {
    const EXPECTED: &'static str = "\"no\", \"keep\", \"replace\" or \"never\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(Self::No),
            "keep" => Ok(Self::Keep),
            "replace" => Ok(Self::Replace),
            "never" => Ok(Self::Never),
            _ => Err(format!("{text:?} is not a policy of uniqueness")),
        }
    }
}

impl Textual for RevocationPolicy {
    const EXPECTED: &'static str = "\"strict\", \"ifuri\" or \"relaxed\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "ifuri" => Ok(Self::IfUri),
            "relaxed" => Ok(Self::Relaxed),
            _ => Err(format!("{text:?} is no policy for revocations")),
        }
    }
}

impl Textual for Fragmentation {
    const EXPECTED: &'static str = "\"yes\", \"no\", \"accept\" or \"force\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            // Forcing it is about IKEv1: in IKEv2 the first messages are never fragmented (RFC 7383 §2.1).
            "yes" | "force" => Ok(Self::Yes),
            "accept" => Ok(Self::Accept),
            "no" => Ok(Self::No),
            _ => Err(format!("{text:?} is not a way to fragment")),
        }
    }
}

/// Where a list of revoked certificates is.
#[derive(Clone, Debug)]
pub(super) struct CrlUri(pub(super) String);

impl Textual for CrlUri {
    const EXPECTED: &'static str = "\"http://…\" or \"file:/…\" with an absolute path";

    fn read(text: &str) -> Result<Self, String> {
        let file = text
            .strip_prefix("file:")
            .map(|p| p.strip_prefix("//").unwrap_or(p));
        let good = text.starts_with("http://") || file.is_some_and(|path| path.starts_with('/'));
        good.then(|| Self(text.to_owned()))
            .ok_or_else(|| format!("{text:?} is no place for a list of revoked certificates"))
    }
}

/// Where an OCSP responder is.
#[derive(Clone, Debug)]
pub(super) struct OcspUri(pub(super) String);

impl Textual for OcspUri {
    const EXPECTED: &'static str = "\"http://…\"";

    fn read(text: &str) -> Result<Self, String> {
        let good = text.starts_with("http://");
        good.then(|| Self(text.to_owned()))
            .ok_or_else(|| format!("{text:?} is no place of an OCSP responder"))
    }
}

impl Textual for StartAction {
    const EXPECTED: &'static str = "\"none\", \"trap\" or \"start\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "trap" => Ok(Self::Trap),
            "start" => Ok(Self::Start),
            _ => Err(format!("{text:?} is not a start action")),
        }
    }
}

/// What to do when a peer is silent, in swanctl's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct DpdAction(pub(super) StartAction);

impl Textual for DpdAction {
    const EXPECTED: &'static str = "\"clear\", \"trap\" or \"restart\"";

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "clear" | "none" => Ok(Self(StartAction::None)),
            "trap" => Ok(Self(StartAction::Trap)),
            "restart" | "start" => Ok(Self(StartAction::Start)),
            _ => Err(format!("{text:?} is no action for silent peers")),
        }
    }
}

/// The addresses of a pool, first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolRange {
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

impl Textual for PoolRange {
    const EXPECTED: &'static str =
        "a network such as \"10.99.0.0/24\" or a range such as \"10.99.0.10-10.99.0.99\"";

    fn read(text: &str) -> Result<Self, String> {
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (IpAddr::read(first.trim())?, IpAddr::read(last.trim())?);
            return match (first, last) {
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                    Err(format!("{text:?} mixes IPv4 and IPv6"))
                }
                _ if first > last => Err(format!("{text:?} ends before it begins")),
                _ => Ok(Self { first, last }),
            };
        }
        let net: IpNet = text
            .parse()
            .map_err(|_| format!("{text:?} is not a pool"))?;
        Ok(Self::usable(net))
    }
}

impl PoolRange {
    /// The addresses of a network that hosts may have: without the network's own address (in IPv6 the routers' anycast
    /// address, RFC 4291 §2.6.1), and in IPv4 without broadcast. Networks of one or two addresses are used whole.
    fn usable(net: IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(n) if n.prefix_len() < 31 => Self {
                first: (u32::from(n.network()) + 1).to_be_bytes().into(),
                last: (u32::from(n.broadcast()) - 1).to_be_bytes().into(),
            },
            IpNet::V6(n) if n.prefix_len() < 127 => Self {
                first: (u128::from(n.network()) + 1).to_be_bytes().into(),
                last: n.broadcast().into(),
            },
            n => Self {
                first: n.network(),
                last: n.broadcast(),
            },
        }
    }
}

impl Textual for Secret {
    const EXPECTED: &'static str = "a text, \"0x\" and hexadecimal digits, or \"0s\" and Base64";

    /// The messages show nothing of the secret.
    fn read(text: &str) -> Result<Self, String> {
        let bytes = if let Some(hex) = text.strip_prefix("0x") {
            unhex(hex).ok_or("the secret is not hexadecimal")?
        } else if let Some(base64) = text.strip_prefix("0s") {
            unbase64(base64).ok_or("the secret is not Base64")?
        } else {
            text.as_bytes().to_vec()
        };
        if bytes.is_empty() {
            return Err("the secret is empty".to_owned());
        }
        Ok(Self::new(bytes))
    }
}

/// Decodes pairs of hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|d| d[0] << 4 | d[1]).collect())
}

/// Decodes Base64 (RFC 4648 §4), with or without padding. Not constant in time: it runs once, when a file is read.
fn unbase64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let body = text.trim_end_matches('=');
    if text.len() - body.len() > 2 || body.len() % 4 == 1 {
        return None;
    }
    let (mut out, mut bits, mut held) = (Vec::with_capacity(body.len() * 3 / 4), 0_u32, 0);
    for c in body.bytes() {
        let value = ALPHABET.iter().position(|a| *a == c)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    // Bits that no byte takes must be zero: one text, one secret.
    (bits & ((1 << held) - 1) == 0).then_some(out)
}

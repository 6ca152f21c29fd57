//! Identities as text. What is written can be read back, and holds no character that could pass for
//! something else in a log: a name that has any is written as `{type}:0x` and hex.

use super::{DnPattern, IdPattern, Identity, IdentityError, dn};
use crate::wire::{IdType, MAX_ID_LEN};
use std::{fmt, net::IpAddr, str::FromStr};

impl FromStr for Identity {
    type Err = IdentityError;
    /// The forms of strongSwan: an address, a name, `user@domain`, `C=CH, O=Example, CN=gw`, or with an explicit prefix `fqdn:`, `email:`, `keyid:`, `ipv4:`, `ipv6:`.
    ///
    /// Also `dn:0x` with the DER in hex, `{type}:0x` with anything in hex, and strongSwan's `@name`
    /// (a name), `@@user@domain` and `@#hex` (a key ID).
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let identity = if text.len() > MAX_ID_LEN {
            None
        } else if let Ok(ip) = text.parse() {
            Some(Self::Address(ip))
        } else {
            prefixed(text).unwrap_or_else(|| bare(text))
        };
        identity.ok_or_else(|| IdentityError(text.to_owned()))
    }
}

/// An identity with its type in front; nothing if there is no such prefix.
fn prefixed(text: &str) -> Option<Option<Identity>> {
    if let Some(rest) = text.strip_prefix("@#") {
        return Some(unhex(rest).map(Identity::KeyId));
    }
    if let Some(rest) = text.strip_prefix("@@") {
        return Some(printable(rest).map(Identity::email));
    }
    if let Some(rest) = text.strip_prefix('@') {
        return Some(printable(rest).map(Identity::fqdn));
    }
    let (prefix, rest) = text.split_once(':')?;
    Some(match prefix {
        "fqdn" => printable(rest).map(Identity::fqdn),
        "email" => printable(rest).map(Identity::email),
        "ipv4" => rest
            .parse()
            .ok()
            .map(|ip| Identity::Address(IpAddr::V4(ip))),
        "ipv6" => rest
            .parse()
            .ok()
            .map(|ip| Identity::Address(IpAddr::V6(ip))),
        "keyid" => match rest.strip_prefix("0x") {
            Some(digits) => unhex(digits).map(Identity::KeyId),
            None => printable(rest).map(|text| Identity::KeyId(text.as_bytes().to_vec())),
        },
        "dn" => match rest.strip_prefix("0x") {
            Some(digits) => unhex(digits).map(Identity::Dn),
            None => name(rest),
        },
        _ => numbered(prefix, rest),
    })
}

/// `{type}:0x…`.
fn numbered(prefix: &str, rest: &str) -> Option<Identity> {
    let kind = prefix.strip_prefix('{')?.strip_suffix('}')?.parse().ok()?;
    let data = unhex(rest.strip_prefix("0x")?)?;
    Some(Identity::from_parts(IdType(kind), &data))
}

/// A distinguished name.
fn name(text: &str) -> Option<Identity> {
    printable(text).and_then(dn::from_text).map(Identity::Dn)
}

/// A distinguished name, a mailbox or a name.
fn bare(text: &str) -> Option<Identity> {
    if text.contains('=') {
        return name(text);
    }
    match text.rsplit_once('@') {
        Some((mailbox, domain)) => {
            let good = printable(mailbox).is_some()
                && !mailbox.contains(['*', ' ', '=', '@'])
                && is_name(domain);
            good.then(|| Identity::email(text))
        }
        None => is_name(text).then(|| Identity::fqdn(text)),
    }
}

/// Whether a text without a prefix can be meant as a name. Anything else needs the prefix, so that a
/// mistyped address, pattern or distinguished name is not taken for one.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// The text, if it is not empty and shows what it is.
fn printable(text: &str) -> Option<&str> {
    let shows =
        |c: char| c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && c.is_alphanumeric());
    (!text.is_empty() && text.chars().all(shows)).then_some(text)
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let nibbles: Vec<u8> = digits
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let pairs = nibbles.chunks_exact(2);
    let whole = pairs.remainder().is_empty();
    whole.then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn write_hex(f: &mut fmt::Formatter<'_>, prefix: &str, data: &[u8]) -> fmt::Result {
    write!(f, "{prefix}:0x")?;
    data.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl Identity {
    /// The first of `candidates` that reads back as this identity.
    fn readable(&self, candidates: [String; 2]) -> Option<String> {
        let this = self.normalised();
        candidates
            .into_iter()
            .find(|text| printable(text).is_some() && text.parse().as_ref() == Ok(&this))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Address(ip) => return write!(f, "{ip}"),
            Self::Dn(der) => {
                let text = dn::to_text(der).unwrap_or_default();
                match self.readable([text.clone(), format!("dn:{text}")]) {
                    Some(text) => return f.write_str(&text),
                    None => return write_hex(f, "dn", der),
                }
            }
            Self::Other { kind, data } => return write_hex(f, &format!("{{{kind}}}"), data),
            Self::KeyId(data) => {
                let text = std::str::from_utf8(data).unwrap_or_default();
                match printable(text).filter(|text| !text.starts_with("0x")) {
                    Some(text) => return write!(f, "keyid:{text}"),
                    None => return write_hex(f, "keyid", data),
                }
            }
            Self::Fqdn(name) => self.readable([name.clone(), format!("fqdn:{name}")]),
            Self::Email(name) => self.readable([name.clone(), format!("email:{name}")]),
        };
        match text {
            Some(text) => f.write_str(&text),
            None => {
                let id = self.to_wire();
                write_hex(f, &format!("{{{}}}", id.kind.0), &id.data)
            }
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

impl FromStr for IdPattern {
    type Err = IdentityError;
    /// `%any`, `*.domain`, `*@domain`, a distinguished name with wildcards, or one identity.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let domain = |rest: &str| is_name(rest).then(|| rest.to_ascii_lowercase());
        let pattern = if text == "%any" {
            Some(Self::Any)
        } else if let Some(rest) = text.strip_prefix("*.") {
            domain(rest).map(Self::FqdnSuffix)
        } else if let Some(rest) = text.strip_prefix("*@") {
            domain(rest).map(Self::EmailDomain)
        } else if let Some(pattern) = printable(text).and_then(DnPattern::from_text) {
            Some(Self::Dn(pattern))
        } else {
            text.parse().ok().map(Self::Exact)
        };
        pattern.ok_or_else(|| IdentityError(text.to_owned()))
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("%any"),
            Self::Exact(id) => write!(f, "{id}"),
            Self::FqdnSuffix(domain) => write!(f, "*.{domain}"),
            Self::EmailDomain(domain) => write!(f, "*@{domain}"),
            Self::Dn(pattern) => write!(f, "{pattern}"),
        }
    }
}

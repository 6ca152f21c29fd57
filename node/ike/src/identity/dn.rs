//! Distinguished names: as text in the order of their DER (`C=CH, O=Example, CN=gw`, as strongSwan writes them), and when they are the same.

use serde::{Deserialize, Serialize};
use std::fmt;
use x509_cert::{
    attr::AttributeTypeAndValue,
    der::{
        Decode, Encode, Tag, Tagged,
        asn1::{Any, ObjectIdentifier},
    },
    name::{RdnSequence, RelativeDistinguishedName},
};

/// Relative names in one name; real ones have up to about ten.
const MAX_PARTS: usize = 32;

/// Attribute types that have a short name (RFC 4519, RFC 2985), and how their values are written.
const TYPES: [(&str, &str, Tag); 17] = [
    ("C", "2.5.4.6", Tag::PrintableString),
    ("ST", "2.5.4.8", Tag::Utf8String),
    ("L", "2.5.4.7", Tag::Utf8String),
    ("STREET", "2.5.4.9", Tag::Utf8String),
    ("O", "2.5.4.10", Tag::Utf8String),
    ("OU", "2.5.4.11", Tag::Utf8String),
    ("CN", "2.5.4.3", Tag::Utf8String),
    ("SN", "2.5.4.5", Tag::PrintableString),
    ("S", "2.5.4.4", Tag::Utf8String),
    ("G", "2.5.4.42", Tag::Utf8String),
    ("I", "2.5.4.43", Tag::Utf8String),
    ("T", "2.5.4.12", Tag::Utf8String),
    ("N", "2.5.4.41", Tag::Utf8String),
    ("dnQualifier", "2.5.4.46", Tag::PrintableString),
    ("E", "1.2.840.113549.1.9.1", Tag::Ia5String),
    ("DC", "0.9.2342.19200300.100.1.25", Tag::Ia5String),
    ("UID", "0.9.2342.19200300.100.1.1", Tag::Utf8String),
];

/// One relative name: its type, dotted, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    kind: String,
    value: String,
}

/// A distinguished name in which some values do not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DnPattern {
    /// Types, dotted, and values, in order; without a value any is meant.
    parts: Vec<(String, Option<String>)>,
    /// Whether there may be other relative names between and after these.
    open: bool,
}

/// DER of a name that is written as text; `None` if it is no such text.
pub(super) fn from_text(text: &str) -> Option<Vec<u8>> {
    let parts: Option<Vec<(String, Option<String>)>> = split(text)?.into_iter().map(pair).collect();
    let mut names = RdnSequence::default();
    for (kind, value) in parts? {
        let value = value?;
        let mut name = RelativeDistinguishedName::default();
        let oid = ObjectIdentifier::new(&kind).ok()?;
        let value = any(&kind, &value)?;
        name.insert(AttributeTypeAndValue { oid, value }).ok()?;
        names.push(name);
    }
    names.to_der().ok()
}

/// The name as text; it may not read back as the same DER.
pub(super) fn to_text(der: &[u8]) -> Option<String> {
    let parts = parts(der)?;
    let written = parts.iter().map(|Part { kind, value }| {
        let short = TYPES.iter().find(|(_, oid, _)| oid == kind);
        format!("{}={}", short.map_or(&**kind, |t| t.0), escaped(value))
    });
    Some(written.collect::<Vec<_>>().join(", "))
}

/// Whether two names in DER are the same (RFC 5280 §7.1): values are compared without case, and any blanks are one.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    let (Some(a), Some(b)) = (parts(a), parts(b)) else {
        return false;
    };
    let equal = |(a, b): (&Part, &Part)| a.kind == b.kind && folded(&a.value) == folded(&b.value);
    a.len() == b.len() && a.iter().zip(&b).all(equal)
}

impl DnPattern {
    /// Reads `C=CH, O=Example, CN=*`: the value `*` is any; a last part `*` stands for any other parts, between and after the ones before.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let mut parts = split(text)?;
        let open = parts.last().is_some_and(|p| p == "*");
        if open {
            parts.pop();
        }
        let parts: Option<Vec<_>> = parts.into_iter().map(pair).collect();
        let parts = parts.filter(|p| !p.is_empty())?;
        (open || parts.iter().any(|(_, value)| value.is_none())).then_some(Self { parts, open })
    }

    pub(super) fn matches(&self, der: &[u8]) -> bool {
        let Some(given) = parts(der) else {
            return false;
        };
        let fits = |(kind, value): &(String, Option<String>), part: &Part| {
            *kind == part.kind
                && value
                    .as_ref()
                    .is_none_or(|v| folded(v) == folded(&part.value))
        };
        if !self.open {
            let mut pairs = self.parts.iter().zip(&given);
            return self.parts.len() == given.len() && pairs.all(|(p, g)| fits(p, g));
        }
        let mut rest = given.iter();
        self.parts
            .iter()
            .all(|wanted| rest.any(|part| fits(wanted, part)))
    }
}

impl fmt::Display for DnPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (kind, value)) in self.parts.iter().enumerate() {
            let short = TYPES.iter().find(|(_, oid, _)| oid == kind);
            let separator = if i == 0 { "" } else { ", " };
            let value = value.as_deref().map_or("*".to_owned(), escaped);
            write!(f, "{separator}{}={value}", short.map_or(&**kind, |t| t.0))?;
        }
        if self.open {
            f.write_str(", *")
        } else {
            Ok(())
        }
    }
}

/// The parts of a text, at commas that are not escaped.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut parts, mut current, mut escape) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            ',' if !escape => parts.push(std::mem::take(&mut current)),
            _ => current.push(c),
        }
        escape = c == '\\' && !escape;
    }
    parts.push(current);
    let parts: Vec<String> = parts.iter().map(|p| p.trim().to_owned()).collect();
    let good = !escape && parts.len() <= MAX_PARTS && parts.iter().all(|p| !p.is_empty());
    good.then_some(parts)
}

/// Type and value of a part; no value for `*`.
fn pair(part: String) -> Option<(String, Option<String>)> {
    let (kind, value) = part.split_once('=')?;
    let (kind, value) = (kind.trim(), value.trim());
    let known = TYPES
        .iter()
        .find(|(short, ..)| short.eq_ignore_ascii_case(kind));
    let kind = match known {
        Some((_, oid, _)) => (*oid).to_owned(),
        None => ObjectIdentifier::new(kind).ok()?.to_string(),
    };
    if value == "*" {
        return Some((kind, None));
    }
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => chars.next()?,
            '+' | '"' | '<' | '>' | ';' => return None,
            c => c,
        });
    }
    (!plain.is_empty()).then_some((kind, Some(plain)))
}

fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        if matches!(c, ',' | '\\' | '+' | '"' | '<' | '>' | ';') || (c == '*' && value.len() == 1) {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// A value as the type wants it: printable where that suffices, as most authorities write it.
fn any(kind: &str, value: &str) -> Option<Any> {
    let printable = value
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || " '()+,-./:=?".contains(c));
    let tag = TYPES
        .iter()
        .find(|(_, oid, _)| *oid == kind)
        .map_or(Tag::Utf8String, |t| t.2);
    let tag = match tag {
        Tag::Utf8String if printable => Tag::PrintableString,
        Tag::PrintableString if !printable => return None,
        Tag::Ia5String if !value.is_ascii() => return None,
        tag => tag,
    };
    Any::new(tag, value.as_bytes()).ok()
}

/// The parts of a name in DER; `None` if it is none, or has parts that are not one string each.
fn parts(der: &[u8]) -> Option<Vec<Part>> {
    let names = RdnSequence::from_der(der).ok()?;
    if names.len() > MAX_PARTS || names.is_empty() {
        return None;
    }
    names.iter().map(part).collect()
}

fn part(name: &RelativeDistinguishedName) -> Option<Part> {
    let mut attributes = name.iter();
    let (attribute, None) = (attributes.next()?, attributes.next()) else {
        return None;
    };
    let bytes = attribute.value.value();
    let value = match attribute.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            std::str::from_utf8(bytes).ok()?.to_owned()
        }
        Tag::TeletexString => bytes.iter().map(|b| char::from(*b)).collect(),
        _ => return None,
    };
    (!value.is_empty()).then(|| Part {
        kind: attribute.oid.to_string(),
        value,
    })
}

/// A value as it is compared.
fn folded(value: &str) -> String {
    let words: Vec<String> = value.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}

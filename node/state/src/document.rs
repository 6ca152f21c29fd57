//! The policy as it stands in the log and in snapshots: a document that names its fields (CBOR, RFC 8949), in bytes of its own.
//!
//! What else is replicated is written by position, because there is much of it. The policy is what grows with every feature, and there is little of it: a field
//! that is left out has its default, so an older program and a newer one read the same document alike as long as nobody uses what is new.

use evergate_ike::config::Policy;
use serde::{Deserializer, Serializer, de, ser};
use std::{
    fmt,
    io::{self, Write},
    sync::Arc,
};
use zeroize::Zeroizing;

pub(crate) fn serialize<S: Serializer>(policy: &Policy, to: S) -> Result<S::Ok, S::Error> {
    let mut length = Length(0);
    ciborium::into_writer(policy, &mut length).map_err(ser::Error::custom)?;
    // Of its final size from the beginning: what grows leaves copies of secrets behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    ciborium::into_writer(policy, &mut *bytes).map_err(ser::Error::custom)?;
    to.serialize_bytes(&bytes)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Policy>, D::Error> {
    from.deserialize_bytes(Document)
}

struct Document;

impl de::Visitor<'_> for Document {
    type Value = Arc<Policy>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a policy")
    }

    fn visit_bytes<E: de::Error>(self, mut bytes: &[u8]) -> Result<Self::Value, E> {
        let policy = ciborium::from_reader(&mut bytes).map_err(E::custom)?;
        if bytes.is_empty() {
            Ok(policy)
        } else {
            Err(E::custom("bytes follow the policy"))
        }
    }
}

/// Counts what is written.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

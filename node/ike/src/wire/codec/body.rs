//! The bodies of payloads, without their generic headers (RFC 7296 §3.4 to §3.16).

use super::{sa, ts};
use crate::wire::{
    Auth, AuthMethod, CfgAttrType, CfgAttribute, CfgType, Configuration, Delete, IdType,
    Identification, KeyExchange, MAX_CFG_ATTRIBUTES, MAX_DELETE_SPIS, MAX_ID_LEN, MAX_NONCE_LEN,
    MIN_NONCE_LEN, Notify, NotifyType, ParseError, Payload, PayloadType, Protocol,
    cursor::{Cursor, count_u8},
};

/// Shortest EAP message: code, identifier, length (RFC 3748 §4).
const MIN_EAP_LEN: usize = 4;

impl Payload {
    /// Its type.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::SA,
            Self::Ke(_) => PayloadType::KE,
            Self::IdI(_) => PayloadType::ID_I,
            Self::IdR(_) => PayloadType::ID_R,
            Self::Cert { .. } => PayloadType::CERT,
            Self::CertReq { .. } => PayloadType::CERTREQ,
            Self::Auth(_) => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::NOTIFY,
            Self::Delete(_) => PayloadType::DELETE,
            Self::Vendor(_) => PayloadType::VENDOR,
            Self::TsI(_) => PayloadType::TS_I,
            Self::TsR(_) => PayloadType::TS_R,
            Self::Cp(_) => PayloadType::CP,
            Self::Eap(_) => PayloadType::EAP,
            Self::Unknown { kind, .. } => *kind,
        }
    }
}

/// Whether [`parse`] understands payloads of this type.
pub(super) fn is_known(kind: PayloadType) -> bool {
    (PayloadType::SA..=PayloadType::TS_R).contains(&kind)
        || kind == PayloadType::CP
        || kind == PayloadType::EAP
}

/// Parses the body of a payload of type `kind`.
pub(super) fn parse(kind: PayloadType, c: &mut Cursor<'_>) -> Result<Payload, ParseError> {
    Ok(match kind {
        PayloadType::SA => Payload::Sa(sa::parse(c)?),
        PayloadType::KE => Payload::Ke(parse_ke(c)?),
        PayloadType::ID_I => Payload::IdI(parse_id(c)?),
        PayloadType::ID_R => Payload::IdR(parse_id(c)?),
        PayloadType::CERT => Payload::Cert {
            encoding: c.u8("certificate encoding")?,
            data: c.rest().to_vec(),
        },
        PayloadType::CERTREQ => Payload::CertReq {
            encoding: c.u8("certificate encoding")?,
            data: c.rest().to_vec(),
        },
        PayloadType::AUTH => Payload::Auth(parse_auth(c)?),
        PayloadType::NONCE => Payload::Nonce(parse_nonce(c)?),
        PayloadType::NOTIFY => Payload::Notify(parse_notify(c)?),
        PayloadType::DELETE => Payload::Delete(parse_delete(c)?),
        PayloadType::VENDOR => Payload::Vendor(c.rest().to_vec()),
        PayloadType::TS_I => Payload::TsI(ts::parse(c)?),
        PayloadType::TS_R => Payload::TsR(ts::parse(c)?),
        PayloadType::CP => Payload::Cp(parse_cp(c)?),
        PayloadType::EAP => Payload::Eap(parse_eap(c)?),
        kind => Payload::Unknown {
            kind,
            data: c.rest().to_vec(),
        },
    })
}

/// Writes the body of a payload.
pub(super) fn emit(out: &mut Vec<u8>, payload: &Payload) {
    match payload {
        Payload::Sa(proposals) => sa::emit(out, proposals),
        Payload::Ke(ke) => {
            out.extend_from_slice(&ke.group.to_be_bytes());
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&ke.data);
        }
        Payload::IdI(id) | Payload::IdR(id) => {
            out.push(id.kind.0);
            out.extend_from_slice(&id.reserved);
            out.extend_from_slice(&id.data);
        }
        Payload::Cert { encoding, data } | Payload::CertReq { encoding, data } => {
            out.push(*encoding);
            out.extend_from_slice(data);
        }
        Payload::Auth(auth) => {
            out.extend_from_slice(&[auth.method.0, 0, 0, 0]);
            out.extend_from_slice(&auth.data);
        }
        Payload::Notify(notify) => emit_notify(out, notify),
        Payload::Delete(delete) => emit_delete(out, delete),
        Payload::TsI(selectors) | Payload::TsR(selectors) => ts::emit(out, selectors),
        Payload::Cp(cp) => emit_cp(out, cp),
        Payload::Nonce(data)
        | Payload::Vendor(data)
        | Payload::Eap(data)
        | Payload::Unknown { data, .. } => out.extend_from_slice(data),
    }
}

fn parse_ke(c: &mut Cursor<'_>) -> Result<KeyExchange, ParseError> {
    let group = c.u16("key exchange method")?;
    c.u16("reserved field of Key Exchange")?;
    Ok(KeyExchange {
        group,
        data: c.rest().to_vec(),
    })
}

fn parse_id(c: &mut Cursor<'_>) -> Result<Identification, ParseError> {
    let kind = IdType(c.u8("identification type")?);
    let reserved = c.array("reserved field of Identification")?;
    if c.remaining() > MAX_ID_LEN {
        return Err(ParseError::Invalid {
            what: "length of Identification",
            offset: c.offset(),
        });
    }
    Ok(Identification {
        kind,
        reserved,
        data: c.rest().to_vec(),
    })
}

fn parse_auth(c: &mut Cursor<'_>) -> Result<Auth, ParseError> {
    let method = AuthMethod(c.u8("authentication method")?);
    c.array::<3>("reserved field of Authentication")?;
    Ok(Auth {
        method,
        data: c.rest().to_vec(),
    })
}

fn parse_nonce(c: &mut Cursor<'_>) -> Result<Vec<u8>, ParseError> {
    if !(MIN_NONCE_LEN..=MAX_NONCE_LEN).contains(&c.remaining()) {
        return Err(ParseError::Invalid {
            what: "length of Nonce",
            offset: c.offset(),
        });
    }
    Ok(c.rest().to_vec())
}

fn parse_eap(c: &mut Cursor<'_>) -> Result<Vec<u8>, ParseError> {
    if c.remaining() < MIN_EAP_LEN {
        return Err(ParseError::Truncated {
            what: "EAP message",
            offset: c.offset(),
        });
    }
    Ok(c.rest().to_vec())
}

/// Without an SPI the protocol means nothing and is read as NONE (RFC 7296 §3.10).
fn parse_notify(c: &mut Cursor<'_>) -> Result<Notify, ParseError> {
    let protocol = Protocol(c.u8("protocol of Notify")?);
    let offset = c.offset();
    let spi_len = usize::from(c.u8("SPI size of Notify")?);
    if !matches!(spi_len, 0 | 4 | 8) {
        return Err(ParseError::Invalid {
            what: "SPI size of Notify",
            offset,
        });
    }
    let kind = NotifyType(c.u16("notify message type")?);
    let spi = c.take(spi_len, "SPI of Notify")?.to_vec();
    Ok(Notify {
        protocol: if spi.is_empty() {
            Protocol::NONE
        } else {
            protocol
        },
        spi,
        kind,
        data: c.rest().to_vec(),
    })
}

fn emit_notify(out: &mut Vec<u8>, notify: &Notify) {
    let protocol = if notify.spi.is_empty() {
        Protocol::NONE
    } else {
        notify.protocol
    };
    out.extend_from_slice(&[protocol.0, count_u8(notify.spi.len())]);
    out.extend_from_slice(&notify.kind.0.to_be_bytes());
    out.extend_from_slice(&notify.spi);
    out.extend_from_slice(&notify.data);
}

fn parse_delete(c: &mut Cursor<'_>) -> Result<Delete, ParseError> {
    let offset = c.offset();
    let invalid = |what, offset| Err(ParseError::Invalid { what, offset });
    let protocol = Protocol(c.u8("protocol of Delete")?);
    let spi_len = c.u8("SPI size of Delete")?;
    let count = usize::from(c.u16("number of SPIs")?);
    let wanted = match protocol {
        Protocol::IKE => 0,
        Protocol::AH | Protocol::ESP => 4,
        _ => return invalid("protocol of Delete", offset),
    };
    if spi_len != wanted {
        return invalid("SPI size of Delete", offset + 1);
    }
    if protocol == Protocol::IKE {
        if count != 0 {
            return invalid("number of SPIs", offset + 2);
        }
        c.finish("data after Delete")?;
        return Ok(Delete::Ike);
    }
    if count > MAX_DELETE_SPIS {
        return Err(ParseError::TooMany {
            what: "SPIs in Delete",
        });
    }
    let mut list = c.sub(count * 4, "SPIs of Delete")?;
    c.finish("data after Delete")?;
    let mut spis = Vec::with_capacity(count);
    while !list.is_empty() {
        spis.push(list.u32("SPI of Delete")?);
    }
    Ok(Delete::Child { protocol, spis })
}

fn emit_delete(out: &mut Vec<u8>, delete: &Delete) {
    match delete {
        Delete::Ike => out.extend_from_slice(&[Protocol::IKE.0, 0, 0, 0]),
        Delete::Child { protocol, spis } => {
            let count = u16::try_from(spis.len()).expect("a payload is shorter than 64 KiB");
            out.extend_from_slice(&[protocol.0, 4]);
            out.extend_from_slice(&count.to_be_bytes());
            for spi in spis {
                out.extend_from_slice(&spi.to_be_bytes());
            }
        }
    }
}

fn parse_cp(c: &mut Cursor<'_>) -> Result<Configuration, ParseError> {
    let kind = CfgType(c.u8("CFG type")?);
    c.array::<3>("reserved field of Configuration")?;
    let mut attributes = Vec::new();
    while !c.is_empty() {
        if attributes.len() == MAX_CFG_ATTRIBUTES {
            return Err(ParseError::TooMany {
                what: "configuration attributes",
            });
        }
        // The highest bit is reserved (RFC 7296 §3.15.1).
        let kind = CfgAttrType(c.u16("configuration attribute")? & 0x7fff);
        let length = usize::from(c.u16("configuration attribute")?);
        attributes.push(CfgAttribute {
            kind,
            value: c.take(length, "configuration attribute")?.to_vec(),
        });
    }
    Ok(Configuration { kind, attributes })
}

fn emit_cp(out: &mut Vec<u8>, cp: &Configuration) {
    out.extend_from_slice(&[cp.kind.0, 0, 0, 0]);
    for attribute in &cp.attributes {
        let length =
            u16::try_from(attribute.value.len()).expect("a payload is shorter than 64 KiB");
        out.extend_from_slice(&(attribute.kind.0 & 0x7fff).to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&attribute.value);
    }
}

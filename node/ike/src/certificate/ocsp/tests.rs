use super::{asn1::*, *};
use crate::{
    certificate::testing::{Issued, root},
    signature::{Hash, KeyKind},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use x509_cert::der::{DateTime, asn1::BitString, asn1::Null};

/// 2026-01-01.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const NONCE_SENT: [u8; NONCE_LEN] = [7; NONCE_LEN];

fn year(year: u16) -> GeneralizedTime {
    GeneralizedTime::from_date_time(DateTime::new(year, 6, 1, 0, 0, 0).unwrap())
}

/// What a responder says, and how.
struct Response<'a> {
    id: CertId,
    status: CertStatus,
    this_update: GeneralizedTime,
    next_update: Option<GeneralizedTime>,
    nonce: Option<Vec<u8>>,
    signer: &'a Issued,
    /// Whom it says that it is by; the signer unless given.
    responder: Option<ResponderId>,
    certs: Vec<&'a Issued>,
}

impl<'a> Response<'a> {
    /// "Good", by the issuer, with the nonce that was sent.
    fn new(request: &[u8], signer: &'a Issued) -> Self {
        let request = OcspRequest::from_der(request).unwrap();
        Self {
            id: request.tbs.requests[0].id.clone(),
            status: CertStatus::Good(Null),
            this_update: year(2025),
            next_update: Some(year(2027)),
            nonce: Some(NONCE_SENT.to_vec()),
            signer,
            responder: None,
            certs: vec![],
        }
    }

    fn by_name(issued: &Issued) -> ResponderId {
        ResponderId::ByName(Decode::from_der(&issued.certificate().subject).unwrap())
    }

    fn bytes(&self) -> Vec<u8> {
        let nonce = self.nonce.as_ref().map(|nonce| Extension {
            extn_id: NONCE,
            critical: false,
            extn_value: OctetString::new(OctetString::new(&nonce[..]).unwrap().to_der().unwrap())
                .unwrap(),
        });
        let responder = self.responder.clone();
        let data = ResponseData {
            version: None,
            responder: responder.unwrap_or_else(|| Self::by_name(self.signer)),
            produced_at: self.this_update,
            responses: vec![SingleResponse {
                id: self.id.clone(),
                status: self.status.clone(),
                this_update: self.this_update,
                next_update: self.next_update,
                extensions: None,
            }],
            extensions: nonce.map(|n| vec![n]),
        };
        let tbs = data.to_der().unwrap();
        let identifier = Scheme::Ecdsa(Hash::Sha256).identifier();
        let certs = self.certs.iter().map(|c| Any::from_der(&c.der).unwrap());
        let basic = BasicResponse {
            signature: BitString::from_bytes(&self.signer.sign_octets(&tbs)).unwrap(),
            tbs: Any::from_der(&tbs).unwrap(),
            algorithm: Decode::from_der(&identifier).unwrap(),
            certs: (!self.certs.is_empty()).then(|| certs.collect()),
        };
        successful(BASIC, &basic.to_der().unwrap())
    }
}

fn successful(kind: ObjectIdentifier, response: &[u8]) -> Vec<u8> {
    let response = OctetString::new(response).unwrap();
    let response = OcspResponse {
        status: ResponseStatus::Successful,
        bytes: Some(ResponseBytes { kind, response }),
    };
    response.to_der().unwrap()
}

/// A root, and a question about a certificate that it issued.
fn case() -> (Issued, Inquiry, Vec<u8>) {
    let root = root("root");
    let peer = root.issue(KeyKind::P256, &["peer.test"]).certificate();
    let inquiry = Inquiry::new(&peer, &root.certificate(), vec![]).unwrap();
    let request = inquiry.request(&NONCE_SENT).unwrap();
    (root, inquiry, request)
}

fn read(inquiry: &Inquiry, response: &Response<'_>) -> Result<bool, OcspError> {
    let answer = inquiry.read(&response.bytes(), &NONCE_SENT, NOW)?;
    assert_eq!(answer.id, inquiry.id);
    Ok(answer.revoked)
}

/// A responder's certificate by this authority, for these purposes.
fn responder(issuer: &Issued, purposes: &[ExtendedKeyUsagePurpose]) -> Issued {
    responder_with(issuer, purposes, |_| {})
}

fn responder_with(
    issuer: &Issued,
    purposes: &[ExtendedKeyUsagePurpose],
    change: impl FnOnce(&mut CertificateParams),
) -> Issued {
    issuer.issue_with(KeyKind::P256, &["ocsp.test"], |params| {
        params.extended_key_usages = purposes.to_vec();
        change(params);
    })
}

#[test]
fn what_the_issuer_signed_is_believed() {
    let (root, inquiry, request) = case();
    let mut response = Response::new(&request, &root);
    assert_eq!(read(&inquiry, &response), Ok(false));
    response.status = CertStatus::Revoked(RevokedInfo {
        time: year(2025),
        reason: None,
    });
    assert_eq!(read(&inquiry, &response), Ok(true));
    response.status = CertStatus::Unknown(Null);
    assert_eq!(read(&inquiry, &response), Err(OcspError::Unknown));
    // It may call itself by its key.
    response.status = CertStatus::Good(Null);
    let key = key_hash(&root.certificate().spki).unwrap();
    response.responder = Some(ResponderId::ByKey(OctetString::new(key).unwrap()));
    assert_eq!(read(&inquiry, &response), Ok(false));
}

#[test]
fn a_responder_that_the_issuer_appointed_is_believed() {
    let (root, inquiry, request) = case();
    let delegate = responder(&root, &[ExtendedKeyUsagePurpose::OcspSigning]);
    let mut response = Response::new(&request, &delegate);
    // Its certificate has to be there.
    assert_eq!(read(&inquiry, &response), Err(OcspError::Responder));
    response.certs = vec![&root, &delegate];
    assert_eq!(read(&inquiry, &response), Ok(false));
}

#[test]
fn who_was_not_appointed_is_not_believed() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, OcspSigning};
    let (root, inquiry, request) = case();
    let other = crate::certificate::testing::root("root");
    let between = root.intermediate("between", |_| {});
    for delegate in [
        responder(&root, &[]),
        responder(&root, &[Any, ClientAuth]),
        responder(&other, &[OcspSigning]),
        // The issuer itself has to have issued it.
        responder(&between, &[OcspSigning]),
        responder_with(&root, &[OcspSigning], |p| {
            p.not_after = date_time_ymd(2025, 1, 1);
        }),
        responder_with(&root, &[OcspSigning], |p| {
            p.key_usages = vec![rcgen::KeyUsagePurpose::KeyEncipherment];
        }),
    ] {
        let mut response = Response::new(&request, &delegate);
        response.certs = vec![&delegate, &between];
        assert_eq!(read(&inquiry, &response), Err(OcspError::Responder));
    }
    // Somebody who says that it is the issuer.
    let mut response = Response::new(&request, &other);
    response.responder = Some(Response::by_name(&root));
    assert_eq!(read(&inquiry, &response), Err(OcspError::Signature));
}

#[test]
fn an_answer_is_to_this_request_and_about_this_certificate() {
    let (root, inquiry, request) = case();
    let mut response = Response::new(&request, &root);
    response.nonce = Some(vec![8; NONCE_LEN]);
    assert_eq!(read(&inquiry, &response), Err(OcspError::Nonce));
    // Answers from a store have none.
    response.nonce = None;
    assert_eq!(read(&inquiry, &response), Ok(false));
    let peer = root.issue(KeyKind::P256, &["other.test"]).certificate();
    let other = Inquiry::new(&peer, &root.certificate(), vec![]).unwrap();
    assert_eq!(read(&other, &response), Err(OcspError::Other));
}

#[test]
fn an_answer_is_for_now() {
    let (root, inquiry, request) = case();
    let mut response = Response::new(&request, &root);
    for (this, next, good) in [
        (2025, Some(2027), true),
        (2024, Some(2025), false),
        (2026, Some(2027), false),
        (2025, None, false),
    ] {
        response.this_update = year(this);
        response.next_update = next.map(year);
        assert_eq!(read(&inquiry, &response).is_ok(), good, "{this} {next:?}");
    }
    // Without a time for the next one it counts for an hour.
    response.this_update =
        GeneralizedTime::from_unix_duration(Duration::from_millis(NOW.0)).unwrap();
    let answer = inquiry.read(&response.bytes(), &NONCE_SENT, NOW).unwrap();
    assert_eq!(answer.until, NOW + MAX_AGE);
}

#[test]
fn what_is_no_answer_is_refused() {
    let (root, inquiry, request) = case();
    let refuse = |status| {
        let response = OcspResponse {
            status,
            bytes: None,
        };
        let bytes = response.to_der().unwrap();
        inquiry.read(&bytes, &NONCE_SENT, NOW).unwrap_err()
    };
    assert_eq!(
        refuse(ResponseStatus::Unauthorized),
        OcspError::Refused("unauthorized")
    );
    assert!(matches!(
        refuse(ResponseStatus::Successful),
        OcspError::Malformed(_)
    ));
    let good = Response::new(&request, &root).bytes();
    for bytes in [
        &b""[..],
        b"\x30\x03\x0a\x01\x04",
        &good[..good.len() - 1],
        &successful(NONCE, b"\x30\x00"),
        &successful(BASIC, b"\x30\x00"),
        &vec![0x30; MAX_ANSWER + 1],
    ] {
        let read = inquiry.read(bytes, &NONCE_SENT, NOW);
        assert!(matches!(read, Err(OcspError::Malformed(_))), "{read:?}");
    }
    // Not one bit of what is signed may differ.
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        if let Ok(answer) = inquiry.read(&bytes, &NONCE_SENT, NOW) {
            assert!(!answer.revoked);
            assert_eq!(answer.until, millis(&year(2027)), "byte {at}");
        }
    }
}

use super::{super::tests::server, *};
use evergate_ike::certificate::Certificate;
use rcgen::{CertificateParams, Issuer, KeyPair};
use std::sync::atomic::Ordering;

const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

/// A question about certificate number `n` of some authority.
fn inquiry(n: u64, uris: &[&str]) -> Inquiry {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::default();
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::from_params(&params, &key);
    let mut params = CertificateParams::default();
    params.serial_number = Some(n.into());
    let own = params.signed_by(&key, &issuer).unwrap();
    let [own, root] = [own, root].map(|c| Certificate::parse(c.der()).unwrap());
    let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
    Inquiry::new(&own, &root, uris).unwrap()
}

#[tokio::test]
async fn every_responder_is_asked_once_and_then_rests() {
    let refusal = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\x30\x03\x0a\x01\x06";
    let (first, asked_first) = server(refusal.to_vec()).await;
    let (second, asked_second) = server(b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec()).await;
    let responders = Responders::default();
    let inquiries = [inquiry(1, &[&first, &second])];
    let count = || {
        let first = asked_first.load(Ordering::SeqCst);
        (first, asked_second.load(Ordering::SeqCst))
    };
    for later in [0, 1000, 29_000] {
        let now = UnixMillis(NOW.0 + later);
        assert!(responders.ask(&inquiries, now).await.is_empty());
        assert_eq!(count(), (1, 1));
    }
    let now = UnixMillis(NOW.0 + 31_000);
    assert!(responders.ask(&inquiries, now).await.is_empty());
    assert_eq!(count(), (2, 2));
}

#[tokio::test]
async fn answers_that_say_nothing_are_errors() {
    for (answer, expected) in [
        (&b"\x30\x03\x0a\x01\x06"[..], "unauthorized"),
        (b"nonsense", "no basic OCSP response"),
        (&vec![0x30; MAX_ANSWER + 1], "cut, or too long"),
    ] {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let (uri, _) = server([head.as_bytes(), answer].concat()).await;
        let error = ask(&uri, &inquiry(1, &[]), NOW)
            .await
            .expect_err("an answer");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn the_number_of_answers_is_bounded() {
    let responders = Responders::default();
    let one = inquiry(1, &[]);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::default();
    let root = params.self_signed(&key).unwrap();
    let root = Certificate::parse(root.der()).unwrap();
    for n in 0..MAX_ANSWERS + 100 {
        let mut certificate = root.clone();
        certificate.serial = n.to_be_bytes().to_vec();
        let inquiry = Inquiry::new(&certificate, &root, vec![]).unwrap();
        responders.ask(&[inquiry], NOW).await;
    }
    assert_eq!(responders.entries.lock().unwrap().len(), MAX_ANSWERS);
    responders.ask(&[one], NOW).await;
    assert_eq!(responders.entries.lock().unwrap().len(), MAX_ANSWERS);
}

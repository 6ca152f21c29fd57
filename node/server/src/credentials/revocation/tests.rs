use super::{fetch::FetchError, *};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

/// A list with one certificate.
fn list() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let crl = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2027, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7),
            revocation_time: date_time_ymd(2025, 6, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let issuer = Issuer::from_params(&params, &key);
    crl.signed_by(&issuer).unwrap().der().to_vec()
}

/// Answers every request with these bytes, and counts them.
pub(super) async fn server(answer: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/ca.crl", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    (uri, count)
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_list_is_fetched_once_and_kept() {
    let (uri, count) = server(ok(&list())).await;
    let revocations = Revocations::default();
    let uris = [uri.clone(), uri];
    for later in [0, 1000, 3_500_000] {
        let found = revocations.at(&uris, UnixMillis(NOW.0 + later)).await;
        assert_eq!(found.len(), 2);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    revocations.at(&uris, UnixMillis(NOW.0 + 3_700_000)).await;
    assert_eq!(count.load(Ordering::SeqCst), 2, "looked for a newer one");
}

#[tokio::test]
async fn a_failure_is_not_repeated_at_once_and_keeps_what_there_was() {
    let (uri, count) =
        server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
    let revocations = Revocations::default();
    let uris = [uri];
    for later in [0, 1000, 29_000] {
        assert!(
            revocations
                .at(&uris, UnixMillis(NOW.0 + later))
                .await
                .is_empty()
        );
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    revocations.at(&uris, UnixMillis(NOW.0 + 31_000)).await;
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn files_are_read_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.crl");
    let uris = [format!("file:{}", path.display())];
    let revocations = Revocations::default();
    assert!(revocations.at(&uris, NOW).await.is_empty());
    std::fs::write(&path, list()).unwrap();
    let later = UnixMillis(NOW.0 + 31_000);
    let first = revocations.at(&uris, later).await;
    assert_eq!(first.len(), 1);
    std::fs::write(&path, list()).unwrap();
    let second = revocations.at(&uris, later + REREAD).await;
    assert_ne!(first, second);
    // Unreadable now: what there was stays.
    std::fs::write(&path, b"no list").unwrap();
    let third = revocations.at(&uris, later + REREAD + REREAD).await;
    assert_eq!(second, third);
}

#[tokio::test]
async fn what_is_no_list_is_an_error() {
    for (answer, expected) in [
        (ok(b"no list"), "it is no list"),
        (ok(&vec![0; MAX_CRL + 1]), "cut, or too long"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"
                .to_vec(),
            "302",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec(),
            "",
        ),
        (b"nonsense\r\n\r\n".to_vec(), ""),
    ] {
        let (uri, _) = server(answer).await;
        let error = load(&uri).await.expect_err("a list").to_string();
        assert!(error.contains(expected), "{error}");
    }
    for uri in [
        "ftp://192.0.2.1/ca.crl",
        "https://192.0.2.1/",
        "file:/nonexistent",
        "http:///x",
        "http://[::1",
    ] {
        assert!(load(uri).await.is_err(), "{uri}");
    }
    assert!(matches!(
        fetch::get("no uri", 1).await,
        Err(FetchError::Uri)
    ));
}

#[tokio::test]
async fn the_number_of_lists_is_bounded() {
    let revocations = Revocations::default();
    let uris: Vec<String> = (0..3 * MAX_CACHED)
        .map(|n| format!("file:/nonexistent/{n}"))
        .collect();
    for uri in &uris {
        revocations.at(std::slice::from_ref(uri), NOW).await;
    }
    let kept = revocations.entries.lock().unwrap().len();
    assert_eq!(kept, MAX_CACHED);
}

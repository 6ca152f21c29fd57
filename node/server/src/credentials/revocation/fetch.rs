//! One HTTP request, bounded in time and size. Redirects are not followed.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{net::TcpStream, time::timeout};

/// A request takes no longer than this: the peer whose certificate is in question waits.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the URI is not one of HTTP")]
    Uri,
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("the server answers {0}")]
    Status(u16),
    #[error("the answer is cut, or too long")]
    Body,
}

/// What a POST sends: its type, and it.
type Content = (&'static str, Vec<u8>);

/// Gets what is there, up to `limit` bytes.
pub(super) async fn get(uri: &str, limit: usize) -> Result<Vec<u8>, FetchError> {
    bounded(exchange(uri, None, limit)).await
}

/// Sends something of this type, and returns the answer, up to `limit` bytes.
pub(super) async fn post(
    uri: &str,
    kind: &'static str,
    body: Vec<u8>,
    limit: usize,
) -> Result<Vec<u8>, FetchError> {
    bounded(exchange(uri, Some((kind, body)), limit)).await
}

async fn bounded(
    exchange: impl Future<Output = Result<Vec<u8>, FetchError>>,
) -> Result<Vec<u8>, FetchError> {
    let answer = timeout(TIMEOUT, exchange).await;
    answer.map_err(|_| FetchError::Timeout)?
}

async fn exchange(
    uri: &str,
    content: Option<Content>,
    limit: usize,
) -> Result<Vec<u8>, FetchError> {
    let uri: Uri = uri.parse().map_err(|_| FetchError::Uri)?;
    let authority = uri.authority().ok_or(FetchError::Uri)?;
    let port = authority.port_u16().unwrap_or(80);
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder()
        .uri(path)
        .header(header::HOST, authority.as_str());
    let mut body = Vec::new();
    if let Some((kind, content)) = content {
        request = request
            .method(Method::POST)
            .header(header::CONTENT_TYPE, kind);
        body = content;
    }
    let request = request.body(Full::new(Bytes::from(body)));
    let request = request.map_err(|_| FetchError::Uri)?;
    let answer = async {
        let response = sender.send_request(request).await?;
        if response.status() != hyper::StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), limit).collect().await;
        Ok(body.map_err(|_| FetchError::Body)?.to_bytes().to_vec())
    };
    // The connection is driven here, and ends with the answer.
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

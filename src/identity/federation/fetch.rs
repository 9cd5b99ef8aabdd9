//! One request for a bundle document.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::endpoint::EndpointUrl;
use crate::{
    clock::Clock,
    identity::{document::BundleDocument, load::LoadError, svid_error::SvidError},
    limits,
    name::TrustDomain,
};

/// The reasons for which a fetch gave no document. The last good document stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchFault {
    #[error("it is unreachable: {0}")]
    Unreachable(#[from] io::Error),
    #[error("its host name is not valid")]
    Name(#[from] InvalidDnsNameError),
    #[error("its server is refused: {0}")]
    ServerNotTrusted(String),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("it redirects to another URL ({0}), and redirects are not followed: configure the final URL")]
    Redirected(StatusCode),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it does not speak HTTP/1.1: {0}")]
    Http(#[from] hyper::Error),
    #[error("its answer is larger than {} bytes", limits::PEM_BYTES_MAX)]
    TooLarge,
    #[error("its answer {0}")]
    Document(LoadError),
}

/// Fetches the document once, over a new connection.
pub(super) async fn fetch(
    url: &EndpointUrl,
    tls: Arc<ClientConfig>,
    domain: &TrustDomain,
    clock: &dyn Clock,
) -> Result<BundleDocument, FetchFault> {
    tokio::select! {
        fetched = request(url, tls, domain) => fetched,
        () = clock.sleep(limits::CALL) => Err(FetchFault::TimedOut),
    }
}

async fn request(
    url: &EndpointUrl,
    tls: Arc<ClientConfig>,
    domain: &TrustDomain,
) -> Result<BundleDocument, FetchFault> {
    let bare = url.host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((bare, url.port)).await?;
    let name = ServerName::try_from(bare.to_owned())?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(refused)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = async {
        // The connection ends with the response, and the response reports its failure.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let host = if url.port == 443 { url.host.clone() } else { format!("{}:{}", url.host, url.port) };
    let request = Request::get(&url.target)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let answered = async {
        let Ok(request) = request else { return Err(FetchFault::Status(StatusCode::BAD_REQUEST)) };
        let answer = sender.send_request(request).await?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => return Err(FetchFault::Redirected(status)),
            status => return Err(FetchFault::Status(status)),
        }
        let most = usize::try_from(limits::PEM_BYTES_MAX).unwrap_or(usize::MAX);
        let body = Limited::new(answer.into_body(), most).collect().await;
        let body = body.map_err(|e| match e.downcast::<hyper::Error>() {
            Ok(error) => FetchFault::Http(*error),
            Err(_) => FetchFault::TooLarge,
        })?;
        BundleDocument::parse("bundle", &body.to_bytes(), domain).map_err(FetchFault::Document)
    };
    tokio::select! {
        answered = answered => answered,
        () = connection => Err(FetchFault::TimedOut),
    }
}

/// Converts the failure of a handshake. The result names the SVID rule that the server does not meet, or has the error of rustls.
fn refused(error: io::Error) -> FetchFault {
    if let Some(why) = SvidError::in_io(&error) {
        return FetchFault::ServerNotTrusted(why.to_string());
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(why) => FetchFault::ServerNotTrusted(why.to_string()),
        None => FetchFault::Unreachable(error),
    }
}

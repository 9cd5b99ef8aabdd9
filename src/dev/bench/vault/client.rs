//! One connection to Vault, and the requests on it.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::answers::describe_error;
use crate::{limits, secret::SecretText};

const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-vault-token");

/// A request that can be sent many times.
#[derive(Clone)]
pub(in crate::dev::bench) struct VaultRequest(Request<Full<Bytes>>);

impl VaultRequest {
    /// Prepares a request to a server on this port. `path` begins after `/v1/`.
    pub(super) fn new(
        method: Method,
        port: u16,
        path: &str,
        token: Option<&SecretText>,
        body: Option<&Value>,
    ) -> Result<Self, String> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header(HOST, format!("127.0.0.1:{port}"))
            .body(Full::new(body))
            .map_err(|e| format!("the request to {path} cannot be made: {e}"))?;
        if let Some(token) = token {
            let mut value =
                HeaderValue::from_str(token.expose()).map_err(|_| "Vault's token is not a header value")?;
            value.set_sensitive(true);
            request.headers_mut().insert(TOKEN_HEADER, value);
        }
        Ok(VaultRequest(request))
    }

    /// Describes a failure of this request.
    pub(super) fn failed(&self, why: &dyn std::fmt::Display) -> String {
        format!("{} failed: {why}", self.0.uri().path())
    }
}

/// A connection to Vault, which sends one request at a time. Vault speaks HTTP/2 only over TLS.
pub(in crate::dev::bench) struct VaultClient(SendRequest<Full<Bytes>>);

impl VaultClient {
    /// Opens a connection to a server on this port.
    pub(super) async fn connect(port: u16) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("no connection to Vault: {e}");
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| failed(&e))?;
        stream.set_nodelay(true).map_err(|e| failed(&e))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        // This task ends when the sender is dropped. If the connection fails, the request on it reports that.
        tokio::spawn(connection);
        Ok(VaultClient(sender))
    }

    /// Sends a request, and returns the body of the answer. Fails if the answer is an error.
    pub(in crate::dev::bench) async fn send(&mut self, request: &VaultRequest) -> Result<Bytes, String> {
        let (status, body) = self.ask(request).await?;
        match status.is_success() {
            true => Ok(body),
            false => Err(request.failed(&describe_error(status, &body))),
        }
    }

    /// Sends a request, and returns the answer.
    pub(super) async fn ask(&mut self, request: &VaultRequest) -> Result<(StatusCode, Bytes), String> {
        self.0.ready().await.map_err(|e| request.failed(&e))?;
        let answer = self.0.send_request(request.0.clone()).await.map_err(|e| request.failed(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), limits::MESSAGE_BYTES_MAX).collect();
        Ok((status, body.await.map_err(|e| request.failed(&e))?.to_bytes()))
    }
}

//! A client of the file server, in the form that the program of a job would use.

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{
    link::{Alpn, ConnectError, Connector, explain},
    reason::{Reason, Refusal},
    secret::SecretText,
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the file server cannot be used: {0}")]
    Connect(#[from] ConnectError),
    #[error("the connection failed: {0}")]
    Http(String),
    /// The server refused the request.
    #[error("{0}")]
    Refused(Refusal),
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// The transfer ended before all bytes arrived.
    #[error(
        "the transfer ended after {got} of {of} bytes: the access may have ended, or the connection broke"
    )]
    Cut { got: u64, of: u64 },
    #[error("the file cannot be written")]
    Write(#[from] std::io::Error),
}

/// Sends HTTP/1.1 requests over mutual TLS, each on a new connection.
#[derive(Clone)]
pub struct FileClient {
    connector: Connector,
}

/// A file whose bytes are arriving.
pub struct FileDownload {
    pub length: u64,
    pub got: u64,
    body: Incoming,
}

impl FileClient {
    pub fn new(connector: Connector) -> Self {
        FileClient { connector }
    }

    /// Requests a file. Read its bytes with [`FileDownload::next`].
    pub async fn get(&self, path: &str, token: &SecretText) -> Result<FileDownload, ClientError> {
        let answer = self.send(Method::GET, path, token, Bytes::new()).await?;
        let length = answer
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        Ok(FileDownload { length, got: 0, body: answer.into_body() })
    }

    /// Stores a checkpoint file.
    pub async fn put(&self, path: &str, token: &SecretText, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Method::PUT, path, token, bytes).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: &SecretText,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let http = |e: hyper::Error| match explain(&e) {
            Some(connect) => ClientError::Connect(connect),
            None => ClientError::Http(e.to_string()),
        };
        let dialed = self.connector.connect(Alpn::Http1).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(dialed.tls)).await.map_err(http)?;
        tokio::spawn(async move {
            // If the connection fails, reading the body fails too and reports the failure.
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.connector.endpoint().address())
            .header(header::AUTHORIZATION, format!("Bearer {}", token.expose()))
            .body(Full::new(body))
            .map_err(|e| ClientError::Http(e.to_string()))?;
        let answer = sender.send_request(request).await.map_err(http)?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(refused(answer).await)
    }
}

async fn refused(answer: Response<Incoming>) -> ClientError {
    let status = answer.status();
    let Ok(body) = answer.into_body().collect().await else { return ClientError::Status(status) };
    let answer: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let text = |key: &str| answer.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    match Reason::parse(&text("reason")) {
        Some(reason) => ClientError::Refused(Refusal::new(reason, text("message"))),
        None => ClientError::Status(status),
    }
}

impl FileDownload {
    /// Returns the next bytes, or `None` at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let cut = |this: &Self| ClientError::Cut { got: this.got, of: this.length };
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    self.got = self.got.saturating_add(bytes.len() as u64);
                    return Ok(Some(bytes));
                }
                Some(Err(_)) => return Err(cut(self)),
                None if self.got < self.length => return Err(cut(self)),
                None => return Ok(None),
            }
        }
    }

    /// Writes the whole file to `out`.
    pub async fn write_to(mut self, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, ClientError> {
        while let Some(bytes) = self.next().await? {
            out.write_all(&bytes).await?;
        }
        out.flush().await?;
        Ok(self.got)
    }
}

/// Reads a token from the file that the wrapper renews.
pub fn read_token(file: &Path) -> std::io::Result<SecretText> {
    Ok(SecretText::new(std::fs::read_to_string(file)?.trim().to_owned()))
}

//! A client of the file server: what a job's program does with its credentials.

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

/// Why a file was not had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the file server cannot be used: {0}")]
    Connect(#[from] ConnectError),
    #[error("the connection failed: {0}")]
    Http(String),
    /// The server said no, and why.
    #[error("{0}")]
    Refused(Refusal),
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// The transfer was cut before its end.
    #[error("the transfer was cut after {got} of {of} bytes: the access behind it ended")]
    Cut { got: u64, of: u64 },
    #[error("the file cannot be written")]
    Write(#[from] std::io::Error),
}

/// Speaks HTTP/1.1 over mutual TLS, one connection for each request.
#[derive(Clone)]
pub struct FileClient {
    connector: Connector,
}

/// A file that is coming.
pub struct Coming {
    pub length: u64,
    pub got: u64,
    body: Incoming,
}

impl FileClient {
    pub fn new(connector: Connector) -> Self {
        FileClient { connector }
    }

    /// Asks for a file; the bytes come by [`Coming::next`].
    pub async fn get(&self, path: &str, token: &SecretText) -> Result<Coming, ClientError> {
        let answer = self.send(Method::GET, path, token, Bytes::new()).await?;
        let length = answer
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        Ok(Coming { length, got: 0, body: answer.into_body() })
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
            // What fails here fails in the body too, where it is reported.
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
    let said: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let text = |key: &str| said.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    match Reason::parse(&text("reason")) {
        Some(reason) => ClientError::Refused(Refusal::new(reason, text("message"))),
        None => ClientError::Status(status),
    }
}

impl Coming {
    /// The next piece; `None` at the end of the whole file.
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

    /// Writes all of it.
    pub async fn write_to(mut self, out: &mut (impl AsyncWrite + Unpin)) -> Result<u64, ClientError> {
        while let Some(bytes) = self.next().await? {
            out.write_all(&bytes).await?;
        }
        out.flush().await?;
        Ok(self.got)
    }
}

/// A token from the file that the wrapper keeps up to date.
pub fn read_token(file: &Path) -> std::io::Result<SecretText> {
    Ok(SecretText::new(std::fs::read_to_string(file)?.trim().to_owned()))
}

//! A connection that can send any frames.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::Request;
use leasehold::link::{Alpn, ConnectError};
use prost::Message;
use tokio::task::JoinHandle;

use crate::process::Place;

/// The longest that an attacker waits for the daemon.
pub const ATTEMPT: Duration = Duration::from_secs(2);

/// A misbehaving client with a valid SVID. It answers pings. Dropping it closes the connection.
pub struct Attacker {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

/// An open call.
pub struct Call {
    pub answer: ResponseFuture,
    pub body: SendStream<Bytes>,
}

impl Call {
    /// Whether the daemon has ended the call: by a refusal, the end of its response, or closing the connection.
    pub async fn ends(self) -> bool {
        let end = async {
            if let Ok(answer) = self.answer.await
                && !answer.headers().contains_key("grpc-status")
            {
                let mut body = answer.into_body();
                while let Some(Ok(_)) = body.data().await {}
            }
        };
        tokio::time::timeout(ATTEMPT, end).await.is_ok()
    }
}

impl Attacker {
    /// Connects as this identity, with the usual HTTP/2 windows.
    pub async fn connect(place: &Place, id: &str) -> Result<Self, ConnectError> {
        Self::with_window(place, id, 65_535).await
    }

    /// Connects, and lets the daemon send this many bytes on each stream.
    pub async fn with_window(place: &Place, id: &str, window: u32) -> Result<Self, ConnectError> {
        let tls = place.connector(id).connect(Alpn::Http2).await?.tls;
        let handshake = Builder::new().initial_window_size(window).handshake::<_, Bytes>(tls).await;
        let (requests, connection) =
            handshake.map_err(|_| ConnectError::TimedOut { address: place.address.clone() })?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Attacker { requests, driver })
    }

    /// Begins a call. `None` if the daemon allows no further stream on this connection.
    pub async fn begin(&self, path: &str) -> Option<Call> {
        let mut ready = tokio::time::timeout(ATTEMPT, self.requests.clone().ready()).await.ok()?.ok()?;
        let request = Request::post(format!("https://daemon{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, body) = ready.send_request(request, false).ok()?;
        Some(Call { answer, body })
    }

    /// Makes a call with one whole message, and ignores the response.
    pub async fn ask(&self, path: &str, message: &impl Message) -> Option<Call> {
        let mut call = self.begin(path).await?;
        call.body.send_data(framed(&message.encode_to_vec()), true).ok()?;
        Some(call)
    }

    /// Whether the daemon has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Adds the gRPC prefix to a message.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(message);
    framed.freeze()
}

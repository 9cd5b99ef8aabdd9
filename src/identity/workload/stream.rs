//! One stream of the Workload API, from its connection to its end.

use std::{error::Error, io};

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{
    endpoint::WorkloadEndpoint,
    wire::{X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient},
};
use crate::{clock::Clock, limits, plain};

/// The metadata key of every call (SPIFFE Workload Endpoint, section 6.1).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// The highest number of characters that a message quotes from an error of the agent.
const SAID_CHARS_MAX: usize = 200;

/// The end of a stream, or the reason for which it could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The agent closed the stream without an error.
    Closed,
    /// `PermissionDenied`: we may no longer use the SVID that we have (section 5.2.1).
    Denied { said: String },
    /// `InvalidArgument` or `Unimplemented`: a retry would not help.
    Never { why: String },
    /// All other failures: a retry may help.
    Away { why: String },
}

/// Opens a stream within [`limits::HANDSHAKE`].
pub(super) async fn open(
    endpoint: &WorkloadEndpoint,
    clock: &dyn Clock,
) -> Result<Streaming<X509svidResponse>, StreamEnd> {
    tokio::select! {
        opened = subscribe(endpoint) => opened,
        () = clock.sleep(limits::HANDSHAKE) => {
            Err(StreamEnd::Away { why: format!("the SPIFFE agent at {endpoint} did not answer in time") })
        }
    }
}

async fn subscribe(endpoint: &WorkloadEndpoint) -> Result<Streaming<X509svidResponse>, StreamEnd> {
    let channel = connect(endpoint).await.map_err(|error| StreamEnd::Away {
        why: format!("the SPIFFE agent at {endpoint} cannot be reached: {}", innermost(&error)),
    })?;
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    let mut client =
        SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(limits::WORKLOAD_MESSAGE_BYTES_MAX);
    match client.fetch_x509svid(request).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(StreamEnd::of(endpoint, &status)),
    }
}

/// Connects without keepalive pings: agents in Go treat them as abuse, and a local socket reports the end of its other
/// side.
async fn connect(endpoint: &WorkloadEndpoint) -> Result<Channel, tonic::transport::Error> {
    let endpoint = endpoint.clone();
    let connector = service_fn(move |_| {
        let endpoint = endpoint.clone();
        async move {
            let stream = match endpoint {
                WorkloadEndpoint::Unix(path) => Either::Left(UnixStream::connect(path).await?),
                WorkloadEndpoint::Tcp(address) => Either::Right(TcpStream::connect(address).await?),
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

impl StreamEnd {
    pub(super) fn of(endpoint: &WorkloadEndpoint, status: &Status) -> Self {
        let said =
            plain::message(&status.message().chars().take(SAID_CHARS_MAX).collect::<String>()).into_owned();
        let code = status.code();
        match code {
            Code::PermissionDenied => StreamEnd::Denied { said },
            Code::InvalidArgument | Code::Unimplemented => StreamEnd::Never {
                why: format!("the SPIFFE agent at {endpoint} rejects our request ({code:?}: {said})"),
            },
            _ => StreamEnd::Away {
                why: format!("the SPIFFE agent at {endpoint} is unavailable ({code:?}: {said})"),
            },
        }
    }
}

/// Returns the innermost cause of a transport error, because people can act on it.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

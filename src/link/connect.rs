//! Connections from a client to a server with a known SPIFFE ID.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    str::FromStr,
    sync::Arc,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Channel;
use tower::service_fn;

use super::{connect_error::ConnectError, primed::Primed};
use crate::{
    clock::Clock,
    identity::{IdentitySource, Peer, client_config},
    limits,
    name::SpiffeId,
    plain,
    sync::run_blocking,
};

/// A server: its address and the SPIFFE ID that it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    address: String,
    server_id: SpiffeId,
}

/// The error for an address that is not `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not an address: write `HOST:PORT`, without a scheme or a path")]
pub struct EndpointError {
    shown: String,
}

impl Endpoint {
    /// Parses `host:port`. The host is a name, an IPv4 address, or an IPv6 address in brackets.
    ///
    /// # Errors
    ///
    /// Fails if the address has a scheme, a user or a path, or has no port.
    pub fn new(address: &str, server_id: SpiffeId) -> Result<Self, EndpointError> {
        let error = || EndpointError { shown: plain::ascii_value(address) };
        let authority = http::uri::Authority::from_str(address).map_err(|_| error())?;
        let written = authority.as_str() == address && !address.contains('@');
        if !written || authority.host().is_empty() || authority.port_u16().is_none() {
            return Err(error());
        }
        Ok(Endpoint { address: address.to_owned(), server_id })
    }

    /// Returns the `HOST:PORT` of the server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the SPIFFE ID that the server must have.
    pub fn server_id(&self) -> &SpiffeId {
        &self.server_id
    }
}

/// Connects to `host:port`. Does not use the name lookup of tokio, which panics if no thread can be started.
async fn dial_tcp(address: &str) -> io::Result<TcpStream> {
    if let Ok(known) = address.parse::<SocketAddr>() {
        return TcpStream::connect(known).await;
    }
    let name = address.to_owned();
    let found = run_blocking(move || name.to_socket_addrs().map(Iterator::collect::<Vec<_>>)).await;
    let found = found.unwrap_or_else(|| Err(io::Error::other("the name could not be looked up")))?;
    TcpStream::connect(found.as_slice()).await
}

/// The protocol to negotiate inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1, with the ALPN `http/1.1`.
    Http1,
    /// HTTP/2, with the ALPN `h2`.
    Http2,
}

/// A connection to a server whose SPIFFE ID was verified.
#[derive(Debug)]
pub struct Dialed {
    /// The open connection. Nothing was sent on it yet.
    pub tls: TlsStream<TcpStream>,
    /// The verified server, which has the SPIFFE ID of the [`Endpoint`].
    pub server: Peer,
}

/// Opens connections, each with the newest SVID and bundles of the source. Cloning copies a few pointers.
#[derive(Clone)]
pub struct Connector {
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    endpoint: Endpoint,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Connector {
    /// Makes a connector. Opens no connection.
    pub fn new(source: Arc<dyn IdentitySource>, clock: Arc<dyn Clock>, endpoint: Endpoint) -> Self {
        let config =
            |alpn: &[&[u8]]| client_config(source.clone(), clock.clone(), endpoint.server_id.clone(), alpn);
        Connector { http1: config(&[b"http/1.1"]), http2: config(&[b"h2"]), source, clock, endpoint }
    }

    /// Returns the server to which the connector connects.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Connects over TLS, for an HTTP client that is not gRPC.
    ///
    /// The server may still refuse our SVID. In TLS 1.3, the first read reports that, and
    /// [`explain`](super::connect_error::explain) finds it in the error of the HTTP client.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be reached within [`limits::HANDSHAKE`], if one side refuses the SVID of the other side, or
    /// if we have no SVID.
    pub async fn connect(&self, alpn: Alpn) -> Result<Dialed, ConnectError> {
        self.in_time(self.dial(alpn)).await
    }

    /// Makes a gRPC channel that connects at its first call. It reconnects after the connection was lost or received GOAWAY. A
    /// dead server is detected within two [`limits::PING`]. Must be called inside a Tokio runtime.
    ///
    /// If a call fails because there is no connection, its Status contains a [`ConnectError`], which
    /// [`explain`](super::connect_error::explain) returns.
    pub fn channel(&self) -> Channel {
        let connector = self.clone();
        self.transport().connect_with_connector_lazy(service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move { connector.connect_grpc().await.map(TokioIo::new) }
        }))
    }

    /// Makes a gRPC channel that is already connected.
    ///
    /// # Errors
    ///
    /// Fails if [`Connector::connect`] fails, or if the server refuses our SVID.
    pub async fn connected_channel(&self) -> Result<Channel, ConnectError> {
        let connector = self.clone();
        let service = service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move { connector.connect_grpc().await.map(TokioIo::new) }
        });
        self.transport().connect_with_connector(service).await.map_err(|error| {
            super::connect_error::explain(&error).unwrap_or_else(|| ConnectError::Protocol {
                address: self.endpoint.address.clone(),
                found: error.to_string(),
            })
        })
    }

    /// Connects and waits until the server has accepted our SVID.
    async fn connect_grpc(&self) -> Result<Primed<TlsStream<TcpStream>>, ConnectError> {
        self.in_time(async {
            let dialed = self.dial(Alpn::Http2).await?;
            Primed::wait(dialed.tls).await.map_err(|e| ConnectError::of(&self.endpoint.address, e))
        })
        .await
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        tokio::select! {
            done = work => done,
            () = self.clock.sleep(limits::HANDSHAKE) => {
                Err(ConnectError::TimedOut { address: self.endpoint.address.clone() })
            }
        }
    }

    async fn dial(&self, alpn: Alpn) -> Result<Dialed, ConnectError> {
        self.check_own_svid()?;
        let address = &self.endpoint.address;
        let tcp = dial_tcp(address)
            .await
            .map_err(|e| ConnectError::Unreachable { address: address.clone(), cause: Arc::new(e) })?;
        let _ = tcp.set_nodelay(true);
        let config = match alpn {
            Alpn::Http1 => &self.http1,
            Alpn::Http2 => &self.http2,
        };
        // rustls requires a name. It is never sent or compared, because the SPIFFE ID identifies the server.
        let nameless = ServerName::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let tls = TlsConnector::from(config.clone())
            .connect(nameless, tcp)
            .await
            .map_err(|e| ConnectError::of(address, e))?;
        let bundles = &self.source.current().bundles;
        let server = Peer::of_server(tls.get_ref().1, self.clock.now().wall, bundles)
            .map_err(|why| ConnectError::ServerNotTrusted { address: address.clone(), why })?;
        Ok(Dialed { tls, server })
    }

    /// Returns the digest of the SVID for the next connection.
    pub fn own_svid_digest(&self) -> Option<[u8; 32]> {
        self.source.current().svid.as_ref().map(|svid| svid.leaf().x5t_s256)
    }

    /// Checks our SVID before a connection, because the alert of a server would not say what is wrong with the SVID.
    fn check_own_svid(&self) -> Result<(), ConnectError> {
        let trust = self.source.current();
        let Some(svid) = &trust.svid else {
            let why = trust.standing.why().map(str::to_owned);
            return Err(why.map_or(ConnectError::OwnSvidAbsent, |why| ConnectError::OwnIdentity { why }));
        };
        if svid.is_current(self.clock.now().wall) {
            return Ok(());
        }
        Err(ConnectError::OwnSvidExpired {
            spiffe_id: svid.spiffe_id().clone(),
            not_before: svid.leaf().not_before,
            not_after: svid.not_after(),
        })
    }

    fn transport(&self) -> tonic::transport::Endpoint {
        let uri = format!("https://{}", self.endpoint.address);
        #[expect(clippy::expect_used, reason = "an Endpoint's address was parsed as an authority")]
        tonic::transport::Endpoint::from_shared(uri)
            .expect("an authority makes a URI")
            .http2_keep_alive_interval(limits::PING)
            .keep_alive_timeout(limits::PING)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connector({} at {})", self.endpoint.server_id, self.endpoint.address)
    }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;

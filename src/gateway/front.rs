//! The front: removes the headers of the wrapper from a request, checks the tokens and the peer, and hands the client's
//! own request to the S3 protocol.

use std::{convert::Infallible, sync::Arc};

use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use s3s::{Body, S3Error, S3ErrorCode, S3Result, auth::SecretKey, service::S3Service};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    caller::GatewayCaller,
    hub,
    open_uploads::OpenUploads,
    received_body::ReceivedBody,
    refusal::{failed, not_implemented, refused},
    room::GatewayRoom,
    service::{SIGNED_WITH, service},
    session::{CatalogReader, TokenSession, TokenSessions},
    stores::Stores,
};
use crate::{
    clock::Clock,
    identity::IdentitySource,
    limits::{GATEWAY_HEADER_BYTES_MAX, GATEWAY_TOKENS_PER_REQUEST_MAX, GATEWAY_XML_BYTES_MAX},
    link::{Acceptor, ClassifiedPeer, Classify, Connection, PeerClass, Protocol, ServeOptions, Share, serve},
    name::SpiffeId,
    reason::{Reason, Refusal},
    token::Presenter,
    verify::{UseReporter, Verifier},
};

/// A member's access token for this audience: one header for each half.
pub(super) const TOKEN: &str = "x-leasehold-token";
/// The secret of the key that the wrapper gave to the client.
pub(super) const SECRET_KEY: &str = "x-leasehold-secret-key";
/// The path at which wrappers present newer tokens for transfers under way. A bucket cannot have this name.
const RENEW_PATH: &str = "/.leasehold/renew";

/// An S3 server for the resources of leases. A clone is cheap.
#[derive(Clone)]
pub struct Gateway {
    pub(super) sessions: TokenSessions,
    uploads: Arc<OpenUploads>,
    s3: S3Service,
    rooms: Arc<GatewayRoom>,
    stores: Arc<Stores>,
    reporter: Option<UseReporter>,
    classify: Classify,
}

impl Gateway {
    /// Makes a gateway. It asks the verifier about tokens, and looks up resources in the catalog.
    pub fn new(verifier: Verifier, catalog: CatalogReader, stores: Stores, clock: Arc<dyn Clock>) -> Self {
        let (stores, uploads) = (Arc::new(stores), Arc::new(OpenUploads::default()));
        let classify = by_catalog(catalog.clone());
        Gateway {
            sessions: TokenSessions::new(verifier, catalog, stores.clone(), clock),
            s3: service(uploads.clone()),
            uploads,
            rooms: Arc::default(),
            stores,
            reporter: None,
            classify,
        }
    }

    /// Lets the gateway report the use of leases to the daemon.
    #[must_use]
    pub fn reporting_to(self, reporter: UseReporter) -> Self {
        Gateway { reporter: Some(reporter), ..self }
    }

    /// Serves until the shutdown. First removes the unfinished uploads of an earlier gateway, because a store has only
    /// one gateway at a time. The options bound the connections. The gateway itself decides which callers are known and
    /// how long headers may be.
    pub async fn serve(
        self,
        listener: TcpListener,
        source: Arc<dyn IdentitySource>,
        options: ServeOptions,
        shutdown: CancellationToken,
    ) {
        for store in self.stores.iter() {
            if let Err(error) = store.clear_staging().await {
                tracing::warn!(%error, "unfinished uploads of an earlier gateway could not be removed");
            }
        }
        let clock = self.sessions.clock().clone();
        let (uploads, watched, over) = (self.uploads.clone(), clock.clone(), shutdown.clone());
        let (sessions, reporter) = (self.sessions.clone(), self.reporter.clone());
        let watch = tokio::spawn(async move {
            tokio::join!(uploads.watch(watched, over.clone()), sessions.usages().watch(reporter, over));
        });
        let (acceptor, classify) = (Acceptor::new(source, clock, Protocol::Http), self.classify.clone());
        let gateway = Arc::new(self);
        let service = tower::service_fn(move |request| {
            let gateway = gateway.clone();
            async move { Ok::<_, Infallible>(gateway.answer(request).await) }
        });
        let options = ServeOptions { header_bytes_max: GATEWAY_HEADER_BYTES_MAX, classify, ..options };
        serve(listener, acceptor, service, options, shutdown).await;
        if let Err(error) = watch.await {
            tracing::error!(%error, "the background task for uploads and usages did not end normally");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let hub = hub::is_hub_path(request.uri().path());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.handle(request).await {
            Ok(response) => response,
            Err(error) if hub => hub::hub_refusal(&error, &method, &path),
            Err(error) => error_response(error),
        }
    }

    async fn handle(&self, request: Request<Incoming>) -> S3Result<Response<Body>> {
        let clock = self.sessions.clock();
        let mut request = bounded(request, clock);
        let connection = request.extensions().get::<Connection>().cloned().ok_or_else(|| {
            refused(&Refusal::new(Reason::NoClientCertificate, "the connection has no client certificate"))
        })?;
        let is_for_hub = hub::is_hub_path(request.uri().path());
        let added = Added::take(request.headers_mut(), is_for_hub)?;
        check_form(&request)?;
        check_document(&request)?;
        let peer = &connection.peer;
        let share = self.take_room(peer.spiffe_id())?;
        let tokens: Vec<&str> = added.tokens.iter().map(String::as_str).collect();
        let presenter = Presenter::Svid { id: peer.spiffe_id(), x5t_s256: Some(peer.x5t_s256()) };
        let session = self.sessions.open(&tokens, presenter).await.map_err(|refusal| refused(&refusal))?;
        if request.uri().path() == RENEW_PATH {
            return Ok(renewed(request.method(), session.refused.as_ref()));
        }
        let (holder, version) = (peer.spiffe_id().clone(), request.version());
        let caller = self.caller(session, holder, connection.cutter(), share, version);
        if is_for_hub {
            return hub::answer(&caller, &request).await;
        }
        self.serve_signed(request, caller, added.secret).await
    }

    /// Takes a slot for one request of a holder.
    pub(super) fn take_room(&self, holder: &SpiffeId) -> S3Result<Share> {
        self.rooms.requests.take(holder, 1).map_err(|_| {
            let text = "too many requests are under way: try again";
            refused(&Refusal::new(Reason::Overloaded, text))
        })
    }

    pub(super) fn caller(
        &self,
        session: TokenSession,
        holder: SpiffeId,
        cut: CancellationToken,
        room: Share,
        version: Version,
    ) -> GatewayCaller {
        let (sessions, rooms) = (self.sessions.clone(), self.rooms.clone());
        GatewayCaller { session, sessions, holder, cut, version, rooms, room: Arc::new(room) }
    }

    /// Serves a request that is signed with this secret.
    pub(super) async fn serve_signed(
        &self,
        mut request: Request<Body>,
        caller: GatewayCaller,
        secret: SecretKey,
    ) -> S3Result<Response<Body>> {
        request.extensions_mut().insert(caller);
        let served = SIGNED_WITH.scope(secret, self.s3.call(request)).await;
        served.map_err(|error| {
            tracing::error!(error = %s3s::StdError::from(error), "a request could not be served");
            failed(S3ErrorCode::InternalError, "the request could not be served")
        })
    }
}

/// Bounds what the body of a request takes: time, memory for chunks, and bytes that no one reads.
pub(super) fn bounded(request: Request<Incoming>, clock: &Arc<dyn Clock>) -> Request<Body> {
    let (parts, body) = request.into_parts();
    let body = ReceivedBody::new(body.into(), &parts.headers, clock.clone());
    Request::from_parts(parts, Body::http_body_unsync(body))
}

/// Classifies peers by the catalog. An identity without a catalog entry cannot hold a lease, so it gets few
/// connections.
fn by_catalog(catalog: CatalogReader) -> Classify {
    Classify::new(move |peer| {
        let counted_as = peer.spiffe_id().clone();
        let class =
            if catalog().principal(&counted_as).is_some() { PeerClass::Known } else { PeerClass::Unknown };
        ClassifiedPeer { class, counted_as }
    })
}

/// Returns the answer to a request with newer tokens: success, or the reason for which a token is refused.
fn renewed(method: &Method, refusal: Option<&Refusal>) -> Response<Body> {
    match refusal {
        _ if method != Method::POST => {
            error_response(failed(S3ErrorCode::MethodNotAllowed, "send newer tokens with the method POST"))
        }
        Some(refusal) => error_response(refused(refusal)),
        None => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
    }
}

/// The headers that the wrapper added to the client's request.
struct Added {
    tokens: Vec<String>,
    secret: SecretKey,
}

impl Added {
    /// Removes the headers of the wrapper from a request, so that the S3 protocol, its log and its errors never see them.
    fn take(headers: &mut HeaderMap, is_for_hub: bool) -> S3Result<Self> {
        let read = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
        };
        let (tokens, mut secrets) = (read(TOKEN), read(SECRET_KEY));
        headers.remove(TOKEN);
        headers.remove(SECRET_KEY);
        if tokens.is_empty() || tokens.len() > GATEWAY_TOKENS_PER_REQUEST_MAX {
            return Err(refused(
                &Refusal::new(Reason::TokenMalformed, "the request has no token of a lease, or too many")
                    .fix("send it to the endpoint that `leasehold run` or `leasehold agent` gives to the command"),
            ));
        }
        let secret = match (secrets.pop(), secrets.is_empty()) {
            // The Hub's clients do not sign requests.
            (None, _) if is_for_hub => SecretKey::from(String::new()),
            (Some(secret), true) if !secret.is_empty() => SecretKey::from(secret),
            _ => {
                return Err(failed(
                    S3ErrorCode::InvalidAccessKeyId,
                    "the request has no key of a wrapper, or several",
                ));
            }
        };
        Ok(Added { tokens, secret })
    }
}

/// Refuses the kinds of signature that the gateway does not support, with their names. s3s would accept them.
pub(super) fn check_form<B>(request: &Request<B>) -> S3Result<()> {
    let query = request.uri().query().unwrap_or_default();
    // s3s decodes the names of parameters. So this code decodes names before it compares them.
    let has_parameter = |wanted: &str| {
        query.split('&').any(|pair| decoded_name(pair).is_some_and(|name| name == wanted.as_bytes()))
    };
    let authorization = request.headers().get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
    let is_v2 = authorization.is_some_and(|value| value.starts_with(b"AWS "))
        || has_parameter("AWSAccessKeyId")
        || has_parameter("Signature");
    if is_v2 {
        let text = "AWS Signature Version 2 is not accepted: sign with Version 4 (signature_version = s3v4)";
        return Err(failed(S3ErrorCode::InvalidRequest, text));
    }
    let kind = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    if request.method() == Method::POST && kind.is_some_and(|kind| kind.starts_with(b"multipart/form-data")) {
        return Err(not_implemented("uploads by HTML forms (PostObject)"));
    }
    Ok(())
}

/// Refuses an XML body (a document) that is too long, or whose length the client does not declare. s3s would report both
/// as faults of the server.
pub(super) fn check_document<B>(request: &Request<B>) -> S3Result<()> {
    // If a PUT has only these parameters, its body is an object or a part of an object. Otherwise its body is a document.
    const OF_OBJECTS: [&[u8]; 4] = [b"", b"partNumber", b"uploadId", b"x-id"];
    let names = || request.uri().query().unwrap_or_default().split('&').filter_map(decoded_name);
    let is_signature = |name: &[u8]| name.to_ascii_lowercase().starts_with(b"x-amz-");
    let is_other = |name: Vec<u8>| !OF_OBJECTS.contains(&name.as_slice()) && !is_signature(&name);
    let has_document = match *request.method() {
        Method::POST => true,
        Method::PUT => names().any(is_other),
        _ => false,
    };
    if !has_document {
        return Ok(());
    }
    let headers = request.headers();
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    match length {
        Some(length) if length > GATEWAY_XML_BYTES_MAX => {
            let text =
                format!("the XML body has {length} bytes, and may have at most {GATEWAY_XML_BYTES_MAX}");
            Err(failed(S3ErrorCode::MaxMessageLengthExceeded, text))
        }
        None if headers.contains_key(header::TRANSFER_ENCODING) => Err(failed(
            S3ErrorCode::MissingContentLength,
            "the request does not declare the length of its XML body: send Content-Length",
        )),
        _ => Ok(()),
    }
}

/// Returns the name of a parameter without percent-encoding. `None` if the encoding is malformed: s3s refuses such a
/// name or uses it literally.
fn decoded_name(pair: &str) -> Option<Vec<u8>> {
    let mut bytes = pair.split('=').next().unwrap_or_default().bytes();
    let mut name = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            name.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            name.push(byte);
        }
    }
    Some(name)
}

pub(super) fn error_response(error: S3Error) -> Response<Body> {
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

#[cfg(test)]
#[path = "front_tests.rs"]
mod tests;

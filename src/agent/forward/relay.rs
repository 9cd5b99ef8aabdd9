//! Handles one request: waits until the member has access, sends the request, and passes the answer on.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Empty, Full};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    cut_body::CutBody,
    local_key::LocalKey,
    local_request::{Dialect, KEY_PATH, LocalRequest, remove_hop_by_hop},
    refused::{NotServed, REASON_HEADER},
    upstream::{SendError, Upstream, UpstreamBody},
};
use crate::{
    agent::access::present::{GatewayAccess, PresentAccess},
    backoff::Backoff,
    clock::{Clock, LeaseTime},
    identity::IdentitySource,
    limits::{CALL, FORWARD_SETTLE, LOCAL_KEY_SHOWN},
    link::{Connector, Endpoint},
    reason::{MemberStep, Reason},
};

/// Passes requests on to the gateways of a member.
pub(super) struct Relay {
    pub(super) key: LocalKey,
    pub(super) present: watch::Receiver<PresentAccess>,
    pub(super) identity: Arc<dyn IdentitySource>,
    pub(super) clock: Arc<dyn Clock>,
    /// How long a request is held while there is no access or no connection.
    hold_max: Duration,
    /// Cancelled when access ends or the forwarder stops.
    pub(super) cut: CancellationToken,
    upstreams: Mutex<HashMap<String, (Endpoint, Arc<Upstream>)>>,
}

/// The body of an answer to a program.
pub(super) enum AnswerBody {
    Whole(Full<Bytes>),
    Passed(CutBody),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            AnswerBody::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            AnswerBody::Passed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(body) => body.is_end_stream(),
            AnswerBody::Passed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(body) => body.size_hint(),
            AnswerBody::Passed(body) => body.size_hint(),
        }
    }
}

/// The present gateways, from one value of the member's access.
type Gateways = Arc<Vec<GatewayAccess>>;

impl Relay {
    pub(super) fn new(
        key: LocalKey,
        present: watch::Receiver<PresentAccess>,
        identity: Arc<dyn IdentitySource>,
        clock: Arc<dyn Clock>,
        hold_max: Duration,
    ) -> Self {
        let (cut, upstreams) = (CancellationToken::new(), Mutex::default());
        Relay { key, present, identity, clock, hold_max, cut, upstreams }
    }

    /// Answers one request of a program.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let (parts, body) = request.into_parts();
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        if path == KEY_PATH {
            return self.show_key(&parts);
        }
        let dialect = Dialect::of(&path);
        let answered = match LocalRequest::new(parts, &self.key) {
            Ok(local) => self.pass_on(&local, body).await,
            Err(refused) => Err(refused),
        };
        answered.unwrap_or_else(|refused| refused.response(dialect, &method, &path))
    }

    /// Answers with the local key, in the form of the container credentials of AWS. The key does not expire before the attempt,
    /// because access is checked at each request.
    fn show_key(&self, parts: &Parts) -> Response<AnswerBody> {
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if parts.method != Method::GET || !authorization.is_some_and(|value| self.key.is_bearer(value)) {
            return NotServed::NoToken.response(Dialect::Hub, &parts.method, KEY_PATH);
        }
        let expires = self.clock.now().wall.plus(LOCAL_KEY_SHOWN);
        let text = serde_json::json!({
            "AccessKeyId": self.key.id,
            "SecretAccessKey": self.key.secret.expose(),
            "Token": "",
            "Expiration": expires.to_string(),
        });
        let mut response = Response::new(AnswerBody::Whole(Full::new(Bytes::from(text.to_string()))));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn pass_on(&self, local: &LocalRequest, body: Incoming) -> Result<Response<AnswerBody>, NotServed> {
        let deadline = self.clock.now().lease.plus(self.hold_max);
        let mut backoff = Backoff::default();
        let is_empty = body.is_end_stream();
        let mut body = Some(body).filter(|_| !is_empty);
        loop {
            let gateways = self.wait_for_access(deadline).await?;
            let gateway = local.choose(&gateways)?;
            let upstream_body = match body.take() {
                Some(body) => Either::Left(CutBody::new(body, self.cut.clone())),
                None => Either::Right(Empty::new()),
            };
            let request = local.to_gateway(gateway, &self.key, upstream_body);
            let sent = tokio::select! {
                biased;
                () = self.cut.cancelled() => return Err(self.why_cut()),
                sent = self.send(gateway, request, deadline, &mut backoff) => sent,
            };
            match sent {
                Ok(response) if is_replaceable(&response) && self.clock.now().lease < deadline => {
                    if !self.has_changed(&gateways).await {
                        return Ok(response);
                    }
                    if !is_empty {
                        return Err(self.why_replaced());
                    }
                }
                Ok(response) => return Ok(response),
                // To repeat a read changes nothing. Any other request may have taken effect already, so the program must decide
                // whether to repeat it.
                Err(why) if is_empty && local.only_reads() && self.clock.now().lease < deadline => {
                    tracing::debug!(%why, request = local.shown(), "a request is sent again");
                    self.clock.sleep(backoff.next_wait()).await;
                }
                Err(why) => return Err(NotServed::TryLater(why)),
            }
        }
    }

    /// Sends a request. If there is no connection, tries again until the deadline.
    async fn send(
        &self,
        gateway: &GatewayAccess,
        mut request: Request<UpstreamBody>,
        deadline: LeaseTime,
        backoff: &mut Backoff,
    ) -> Result<Response<AnswerBody>, String> {
        let upstream = self.upstream(&gateway.endpoint);
        loop {
            match upstream.send(request).await {
                Ok((response, connection)) => {
                    let (mut parts, body) = response.into_parts();
                    remove_hop_by_hop(&mut parts.headers);
                    let body = CutBody::new(body, self.cut.clone()).of_connection(connection);
                    return Ok(Response::from_parts(parts, AnswerBody::Passed(body)));
                }
                Err(SendError::NotConnected(error, unsent)) if self.clock.now().lease < deadline => {
                    tracing::debug!(%error, "the gateway cannot be reached");
                    self.clock.sleep(backoff.next_wait()).await;
                    request = unsent;
                }
                Err(SendError::NotConnected(error, _)) => return Err(error.to_string()),
                Err(SendError::Broken(why)) => {
                    return Err(format!("the connection to {} broke: {why}", gateway.endpoint.address()));
                }
            }
        }
    }

    /// Presents each newer token to the gateways in use, because a transfer may last longer than its token. Runs until access
    /// ends.
    pub(super) async fn present_newer_tokens(&self) {
        let mut present = self.present.clone();
        while present.changed().await.is_ok() {
            let PresentAccess::Open(gateways) = present.borrow_and_update().clone() else { continue };
            for gateway in gateways.iter().filter(|g| !g.tokens.is_empty()) {
                let known = self.upstreams().get(gateway.endpoint.address()).map(|(_, u)| u.clone());
                let Some(upstream) = known else { continue };
                let request = LocalRequest::renewal(gateway, &self.key, Either::Right(Empty::new()));
                // If this fails, the transfer is cut when its token expires, and the program goes on with a new request.
                tokio::select! {
                    sent = upstream.send(request) => if let Ok((response, connection)) = sent {
                        let _ = CutBody::new(response.into_body(), self.cut.clone()).of_connection(connection);
                    },
                    () = self.clock.sleep(CALL) => {}
                    () = self.cut.cancelled() => return,
                }
            }
        }
    }

    /// Waits while the member is away, until the deadline.
    async fn wait_for_access(&self, deadline: LeaseTime) -> Result<Gateways, NotServed> {
        let mut present = self.present.clone();
        loop {
            match present.borrow_and_update().clone() {
                PresentAccess::Open(gateways) if gateways.iter().any(|g| !g.tokens.is_empty()) => {
                    return Ok(gateways);
                }
                PresentAccess::Ended(end) => return Err(NotServed::Ended(end)),
                // New tokens will come.
                PresentAccess::Open(_) | PresentAccess::Away => {}
            }
            tokio::select! {
                changed = present.changed() => if changed.is_err() {
                    return Err(self.why_cut());
                },
                () = self.cut.cancelled() => return Err(self.why_cut()),
                () = self.clock.sleep_until(deadline) => {
                    return Err(NotServed::TryLater("this run has lost its connection to the daemon, and tries to come back".to_owned()));
                }
            }
        }
    }

    /// Waits a moment for other tokens, because the gateway may learn earlier than this process that these tokens have ended.
    async fn has_changed(&self, before: &Gateways) -> bool {
        let mut present = self.present.clone();
        let is_other =
            |now: &PresentAccess| !matches!(now, PresentAccess::Open(now) if Arc::ptr_eq(now, before));
        tokio::select! {
            changed = present.wait_for(is_other) => changed.is_ok(),
            () = self.clock.sleep(FORWARD_SETTLE) => false,
        }
    }

    /// Makes the answer to a request that cannot be repeated here, because its body was already sent. The program may try
    /// again.
    fn why_replaced(&self) -> NotServed {
        match &*self.present.borrow() {
            PresentAccess::Ended(end) => NotServed::Ended(end.clone()),
            PresentAccess::Open(_) | PresentAccess::Away => {
                NotServed::TryLater("the access was replaced meanwhile".to_owned())
            }
        }
    }

    fn why_cut(&self) -> NotServed {
        match &*self.present.borrow() {
            PresentAccess::Ended(end) => NotServed::Ended(end.clone()),
            PresentAccess::Open(_) | PresentAccess::Away => NotServed::TryLater("the run ends".to_owned()),
        }
    }

    /// Returns the connections to a gateway. A job's offers name a limited number of audiences, so the number of gateways is
    /// limited too.
    fn upstream(&self, endpoint: &Endpoint) -> Arc<Upstream> {
        let mut all = self.upstreams();
        if let Some((known, upstream)) = all.get(endpoint.address())
            && known == endpoint
        {
            return upstream.clone();
        }
        let connector = Connector::new(self.identity.clone(), self.clock.clone(), endpoint.clone());
        let upstream = Arc::new(Upstream::new(connector, self.clock.clone()));
        all.insert(endpoint.address().to_owned(), (endpoint.clone(), upstream.clone()));
        upstream
    }

    fn upstreams(&self) -> MutexGuard<'_, HashMap<String, (Endpoint, Arc<Upstream>)>> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a request with another token may succeed after this answer.
fn is_replaceable(response: &Response<AnswerBody>) -> bool {
    let reason = response.headers().get(REASON_HEADER).and_then(|v| v.to_str().ok()).and_then(Reason::parse);
    !response.status().is_success()
        && reason.is_some_and(|reason| {
            reason.http_status() == StatusCode::UNAUTHORIZED
                || matches!(reason.member_step(), MemberStep::ReplaceLease | MemberStep::Rejoin)
        })
}

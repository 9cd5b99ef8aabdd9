use std::{collections::HashMap, pin::Pin, sync::Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    agent::{
        access::{
            access_end::{AccessEnd, AttemptStatus},
            present::GatewayAccess,
        },
        forward::refused::REASON_HEADER,
    },
    clock::manual::ManualClock,
    identity::{
        StaticSource,
        testing::{NOW, TestCa, bundles},
    },
    limits::{FORWARD_HOLD, FORWARD_QUIET_MIN, FORWARD_SETTLE},
    link::{Acceptor, Connection, Connector, Endpoint, Protocol, ServeOptions},
    reason::Reason,
    secret::SecretText,
};

type TestBody = UnsyncBoxBody<Bytes, io::Error>;
type Client = SendRequest<TestBody>;

/// The method and path of a request, its tokens, and the port from which the forwarder connected.
type SeenRequest = (String, Vec<String>, u16);

const GATEWAY: &str = "spiffe://a.example/gateway";

/// A forwarder between a client and a server of the test. Its connection to the server uses mutual TLS.
struct Scene {
    clock: Arc<ManualClock>,
    present: watch::Sender<PresentAccess>,
    forwarder: Forwarder,
    session: Secret,
    context: RunContext,
    endpoint: Endpoint,
    /// The requests that the server got.
    seen: Arc<Mutex<Vec<SeenRequest>>>,
    /// The bodies of uploads, piece by piece. `None` if a body broke.
    uploads: mpsc::UnboundedReceiver<Option<Bytes>>,
    /// The tokens that the server refuses, each with a Reason.
    refused: Arc<Mutex<HashMap<String, Reason>>>,
    stop: CancellationToken,
}

fn body(bytes: &'static str) -> TestBody {
    Full::new(Bytes::from_static(bytes.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

fn none() -> TestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body with a first piece and no end.
fn endless() -> TestBody {
    let first = stream::once(async { Ok(Frame::data(Bytes::from_static(b"first"))) });
    StreamBody::new(first.chain(stream::pending())).boxed_unsync()
}

/// A body with more bytes than all buffers between the two ends, and no end.
fn flood() -> TestBody {
    let piece = Bytes::from(vec![7; 256 << 10]);
    StreamBody::new(stream::repeat_with(move || Ok(Frame::data(piece.clone())))).boxed_unsync()
}

impl Scene {
    async fn start() -> Self {
        let (ca, clock) = (TestCa::new("a.example"), Arc::new(ManualClock::new(NOW)));
        let source =
            |path: &str| Arc::new(StaticSource::new(Some(Arc::new(ca.svid(path).svid())), bundles(&[&ca])));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint =
            Endpoint::new(&listener.local_addr().unwrap().to_string(), GATEWAY.parse().unwrap()).unwrap();
        let seen: Arc<Mutex<Vec<SeenRequest>>> = Arc::default();
        let refused: Arc<Mutex<HashMap<String, Reason>>> = Arc::default();
        let (upload, uploads) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (noted, tokens) = (Arc::clone(&seen), Arc::clone(&refused));
        let service = tower::service_fn(move |request: Request<Incoming>| {
            answer(request, noted.clone(), tokens.clone(), upload.clone())
        });
        let acceptor = Acceptor::new(source("/gateway"), clock.clone(), Protocol::Http);
        tokio::spawn(crate::link::serve(listener, acceptor, service, ServeOptions::default(), stop.clone()));
        let identity = source("/trainer");
        let context = RunContext {
            connector: Connector::new(identity.clone(), clock.clone(), endpoint.clone()),
            identity,
            clock: clock.clone(),
            messages: MessageSink::new(|_| {}),
        };
        let present = watch::Sender::new(open(&endpoint, "one"));
        let session = Secret::random().unwrap();
        let started =
            Forwarder::start(present.subscribe(), &session, Callers::SameUser, FORWARD_HOLD, &context).await;
        let forwarder = started.unwrap().unwrap();
        Scene { clock, present, forwarder, session, context, endpoint, seen, uploads, refused, stop }
    }

    async fn client(&self) -> Client {
        let tcp = TcpStream::connect(self.forwarder.address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn request(&self, method: &str, path: &str, body: TestBody) -> Request<TestBody> {
        let signed = format!(
            "AWS4-HMAC-SHA256 Credential={}/20261130/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
            self.forwarder.key.id
        );
        let host = self.forwarder.address.to_string();
        let request = Request::builder().method(method).uri(path).header(header::HOST, host);
        request.header(header::AUTHORIZATION, signed).body(body).unwrap()
    }

    async fn get(&self, client: &mut Client, path: &str) -> Response<Incoming> {
        client.ready().await.unwrap();
        client.send_request(self.request("GET", path, none())).await.unwrap()
    }

    fn give(&self, token: &str) {
        self.present.send_replace(open(&self.endpoint, token));
    }

    fn end(&self) {
        let end = AccessEnd {
            reason: Reason::Revoked,
            message: "revoked by ada: wrong data".into(),
            attempt: AttemptStatus::Ended,
        };
        self.present.send_replace(PresentAccess::Ended(end));
    }

    fn tokens_seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().flat_map(|(_, tokens, _)| tokens.clone()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn open(endpoint: &Endpoint, token: &str) -> PresentAccess {
    let mut gateway = GatewayAccess::new(endpoint.clone());
    gateway.tokens.push(SecretText::new(token.to_owned()));
    gateway.locations.push("s3://bucket/".to_owned());
    PresentAccess::Open(Arc::new(vec![gateway]))
}

/// Answers a request. `/bucket/endless` and `/bucket/flood` never end. Uploads go to the channel.
async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<SeenRequest>>>,
    refused: Arc<Mutex<HashMap<String, Reason>>>,
    upload: mpsc::UnboundedSender<Option<Bytes>>,
) -> Result<Response<TestBody>, Infallible> {
    let (parts, mut came) = request.into_parts();
    let tokens: Vec<String> = parts
        .headers
        .get_all("x-leasehold-token")
        .iter()
        .map(|value| value.to_str().unwrap().to_owned())
        .collect();
    let port = parts.extensions.get::<Connection>().unwrap().remote.port();
    let line = format!("{} {}", parts.method, parts.uri);
    seen.lock().unwrap().push((line, tokens.clone(), port));
    let reason = tokens.iter().find_map(|token| refused.lock().unwrap().get(token).copied());
    if let Some(reason) = reason {
        let refusal = Response::builder().status(StatusCode::FORBIDDEN).header(REASON_HEADER, reason.code());
        return Ok(refusal.body(body("<Error/>")).unwrap());
    }
    while let Some(frame) = came.frame().await {
        let piece = frame.ok().map(|frame| frame.into_data().unwrap());
        let has_broken = piece.is_none();
        upload.send(piece).unwrap();
        if has_broken {
            break;
        }
    }
    let answer = match parts.uri.path() {
        "/bucket/endless" => endless(),
        "/bucket/flood" => flood(),
        _ => body("content"),
    };
    Ok(Response::new(answer))
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

// A signed request reaches the gateway with the present token, over a connection that is used again.
#[tokio::test]
async fn a_request_reaches_the_gateway_with_the_present_token() {
    let mut scene = Scene::start().await;
    let mut client = scene.client().await;
    let response = scene.get(&mut client, "/bucket/a?x=%2F").await;
    assert_eq!((response.status(), text(response).await), (StatusCode::OK, "content".to_owned()));
    scene.give("two");
    client.ready().await.unwrap();
    let put = scene.request("PUT", "/bucket/b", body("weights"));
    assert_eq!(text(client.send_request(put).await.unwrap()).await, "content");
    assert_eq!(scene.uploads.recv().await.unwrap().unwrap(), "weights");
    let seen = scene.seen.lock().unwrap().clone();
    let lines: Vec<_> = seen.iter().map(|(line, tokens, _)| (line.as_str(), tokens.join(","))).collect();
    let line = |text, token: &str| (text, token.to_owned());
    assert!(
        lines.contains(&line("GET /bucket/a?x=%2F", "one")) && lines.contains(&line("PUT /bucket/b", "two"))
    );
    assert!(seen.len() <= 3 && seen.iter().skip(1).any(|s| s.2 == seen[0].2), "a connection is used again");
}

// Newer tokens are presented to the gateway, because a transfer may last longer than its token.
#[tokio::test]
async fn newer_tokens_are_presented_for_what_is_under_way() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    let mut download = scene.get(&mut client, "/bucket/endless").await.into_body();
    download.frame().await.unwrap().unwrap();
    scene.give("two");
    let presented = |scene: &Scene| {
        let seen = scene.seen.lock().unwrap();
        seen.iter().any(|(line, tokens, _)| line == "POST /.leasehold/renew" && tokens == &["two"])
    };
    while !presented(&scene) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// Requests are held while the member is away. After the longest hold, programs get an answer that lets them try again.
#[tokio::test]
async fn requests_are_held_while_the_member_is_away() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    scene.present.send_replace(PresentAccess::Away);
    let mut held: Pin<Box<_>> = Box::pin(scene.get(&mut client, "/bucket/a"));
    assert!(tokio::time::timeout(Duration::from_millis(100), held.as_mut()).await.is_err());
    scene.give("two");
    assert_eq!(text(held.await).await, "content");
    assert!(scene.tokens_seen().iter().all(|token| token == "two"));

    scene.present.send_replace(PresentAccess::Away);
    let mut held = Box::pin(scene.get(&mut client, "/bucket/a"));
    assert!(tokio::time::timeout(Duration::from_millis(100), held.as_mut()).await.is_err());
    scene.clock.advance(FORWARD_HOLD);
    let response = held.await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert!(text(response).await.contains("<Code>ServiceUnavailable</Code>"));
}

// The end of access cuts a download in the middle. The download never looks complete, and the next request gets the reason.
#[tokio::test]
async fn the_end_of_access_cuts_a_download() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    let mut download = scene.get(&mut client, "/bucket/endless").await.into_body();
    assert_eq!(download.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    scene.end();
    assert!(download.frame().await.unwrap().is_err(), "a clean end would look like the whole file");
    let mut client = scene.client().await;
    let response = scene.get(&mut client, "/bucket/a").await;
    assert_eq!(
        (response.status(), response.headers()[REASON_HEADER].to_str().unwrap()),
        (StatusCode::FORBIDDEN, "REVOKED")
    );
    let shown = text(response).await;
    assert!(shown.contains("ExpiredToken") && shown.contains("revoked by ada: wrong data"), "{shown}");
}

// The end of access cuts an upload in the middle. The gateway sees a broken body.
#[tokio::test]
async fn the_end_of_access_cuts_an_upload() {
    let mut scene = Scene::start().await;
    let mut client = scene.client().await;
    let sent = client.send_request(scene.request("PUT", "/bucket/b", endless()));
    let sending = tokio::spawn(sent);
    assert_eq!(scene.uploads.recv().await.unwrap().unwrap(), "first");
    scene.end();
    assert!(scene.uploads.recv().await.unwrap().is_none(), "the gateway must not take it for the whole");
    if let Ok(response) = sending.await.unwrap() {
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
}

// A download is also cut if its program does not read.
#[tokio::test]
async fn a_stalled_reader_is_cut() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    let mut download = scene.get(&mut client, "/bucket/flood").await.into_body();
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.end();
    tokio::time::sleep(Duration::from_millis(50)).await;
    scene.clock.advance(FORWARD_CUT_GRACE);
    let ended = async {
        loop {
            match download.frame().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    };
    let end = tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the buffered bytes end");
    assert!(end.unwrap().is_err());
}

// If a request with another token may succeed, the refused request waits for the token. The refusal is passed on if no other
// token comes.
#[tokio::test]
async fn a_refused_token_is_replaced_if_there_is_another() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    scene.refused.lock().unwrap().insert("one".into(), Reason::Revoked);
    let mut held = Box::pin(scene.get(&mut client, "/bucket/a"));
    assert!(tokio::time::timeout(Duration::from_millis(100), held.as_mut()).await.is_err());
    scene.give("two");
    assert_eq!(text(held.await).await, "content");
    assert_eq!(scene.tokens_seen().first().map(String::as_str), Some("one"));

    scene.refused.lock().unwrap().insert("two".into(), Reason::Revoked);
    let mut held = Box::pin(scene.get(&mut client, "/bucket/a"));
    assert!(tokio::time::timeout(Duration::from_millis(100), held.as_mut()).await.is_err());
    scene.clock.advance(FORWARD_SETTLE);
    assert_eq!(held.await.status(), StatusCode::FORBIDDEN);

    scene.refused.lock().unwrap().insert("two".into(), Reason::TokenScope);
    let response = scene.get(&mut client, "/bucket/a").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "no token opens it, so nothing waits");
}

// An agent that was killed and comes back as the same member uses the same port and the same key.
#[tokio::test]
async fn the_same_member_is_at_the_same_port() {
    let mut scene = Scene::start().await;
    let (address, id) = (scene.forwarder.address, scene.forwarder.key.id.clone());
    for _ in 0..100 {
        scene.forwarder.stop();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let present = scene.present.subscribe();
        let started =
            Forwarder::start(present, &scene.session, Callers::SameUser, FORWARD_HOLD, &scene.context).await;
        scene.forwarder = started.unwrap().unwrap();
        if scene.forwarder.address == address {
            break;
        }
    }
    assert_eq!((scene.forwarder.address, &scene.forwarder.key.id), (address, &id));
    let mut client = scene.client().await;
    assert_eq!(text(scene.get(&mut client, "/bucket/a").await).await, "content");
}

// The local key is shown only to a client with the token from its file.
#[tokio::test]
async fn the_local_key_needs_its_token() {
    let scene = Scene::start().await;
    let mut client = scene.client().await;
    let bare = Request::get("/_leasehold/credentials").body(none()).unwrap();
    assert_eq!(client.send_request(bare).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let mut client = scene.client().await;
    let bearer = scene.forwarder.key.bearer.expose();
    let request = Request::get("/_leasehold/credentials").header(header::AUTHORIZATION, bearer).body(none());
    let shown = text(client.send_request(request.unwrap()).await.unwrap()).await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["AccessKeyId"], scene.forwarder.key.id.as_str());
    assert_eq!(shown["SecretAccessKey"], scene.forwarder.key.secret.expose());
    assert!(scene.tokens_seen().is_empty(), "the gateway has no part in it");
}

#[tokio::test]
async fn a_newcomer_gets_the_slot_of_a_quiet_connection() {
    let time = Arc::new(ManualClock::new(NOW));
    let clock: Arc<dyn Clock> = time.clone();
    let (slots, open) = (Arc::new(Semaphore::new(1)), OpenConnections::default());
    let (first, connection) = (free_slot(&slots, &open, &clock).await, open.add(clock.now().lease));
    let quiet = tokio::spawn(async move {
        connection.must_close().await;
        drop((first, connection));
    });
    time.advance(FORWARD_QUIET_MIN);
    let slot = tokio::time::timeout(Duration::from_secs(10), free_slot(&slots, &open, &clock)).await;
    assert!(slot.unwrap().is_some());
    quiet.await.unwrap();
}

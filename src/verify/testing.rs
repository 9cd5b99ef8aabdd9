//! A scripted daemon for tests: real TLS, real gRPC, a manual clock. It sends the messages that a test sets, correct or wrong.
//! Other tests check what the real daemon sends.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::{Verifier, VerifierSettings};
use crate::{
    clock::{Clock, Wall, manual::ManualClock},
    identity::{
        StaticSource,
        testing::{NOW, TestCa, bundles},
    },
    link::{Acceptor, Connector, Endpoint, Protocol, ServeOptions, serve},
    name::{AttemptNumber, FenceName, JobId, LeaseId, Scope},
    proto::{
        convert::timestamp,
        v1::{
            FeedLowered, FeedSnapshot, FeedStart, FeedTick, GetKeysRequest, GetKeysResponse,
            IntrospectRequest, IntrospectResponse, LoweredFence, ReportUseRequest, ReportUseResponse,
            ResolveKeyRequest, ResolveKeyResponse, WatchFencesRequest, WatchFencesResponse,
            verifier_service_server::{VerifierService, VerifierServiceServer},
            watch_fences_response::Event,
        },
    },
    reason::{Reason, Refusal},
    secret::S3Secret,
    token::{AuthorizationDetail, Claims, FenceKey, LeaseClaims, SigningKey, mint},
};

pub(crate) const ISSUER: &str = "https://leasehold.example";
pub(crate) const AUDIENCE: &str = "spiffe://a.example/files";
pub(crate) const HOLDER: &str = "spiffe://a.example/worker";
pub(crate) const JOB: JobId = JobId(2);
const DAEMON: &str = "spiffe://a.example/daemon";
/// The epoch and the seq with which a scripted daemon begins.
pub(crate) const EPOCH: u64 = 7;
pub(crate) const SEQ: u64 = 100;

/// The scripted daemon.
pub(crate) struct ScriptedDaemon {
    pub(crate) ca: TestCa,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) key: SigningKey,
    pub(crate) wire: Arc<Wire>,
    address: SocketAddr,
    subscriptions: mpsc::UnboundedReceiver<FenceStream>,
    _shutdown: DropGuard,
}

/// The answers of the service, and its callers.
pub(crate) struct Wire {
    fences: FenceKey,
    opened: mpsc::UnboundedSender<FenceStream>,
    pub(crate) epoch: AtomicU64,
    pub(crate) jwks: Mutex<String>,
    pub(crate) keys_asked: AtomicUsize,
    pub(crate) introspected: Mutex<Vec<IntrospectRequest>>,
    pub(crate) introspection: Mutex<Result<IntrospectResponse, Status>>,
    /// How often an access key was resolved.
    pub(crate) keys_resolved: AtomicUsize,
    /// The secret of all access keys, or why none is resolved.
    pub(crate) s3_secret: Mutex<Result<Arc<S3Secret>, Reason>>,
}

/// The daemon's side of one `WatchFences` stream.
pub(crate) struct FenceStream {
    pub(crate) audience: String,
    /// The key that makes the tags of the fences that this subscription lowers.
    fences: FenceKey,
    pub(crate) out: mpsc::Sender<Result<WatchFencesResponse, Status>>,
    pub(crate) requests: Streaming<WatchFencesRequest>,
}

impl ScriptedDaemon {
    pub(crate) async fn start() -> Self {
        let ca = TestCa::new("a.example");
        let clock = Arc::new(ManualClock::new(NOW));
        let own = Arc::new(ca.svid("/daemon").svid());
        let source = Arc::new(StaticSource::new(Some(own), bundles(&[&ca])));
        let key = SigningKey::generate(EPOCH, 1).unwrap();
        let (opened, subscriptions) = mpsc::unbounded_channel();
        let wire = Arc::new(Wire {
            fences: key.fence_key(&AUDIENCE.parse().unwrap()),
            opened,
            epoch: AtomicU64::new(EPOCH),
            jwks: Mutex::new(key.public().to_jwks()),
            keys_asked: AtomicUsize::new(0),
            introspected: Mutex::default(),
            introspection: Mutex::new(Err(Status::unimplemented(""))),
            keys_resolved: AtomicUsize::new(0),
            s3_secret: Mutex::new(Err(Reason::LeaseNotFound)),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Acceptor::new(source, clock.clone(), Protocol::Grpc);
        let service = VerifierServiceServer::from_arc(wire.clone());
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, acceptor, service, ServeOptions::default(), shutdown.clone()));
        ScriptedDaemon { ca, clock, key, wire, address, subscriptions, _shutdown: shutdown.drop_guard() }
    }

    /// Returns a connector to the daemon, with this SVID.
    pub(crate) fn connector(&self, path: &str) -> Connector {
        let endpoint = Endpoint::new(&self.address.to_string(), DAEMON.parse().unwrap()).unwrap();
        Connector::new(self.source(path), self.clock.clone(), endpoint)
    }

    pub(crate) fn source(&self, path: &str) -> Arc<StaticSource> {
        Arc::new(StaticSource::new(Some(Arc::new(self.ca.svid(path).svid())), bundles(&[&self.ca])))
    }

    pub(crate) fn verifier(&self) -> Verifier {
        self.verifier_by(self.source("/files"))
    }

    /// Returns a verifier with the SVID of this source.
    pub(crate) fn verifier_by(&self, source: Arc<StaticSource>) -> Verifier {
        let endpoint = Endpoint::new(&self.address.to_string(), DAEMON.parse().unwrap()).unwrap();
        let connector = Connector::new(source, self.clock.clone(), endpoint);
        Verifier::start(VerifierSettings {
            connector,
            audience: AUDIENCE.parse().unwrap(),
            clock: self.clock.clone(),
        })
    }

    /// Returns the next subscription that was opened. Advances the clock if the follower waits before it opens a subscription.
    pub(crate) async fn subscription(&mut self) -> FenceStream {
        loop {
            tokio::select! {
                biased;
                opened = self.subscriptions.recv() => return opened.unwrap(),
                () = a_moment() => self.clock.advance(Duration::from_millis(10)),
            }
        }
    }

    /// Returns the next subscription that was opened. The clock does not move meanwhile.
    pub(crate) async fn opened(&mut self) -> FenceStream {
        let opened = tokio::time::timeout(Duration::from_secs(10), self.subscriptions.recv()).await;
        opened.expect("it is opened within ten seconds").unwrap()
    }

    /// Returns a subscription that was opened and not taken yet, if there is one.
    pub(crate) fn opened_already(&mut self) -> Option<FenceStream> {
        self.subscriptions.try_recv().ok()
    }

    /// Returns how many opened subscriptions were not taken yet.
    pub(crate) fn subscriptions_left(&self) -> usize {
        self.subscriptions.len()
    }

    /// Returns a verifier that is ready, because its feed has the snapshot and the first tick. Also returns the subscription.
    pub(crate) async fn following(&mut self) -> (Verifier, FenceStream) {
        self.following_by(self.source("/files")).await
    }

    /// Returns a ready verifier with the SVID of this source.
    pub(crate) async fn following_by(&mut self, source: Arc<StaticSource>) -> (Verifier, FenceStream) {
        let verifier = self.verifier_by(source);
        let mut feed = self.subscription().await;
        feed.start(EPOCH, self.clock.now().wall).await;
        feed.snapshot(&[], Some(SEQ)).await;
        feed.tick(self.clock.now().wall).await;
        soon(|| verifier.state().is_ok()).await;
        (verifier, feed)
    }

    /// Returns the claims of a lease for a dataset. The lease was decided at [`SEQ`].
    pub(crate) fn claims(&self) -> Claims {
        let scope = Scope::whole("dataset:acme/tickets@v3".parse().unwrap());
        let mut claims = Claims {
            iss: ISSUER.into(),
            sub: HOLDER.parse().unwrap(),
            aud: AUDIENCE.parse().unwrap(),
            exp: NOW.seconds() + 300,
            nbf: NOW.seconds(),
            iat: NOW.seconds(),
            jti: "x".into(),
            client_id: JOB,
            authorization_details: AuthorizationDetail::of_scopes([&scope], JOB),
            lh: LeaseClaims {
                epoch: EPOCH,
                stood_at: SEQ,
                lease: LeaseId(1),
                generation: 0,
                job: JOB,
                attempt: AttemptNumber::FIRST,
                tenant: "acme".parse().unwrap(),
                fences: Default::default(),
                others: String::new(),
            },
            cnf: None,
        };
        claims.set_fences(other_fences().iter(), &self.wire.fences).unwrap();
        claims
    }

    pub(crate) fn token(&self, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        let key = self.key.fence_key(&claims.aud);
        claims.set_fences(other_fences().iter(), &key).unwrap();
        mint(&self.key, &claims).unwrap().expose().to_owned()
    }
}

impl FenceStream {
    pub(crate) async fn say(&self, event: Event) {
        // A follower that has ended receives nothing. The test notices that in other ways.
        let _ = self.out.send(Ok(WatchFencesResponse { event: Some(event) })).await;
    }

    pub(crate) async fn start(&self, epoch: u64, time: Wall) {
        let retained_since = Wall(time.0 - 1_000_000);
        self.start_since(epoch, time, retained_since).await;
    }

    pub(crate) async fn start_since(&self, epoch: u64, time: Wall, since: Wall) {
        self.say(Event::Start(FeedStart {
            epoch,
            issuer: ISSUER.into(),
            time: Some(timestamp(time)),
            retained_since: Some(timestamp(since)),
        }))
        .await;
    }

    /// Sends a part of the snapshot. It is the last part if `complete` has a seq.
    pub(crate) async fn snapshot(&self, names: &[(&FenceName, u64)], complete: Option<u64>) {
        let fences =
            names.iter().map(|(name, seq)| LoweredFence { fence: self.tag(name), seq: *seq }).collect();
        let seq = complete.unwrap_or_default();
        self.say(Event::Snapshot(FeedSnapshot { fences, complete: complete.is_some(), seq })).await;
    }

    pub(crate) async fn lowered(&self, name: &FenceName, seq: u64, prev: u64) {
        self.say(Event::Lowered(FeedLowered { fence: self.tag(name), seq, prev })).await;
    }

    fn tag(&self, name: &FenceName) -> Vec<u8> {
        self.fences.tag(name).as_bytes().to_vec()
    }

    /// Waits for the next tick and echoes it with this time.
    pub(crate) async fn tick(&mut self, time: Wall) {
        let tick = self.next_tick().await;
        self.echo(tick, time).await;
    }

    pub(crate) async fn next_tick(&mut self) -> u64 {
        self.requests.message().await.unwrap().unwrap().tick
    }

    pub(crate) async fn echo(&self, tick: u64, time: Wall) {
        self.say(Event::Tick(FeedTick { tick, time: Some(timestamp(time)), ..Default::default() })).await;
    }

    /// Echoes every tick and lowers the requested names, in a separate task, until the stream ends.
    pub(crate) fn go_on(mut self, clock: Arc<ManualClock>) -> FenceLowerer {
        let (names, mut requested) = broadcast::channel::<FenceName>(64);
        tokio::spawn(async move {
            let mut seq = SEQ;
            loop {
                tokio::select! {
                    request = self.requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        self.echo(request.tick, clock.now().wall).await;
                    }
                    name = requested.recv() => {
                        let Ok(name) = name else { return };
                        self.lowered(&name, seq + 1, seq).await;
                        seq += 1;
                    }
                }
            }
        });
        FenceLowerer(names)
    }
}

/// Lowers fences on a subscription that a task keeps running. Dropping the value ends the subscription.
pub(crate) struct FenceLowerer(broadcast::Sender<FenceName>);

impl FenceLowerer {
    pub(crate) fn lower(&self, name: FenceName) {
        self.0.send(name).unwrap();
    }
}

/// Returns the fences of a token that its claims do not name.
pub(crate) fn other_fences() -> [FenceName; 3] {
    let member = || "node-1".parse().unwrap();
    [
        FenceName::human("ada".parse().unwrap()),
        FenceName::member(JOB, AttemptNumber::FIRST, member()),
        FenceName::member_reading(JOB, AttemptNumber::FIRST, member()),
    ]
}

/// Waits until a condition is true, for example because a message has arrived. Fails after ten seconds.
pub(crate) async fn soon(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            a_moment().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it is true within ten seconds");
}

/// Lets other tasks and the network go on.
pub(crate) async fn a_moment() {
    tokio::time::sleep(Duration::from_micros(200)).await;
}

#[tonic::async_trait]
impl VerifierService for Wire {
    type WatchFencesStream = ReceiverStream<Result<WatchFencesResponse, Status>>;

    async fn watch_fences(
        &self,
        request: Request<Streaming<WatchFencesRequest>>,
    ) -> Result<Response<Self::WatchFencesStream>, Status> {
        let mut requests = request.into_inner();
        let opening = requests.message().await?.ok_or_else(|| Status::invalid_argument("no opening"))?;
        let (out, events) = mpsc::channel(64);
        let opened = FenceStream { audience: opening.audience, fences: self.fences.clone(), out, requests };
        self.opened.send(opened).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn get_keys(&self, _: Request<GetKeysRequest>) -> Result<Response<GetKeysResponse>, Status> {
        self.keys_asked.fetch_add(1, Ordering::SeqCst);
        let epoch = self.epoch.load(Ordering::SeqCst);
        Ok(Response::new(GetKeysResponse { jwks: self.jwks.lock().unwrap().clone(), epoch }))
    }

    async fn resolve_key(
        &self,
        asked: Request<ResolveKeyRequest>,
    ) -> Result<Response<ResolveKeyResponse>, Status> {
        self.keys_resolved.fetch_add(1, Ordering::SeqCst);
        let secret = self.s3_secret.lock().unwrap().clone();
        let secret = secret.map_err(|reason| Refusal::new(reason, "there is no such lease").status())?;
        let date_key = secret.date_key(&asked.into_inner().date).expose().to_vec();
        Ok(Response::new(ResolveKeyResponse { date_key }))
    }

    async fn report_use(&self, _: Request<ReportUseRequest>) -> Result<Response<ReportUseResponse>, Status> {
        Ok(Response::new(ReportUseResponse::default()))
    }

    async fn introspect(
        &self,
        request: Request<IntrospectRequest>,
    ) -> Result<Response<IntrospectResponse>, Status> {
        self.introspected.lock().unwrap().push(request.into_inner());
        self.introspection.lock().unwrap().clone().map(Response::new)
    }
}

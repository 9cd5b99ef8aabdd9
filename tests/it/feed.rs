//! The fence feed: who gets which lowerings, in which order, and what happens to a client that does not read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold::{
    clock::LeaseTime,
    name::{Action, FenceName},
    proto::v1::{self, Half, Outcome, WatchFencesRequest, WatchFencesResponse, watch_fences_response::Event},
    token::{FenceKey, Presenter},
    verify::{Verifier, VerifierSettings},
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};

use crate::harness::*;

/// The resource server of globex.
const GLOBEX_GATEWAY: &str = "spiffe://k8s.globex.example/ns/data/sa/gateway";
const REVIEWS: &str = "dataset:globex/reviews@v1";

/// Globex's server follows the feed, and its reviews may be shared.
fn globex(shared: bool) -> String {
    let text = include_str!("harness/catalog/globex.toml").replace("\"introspect\"", "\"feed\"");
    let owner = "owner          = \"data@globex.example\"";
    assert!(text.contains(owner) && text.contains("\"feed\""));
    text.replace(owner, &format!("{owner}\nshared_with = [{}]", if shared { "\"acme\"" } else { "" }))
}

async fn world(shared: bool) -> World {
    World::with(|setup| {
        setup.catalog.insert("globex.toml", globex(shared));
    })
    .await
}

/// One subscription, which the test reads. Each lowering on it must name the previous one.
struct Feed {
    /// The key with which the daemon makes the tags of this audience.
    key: FenceKey,
    tx: mpsc::Sender<WatchFencesRequest>,
    rx: Streaming<WatchFencesResponse>,
    ticks: u64,
    prev: u64,
    /// The fences of the snapshot.
    snapshot: Vec<Vec<u8>>,
    /// All bytes that were received.
    bytes: Vec<u8>,
}

impl Feed {
    async fn open(world: &World, client: &Client, audience: &str) -> Self {
        let key = world.daemon().broker.verifiers.fence_key(&audience.parse().unwrap());
        let (tx, rx) = mpsc::channel(8);
        tx.send(WatchFencesRequest { audience: audience.into(), tick: 1 }).await.unwrap();
        let rx = client.verifiers().watch_fences(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let mut feed = Feed { key, tx, rx, ticks: 1, prev: 0, snapshot: Vec::new(), bytes: Vec::new() };
        let mut complete = false;
        loop {
            match feed.next().await {
                Event::Start(start) => assert!(start.epoch > 0 && !complete),
                Event::Snapshot(part) => {
                    assert!(!complete, "more came after the mark");
                    feed.snapshot.extend(part.fences.into_iter().map(|f| f.fence));
                    (complete, feed.prev) = (part.complete, part.seq);
                }
                Event::Tick(tick) => {
                    assert!(complete && tick.tick == 1);
                    return feed;
                }
                Event::Lowered(l) => panic!("seq {} was lowered before the first tick came back", l.seq),
            }
        }
    }

    async fn next(&mut self) -> Event {
        let message = soon("a message", self.rx.message()).await.unwrap().expect("a message");
        let came = message.encode_to_vec();
        let event = message.event.expect("an event");
        // The start message names the issuer.
        if !matches!(event, Event::Start(_)) {
            self.bytes.extend(came);
        }
        event
    }

    /// The tag of a name for this audience.
    fn tag(&self, name: &str) -> Vec<u8> {
        self.key.tag(&name.parse().unwrap()).as_bytes().to_vec()
    }

    fn tags<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<Vec<u8>> {
        names.into_iter().map(|name| self.tag(name)).collect()
    }

    /// The fences that were lowered before a tick that is sent now.
    async fn heard(&mut self) -> Vec<Vec<u8>> {
        self.ticks += 1;
        self.tx.send(WatchFencesRequest { audience: String::new(), tick: self.ticks }).await.unwrap();
        let mut fences = Vec::new();
        loop {
            match self.next().await {
                Event::Lowered(l) => {
                    assert_eq!(l.prev, self.prev, "{}: the one before it in this subscription", l.seq);
                    assert!(l.seq > l.prev);
                    self.prev = l.seq;
                    fences.push(l.fence);
                }
                Event::Tick(tick) => {
                    assert_eq!(tick.tick, self.ticks);
                    return fences;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A job of globex that reads its own reviews, with a member.
async fn globex_worker(world: &World) -> Worker {
    let members = v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() };
    let spec = v1::JobSpec {
        read: vec![REVIEWS.into()],
        write: vec![],
        tune: None,
        acting_for: String::new(),
        members: Some(members),
        ..spec()
    };
    globex_worker_on(world, spec).await
}

async fn globex_worker_on(world: &World, spec: v1::JobSpec) -> Worker {
    let launcher = world.client(GLOBEX_LAUNCHER).await;
    let job = launcher.create(spec, "globex").await.unwrap().into_inner().job.unwrap();
    launcher.begin(&job.id, "run-1").await.unwrap();
    let mut worker = Worker::join(world.client(GLOBEX_WORKER).await, &job.id, 1, "rank-0", "").await.unwrap();
    worker.keep_alive().await;
    worker
}

/// A job of acme that reads globex's reviews.
async fn guest(world: &World) -> Worker {
    let spec =
        v1::JobSpec { name: "guest".into(), read: vec![REVIEWS.into()], write: vec![], tune: None, ..spec() };
    world.working_on(spec, WORKER).await
}

fn verifier(world: &World, audience: &str) -> Verifier {
    Verifier::start(VerifierSettings {
        connector: world.connector(&world.svid(audience)),
        audience: audience.parse().unwrap(),
        clock: world.clock.clone(),
    })
}

/// Lowers each name that a job and its tenant have, from the narrowest to the widest. Returns the names.
async fn lower_all(platform: &Client, worker: &Worker, tenant: &str, resource: &str) -> Vec<String> {
    let (job, token) = (&worker.job, worker.issue(Half::Reading).await);
    let names = vec![
        format!("lease:{}", token.lease.id),
        format!("member:{job}/1/rank-0/reading"),
        format!("member:{job}/1/rank-0"),
        format!("attempt:{job}/1/reading"),
        format!("attempt:{job}/1"),
        format!("job:{job}"),
        resource.to_owned(),
        resource.split('@').next().unwrap().to_owned(),
        format!("tenant:{tenant}"),
    ];
    for name in &names {
        platform.revoke(name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_hears_only_of_tenants_it_serves() {
    let world = world(false).await;
    let platform = world.client(PLATFORM).await;
    let (acme, other) = (world.working().await, globex_worker(&world).await);
    let mut at_acme = Feed::open(&world, &world.client(GATEWAY).await, GATEWAY).await;
    let mut at_globex = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;

    let of_acme = lower_all(&platform, &acme, "acme", TICKETS).await;
    let of_globex = lower_all(&platform, &other, "globex", REVIEWS).await;
    let of_all = [
        "human:ada".to_owned(),
        "domain:hpc.acme.example".to_owned(),
        format!("identity:{LAUNCHER}"),
        format!("identity:{GLOBEX_WORKER}"),
    ];
    for name in &of_all {
        platform.revoke(name).await.unwrap();
    }
    for (feed, own, foreign) in [(&mut at_acme, &of_acme, &of_globex), (&mut at_globex, &of_globex, &of_acme)]
    {
        let heard = feed.heard().await;
        for name in own.iter().chain(&of_all) {
            assert!(heard.contains(&feed.tag(name)), "{name} was not told: {heard:?}");
        }
        for name in foreign {
            assert!(!heard.contains(&feed.tag(name)), "{name} was told to a stranger");
        }
        assert_eq!(feed.heard().await.len(), 0, "told twice");
        // They came as tags: nothing that was received shows to whom or what a name belongs.
        let came = String::from_utf8_lossy(&feed.bytes).into_owned();
        for name in ["acme", "globex", "ada", "tickets", "reviews", "spiffe", "human", "tenant"] {
            assert!(!came.contains(name), "`{name}` is in what came: {came}");
        }
    }
    // A later subscriber reads the same in the snapshot.
    let late = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;
    for name in of_globex.iter().chain(&of_all) {
        assert!(
            late.snapshot.contains(&late.tag(name)),
            "{name} is not in the snapshot: {:?}",
            late.snapshot
        );
    }
    for name in &of_acme {
        assert!(!late.snapshot.contains(&late.tag(name)), "{name} is in a stranger's snapshot");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keeper_of_shared_data_hears_of_its_users() {
    let world = world(true).await;
    let (platform, launcher) = (world.client(PLATFORM).await, world.client(LAUNCHER).await);
    let worker = guest(&world).await;
    let token = worker.issue(Half::Reading).await;
    assert_eq!(token.lease.audience, GLOBEX_GATEWAY);
    let verifier = verifier(&world, GLOBEX_GATEWAY);
    soon("a verifier", verifier.ready()).await;
    let (holder, reviews) = (WORKER.parse().unwrap(), REVIEWS.parse().unwrap());
    let presenter = Presenter::Svid { id: &holder, x5t_s256: None };
    let access = verifier.check(&token.text, presenter, &reviews, Action::ReadDataset).await.unwrap();
    let mut feed = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;
    // This server hears nothing of the lowerings in between, and its feed has no gap for them.
    let fences = world.daemon().broker.fences();
    fences.lower(&"tenant:platform".parse().unwrap(), LeaseTime(1));
    launcher.end(&worker.job, 1, Outcome::Failed).await.unwrap();
    let why = soon("the access to end", access.ended()).await;
    assert_eq!(why.reason.code(), "REVOKED");
    let heard = feed.heard().await;
    assert!(heard.contains(&feed.tag(&format!("job:{}", worker.job))), "{heard:?}");
    assert!(!heard.contains(&feed.tag("tenant:platform")));
    platform.revoke("tenant:acme").await.unwrap();
    assert_eq!(feed.heard().await, [feed.tag("tenant:acme")]);
}

/// A catalog that removes a share also ends the leases that depend on it. The server with the data must hear of that.
// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_share_ends_its_leases_at_the_verifier() {
    let world = world(true).await;
    let worker = guest(&world).await;
    let token = worker.issue(Half::Reading).await;
    let verifier = verifier(&world, GLOBEX_GATEWAY);
    soon("a verifier", verifier.ready()).await;
    let (holder, reviews) = (WORKER.parse().unwrap(), REVIEWS.parse().unwrap());
    let presenter = Presenter::Svid { id: &holder, x5t_s256: None };
    let access = verifier.check(&token.text, presenter, &reviews, Action::ReadDataset).await.unwrap();

    world.write("catalog.d/globex.toml", &globex(false));
    let operator = world.client(PLATFORM).await;
    operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await.unwrap();
    let why = soon("the access to end", access.ended()).await;
    assert_eq!(why.reason.code(), "REVOKED");
    // A server that connects later hears of it as well, because the token has not expired yet.
    let late = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;
    let member = format!("member:{}/1/rank-0", worker.job);
    assert!(late.snapshot.contains(&late.tag(&member)), "{:?}", late.snapshot);
}

/// A lease is behind the models that its job tunes, even if they belong to another tenant or are kept elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_a_shared_model_can_end_its_tuning() {
    const BORROWED: &str = "checkpoint:globex/borrowed";
    let world = World::with(|setup| {
        let acme = setup.catalog["acme.toml"].replacen(
            "location    = \"s3://acme-models/base-7b",
            "shared_with = [\"globex\"]\nlocation    = \"s3://acme-models/base-7b",
            1,
        );
        assert!(acme.contains("shared_with"));
        setup.catalog.insert("acme.toml", acme);
        let line = format!(
            "{}\n[[checkpoint]]\nname = \"borrowed\"\nmodel = \"{MODEL}\"\n\
             location = \"s3://globex-models/out/\"\naudience = \"{GLOBEX_GATEWAY}\"\nowner = \"data@globex.example\"\n",
            globex(false)
        );
        setup.catalog.insert("globex.toml", line);
    })
    .await;
    let acme = world.working().await;
    let members = v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() };
    let tuning = v1::JobSpec {
        read: vec![REVIEWS.into()],
        write: vec![BORROWED.into()],
        acting_for: String::new(),
        members: Some(members),
        ..spec()
    };
    let worker = globex_worker_on(&world, tuning).await;
    let token = worker.issue(Half::Writing).await;
    let verifier = verifier(&world, GLOBEX_GATEWAY);
    soon("a verifier", verifier.ready()).await;
    let holder = GLOBEX_WORKER.parse().unwrap();
    let line = format!("{BORROWED}/{}", worker.job).parse().unwrap();
    let presenter = Presenter::Svid { id: &holder, x5t_s256: None };
    let access = verifier.check(&token.text, presenter, &line, Action::WriteCheckpoint).await.unwrap();
    let mut feed = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;
    let operator = world.client(OPERATOR).await;
    // Globex must not hear of the owner's own jobs, but must hear of changes to the model.
    operator.revoke(&format!("job:{}", acme.job)).await.unwrap();
    operator.revoke(MODEL).await.unwrap();
    let why = soon("the access to end", access.ended()).await;
    assert_eq!(why.text, "revoked: a resource that the token depends on", "its server need not know which");
    operator.revoke("tenant:acme").await.unwrap();
    assert_eq!(feed.heard().await, feed.tags([MODEL, "tenant:acme"]));
}

/// A server that was listening before a share was added hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_share_is_heard_of_without_connecting_again() {
    let world = world(false).await;
    let mut feed = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;
    world.write("catalog.d/globex.toml", &globex(true));
    let operator = world.client(PLATFORM).await;
    operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await.unwrap();
    let worker = guest(&world).await;
    worker.issue(Half::Reading).await;
    world.client(LAUNCHER).await.end(&worker.job, 1, Outcome::Completed).await.unwrap();
    let heard = feed.heard().await;
    assert!(heard.contains(&feed.tag(&format!("job:{}", worker.job))), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_verifier_gets_no_more_events() {
    let world = world(false).await;
    let mut feed = Feed::open(&world, &world.client(GLOBEX_GATEWAY).await, GLOBEX_GATEWAY).await;
    let verifiers = format!("verifiers = [\"{GLOBEX_GATEWAY}\"]");
    let other = globex(false).replace(&verifiers, &format!("verifiers = [\"{GLOBEX_GATEWAY}-2\"]"));
    assert!(other.contains("gateway-2"));
    world.write("catalog.d/globex.toml", &other);
    let operator = world.client(PLATFORM).await;
    operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await.unwrap();
    // The reload may have ended the feed before this tick is sent.
    let _ = feed.tx.send(WatchFencesRequest { audience: String::new(), tick: 2 }).await;
    let end = soon("an end", async {
        loop {
            match feed.rx.message().await {
                Ok(Some(m)) => assert!(!matches!(m.event, Some(Event::Tick(_))), "its tick came back"),
                Ok(None) => panic!("it ended without saying why"),
                Err(status) => return Refused::of(&status),
            }
        }
    })
    .await;
    assert!(["PRINCIPAL_UNKNOWN", "AUDIENCE_UNKNOWN"].contains(&end.reason.as_str()), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_feeds_hear_each_lowering_in_order() {
    const FEEDS: usize = 200;
    let world = World::start().await;
    let mut feeds = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(world.client(GATEWAY).await);
    }
    for n in 0..FEEDS {
        feeds.push(Feed::open(&world, &clients[n % clients.len()], GATEWAY).await);
    }
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let platform = world.client(PLATFORM).await;
    let mut lowered = vec![format!("lease:{}", token.lease.id)];
    platform.revoke(&lowered[0]).await.unwrap();
    for n in 0..20 {
        lowered.push(format!("human:u{n}"));
        platform.revoke(&lowered[n + 1]).await.unwrap();
    }
    for feed in &mut feeds {
        assert_eq!(feed.heard().await, feed.tags(lowered.iter().map(String::as_str)));
    }
}

/// The age of a feed is the age of its last echoed tick. So a tick must come after all lowerings that happened before
/// it was sent.
// Proves law 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tick_never_comes_back_before_what_was_lowered_before_it() {
    const TICKS: u64 = 600;
    const AHEAD: u64 = 4_000;
    let world = World::start().await;
    let mut feed = Feed::open(&world, &world.client(GATEWAY).await, GATEWAY).await;
    let broker = world.daemon().broker.clone();
    let stop = CancellationToken::new();
    let read = Arc::new(AtomicU64::new(0));
    let lowering = tokio::task::spawn_blocking({
        let (broker, stop, read) = (broker.clone(), stop.clone(), read.clone());
        move || {
            for n in 0u64.. {
                let name: FenceName = format!("human:u{n}").parse().unwrap();
                broker.fences().lower(&name, LeaseTime(1));
                // In bursts, but never so far ahead of the reader that it falls behind.
                if n % 30 == 29 {
                    std::thread::sleep(Duration::from_micros(500));
                }
                while n > read.load(Ordering::Relaxed) + AHEAD && !stop.is_cancelled() {
                    std::thread::sleep(Duration::from_micros(100));
                }
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    });
    for tick in 2..TICKS + 2 {
        let lowered = broker.fences().seq().0;
        feed.tx.send(WatchFencesRequest { audience: String::new(), tick }).await.unwrap();
        loop {
            match feed.next().await {
                Event::Lowered(l) => {
                    assert_eq!(l.prev, feed.prev);
                    feed.prev = l.seq;
                    read.fetch_add(1, Ordering::Relaxed);
                }
                Event::Tick(echo) => {
                    assert_eq!(echo.tick, tick);
                    let heard = feed.prev;
                    assert!(
                        heard >= lowered,
                        "tick {tick}: {lowered} was lowered before it, and {heard} heard"
                    );
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    stop.cancel();
    soon("the end of the lowerings", lowering).await.unwrap();
    feed.ticks = TICKS + 1;
    feed.heard().await;
    assert_eq!(feed.prev, broker.fences().seq().0);
}

/// A client that never reads costs only the content of its windows, and costs other clients nothing.
// Proves law 37, law 43.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_never_read_harms_no_other() {
    const BURSTS: u64 = 30;
    const BURST: u64 = 200;
    let world = World::start().await;
    // With small windows, because fences are sent as tags of a few bytes.
    let mut sleeper = Feed::open(&world, &world.narrow_client(GATEWAY).await, GATEWAY).await;
    let mut reader = Feed::open(&world, &world.client(GATEWAY).await, GATEWAY).await;
    let worker = world.working().await;
    let fences = world.daemon().broker.fences();
    let path = "p".repeat(100);
    let mut heard = 0;
    for burst in 0..BURSTS {
        for n in 0..BURST {
            let name: FenceName = format!("identity:spiffe://td.example/{path}/{burst}/{n}").parse().unwrap();
            fences.lower(&name, LeaseTime(1));
        }
        heard += reader.heard().await.len() as u64;
        assert_eq!(heard, (burst + 1) * BURST);
        worker.issue(Half::Reading).await;
    }
    world.time().advance(Duration::from_millis(3_001));
    assert_eq!(reader.heard().await.len(), 0);
    // It reads again: first what was in flight, then that it fell behind.
    let mut read = 0;
    let end = soon("the end of the sleeper's feed", async {
        loop {
            match sleeper.rx.message().await {
                Ok(Some(_)) => read += 1,
                Ok(None) => panic!("it ended without saying why"),
                Err(status) => return Refused::of(&status),
            }
        }
    })
    .await;
    assert_eq!((end.code, end.reason.as_str()), (Code::DataLoss, "FELL_BEHIND"), "{end:?}");
    assert!(read < BURSTS * BURST, "all of it was kept for one who does not read");
    // After it has started over, it has all of them.
    let again = Feed::open(&world, &world.client(GATEWAY).await, GATEWAY).await;
    assert_eq!(again.snapshot.len() as u64, BURSTS * BURST);
}

//! The configured limits on connections and requests, and on the share of one identity.

use std::{sync::mpsc, thread::JoinHandle};

use leasehold::{
    internals::ledger::Actor,
    proto::v1::{self, ListLocksRequest, ReloadCatalogRequest, WhoAmIRequest},
    reason::{Reason, Refusal},
};
use tonic::{Code, Response, Status};

use crate::{approvals::*, harness::*};

/// While this exists, every reload waits for it: a request that stays in work for as long as a test needs.
struct Reload {
    let_go: mpsc::Sender<()>,
    held: JoinHandle<()>,
}

impl Reload {
    async fn held(world: &World) -> Self {
        let broker = world.daemon().broker.clone();
        let (let_go, gone) = mpsc::channel();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let held = std::thread::spawn(move || {
            let read = |_: &leasehold::internals::broker::Rules| {
                begun.send(()).unwrap();
                let _ = gone.recv();
                Err(Refusal::new(Reason::CatalogInvalid, "a test held it"))
            };
            assert!(broker.rules.reload(read, Actor::Daemon("test".into())).is_err());
        });
        soon("the reload", has_begun).await.unwrap();
        Reload { let_go, held }
    }

    fn let_go(self) {
        self.let_go.send(()).unwrap();
        self.held.join().unwrap();
    }
}

type Asked = tokio::task::JoinHandle<Result<Response<leasehold::proto::v1::ReloadCatalogResponse>, Status>>;

/// Repeats a request until there is room for it.
fn ask_to_reload(client: &Client) -> Asked {
    let client = client.clone();
    tokio::spawn(async move {
        loop {
            let answer = client.operators().reload_catalog(ReloadCatalogRequest { dry_run: true }).await;
            match &answer {
                Err(status) if status.code() == Code::ResourceExhausted => tokio::task::yield_now().await,
                _ => return answer,
            }
        }
    })
}

/// A call that is answered at once if there is room.
async fn ask(client: &Client) -> Result<(), Status> {
    client.operators().who_am_i(WhoAmIRequest {}).await.map(drop)
}

async fn until_refused(client: &Client) -> Refused {
    eventually("a refusal", async || ask(client).await.is_err()).await;
    Refused::of(&ask(client).await.unwrap_err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configured_requests_per_identity_hold() {
    let world = World::with(|setup| setup.server = "requests_per_peer_max = 2".into()).await;
    let (platform, again) = (world.client(PLATFORM).await, world.client(PLATFORM).await);
    let operator = world.client(OPERATOR).await;
    let reload = Reload::held(&world).await;
    let first = ask_to_reload(&platform);
    let second = ask_to_reload(&again);
    // Both are in work as soon as a third one is refused, on any connection.
    let no = until_refused(&platform).await;
    no.is(Code::ResourceExhausted, "OVERLOADED");
    assert!(no.text.contains("2 requests in progress"), "{}", no.text);
    Refused::of(&ask(&again).await.unwrap_err()).is(Code::ResourceExhausted, "OVERLOADED");
    assert!(ask(&operator).await.is_ok(), "others have their own share");
    platform.revoke(TICKETS).await.unwrap(); // requests that end access have their own room
    reload.let_go();
    for asked in [first, second] {
        soon("the answer", asked).await.unwrap().unwrap();
    }
    eventually("room again", async || ask(&platform).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configured_requests_of_all_hold() {
    let room = "requests_max = 2\nrequests_per_peer_max = 1";
    let world = World::with(|setup| setup.server = room.into()).await;
    let other = PLATFORM.replace("/ops/", "/ops/other-");
    let (operator, platform) = (world.client(&other).await, world.client(PLATFORM).await);
    let launcher = world.client(LAUNCHER).await;
    let reload = Reload::held(&world).await;
    let asked = [ask_to_reload(&operator), ask_to_reload(&platform)];
    until_refused(&operator).await;
    until_refused(&platform).await;
    let no = refused(launcher.create(spec(), "k").await);
    no.is(Code::ResourceExhausted, "OVERLOADED");
    assert!(no.text.contains("too many requests at once"), "{}", no.text);
    reload.let_go();
    for asked in asked {
        soon("the answer", asked).await.unwrap().unwrap();
    }
    eventually("room again", async || launcher.create(spec(), "k").await.is_ok()).await;
}

// What ends access has its own room: it is not held up by requests that wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_an_approval_back_or_rejects_finds_room() {
    let room = "requests_max = 2\nrequests_per_peer_max = 1";
    let world = World::with(|setup| setup.server = room.into()).await;
    let (approved, waiting) = (created(&world, production()).await, created(&world, sensitive()).await);
    approved_by(&world, &approved, &[MONA]).await;
    let (mona, pia) = (world.client(MONA).await, world.client(PIA).await);
    let (other, platform) = (PLATFORM.replace("/ops/", "/ops/other-"), world.client(PLATFORM).await);
    let operator = world.client(&other).await;
    let reload = Reload::held(&world).await;
    let asked = [ask_to_reload(&operator), ask_to_reload(&platform)];
    until_refused(&operator).await;
    until_refused(&platform).await;
    assert!(ask(&mona).await.is_err(), "there is no other room");
    mona.unapprove(&approved).await.unwrap();
    let reject = v1::RejectRequest { job: waiting.id, reason: "not this data".into() };
    pia.approvals().reject(reject).await.unwrap();
    reload.let_go();
    for asked in asked {
        soon("the answer", asked).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configured_connections_hold() {
    let room = "connections_max = 3\nconnections_per_peer_max = 2";
    let world = World::with(|setup| setup.server = room.into()).await;
    let (one, two) = (world.client(LAUNCHER).await, world.client(LAUNCHER).await);
    let three = world.client(LAUNCHER).await;
    let who = async |client: &Client| client.operators().who_am_i(WhoAmIRequest {}).await;
    assert!(who(&one).await.is_ok() && who(&two).await.is_ok());
    let no = refused(who(&three).await);
    no.is(Code::ResourceExhausted, "OVERLOADED");
    assert!(no.text.contains("2 connections open"), "{}", no.text);
    drop(three);
    // Another identity gets the third place, and there is no fourth.
    let mut others = Vec::new();
    eventually("the third connection", async || {
        let connector = world.connector(&world.svid(NIGHTLY));
        match connector.connected_channel().await {
            Ok(channel) => others.push(channel),
            Err(_) => assert!(others.is_empty()),
        }
        !others.is_empty()
    })
    .await;
    assert!(world.connector(&world.svid(WORKER)).connected_channel().await.is_err(), "all places are taken");
    assert!(who(&one).await.is_ok() && who(&two).await.is_ok());
    let (operator, stranger) = (world.client(OPERATOR).await, world.client(NOBODY).await);
    assert!(who(&operator).await.is_ok(), "operators have separate places");
    assert!(who(&stranger).await.is_ok(), "and those whom no entry matches take none of the others");
    drop(others);
    eventually("a place", async || world.connector(&world.svid(WORKER)).connected_channel().await.is_ok())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_ask_who_it_is_and_nothing_else() {
    let world = World::start().await;
    let stranger = world.client(NOBODY).await;
    assert!(stranger.operators().who_am_i(WhoAmIRequest {}).await.is_ok());
    let mut health = tonic_health::pb::health_client::HealthClient::new(stranger.channel.clone());
    assert!(health.check(tonic_health::pb::HealthCheckRequest::default()).await.is_ok());
    refused(stranger.create(spec(), "k").await).is(Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
    refused(stranger.operators().list_locks(ListLocksRequest::default()).await)
        .is(Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
}

use std::sync::atomic::Ordering;

use super::*;
use crate::{
    clock::{Wall, manual::ManualClock},
    identity::{StaticSource, testing::bundles},
    limits::TICK,
    name::{Action, FenceName, Object},
    token::{Presenter, SigningKey},
    verify::{
        Access, Verifier,
        testing::{
            AUDIENCE, EPOCH, FenceStream, HOLDER, JOB, SEQ, ScriptedDaemon, a_moment, other_fences, soon,
        },
    },
};

fn dataset() -> Object {
    "dataset:acme/tickets@v3".parse().unwrap()
}

fn job() -> FenceName {
    FenceName::job(JOB)
}

async fn check(verifier: &Verifier, token: &str) -> Result<Access, Refusal> {
    let holder = HOLDER.parse().unwrap();
    let presenter = Presenter::Svid { id: &holder, x5t_s256: None };
    verifier.check(token, presenter, &dataset(), Action::ReadDataset).await
}

async fn reason(verifier: &Verifier, token: &str) -> Reason {
    check(verifier, token).await.unwrap_err().reason
}

/// Advances the clock for a while, and lets ticks come meanwhile.
async fn live(clock: &ManualClock, feed: &mut FenceStream, span: Duration) {
    let end = clock.now().lease.plus(span);
    while clock.now().lease < end {
        clock.advance(TICK);
        feed.tick(clock.now().wall).await;
    }
}

#[tokio::test]
async fn nothing_is_decided_before_the_feed_is_complete() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, token) = (daemon.verifier(), daemon.token(|_| ()));
    assert_eq!(reason(&verifier, &token).await, Reason::FeedStale);
    let mut feed = daemon.subscription().await;
    assert_eq!(feed.audience, AUDIENCE);
    let now = daemon.clock.now().wall;
    feed.start(EPOCH, now).await;
    soon(|| daemon.wire.keys_asked.load(Ordering::SeqCst) == 1).await;
    feed.snapshot(&[(&job(), 90)], None).await;
    feed.snapshot(&[(&FenceName::epoch(), 3)], None).await;
    assert_eq!(reason(&verifier, &token).await, Reason::FeedStale);
    feed.snapshot(&[], Some(SEQ)).await;
    let first = feed.next_tick().await;
    assert_eq!(first, 1, "a complete feed ticks at once");
    assert_eq!(reason(&verifier, &token).await, Reason::FeedStale, "no tick has come back");
    let ready = verifier.ready();
    feed.echo(first, now).await;
    ready.await;
    let access = check(&verifier, &token).await.unwrap();
    assert_eq!(access.claims().lh.job, JOB);
    assert!(access.check().is_ok());
    // A token that was issued before the lowering in the snapshot is refused, because the snapshot names its fence.
    let old = check(&verifier, &daemon.token(|c| c.lh.stood_at = 89)).await.unwrap_err();
    assert_eq!((old.reason, old.text.to_string()), (Reason::Revoked, format!("revoked: {}", job())));
}

// Proves law 10.
#[tokio::test]
async fn after_a_lowering_every_use_is_refused_by_its_fence() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let token = daemon.token(|_| ());
    let access = check(&verifier, &token).await.unwrap();
    let other = check(&verifier, &daemon.token(|c| c.lh.job = crate::name::JobId(9))).await.unwrap();
    let ended = tokio::spawn(access.ended());
    let unharmed = tokio::spawn(other.ended());
    feed.lowered(&job(), SEQ + 1, SEQ).await;
    let refusal = ended.await.unwrap();
    assert_eq!((refusal.reason, refusal.text.to_string()), (Reason::Revoked, format!("revoked: {}", job())));
    assert_eq!(access.check().unwrap_err(), refusal);
    assert_eq!(check(&verifier, &token).await.unwrap_err(), refusal);
    assert!(other.check().is_ok());
    // law 13: a token with a new stand is valid, and a token with an old stand stays invalid.
    assert!(check(&verifier, &daemon.token(|c| c.lh.stood_at = SEQ + 1)).await.is_ok());
    assert_eq!(reason(&verifier, &token).await, Reason::Revoked);
    a_moment().await;
    assert!(!unharmed.is_finished(), "what stands behind other fences goes on");
}

// Proves law 11.
#[tokio::test]
async fn each_fence_of_a_token_ends_it() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let (said, others) = (daemon.claims().named_fences().unwrap(), other_fences());
    assert_eq!(said.len() + others.len(), 13, "{said:?}");
    for (n, name) in (0u64..).zip(said.iter().chain(&others)) {
        let called = match name.as_str().split_once(':') {
            Some(("human", _)) => "a human that the token depends on".to_owned(),
            Some(("member", _)) => "the member that the token depends on".to_owned(),
            _ => name.to_string(),
        };
        let token = daemon.token(|c| c.lh.stood_at = SEQ + n);
        let access = check(&verifier, &token).await.unwrap();
        feed.lowered(name, SEQ + n + 1, SEQ + n).await;
        let refusal = access.ended().await;
        assert_eq!(
            (refusal.reason, refusal.text.to_string()),
            (Reason::Revoked, format!("revoked: {called}"))
        );
    }
}

// Proves law 23.
#[tokio::test]
async fn one_lowering_ends_a_thousand_uses_behind_it_and_nothing_else() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let (mut behind, mut beside) = (Vec::new(), Vec::new());
    for n in 0..1_000u128 {
        let token = daemon.token(|c| {
            c.lh.lease = crate::name::LeaseId(n);
            c.lh.job = crate::name::JobId(n % 2);
        });
        let access = check(&verifier, &token).await.unwrap();
        if n % 2 == 0 { &mut behind } else { &mut beside }.push((tokio::spawn(access.ended()), access));
    }
    let lowering = feed.go_on(daemon.clock.clone());
    lowering.lower(FenceName::job(crate::name::JobId(0)));
    for (ended, access) in behind {
        assert_eq!(ended.await.unwrap().reason, Reason::Revoked);
        assert_eq!(access.check().unwrap_err().reason, Reason::Revoked);
    }
    for (ended, access) in beside {
        assert!(access.check().is_ok() && !ended.is_finished());
    }
}

#[tokio::test]
async fn a_feed_is_stale_from_the_last_tick_that_was_echoed() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, mut feed) = daemon.following().await;
    let (token, clock) = (daemon.token(|_| ()), daemon.clock.clone());
    let access = check(&verifier, &token).await.unwrap();
    // The second tick is sent after one second, and its echo comes two seconds later. The age counts from when the tick was
    // sent.
    clock.advance(TICK);
    let second = feed.next_tick().await;
    clock.advance(2 * TICK);
    assert!(access.check().is_ok(), "exactly at the limit");
    feed.echo(second, clock.now().wall).await;
    clock.advance(Duration::from_millis(1));
    soon(|| verifier.state().is_ok()).await;
    let began = clock.now().boot;
    while verifier.state().is_ok() {
        clock.advance(Duration::from_millis(1));
    }
    assert_eq!(clock.now().boot.since(began), TICK, "three seconds after it was sent");
    assert_eq!(access.ended().await.reason, Reason::FeedStale);
    assert_eq!(reason(&verifier, &token).await, Reason::FeedStale);
    // The follower reconnects, over another connection.
    let mut again = daemon.subscription().await;
    again.start(EPOCH, clock.now().wall).await;
    again.snapshot(&[], Some(SEQ)).await;
    again.tick(clock.now().wall).await;
    verifier.ready().await;
    assert!(check(&verifier, &token).await.is_ok());
}

#[tokio::test]
async fn a_missing_echo_starts_the_feed_over() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, mut feed) = daemon.following().await;
    daemon.clock.advance(TICK);
    let skipped = feed.next_tick().await;
    daemon.clock.advance(TICK);
    let next = feed.next_tick().await;
    assert_eq!(next, skipped + 1);
    feed.echo(next, daemon.clock.now().wall).await;
    soon(|| verifier.state().is_err()).await;
    daemon.subscription().await;
}

#[tokio::test]
async fn a_gap_refuses_everything_at_once_and_starts_the_feed_over() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let token = daemon.token(|_| ());
    let access = check(&verifier, &token).await.unwrap();
    feed.lowered(&FenceName::human("bob".parse().unwrap()), SEQ + 3, SEQ + 2).await;
    assert_eq!(access.ended().await.reason, Reason::FeedStale);
    assert_eq!(reason(&verifier, &token).await, Reason::FeedStale);
    // The snapshot contains the missing lowering.
    let mut again = daemon.subscription().await;
    again.start(EPOCH, daemon.clock.now().wall).await;
    again.snapshot(&[(&job(), SEQ + 2)], Some(SEQ + 3)).await;
    again.tick(daemon.clock.now().wall).await;
    verifier.ready().await;
    assert_eq!(reason(&verifier, &token).await, Reason::Revoked);
}

#[tokio::test]
async fn a_snapshot_from_before_what_was_seen_is_refused() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    drop(feed);
    let mut again = daemon.subscription().await;
    again.start(EPOCH, daemon.clock.now().wall).await;
    again.snapshot(&[], Some(SEQ - 1)).await;
    soon(|| verifier.state().is_err()).await;
    assert!(again.requests.message().await.is_err() || again.out.is_closed());
}

#[tokio::test]
async fn a_lost_connection_is_replaced_without_a_refusal() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let access = check(&verifier, &daemon.token(|_| ())).await.unwrap();
    let _ = feed.out.send(Err(tonic::Status::resource_exhausted("FELL_BEHIND"))).await;
    let mut again = daemon.subscription().await;
    assert!(access.check().is_ok(), "what was heard until the last tick is still known");
    again.start(EPOCH, daemon.clock.now().wall).await;
    again.snapshot(&[(&job(), SEQ + 1)], Some(SEQ + 1)).await;
    again.tick(daemon.clock.now().wall).await;
    assert_eq!(access.ended().await.reason, Reason::Revoked);
}

/// Gives the verifier another SVID with the same SPIFFE ID.
fn rotate(daemon: &ScriptedDaemon, source: &StaticSource) {
    source.replace(Some(Arc::new(daemon.ca.svid("/files").svid())), bundles(&[&daemon.ca]));
}

#[tokio::test]
async fn a_rotated_svid_opens_a_second_feed_that_takes_over() {
    let mut daemon = ScriptedDaemon::start().await;
    let source = daemon.source("/files");
    let (verifier, mut first) = daemon.following_by(source.clone()).await;
    let (token, clock) = (daemon.token(|_| ()), daemon.clock.clone());
    let access = check(&verifier, &token).await.unwrap();
    let unharmed = check(&verifier, &daemon.token(|c| c.lh.job = crate::name::JobId(9))).await.unwrap();
    rotate(&daemon, &source);
    clock.advance(TICK);
    first.tick(clock.now().wall).await;
    let mut second = daemon.opened().await;
    second.start(EPOCH, clock.now().wall).await;
    second.snapshot(&[], Some(SEQ)).await;
    // The first feed gets a lowering that the second feed does not have yet.
    first.lowered(&job(), SEQ + 1, SEQ).await;
    assert_eq!(access.ended().await.reason, Reason::Revoked);
    second.tick(clock.now().wall).await;
    for _ in 0..100 {
        assert_eq!(reason(&verifier, &token).await, Reason::Revoked, "what was heard is not forgotten");
        a_moment().await;
    }
    assert!(!first.out.is_closed(), "the first goes on until the second knows as much");
    second.lowered(&job(), SEQ + 1, SEQ).await;
    soon(|| first.out.is_closed()).await;
    assert_eq!(reason(&verifier, &token).await, Reason::Revoked);
    // From now on the second feed counts. No token was refused because a feed was missing.
    assert!(unharmed.check().is_ok());
    clock.advance(TICK);
    second.tick(clock.now().wall).await;
    second.lowered(&FenceName::job(crate::name::JobId(9)), SEQ + 2, SEQ + 1).await;
    let ended = unharmed.ended().await;
    assert_eq!(ended.reason, Reason::Revoked, "{ended}");
    assert!(daemon.subscriptions_left() == 0, "one second feed for one rotation");
}

#[tokio::test]
async fn a_failed_second_feed_harms_nothing_and_is_tried_again() {
    let mut daemon = ScriptedDaemon::start().await;
    let source = daemon.source("/files");
    let (verifier, mut first) = daemon.following_by(source.clone()).await;
    let clock = daemon.clock.clone();
    let access = check(&verifier, &daemon.token(|_| ())).await.unwrap();
    rotate(&daemon, &source);
    clock.advance(TICK);
    first.tick(clock.now().wall).await;
    let second = daemon.opened().await;
    let _ = second.out.send(Err(tonic::Status::unavailable("not now"))).await;
    drop(second);
    // The clock advances tick by tick, and at each tick the network has time to deliver.
    let mut third = None;
    while third.is_none() {
        clock.advance(TICK);
        first.tick(clock.now().wall).await;
        assert!(access.check().is_ok());
        for _ in 0..100 {
            a_moment().await;
            third = third.or_else(|| daemon.opened_already());
        }
    }
    let third = third.unwrap();
    // A stream of another epoch is dropped. The feed that is followed must detect that its epoch has ended.
    third.start(EPOCH + 1, clock.now().wall).await;
    soon(|| third.out.is_closed()).await;
    assert!(access.check().is_ok() && !first.out.is_closed());
}

#[tokio::test]
async fn a_clock_that_is_off_by_30_s_refuses_everything() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, mut feed) = daemon.following().await;
    let (token, clock) = (daemon.token(|_| ()), daemon.clock.clone());
    let apart = |seconds: u64| Wall(clock.now().wall.0 + seconds * 1_000);
    for (seconds, decided) in [(31, false), (30, true)] {
        clock.advance(TICK);
        feed.tick(apart(seconds)).await;
        soon(|| verifier.state().is_ok() == decided).await;
        let outcome = check(&verifier, &token).await.map(|_| ()).map_err(|r| r.reason);
        assert_eq!(outcome, if decided { Ok(()) } else { Err(Reason::ClockDifference) });
    }
    // Our wall clock is set back between two ticks. This is noticed before the next tick.
    clock.set_wall(Wall(clock.now().wall.0 - 3_600_000));
    assert_eq!(reason(&verifier, &token).await, Reason::ClockDifference);
}

// Proves law 12.
#[tokio::test]
async fn a_token_ends_by_the_daemons_clock_not_by_ours() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, mut feed) = daemon.following().await;
    let clock = daemon.clock.clone();
    let exp = clock.now().wall.seconds() + 10;
    let token = daemon.token(|c| c.exp = exp);
    let access = check(&verifier, &token).await.unwrap();
    let ended = tokio::spawn(access.ended());
    clock.set_wall(Wall(clock.now().wall.0 - 20_000));
    for _ in 0..9 {
        clock.advance(TICK);
        let daemon_says = Wall(clock.now().wall.0 + 20_000);
        feed.tick(daemon_says).await;
        assert!(access.check().is_ok());
    }
    clock.advance(TICK);
    assert_eq!(access.check().unwrap_err().reason, Reason::TokenExpired);
    assert_eq!(ended.await.unwrap().reason, Reason::TokenExpired);
    assert_eq!(reason(&verifier, &token).await, Reason::TokenExpired);
}

// Proves law 39.
#[tokio::test]
async fn a_new_epoch_refuses_the_old_tokens() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let old = daemon.token(|_| ());
    let access = check(&verifier, &old).await.unwrap();
    let ended = tokio::spawn(access.ended());
    feed.lowered(&FenceName::human("bob".parse().unwrap()), SEQ + 5, SEQ).await;
    drop(feed);
    daemon.key = SigningKey::generate(EPOCH + 1, 1).unwrap();
    *daemon.wire.jwks.lock().unwrap() = daemon.key.public().to_jwks();
    daemon.wire.epoch.store(EPOCH + 1, Ordering::SeqCst);
    let mut again = daemon.subscription().await;
    again.start(EPOCH + 1, daemon.clock.now().wall).await;
    assert_eq!(ended.await.unwrap().reason, Reason::TokenEpoch, "before anything of the new one is known");
    // A lowering that was not durable may be lost between two runs, so the seq may be lower.
    again.snapshot(&[], Some(SEQ)).await;
    again.tick(daemon.clock.now().wall).await;
    verifier.ready().await;
    assert_eq!(reason(&verifier, &old).await, Reason::TokenEpoch);
    assert_eq!(access.check().unwrap_err().reason, Reason::TokenEpoch);
    let new = daemon.token(|c| c.lh.epoch = EPOCH + 1);
    assert!(check(&verifier, &new).await.is_ok());
    // These are claims of the old epoch, signed with the new key.
    assert_eq!(reason(&verifier, &daemon.token(|_| ())).await, Reason::TokenEpoch);
}

#[tokio::test]
async fn an_older_life_of_the_daemon_is_never_gone_back_to() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, feed) = daemon.following().await;
    let token = daemon.token(|_| ());
    drop(feed);
    let older = daemon.subscription().await;
    older.start(EPOCH - 1, daemon.clock.now().wall).await;
    soon(|| verifier.state().is_err()).await;
    assert_eq!(reason(&verifier, &token).await, Reason::TokenEpoch);
    let mut again = daemon.subscription().await;
    again.start(EPOCH, daemon.clock.now().wall).await;
    again.snapshot(&[], Some(SEQ)).await;
    again.tick(daemon.clock.now().wall).await;
    verifier.ready().await;
    assert!(check(&verifier, &token).await.is_ok());
}

#[tokio::test]
async fn a_key_that_is_not_known_is_looked_for_once_and_then_refused() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, mut feed) = daemon.following().await;
    let asked = || daemon.wire.keys_asked.load(Ordering::SeqCst);
    assert_eq!(asked(), 1);
    let rotated = SigningKey::generate(EPOCH, 2).unwrap();
    let token = crate::token::mint(&rotated, &daemon.claims()).unwrap();
    assert_eq!(reason(&verifier, token.expose()).await, Reason::TokenKeyUnknown);
    assert_eq!(asked(), 1, "it was asked less than a second ago");
    live(&daemon.clock, &mut feed, Duration::from_secs(2)).await;
    soon(|| verifier.state().is_ok()).await;
    assert_eq!(reason(&verifier, token.expose()).await, Reason::TokenKeyUnknown);
    assert_eq!(asked(), 2);
    let mut both = daemon.key.public().clone();
    both.extend(rotated.public().clone());
    *daemon.wire.jwks.lock().unwrap() = both.to_jwks();
    live(&daemon.clock, &mut feed, Duration::from_secs(2)).await;
    assert!(check(&verifier, token.expose()).await.is_ok());
    assert!(check(&verifier, &daemon.token(|_| ())).await.is_ok());
    assert_eq!(asked(), 3);
    // A key of another run is not fetched.
    live(&daemon.clock, &mut feed, Duration::from_secs(2)).await;
    let other = SigningKey::generate(EPOCH + 1, 1).unwrap();
    let other = crate::token::mint(&other, &daemon.claims()).unwrap();
    assert_eq!(reason(&verifier, other.expose()).await, Reason::TokenEpoch);
    assert_eq!(asked(), 3);
}

#[tokio::test]
async fn a_token_older_than_the_snapshot_is_refused() {
    let mut daemon = ScriptedDaemon::start().await;
    let verifier = daemon.verifier();
    let mut feed = daemon.subscription().await;
    let now = daemon.clock.now().wall;
    let since = Wall::from_seconds(now.seconds() - 60);
    feed.start_since(EPOCH, now, since).await;
    feed.snapshot(&[], Some(SEQ)).await;
    feed.tick(now).await;
    verifier.ready().await;
    let issued = |seconds: u64| daemon.token(|c| c.iat = now.seconds() - seconds);
    assert!(check(&verifier, &issued(60)).await.is_ok());
    assert_eq!(reason(&verifier, &issued(61)).await, Reason::FeedStale);
}

// Proves law 13.
#[tokio::test]
async fn wrong_holder_audience_and_scope_have_their_reasons() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, _feed) = daemon.following().await;
    let token = daemon.token(|_| ());
    let (holder, thief) = (HOLDER.parse().unwrap(), "spiffe://a.example/thief".parse().unwrap());
    let ask = async |token: &str, id, resource: &str, action| {
        let presenter = Presenter::Svid { id, x5t_s256: None };
        let resource = resource.parse().unwrap();
        verifier.check(token, presenter, &resource, action).await.map(|_| ()).map_err(|r| r.reason)
    };
    let (mine, read) = ("dataset:acme/tickets@v3", Action::ReadDataset);
    assert_eq!(ask(&token, &holder, mine, read).await, Ok(()));
    assert_eq!(ask(&token, &thief, mine, read).await, Err(Reason::TokenPresenter));
    assert_eq!(ask(&token, &holder, "dataset:acme/tickets@v4", read).await, Err(Reason::TokenScope));
    assert_eq!(ask(&token, &holder, mine, Action::ReadModel).await, Err(Reason::TokenScope));
    let elsewhere = daemon.token(|c| c.aud = "spiffe://a.example/other".parse().unwrap());
    assert_eq!(ask(&elsewhere, &holder, mine, read).await, Err(Reason::TokenAudience));
    let epoch = daemon.token(|c| c.lh.epoch = EPOCH - 1);
    assert_eq!(ask(&epoch, &holder, mine, read).await, Err(Reason::TokenEpoch));
    let expired = daemon.token(|c| c.exp = c.iat);
    assert_eq!(ask(&expired, &holder, mine, read).await, Err(Reason::TokenExpired));
    assert_eq!(ask("x", &holder, mine, read).await, Err(Reason::TokenMalformed));
}

#[tokio::test]
async fn whatever_ends_the_follower_refuses_everything() {
    let mut daemon = ScriptedDaemon::start().await;
    let (verifier, _feed) = daemon.following().await;
    let access = check(&verifier, &daemon.token(|_| ())).await.unwrap();
    let ended = access.ended();
    verifier.shutdown().await;
    verifier.shutdown().await;
    assert_eq!(verifier.state().unwrap_err().reason, Reason::FeedStale);
    assert_eq!(ended.await.reason, Reason::FeedStale);
    drop(verifier);
    let (verifier, _feed) = daemon.following().await;
    let access = check(&verifier, &daemon.token(|_| ())).await.unwrap();
    drop(verifier);
    assert_eq!(access.ended().await.reason, Reason::FeedStale);
}

//! The usual course: a job gets its access, and loses it.

use std::time::Duration;

use leasehold::{
    name::Action,
    proto::v1::{self, Half, Outcome},
    token::Presenter,
    verify::{Verifier, VerifierSettings},
};

use crate::harness::*;

/// Create, begin, join, keep alive, issue, show, renew, end, with the result of each step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_gets_its_access_and_loses_it_the_moment_it_ends() {
    let world = World::start().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let mut worker = world.working().await;
    worker.beat().await;

    let [reading, writing] = worker.issue_both().await;
    assert_eq!((reading.lease.half(), writing.lease.half()), (Half::Reading, Half::Writing));
    assert_eq!(reading.lease.audience, GATEWAY);
    assert_eq!(reading.lease.scopes.len(), 2);
    assert_eq!(reading.answer.binding(), v1::Binding::Subject);
    assert_eq!(reading.answer.revocation_bound.as_ref().unwrap().by, "feed");
    assert_eq!(reading.answer.locations[TICKETS], "s3://acme-data/tickets/v3/");
    assert!(writing.answer.locations[LINE].ends_with(&format!("/{}/", worker.job)));
    let seen = reading.seen_by(&gateway).await;
    assert!(seen.active);
    assert_eq!((seen.subject.as_str(), seen.audience.as_str()), (WORKER, GATEWAY));
    assert_eq!(launcher.job(&worker.job).await.live_leases, 2);

    let verifier = Verifier::start(VerifierSettings {
        connector: world.connector(&world.svid(GATEWAY)),
        audience: GATEWAY.parse().unwrap(),
        clock: world.clock.clone(),
    });
    soon("a verifier", verifier.ready()).await;
    let (holder, tickets) = (WORKER.parse().unwrap(), TICKETS.parse().unwrap());
    let line = format!("{LINE}/{}", worker.job).parse().unwrap();
    let presenter = Presenter::Svid { id: &holder, x5t_s256: None };
    let access = verifier.check(&reading.text, presenter, &tickets, Action::ReadDataset).await.unwrap();
    verifier.check(&writing.text, presenter, &line, Action::WriteCheckpoint).await.unwrap();
    // This token opens neither another job's folder in that line nor the line itself.
    for other in [format!("{LINE}/{}", leasehold::name::JobId(7)), LINE.to_owned()] {
        let other = other.parse().unwrap();
        let no =
            verifier.check(&writing.text, presenter, &other, Action::DeleteCheckpoint).await.unwrap_err();
        assert_eq!(no.reason.code(), "TOKEN_SCOPE");
    }
    let beyond = verifier.check(&reading.text, presenter, &line, Action::WriteCheckpoint).await.unwrap_err();
    assert_eq!(beyond.reason.code(), "TOKEN_SCOPE");

    world.time().advance(Duration::from_secs(1));
    let renewed = worker.renew(&reading.lease.id).await.unwrap().into_inner();
    assert_eq!(renewed.lease.as_ref().unwrap().generation, 1);
    assert_eq!(renewed.lease.unwrap().id, reading.lease.id);
    assert_ne!(renewed.token, reading.text);

    let ended = launcher.end(&worker.job, 1, Outcome::Completed).await.unwrap().into_inner();
    let (ending, job) = (ended.ending.unwrap(), ended.job.unwrap());
    assert_eq!((ending.behind, ended.conflict), (2, false));
    assert_eq!((job.state(), job.outcome()), (v1::JobState::Closed, Outcome::Completed));
    reading.is_dead(&gateway, "LEASE_ENDED").await;
    writing.is_dead(&gateway, "LEASE_ENDED").await;
    assert!(!gateway.introspect(&renewed.token, WORKER).await.active);
    let why = soon("the access to end", access.ended()).await;
    assert_eq!(why.reason.code(), "REVOKED");
    let notice = worker.stream.as_mut().unwrap().told(v1::notice::Kind::Revoked, "JOB_CLOSED").await;
    assert!(notice.message.contains("completed"), "{}", notice.message);
    assert_eq!(launcher.job(&worker.job).await.live_leases, 0);
    let records = world.records().await;
    assert_eq!(records.of("credential.issued").len(), 2);
    assert_eq!(records.of("credential.renewed").len(), 1);
}

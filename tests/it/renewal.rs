//! What happens to a lease when its renewal is refused.

use std::time::Duration;

use leasehold::proto::v1::{self, Half};
use tonic::Code;

use crate::harness::*;

/// A daemon whose policy gets one more rule after this time.
async fn ruled(rule: &str, after: Duration) -> World {
    let mut world = World::prepared(|_| {});
    let text = world.read("policy/leasehold.cedar");
    let from = NOW.plus(after);
    world.write(
        "policy/leasehold.cedar",
        &format!(
            "{text}\n@id(\"test-rule\")\n@explain(\"the day is over\")\nforbid (principal, action, resource)\n\
             when {{ context.now >= datetime(\"{from}\") && {rule} }};\n"
        ),
    );
    world.restart().await;
    world
}

async fn renew_for(
    worker: &Worker,
    lease: &str,
    seconds: i64,
) -> Result<tonic::Response<v1::RenewLeaseResponse>, tonic::Status> {
    let ttl = Some(prost_types::Duration { seconds, nanos: 0 });
    let request = v1::RenewLeaseRequest { session: worker.session(), lease: lease.into(), ttl };
    worker.client.members().renew_lease(request).await
}

// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_policy_denies_ends_the_lease() {
    let rules = [
        ("the data", "action == Leasehold::Action::\"read_dataset\""),
        ("the call", "action == Leasehold::Action::\"RenewLease\""),
    ];
    for (what, rule) in rules {
        let world = ruled(rule, Duration::from_secs(100)).await;
        let (gateway, operator) = (world.client(GATEWAY).await, world.client(OPERATOR).await);
        let worker = world.working().await;
        let [reading, writing] = worker.issue_both().await;
        worker.renew(&reading.lease.id).await.unwrap();
        world.time().advance(Duration::from_secs(100));
        // Without a reload there is no sweep: the lease is live until it is renewed.
        reading.is_live(&gateway).await;
        let no = refused(worker.renew(&reading.lease.id).await);
        assert_eq!(
            (no.code, no.reason.as_str()),
            (Code::PermissionDenied, "POLICY_DENIED"),
            "{what}: {no:?}"
        );
        assert!(no.facts["lease"].contains("ended"), "{what}: {no:?}");
        reading.is_dead(&gateway, "LEASE_ENDED").await;
        writing.is_live(&gateway).await;
        assert_eq!(world.daemon().broker.live_leases(), 1, "{what}");
        // The feed reports it, the ledger has one record, and its cause is kept.
        let name = format!("lease:{}", reading.lease.id);
        let records = world.records().await;
        let record = records.one("lowered");
        assert_eq!(
            (record["name"].as_str(), &record["ending"]["behind"]),
            (Some(name.as_str()), &1.into()),
            "{what}"
        );
        assert_eq!(record["because"], "not renewed: POLICY_DENIED", "{what}");
        let ask = v1::GetLeaseRequest { lease: reading.lease.id.clone() };
        let shown = operator.operators().get_lease(ask).await.unwrap().into_inner().lease.unwrap();
        assert_eq!(
            (shown.state.as_str(), shown.cause.as_str()),
            ("ended", "not renewed: POLICY_DENIED"),
            "{what}"
        );
        refused(worker.renew(&reading.lease.id).await).is(Code::FailedPrecondition, "LEASE_ENDED");
        assert_eq!(world.records().await.of("lowered").len(), 1, "{what}");
    }
}

// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_renewal_leaves_the_lease_as_it_was() {
    let world = ruled("context has ttl_seconds && context.ttl_seconds > 200", Duration::from_secs(100)).await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let id = &token.lease.id;
    world.time().advance(Duration::from_secs(100));
    // Too long.
    refused(worker.renew(id).await).is(Code::PermissionDenied, "POLICY_DENIED");
    // Malformed.
    refused(renew_for(&worker, id, -1).await).is(Code::InvalidArgument, "TTL_INVALID");
    // By another session, and by another identity that knows the session.
    let mut guess =
        Worker { stream: None, client: worker.client.clone(), secret: vec![7; 32], ..stolen(&worker) };
    refused(guess.renew(id).await).is(Code::PermissionDenied, "SESSION_MISMATCH");
    guess = Worker { client: world.client(OTHER_WORKER).await, ..stolen(&worker) };
    refused(guess.renew(id).await);
    token.is_live(&gateway).await;
    let shorter = renew_for(&worker, id, 150).await.unwrap().into_inner();
    assert_eq!(shorter.lease.unwrap().generation, 1);
    assert!(world.records().await.of("lowered").is_empty());
}

/// What someone has who stole the whole session.
fn stolen(worker: &Worker) -> Worker {
    Worker {
        client: worker.client.clone(),
        job: worker.job.clone(),
        attempt: worker.attempt,
        instance: worker.instance.clone(),
        secret: worker.secret.clone(),
        ticket: String::new(),
        joined: v1::JoinAttemptResponse::default(),
        stream: None,
    }
}

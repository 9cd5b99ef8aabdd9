//! What an attack on the two orders, on locks and on the books must not get.

use leasehold::proto::v1::{self, Half};
use tonic::Code;

use crate::harness::*;

async fn lock_for(operator: &Client, name: &str, ttl: Option<i64>) -> v1::Lock {
    let request = v1::LockRequest {
        name: name.into(),
        reason: if ttl.is_some() { "the second".into() } else { "the first".into() },
        ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        dry_run: false,
    };
    operator.operators().lock(request).await.unwrap().into_inner().lock.unwrap()
}

#[tokio::test]
async fn law_31_a_second_lock_never_shortens_the_first() {
    let world = World::start().await;
    let operator = world.client(OPERATOR).await;
    lock_for(&operator, "dataset:acme/tickets", None).await;
    let again = lock_for(&operator, "dataset:acme/tickets", Some(1)).await;
    assert_eq!(again.until, None);
    world.time().advance(std::time::Duration::from_secs(3_600));
    let locks = operator.operators().list_locks(v1::ListLocksRequest {}).await.unwrap().into_inner().locks;
    assert_eq!(locks.len(), 1);
}

#[tokio::test]
async fn law_31_an_identity_that_is_locked_cannot_let_itself_out() {
    let world = World::start().await;
    let (operator, platform) = (world.client(OPERATOR).await, world.client(PLATFORM).await);
    let name = format!("identity:{OPERATOR}");
    platform.lock(&name).await.unwrap();
    refused(operator.unlock(&name).await).is(Code::PermissionDenied, "LOCKED");
    let reload = operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await;
    refused(reload).is(Code::PermissionDenied, "LOCKED");
    assert!(operator.operators().who_am_i(v1::WhoAmIRequest {}).await.is_ok(), "it may still ask who it is");
    platform.unlock(&name).await.unwrap();
    assert!(operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: true }).await.is_ok());
}

#[tokio::test]
async fn law_11_a_lease_stands_behind_the_model_that_its_job_tunes_though_it_reads_it_not() {
    let world = World::start().await;
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let spec = v1::JobSpec { read: vec![TICKETS.into()], ..spec() };
    let worker = world.working_on(spec, WORKER).await;
    let token = worker.issue(Half::Writing).await;
    token.is_live(&gateway).await;
    operator.lock("model:acme/base-7b").await.unwrap();
    assert!(!token.seen_by(&gateway).await.active);
    refused(worker.try_issue(Half::Writing).await).is(Code::PermissionDenied, "LOCKED");
}

#[tokio::test]
async fn a_second_revocation_is_as_durable_as_the_first_and_has_a_place_to_wait_for() {
    let world = World::start().await;
    let operator = world.client(OPERATOR).await;
    let worker = world.working().await;
    let name = format!("job:{}", worker.job);
    let first = operator.revoke(&name).await.unwrap().into_inner().ending.unwrap();
    let again = operator.revoke(&name).await.unwrap().into_inner().ending.unwrap();
    assert!(again.index >= first.index && first.index > 0, "{first:?} {again:?}");
}

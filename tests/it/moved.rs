//! What a lease opens is where it was when the lease was issued: it ends if the catalog moves the bytes.

use leasehold::proto::v1::{self, Half};
use tonic::Code;

use crate::{approvals::*, harness::*};

const TICKETS_AT: &str = "s3://acme-data/tickets/v3/";
const PATIENTS_AT: &str = "s3://acme-data/patients/v1/";
const SOMEWHERE: &str = "s3://acme-data/somewhere/";

/// Puts acme's catalog file on disk with a change.
fn changed(world: &World, from: &str, to: &str) {
    let text = world.read("catalog.d/acme.toml");
    assert!(text.contains(from), "{from}");
    world.write("catalog.d/acme.toml", &text.replacen(from, to, 1));
}

async fn reload(world: &World, dry_run: bool) -> u64 {
    let platform = world.client(PLATFORM).await;
    let request = v1::ReloadCatalogRequest { dry_run };
    platform.operators().reload_catalog(request).await.unwrap().into_inner().ended
}

/// A lease on a folder that the catalog moved ends with the reload; a new one names the new folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_if_its_location_is_changed() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let reading = worker.issue(Half::Reading).await;
    let writing = worker.issue(Half::Writing).await;
    // A change that moves nothing ends nothing.
    changed(&world, "data-tickets@acme.example", "others@acme.example");
    assert_eq!(reload(&world, false).await, 0);
    reading.is_live(&gateway).await;
    changed(&world, TICKETS_AT, SOMEWHERE);
    assert_eq!(reload(&world, true).await, 1);
    reading.is_live(&gateway).await;
    assert_eq!(reload(&world, false).await, 1);
    let seen = reading.seen_by(&gateway).await;
    assert!(!seen.active, "{seen:?}");
    writing.is_live(&gateway).await;
    let again = worker.issue(Half::Reading).await;
    assert_eq!(again.answer.locations[TICKETS], SOMEWHERE);
    again.is_live(&gateway).await;
    let records = world.records().await;
    let places: Vec<_> =
        records.of("credential.issued").iter().map(|r| r["inputs"][0]["location"].clone()).collect();
    assert_eq!(places, [TICKETS_AT, TICKETS_AT, SOMEWHERE]);
    // A checkpoint line that is moved ends what writes to it.
    changed(&world, "s3://acme-models/out/support-lora/", "s3://acme-models/out/elsewhere/");
    assert_eq!(reload(&world, false).await, 1);
    assert!(!writing.seen_by(&gateway).await.active);
    again.is_live(&gateway).await;
}

/// People approved the data at one place. A job does not read what lies at another place on that approval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_does_not_follow_a_changed_location() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let job = created(&world, sensitive()).await;
    let created_record = world.records().await.one("job.created").clone();
    assert_eq!(created_record["inputs"][0]["location"], PATIENTS_AT, "{created_record}");
    approved_by(&world, &job, &[PIA]).await;
    let worker = running(&world, &job).await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    changed(&world, PATIENTS_AT, SOMEWHERE);
    assert!(reload(&world, false).await >= 1);
    assert!(!token.seen_by(&gateway).await.active);
    // The next job of the same file is another request, which people decide on again.
    let launcher = world.client(LAUNCHER).await;
    let other = launcher.create(sensitive(), "another key").await.unwrap().into_inner().job.unwrap();
    assert_ne!(other.request_digest, job.request_digest);
    assert_eq!(other.state(), v1::JobState::AwaitingApproval);
    // A location that changes between the request and the approval is not what people approved.
    let members = Some(v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() });
    let late = created(&world, v1::JobSpec { name: "late".into(), members, ..sensitive() }).await;
    changed(&world, SOMEWHERE, "s3://acme-data/third/");
    assert_eq!(reload(&world, false).await, 0);
    approved_by(&world, &late, &[PIA]).await;
    let worker = running_as(&world, &late, OTHER_WORKER).await;
    refused(worker.try_issue(Half::Reading).await).is(Code::FailedPrecondition, "PIN_MISMATCH");
}

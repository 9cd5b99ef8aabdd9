//! Jobs that read the checkpoints of other jobs.

use futures_util::{StreamExt, TryStreamExt};
use leasehold::{
    link::{Connector, Endpoint},
    proto::v1::{self, Action, Half, Outcome},
};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use tonic::Code;

use crate::{
    gateway::{Forwarder, LARGE, world as world_with_gateway},
    harness::*,
};

/// A third identity of jobs.
const THIRD_WORKER: &str = "spiffe://k8s.acme.example/ns/ml/job/third";

fn named(name: &str, worker: &str) -> v1::JobSpec {
    let members = v1::Members { join: vec![worker.into()], ..Default::default() };
    v1::JobSpec { name: name.into(), members: Some(members), ..spec() }
}

/// A job that only reads the folders of other jobs.
fn reader_of(name: &str, worker: &str, folders: &[&str]) -> v1::JobSpec {
    let read = folders.iter().map(ToString::to_string).collect();
    v1::JobSpec { read, write: Vec::new(), tune: None, ..named(name, worker) }
}

/// A job that tunes from the folders of other jobs.
fn tuned_from(name: &str, worker: &str, folders: &[&str]) -> v1::JobSpec {
    let read = folders.iter().chain(&[MODEL]).map(ToString::to_string).collect();
    v1::JobSpec { read, ..named(name, worker) }
}

impl World {
    /// Runs a job to its end. Returns its id and the name of its folder.
    async fn closed_job(&self, spec: v1::JobSpec, worker: &str, outcome: Outcome) -> (String, String) {
        let worker = self.working_on(spec, worker).await;
        self.client(LAUNCHER).await.end(&worker.job, 1, outcome).await.unwrap();
        let folder = format!("{LINE}/{}", worker.job);
        (worker.job, folder)
    }

    fn write_checkpoint(&self, job: &str, name: &str, text: &str) {
        std::fs::create_dir_all(self.file(&format!("acme-models/out/support-lora/{job}"))).unwrap();
        self.write(&format!("acme-models/out/support-lora/{job}/{name}"), text);
    }
}

// Through the gateway, a job reads the folder of a closed job, and nothing else in the checkpoint line. It cannot write to the
// folder. A lock on the line ends a download.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_reads_the_checkpoints_of_another_job() {
    let world = world_with_gateway().await;
    let (job, folder) = world.closed_job(named("writer", WORKER), WORKER, Outcome::Completed).await;
    let (other, _) = world.closed_job(named("other", THIRD_WORKER), THIRD_WORKER, Outcome::Completed).await;
    for id in [&job, &other] {
        world.write_checkpoint(id, "adapter.bin", "weights");
    }
    let large = world.file(&format!("acme-models/out/support-lora/{job}/large"));
    std::fs::File::create(&large).unwrap().set_len(LARGE).unwrap();

    let mut reader = world.working_on(reader_of("eval", OTHER_WORKER, &[&folder]), OTHER_WORKER).await;
    reader.beat().await;
    let token = reader.issue(Half::Reading).await;
    let [scope] = token.lease.scopes.as_slice() else { panic!("{:?}", token.lease) };
    assert_eq!((&scope.resource, scope.actions.as_slice()), (&folder, &[Action::ReadCheckpoint as i32][..]));
    assert_eq!(token.answer.locations[&folder], format!("s3://acme-models/out/support-lora/{job}/"));
    refused(reader.try_issue(Half::Writing).await).is(Code::NotFound, "AUDIENCE_UNKNOWN");

    let address = world.daemon().gateway.unwrap().to_string();
    let endpoint = Endpoint::new(&address, DAEMON.parse().unwrap()).unwrap();
    let connector = Connector::new(world.source(&world.svid(OTHER_WORKER)), world.clock.clone(), endpoint);
    let forwarder = Forwarder::start(connector, vec![token.text.clone()]).await;
    let (models, stable) = (forwarder.bucket("acme-models"), forwarder.bucket("leasehold"));
    let at = |id: &str, name: &str| Path::from(format!("out/support-lora/{id}/{name}"));
    let own = at(&job, "adapter.bin");
    let read = soon("a read", models.get(&own)).await.unwrap().bytes().await.unwrap();
    assert_eq!(&read[..], b"weights");
    let by_name = Path::from(format!("checkpoint/acme/support-lora/{job}/adapter.bin"));
    assert_eq!(stable.get(&by_name).await.unwrap().bytes().await.unwrap(), read);
    let listed: Vec<_> = models.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2, "only what is leased: {listed:?}");
    let foreign = models.get(&at(&other, "adapter.bin")).await.unwrap_err();
    assert!(matches!(foreign, object_store::Error::PermissionDenied { .. }), "{foreign}");
    for path in [&own, &at(&job, "new"), &at(&reader.job, "new")] {
        let no = models.put(path, PutPayload::from_static(b"x")).await.unwrap_err();
        assert!(matches!(no, object_store::Error::PermissionDenied { .. }), "{path}: {no}");
    }
    assert!(models.copy(&own, &at(&job, "copy")).await.is_err());
    assert!(models.put_multipart(&at(&job, "parts")).await.is_err());
    assert!(models.delete(&own).await.is_err());
    assert_eq!(world.read(&format!("acme-models/{own}")), "weights");

    let mut download = models.get(&at(&job, "large")).await.unwrap().into_stream();
    let mut received = soon("the first bytes", download.next()).await.unwrap().unwrap().len() as u64;
    world.client(OPERATOR).await.lock(LINE).await.unwrap();
    let cut = soon("the cut", async {
        loop {
            match download.next().await {
                Some(Ok(bytes)) => received += bytes.len() as u64,
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    });
    assert!(cut.await.is_some() && received < LARGE, "{received}");
    let ended = soon("a refusal", models.get(&own)).await.unwrap_err().to_string();
    assert!(ended.contains("REVOKED"), "{ended}");
    refused(reader.try_issue(Half::Reading).await).is(Code::PermissionDenied, "LOCKED");

    let launcher = world.client(LAUNCHER).await;
    let used = async || launcher.job(&reader.job).await.uses;
    world.time().pass_slowly_until("the report", async || !used().await.is_empty()).await;
    let uses = used().await;
    let [of_folder] = uses.as_slice() else { panic!("{uses:?}") };
    assert_eq!((&of_folder.resource, of_folder.writes, of_folder.cut), (&folder, 0, 1), "{of_folder:?}");
    assert!(of_folder.reads >= 2 && of_folder.refused > 0, "{of_folder:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_rule_no_other_checkpoints_are_read() {
    let mut world = World::prepared(|_| {});
    let policy = world.read("policy/leasehold.cedar");
    let from = policy.find("@id(\"trainer-reads-checkpoints\")").unwrap();
    let to = from + policy[from..].find("};\n").unwrap() + 3;
    world.write("policy/leasehold.cedar", &format!("{}{}", &policy[..from], &policy[to..]));
    world.restart().await;
    let (_, folder) = world.closed_job(named("writer", WORKER), WORKER, Outcome::Completed).await;
    let spec = reader_of("eval", OTHER_WORKER, &[&folder]);
    let no = refused(world.client(LAUNCHER).await.create(spec, "k").await);
    no.is(Code::PermissionDenied, "POLICY_DENIED");
    assert!(no.facts["rule"].contains("job-keeps-its-own-checkpoints"), "{no:?}");
}

// A job can read only the folders of closed jobs of its tenant whose outputs are not quarantined. An absent job and a job of
// another tenant get the same answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfit_checkpoints_of_other_jobs_are_refused() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let (job, folder) = world.closed_job(named("writer", WORKER), WORKER, Outcome::Completed).await;
    let (_, failed) = world.closed_job(named("failed", THIRD_WORKER), THIRD_WORKER, Outcome::Failed).await;
    let absent = format!("{LINE}/j-00000000000000000000000001");
    let of_another_line = format!("checkpoint:acme/live-lora/{job}");
    for name in [&absent, &of_another_line] {
        let no = refused(launcher.create(reader_of("eval", OTHER_WORKER, &[name]), name).await);
        no.is(Code::NotFound, "RESOURCE_NOT_FOUND");
        assert!(no.text.contains("none that this tenant may see"), "{no:?}");
    }
    let no = refused(launcher.create(reader_of("eval", OTHER_WORKER, &[&failed]), "failed").await);
    no.is(Code::FailedPrecondition, "CHECKPOINT_QUARANTINED");
    assert!(no.text.contains("ended as failed"), "{no:?}");

    let globex = world.client(GLOBEX_LAUNCHER).await;
    let mut answers = Vec::new();
    for name in [&folder, &absent] {
        let spec = v1::JobSpec { acting_for: String::new(), ..reader_of("spy", GLOBEX_WORKER, &[name]) };
        let no = refused(globex.create(spec, name).await);
        no.is(Code::NotFound, "RESOURCE_NOT_FOUND");
        answers.push(no.text.replace(name.as_str(), "NAME"));
    }
    assert_eq!(answers[0], answers[1]);

    let ask = async |resource: &String| {
        let request = v1::EvaluatePolicyRequest {
            action: "read_checkpoint".into(),
            resource: resource.clone(),
            identity: OTHER_WORKER.into(),
            ..Default::default()
        };
        let operator = world.client(OPERATOR).await;
        operator.operators().evaluate_policy(request).await.unwrap().into_inner()
    };
    let allowed = ask(&folder).await;
    assert_eq!(allowed.answer(), v1::PolicyAnswer::Allow, "{allowed:?}");
    assert_eq!(allowed.rules[0].id, "trainer-reads-checkpoints");
    assert_eq!(ask(&failed).await.answer(), v1::PolicyAnswer::Deny);
    assert_eq!(ask(&LINE.to_owned()).await.rules[0].id, "job-keeps-its-own-checkpoints");

    let open = world.working_on(named("open", OTHER_WORKER), OTHER_WORKER).await;
    let open = format!("{LINE}/{}", open.job);
    refused(launcher.create(reader_of("eval", WORKER, &[&open]), "open").await)
        .is(Code::FailedPrecondition, "STATE_CONFLICT");
    for odd in ["dataset:acme/tickets@v3/j-00000000000000000000000001", LINE] {
        refused(launcher.create(reader_of("odd", WORKER, &[odd]), odd).await)
            .is(Code::InvalidArgument, "FIELD_INVALID");
    }
}

// A recall of data ends the jobs that read checkpoints made from this data, also through a job in between and after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_reaches_the_readers_of_checkpoints() {
    let mut world = World::start().await;
    let (_, first) = world.closed_job(named("first", WORKER), WORKER, Outcome::Completed).await;
    let second = tuned_from("second", THIRD_WORKER, &[&first]);
    let (between, second) = world.closed_job(second, THIRD_WORKER, Outcome::Completed).await;
    let created = world.client(LAUNCHER).await.create(reader_of("idle", WORKER, &[&second]), "idle").await;
    let idle = created.unwrap().into_inner().job.unwrap().id;
    world.restart().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let mut reader = world.working_on(reader_of("eval", OTHER_WORKER, &[&second]), OTHER_WORKER).await;
    reader.beat().await;
    let token = reader.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    let request = v1::RecallDatasetRequest {
        name: TICKETS.into(),
        reason: "consent withdrawn".into(),
        ..Default::default()
    };
    let done = world.client(OPERATOR).await.operators().recall_dataset(request).await.unwrap().into_inner();
    assert_eq!(done.ending.as_ref().unwrap().behind, 1);
    assert!(done.jobs_closed.contains(&reader.job) && done.jobs_closed.contains(&idle), "{done:?}");
    let answer = gateway.introspect(&token.text, OTHER_WORKER).await;
    assert!(!answer.active, "{answer:?}");
    assert_eq!(launcher.job(&reader.job).await.outcome(), Outcome::Revoked);
    assert!(launcher.job(&between).await.quarantined.contains(TICKETS));
    let no = refused(launcher.create(reader_of("again", OTHER_WORKER, &[&second]), "again").await);
    assert!(["CHECKPOINT_QUARANTINED", "LOCKED"].contains(&no.reason.as_str()), "{no:?}");
}

// If a closed job is revoked, or a compromise concerns it, the leases on its checkpoints end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tainted_writer_ends_its_readers() {
    let world = World::start().await;
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let (writer, folder) = world.closed_job(named("writer", WORKER), WORKER, Outcome::Completed).await;
    let mut reader = world.working_on(tuned_from("tuned", OTHER_WORKER, &[&folder]), OTHER_WORKER).await;
    reader.beat().await;
    let [token, writing] = reader.issue_both().await;
    let revoke = async |cause: i32| {
        let name = format!("job:{writer}");
        let request = v1::RevokeRequest { name, reason: "seen".into(), cause, ..Default::default() };
        operator.operators().revoke(request).await.unwrap().into_inner()
    };
    let done = revoke(0).await;
    assert_eq!(done.ending.as_ref().unwrap().behind, 1, "{done:?}");
    assert!(!gateway.introspect(&token.text, OTHER_WORKER).await.active);
    writing.is_live(&gateway).await;
    // After a revocation without a compromise, the outputs are not quarantined, so a new lease is possible.
    let again = reader.issue(Half::Reading).await;
    again.is_live(&gateway).await;

    let done = revoke(v1::RevokeCause::Compromise as i32).await;
    assert!(done.ending.as_ref().unwrap().behind >= 1, "{done:?}");
    assert!(!gateway.introspect(&again.text, OTHER_WORKER).await.active);
    // The reader has a mark of its job, so its outputs stay quarantined when the daemon has forgotten the writer.
    let descendant = operator.job(&reader.job).await.quarantined;
    assert_eq!(descendant, format!("job:{writer} was compromised"));
    let platform = world.client(PLATFORM).await;
    for lock in [format!("launcher:{LAUNCHER}"), format!("identity:{WORKER}")] {
        let _ = operator.unlock(&lock).await;
        let _ = platform.unlock(&lock).await;
    }
    let no =
        refused(world.client(LAUNCHER).await.create(reader_of("eval", THIRD_WORKER, &[&folder]), "k").await);
    no.is(Code::FailedPrecondition, "CHECKPOINT_QUARANTINED");
}

// A compromise of one identity ends its own leases, and no lease of the other members of an open job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromise_ends_no_lease_of_other_members() {
    let world = World::start().await;
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let members = v1::Members {
        join: vec![WORKER.into(), OTHER_WORKER.into()],
        expect: 2,
        max: 2,
        ..Default::default()
    };
    let spec = v1::JobSpec { name: "both".into(), members: Some(members), ..spec() };
    let mut compromised = world.working_on(spec, WORKER).await;
    let client = world.client(OTHER_WORKER).await;
    let mut other =
        Worker::join(client, &compromised.job, 1, "rank-1", &compromised.ticket.clone()).await.unwrap();
    other.keep_alive().await;
    compromised.beat().await;
    let (bad, good) = (compromised.issue(Half::Reading).await, other.issue(Half::Reading).await);
    let request = v1::RevokeRequest {
        name: format!("identity:{WORKER}"),
        reason: "seen".into(),
        cause: v1::RevokeCause::Compromise as i32,
        ..Default::default()
    };
    operator.operators().revoke(request).await.unwrap();
    assert!(!gateway.introspect(&bad.text, WORKER).await.active);
    good.is_live(&gateway).await;
}

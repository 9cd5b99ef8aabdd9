//! How large a token may be: whatever `CreateJob` accepts can be issued.

use leasehold::{
    limits::{JOB_RESOURCES_MAX, TOKEN_BYTES_MAX, WILDCARD_BYTES_MAX},
    proto::v1::{self, Half},
};
use tonic::Code;

use crate::harness::*;

const JOBS: &str = "spiffe://k8s.acme.example/ns/ml/job/";

/// Acme has this many more datasets, with names and versions of so many bytes together.
async fn world_with(count: usize, bytes: usize) -> (World, Vec<String>) {
    let names: Vec<String> =
        (0..count).map(|i| format!("{i:02}-{}@2026-11", "d".repeat(bytes - "00-@2026-11".len()))).collect();
    let entries: String = names
        .iter()
        .map(|name| {
            format!(
                "\n[[dataset]]\nname = \"{name}\"\nlocation = \"s3://acme-data/{name}/\"\naudience = \"{GATEWAY}\"\n\
                 pin = \"none\"\nclassification = \"internal\"\ndata_classes = []\nsource_trust = \"curated\"\n\
                 purposes = [\"support-tuning\"]\nowner = \"data@acme.example\"\n"
            )
        })
        .collect();
    let world = World::with(|setup| {
        let acme = format!("{}{entries}", setup.catalog["acme.toml"]);
        setup.catalog.insert("acme.toml", acme);
    })
    .await;
    (world, names.into_iter().map(|name| format!("dataset:acme/{name}")).collect())
}

fn reading(name: &str, read: &[String], join: &str) -> v1::JobSpec {
    let members = v1::Members { join: vec![join.into()], ..Default::default() };
    v1::JobSpec {
        name: name.into(),
        read: read.to_vec(),
        write: vec![],
        tune: None,
        members: Some(members),
        ..spec()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_reads_as_many_resources_as_it_may_name() {
    let (world, names) = world_with(JOB_RESOURCES_MAX, 33).await;
    let pattern = format!("{JOBS}*");
    for (name, holder, join) in [("exact", WORKER, WORKER), ("pattern", OTHER_WORKER, &pattern)] {
        let mut worker = world.working_on(reading(name, &names, join), holder).await;
        let token = worker.issue(Half::Reading).await;
        assert!(token.text.len() <= TOKEN_BYTES_MAX);
        assert_eq!(token.lease.scopes.len(), JOB_RESOURCES_MAX);
        assert!(world.client(GATEWAY).await.introspect(&token.text, holder).await.active);
        world.client(LAUNCHER).await.end(&worker.job, 1, v1::Outcome::Completed).await.unwrap();
        worker.stream = None;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_token_would_not_fit_is_never_created() {
    let (world, names) = world_with(JOB_RESOURCES_MAX, 80).await;
    let launcher = world.client(LAUNCHER).await;
    for dry_run in [true, false] {
        let spec = Some(reading("large", &names, WORKER));
        let request = v1::CreateJobRequest { spec, idempotency_key: "large".into(), dry_run };
        let no = refused(launcher.jobs().create_job(request).await);
        no.is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert!(no.text.contains("bytes") && no.text.contains(GATEWAY), "{}", no.text);
        assert!(no.facts["resources"].starts_with("64, and their names are 5120 bytes"), "{:?}", no.facts);
    }
    assert!(
        launcher.jobs().list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs.is_empty()
    );
}

/// With longer and longer identities: what is created is issued, and what could not be issued is not created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_created_for_a_long_identity_is_also_issued() {
    let (world, names) = world_with(48, 33).await;
    let launcher = world.client(LAUNCHER).await;
    let (mut issued, mut refusals) = (0, 0);
    for bytes in (900..1_900).step_by(100) {
        let holder = format!("{JOBS}{}", "x".repeat(bytes - JOBS.len()));
        match launcher.create(reading("long", &names, &holder), &format!("{bytes} bytes")).await {
            Ok(answer) => {
                let job = answer.into_inner().job.unwrap();
                launcher.begin(&job.id, "run-1").await.unwrap();
                let client = world.client(&holder).await;
                let worker = Worker::join(client, &job.id, 1, &"i".repeat(128), "").await.unwrap();
                let token = worker.issue(Half::Reading).await;
                issued = token.text.len();
            }
            Err(status) => {
                Refused::of(&status).is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
                refusals += 1;
            }
        }
    }
    assert!(refusals > 0, "the longest one fits");
    // What was kept free: a step of the test, the binding to a certificate, and digits of counters that have not grown yet.
    assert!((TOKEN_BYTES_MAX - 300..=TOKEN_BYTES_MAX).contains(&issued), "{issued}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_was_not_measured_does_not_join_by_a_pattern() {
    let (world, names) = world_with(2, 33).await;
    let launcher = world.client(LAUNCHER).await;
    let pattern = format!("{JOBS}*");
    for (more, joins) in [(WILDCARD_BYTES_MAX, true), (WILDCARD_BYTES_MAX + 1, false)] {
        let job = launcher.create(reading("wild", &names, &pattern), &format!("{more}")).await.unwrap();
        let job = job.into_inner().job.unwrap().id;
        let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
        let holder = format!("{JOBS}{}", "x".repeat(pattern.len() + more - JOBS.len()));
        match Worker::join(world.client(&holder).await, &job, 1, "rank-0", &ticket).await {
            Ok(worker) => assert!(joins && worker.issue(Half::Reading).await.text.len() < TOKEN_BYTES_MAX),
            Err(status) => {
                assert!(!joins);
                Refused::of(&status).is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
            }
        }
    }
}

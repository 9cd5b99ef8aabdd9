//! Sweeps over free parameters: several jobs that one approval covers.

use leasehold::proto::v1::{self, Half, JobState, Outcome};
use tonic::Code;

use crate::{approvals::*, harness::*};

/// Changes a request.
type Alteration = fn(&mut v1::JobSpec);

const JOBS: u32 = 3;

/// A job of a sweep with one free parameter.
fn swept(seed: u32) -> v1::JobSpec {
    let sweep = v1::ParamSweep { jobs: JOBS, values: vec![format!("seed={seed}")] };
    v1::JobSpec { name: "search".into(), sweep: Some(sweep), ..production() }
}

async fn create(world: &World, spec: v1::JobSpec, key: &str) -> v1::Job {
    world.client(LAUNCHER).await.create(spec, key).await.unwrap().into_inner().job.unwrap()
}

/// One approval covers the jobs of a sweep, those that exist and those that come, and no other job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_approval_covers_a_sweep_and_nothing_else() {
    let mut world = World::start().await;
    let first = create(&world, swept(1), "1").await;
    let second = create(&world, swept(2), "2").await;
    assert_eq!(first.request_digest, second.request_digest);
    assert_ne!(first.spec_digest, second.spec_digest);
    assert_eq!(first.state(), JobState::AwaitingApproval);
    approved_by(&world, &first, &[MONA, MILO]).await;
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(&second.id).await.state(), JobState::Ready);
    // It lasts over a restart, and covers a job that is created after it.
    world.restart().await;
    let third = create(&world, swept(3), "3").await;
    assert_eq!(
        (third.state(), third.request_digest.as_str()),
        (JobState::Ready, first.request_digest.as_str())
    );
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(&third.id).await.state(), JobState::Ready);
    running(&world, &third).await.issue(Half::Reading).await;
    // The sweep has its three jobs.
    let no = refused(launcher.create(swept(4), "4").await);
    no.is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
    assert!(no.text.contains("all of its 3 jobs"), "{}", no.text);
    // Anything else that differs is another request.
    let alterations: [(&str, Alteration); 5] = [
        ("method", |s| s.tune.as_mut().unwrap().method = v1::Method::Full as i32),
        ("params", |s| s.tune.as_mut().unwrap().params_digest = format!("sha256:{}", "cd".repeat(32))),
        ("data", |s| s.read.push("dataset:acme/handbook@v1".into())),
        ("jobs", |s| s.sweep.as_mut().unwrap().jobs = 4),
        ("ticket", |s| s.ticket = "CHG-9".into()),
    ];
    for (what, alter) in alterations {
        let mut spec = swept(5);
        alter(&mut spec);
        let job = create(&world, spec, what).await;
        assert_eq!(job.state(), JobState::AwaitingApproval, "{what}");
        assert_ne!(job.request_digest, first.request_digest, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_or_rejection_covers_the_whole_sweep() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let first = create(&world, swept(1), "1").await;
    approved_by(&world, &first, &[MONA, MILO]).await;
    let second = create(&world, swept(2), "2").await;
    let worker = running(&world, &first).await;
    let token = worker.issue(Half::Reading).await;
    world.client(MONA).await.unapprove(&second).await.unwrap();
    let launcher = world.client(LAUNCHER).await;
    assert_eq!(launcher.job(&second.id).await.state(), JobState::AwaitingApproval);
    assert_eq!(launcher.job(&first.id).await.outcome(), Outcome::Revoked);
    token.is_dead(&gateway, "LEASE_ENDED").await;
    // A job that comes later begins without the approval that was taken back.
    let third = create(&world, swept(3), "3").await;
    assert_eq!(third.state(), JobState::AwaitingApproval);
    let request = v1::RejectRequest { job: third.id.clone(), reason: "no".into() };
    world.client(MILO).await.approvals().reject(request).await.unwrap();
    assert_eq!(launcher.job(&second.id).await.outcome(), Outcome::Rejected);
}

// An approval of a sweep is recorded in each of its jobs, and counts for as much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_counts_for_all_jobs_of_its_sweep() {
    let world = World::with(|setup| setup.more = "rate_per_identity = 3\n".into()).await;
    let mut first = None;
    for seed in 0..100 {
        let mut spec = swept(seed);
        spec.sweep.as_mut().unwrap().jobs = 100;
        let job = create(&world, spec, &seed.to_string()).await;
        first.get_or_insert(job);
    }
    let (mona, first) = (world.client(MONA).await, first.unwrap());
    for _ in 0..20 {
        match mona.approve(&first).await {
            Ok(_) => drop(mona.unapprove(&first).await.unwrap()),
            Err(no) => {
                let no = Refused::of(&no);
                no.is(Code::ResourceExhausted, "OVERLOADED");
                assert!(no.text.contains("written more records"), "{}", no.text);
                return;
            }
        }
    }
    panic!("2,000 approvals were recorded for the rate of 20");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_names_each_free_parameter_once() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let alterations: [fn(&mut v1::JobSpec); 7] = [
        |s| s.sweep.as_mut().unwrap().jobs = 1,
        |s| s.sweep.as_mut().unwrap().jobs = 257,
        |s| s.sweep.as_mut().unwrap().values.clear(),
        |s| s.sweep.as_mut().unwrap().values.push("seed=2".into()),
        |s| s.sweep.as_mut().unwrap().values.push("batch=2".into()),
        |s| s.sweep.as_mut().unwrap().values = vec!["seed".into()],
        |s| s.tune.as_mut().unwrap().free_params.clear(),
    ];
    for (turn, alter) in alterations.into_iter().enumerate() {
        let mut spec = swept(1);
        alter(&mut spec);
        let no = refused(launcher.create(spec, &turn.to_string()).await);
        assert!(no.reason.starts_with("FIELD_"), "{turn}: {no:?}");
    }
}

//! One tenant writes as much as it can. Another tenant must hardly notice.

use std::{
    fs,
    time::{Duration, Instant},
};

use leasehold::proto::v1::{self, Half};
use tonic::Code;

use super::process::{Place, Process};
use crate::harness::*;

/// The limit for the 99th percentile of another tenant's calls.
const PATIENCE: Duration = Duration::from_secs(1);
/// The limit for a revocation.
const REVOKED: Duration = Duration::from_millis(100);
/// Memory that the daemon may take for one tenant's flood, in KiB.
const MEMORY_KIB: u64 = 1 << 20;

/// A daemon with lines below `[ledger]`.
async fn serving(ledger: &str) -> (Place, Process) {
    let place = Place::new();
    let text = place.world.read("leasehold.toml").replacen("[ledger]\n", &format!("[ledger]\n{ledger}"), 1);
    place.world.write("leasehold.toml", &text);
    let process = place.serve().await;
    (place, process)
}

fn resident_kib(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn ledger_bytes(place: &Place) -> u64 {
    ledger_text(&place.world.file("state")).len() as u64
}

fn of_globex(n: usize) -> v1::JobSpec {
    v1::JobSpec {
        name: format!("other-{n}"),
        read: vec!["dataset:globex/reviews@v1".into()],
        write: Vec::new(),
        tune: None,
        acting_for: String::new(),
        members: Some(v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() }),
        ..spec()
    }
}

/// The 99th percentile of the time that jobs of another tenant took.
async fn others(place: &Place, from: usize, count: usize) -> Duration {
    let launcher = place.client(GLOBEX_LAUNCHER);
    let mut took = Vec::new();
    for n in from..from + count {
        let began = Instant::now();
        launcher.create(of_globex(n), &format!("other {n}")).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    took[(took.len() * 99 / 100).min(took.len() - 1)]
}

/// The time of the quickest of some revocations: the time that the daemon needs, without the delays of a busy machine.
async fn revocation(place: &Place) -> Duration {
    let operator = place.client(OPERATOR);
    let mut quickest = Duration::MAX;
    for n in 0..10 {
        let began = Instant::now();
        operator.revoke(&format!("identity:{WORKER}-{n}")).await.unwrap();
        quickest = quickest.min(began.elapsed());
    }
    quickest
}

/// A busy machine is slow even without an attack.
fn is_quick(took: Duration, idle: Duration, what: &str) {
    assert!(took < PATIENCE.max(idle * 4), "{what}: {took:?}, and {idle:?} without");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_jobs_of_one_tenant_delay_no_other() {
    let (place, process) = serving("rate_per_identity = 1000000\nrate_per_tenant = 1000000\n").await;
    let idle = others(&place, 0, 50).await;
    let launcher = place.client(LAUNCHER);
    let flood = tokio::spawn(async move {
        let texts: Vec<String> = (0..200).map(|n| format!("{n}-{}", "x".repeat(480))).collect();
        let tune = v1::Tuning { free_params: texts, ..spec().tune.unwrap() };
        let large = v1::JobSpec { tune: Some(tune), ..spec() };
        let mut made = 0;
        for n in 0..400 {
            made += u32::from(launcher.create(large.clone(), &format!("large {n}")).await.is_ok());
        }
        made
    });
    let mut slowest = Duration::ZERO;
    let mut round = 1;
    while !flood.is_finished() {
        slowest = slowest.max(others(&place, round * 100, 50).await);
        round += 1;
    }
    assert_eq!(flood.await.unwrap(), 400);
    is_quick(slowest, idle, "another tenant's job");
    let revoked = revocation(&place).await;
    assert!(revoked < REVOKED, "{revoked:?}");
    let memory = resident_kib(&process);
    assert!(memory < MEMORY_KIB, "{memory} KiB");
    println!("p99 of another tenant {slowest:?} ({idle:?} idle), revoke {revoked:?}, {memory} KiB resident");
    // The written records are read back.
    process.kill().await;
    place.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_one_workload_fills_no_ledger_and_no_log() {
    let (place, process) = serving("rate_per_identity = 5\nrate_per_tenant = 20\n").await;
    let idle = others(&place, 0, 50).await;
    let launcher = place.client(LAUNCHER);
    let job = launcher.create(spec(), "loop").await.unwrap().into_inner().job.unwrap().id;
    let began = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    let mut worker = Worker::join(place.client(WORKER), &job, 1, "rank-0", &began.ticket).await.unwrap();
    worker.keep_alive().await;
    let before = ledger_bytes(&place);
    let mut overloaded = 0;
    for n in 0..3_000 {
        if overloaded == 20 {
            break;
        }
        // Each refusal takes a second.
        if n % 100 == 0 || overloaded > 0 {
            worker.beat().await;
        }
        match worker.try_issue(Half::Reading).await {
            Ok(issued) => drop(worker.release(&issued.into_inner().lease.unwrap().id).await.unwrap()),
            Err(status) => {
                let refused = Refused::of(&status);
                refused.is(Code::ResourceExhausted, "OVERLOADED");
                assert!(refused.facts.contains_key("retry_after"), "{refused:?}");
                overloaded += 1;
            }
        }
    }
    let grown = ledger_bytes(&place) - before;
    assert_eq!(overloaded, 20, "it was never slowed down");
    // The burst of 1,024 KiB and the amount that was refilled since then, and the same again for the endings.
    assert!(grown < 4 << 20, "{grown} bytes");

    // An identity that no entry matches sends requests as fast as it can.
    let nobody = place.client(NOBODY);
    let (logged, before) = (process.log().lines().count(), ledger_bytes(&place));
    for _ in 0..2_000 {
        let request = v1::ListJobsRequest::default();
        refused(nobody.jobs().list_jobs(request).await).is(Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
    }
    let (logged, grown) = (process.log().lines().count() - logged, ledger_bytes(&place) - before);
    assert!(logged < 50 && grown < 64 << 10, "{logged} lines, {grown} bytes");

    is_quick(others(&place, 100, 50).await, idle, "another tenant's job");
    let revoked = revocation(&place).await;
    assert!(revoked < REVOKED, "{revoked:?}");
    assert!(resident_kib(&process) < MEMORY_KIB);
    process.stop().await;
}

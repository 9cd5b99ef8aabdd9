//! A job that continues while all certificates rotate: the SVIDs of the daemon and of the worker, two dozen times.
//!
//! The wrapper runs in this process with a manual clock, and its child is real. A wrapper treats every process below its own
//! as part of the job, so this is a separate program with one test and its own `main`.
#![allow(clippy::restriction, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests from the outside use all of it")]
mod harness;
mod rotate;
mod way;
#[path = "../workload/mod.rs"]
#[allow(dead_code, reason = "the tests of the source use all of it")]
mod workload;

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::*;
use leasehold::{
    identity::{IdentitySource, WorkloadOptions, WorkloadSource},
    internals::agent::{self, JoinOptions, JoinTarget, MessageSink, RunContext, RunOptions, RunSpec},
    link::{Connector, Endpoint},
};
use rotate::rotate;
use tokio_util::sync::CancellationToken;
use way::Way;
use workload::Agent;

const ROTATIONS: usize = 24;
/// The life of an SVID, which is rotated after half of it, as SPIRE does.
const LIFE: Duration = Duration::from_secs(60);

fn main() {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|arg| arg == "__guard") {
        agent::guard(args);
    }
    const NAME: &str = "a_job_goes_through_24_rotations_with_one_member_and_no_failed_renewal";
    let words: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<_> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter.as_str()));
    if words.iter().any(|word| word == "--list" || word == "--ignored") || !wanted {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(a_job_goes_through_24_rotations_with_one_member_and_no_failed_renewal());
    println!("test {NAME} ... ok");
}

async fn a_job_goes_through_24_rotations_with_one_member_and_no_failed_renewal() {
    let (daemons, workers) = (Agent::start(), Agent::start());
    // A long window: no member may be lost because this machine stalls while the clock advances. This test is about rotations.
    let mut world = World::prepared(|setup| setup.lease = "lost_after = 60".into());
    world.identity_from(&daemons.uri());
    rotate(&world, &daemons, &workers, LIFE);
    world.restart().await;

    let way = Way::to(world.daemon().grpc).await;
    let options = WorkloadOptions::new(workers.uri().parse().unwrap());
    let source = Arc::new(WorkloadSource::new(options, world.clock.clone()));
    let stop = CancellationToken::new();
    tokio::spawn(source.clone().follow(stop.clone()));
    eventually("the worker's SVID", async || source.current().svid.is_some()).await;
    let endpoint = Endpoint::new(&way.address().to_string(), DAEMON.parse().unwrap()).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = heard.clone();
    let place = RunContext {
        connector: Connector::new(source.clone(), world.clock.clone(), endpoint),
        identity: source.clone(),
        clock: world.clock.clone(),
        messages: MessageSink::new(move |line| {
            // For a machine without a directory in memory.
            if !line.starts_with("credentials are on disk") {
                ears.lock().unwrap().push(line.to_owned());
            }
        }),
    };
    world.write("job.toml", &job_toml("", ""));
    fs::create_dir(world.file("credentials")).unwrap();
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", world.file("go").display());
    let spec = RunSpec::load(&world.file("job.toml")).unwrap();
    let joining = JoinOptions {
        what: JoinTarget::New(spec.job),
        attempt_key: None,
        supersede: false,
        approval_wait: None,
        instance: None,
        ticket: None,
        settings: spec.run,
        svid: None,
    };
    let options = RunOptions {
        front: None,
        joining,
        dir: Some(world.file("credentials")),
        command: ["sh", "-c", &script].map(Into::into).to_vec(),
    };
    let running = agent::run(options, place);
    let rotating = async {
        eventually("the begin", async || heard.lock().unwrap().iter().any(|l| l.contains(", attempt ")))
            .await;
        for round in 1..=ROTATIONS {
            for _ in 0..LIFE.as_secs() / 2 {
                way.quiet().await;
                world.time().advance(Duration::from_secs(1));
            }
            way.quiet().await;
            let (made, before) = (way.made(), source.current().revision);
            rotate(&world, &daemons, &workers, LIFE);
            eventually("the worker's next SVID", async || source.current().revision > before).await;
            eventually("the member's next connection", async || way.made() > made).await;
            way.quiet().await;
            let heard = heard.lock().unwrap();
            assert_eq!(heard.len(), 1, "rotation {round}: {heard:?}");
        }
        world.write("go", "");
    };
    let (code, ()) = tokio::join!(running, rotating);
    let heard = heard.lock().unwrap().clone();
    assert_eq!(code.unwrap(), 0, "{heard:?}");
    assert!(heard.len() == 2 && heard[1].starts_with("completed: exit code 0"), "{heard:?}");

    let records = world.records().await;
    assert_eq!(records.of("member.joined").len(), 1, "{:?}", records.kinds());
    assert!(records.of("member.away").is_empty() && records.of("denied").is_empty(), "{:?}", records.kinds());
    let renewed = records.of("credential.renewed").len();
    assert!(renewed >= 2 * ROTATIONS, "both halves live no longer than an SVID: {renewed} renewals");
    assert!(way.made() > ROTATIONS, "{} connections", way.made());
    println!(
        "{ROTATIONS} rotations of both SVIDs, {} connections, {renewed} renewals, none failed",
        way.made()
    );
    stop.cancel();
}

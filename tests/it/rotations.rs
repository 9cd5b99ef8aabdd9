//! A job goes on while each of its certificates changes, in real time.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{harness::*, workload::Agent};

#[path = "../rotations/rotate.rs"]
mod rotate;

use rotate::rotate;

const ROTATIONS: u32 = 24;
/// The lifetime of an SVID. It ends in a whole second, so it can be a second shorter.
const LIFE: Duration = Duration::from_secs(15);
/// The time until the next rotation: a second less than half of the lifetime.
const TURN: Duration = Duration::from_millis(6_500);

/// Measures how long the processors and the disk of this machine stall. The disk counts because each renewal waits for a record.
struct Stalls(Arc<AtomicU64>);

impl Stalls {
    fn watch(dir: &Path) -> Self {
        let longest = Arc::new(AtomicU64::new(0));
        let file = File::create(dir.join("stalls")).unwrap();
        let (processors, disk) = (longest.clone(), longest.clone());
        std::thread::spawn(move || {
            watch(&processors, || std::thread::sleep(Duration::from_millis(50)));
        });
        std::thread::spawn(move || {
            watch(&disk, || {
                (&file).write_all(b".").and_then(|()| file.sync_data()).unwrap();
                std::thread::sleep(Duration::from_millis(200));
            });
        });
        Stalls(longest)
    }

    fn longest(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Runs a step again and again, and keeps the longest time that it took. Ends when `Stalls` is dropped.
fn watch(longest: &Arc<AtomicU64>, step: impl Fn()) {
    // The two threads own one reference each, and `Stalls` owns the third.
    while Arc::strong_count(longest) > 2 {
        let before = Instant::now();
        step();
        longest.fetch_max(u64::try_from(before.elapsed().as_millis()).unwrap(), Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes three minutes of real time: tests/interop/rotations/run runs it"]
async fn a_job_goes_through_24_rotations_of_15_second_svids() {
    let (daemons, workers) = (Agent::start(), Agent::start());
    let mut world = World::prepared(|setup| setup.real_clock = true);
    let stalls = Stalls::watch(world.dir.path());
    world.identity_from(&daemons.uri());
    rotate(&world, &daemons, &workers, LIFE);
    world.restart().await;
    let identity = format!("[context.it.identity.workload]\nworkload_api = \"{}\"\n", workers.uri());
    let script = "echo up; while [ ! -e $HERE/go ]; do sleep 0.1; done; echo down";
    let mut wrapper = world.wrap_with(&identity, &job_toml("", ""), &[], script);
    wrapper.child_says("up").await;
    // The start of the daemon and of the command took a part of the first SVIDs' life.
    rotate(&world, &daemons, &workers, LIFE);
    for round in 1..=ROTATIONS {
        tokio::time::sleep(TURN).await;
        rotate(&world, &daemons, &workers, LIFE);
        println!("rotation {round} of {ROTATIONS}, longest stall {} ms", stalls.longest().as_millis());
    }
    tokio::time::sleep(TURN).await;
    world.write("go", "");
    let code = wrapper.exit().await;
    let said = wrapper.stderr();
    let records = world.records().await;
    let joined = records.of("member.joined").len();
    let (away, denied) = (records.of("member.away").len(), records.of("denied").len());
    let renewed = records.of("credential.renewed").len();
    println!("{ROTATIONS} rotations, {renewed} renewals, {joined} joined, {away} away, {denied} denied");
    let lines = said.lines().filter(|line| !line.contains("credentials are on disk")).count();
    let good = code == Some(0) && (joined, away, denied) == (1, 0, 0) && lines == 2;
    // A wrapper warns if an SVID has a third of its life left, which is a sixth after it should have been rotated.
    if !good && stalls.longest() > LIFE / 6 {
        println!("not judged: this machine stood still for {} ms", stalls.longest().as_millis());
        return;
    }
    assert!(good, "{code:?}: {said}\n{:?}", records.kinds());
    assert!(renewed >= 2 * usize::try_from(ROTATIONS).unwrap(), "{renewed} renewals");
}

//! Every signal of the platform, sent to the wrapper, to its process group, and to all processes of its unit.

use std::{process::Command, time::Duration};

use leasehold::proto::v1::{JobState, Outcome};
use nix::unistd::Pid;

use crate::{harness::*, runs::children, scene::*};

/// Writes each signal that comes to it. Only SIGKILL ends it.
const COUNTS: &str = "
import os, signal, time
def came(n, _): os.write(1, b'<%d>' % n)
for n in range(1, 65):
    try: signal.signal(n, came)
    except (OSError, ValueError): pass
os.write(1, b'up')
while not os.path.exists(os.environ['HERE'] + '/go'): time.sleep(0.02)
os._exit(3)
";

/// Signals that no handler gets, and the two of the C library.
const OUT_OF_REACH: [i32; 4] = [9, 19, 32, 33];
const FAULTS: [i32; 6] = [4, 5, 7, 8, 11, 31];
/// Signals about the wrapper itself, of the terminal, and about a write of the wrapper.
const NOT_PASSED_ON: [i32; 6] = [13, 17, 21, 22, 23, 25];

fn reachable() -> impl Iterator<Item = i32> {
    (1..=64).filter(|n| !OUT_OF_REACH.contains(n) && !FAULTS.contains(n))
}

/// Sends a signal by its number: `kill` also takes those of real-time signals.
fn kill_by(number: i32, target: &[String]) {
    let status = Command::new("bash")
        .args(["-c", "n=$1; shift; kill -$n -- \"$@\"", "bash", &number.to_string()])
        .args(target)
        .status()
        .unwrap();
    assert!(status.success(), "{number} {target:?}");
}

fn only_child(parent: Pid) -> Pid {
    Pid::from_raw(children(parent.as_raw())[0])
}

/// A wrapper with its guard and its command.
struct Unit {
    world: World,
    wrapper: Wrapper,
    guard: Pid,
    command: Pid,
}

impl Unit {
    async fn of(script: &str) -> Unit {
        let world = world().await;
        world.write("job.py", script);
        let tables = "[run]\ndrain = \"2m\"\ngrace = \"1s\"\n";
        let wrapper =
            world.wrap(&job_toml("", tables), &["--on-revoke", "ignore"], "exec python3 -u $HERE/job.py");
        wrapper.child_says("up").await;
        let guard = only_child(wrapper.pid());
        let command = only_child(guard);
        Unit { world, wrapper, guard, command }
    }

    fn count(&self, signal: i32) -> usize {
        self.wrapper.stdout().matches(&format!("<{signal}>")).count()
    }

    /// Sends a signal, and waits until a later one has come too.
    async fn counted(&self, signal: i32, target: &[String]) -> usize {
        let before = self.count(signal);
        kill_by(signal, target);
        // A later signal in the same way: when it has come, the first one is decided.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mark = self.count(12);
        kill_by(12, &[self.wrapper.pid().to_string()]);
        eventually("the signal behind it", async || self.count(12) > mark).await;
        self.count(signal) - before - usize::from(signal == 12)
    }
}

/// To whom a signal is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Wrapper,
    Group,
    All,
    Guard,
}

/// The signals that did not reach the command exactly as often as they should.
async fn wrong_by(way: Way) -> Vec<String> {
    let mut unit = Unit::of(COUNTS).await;
    let (wrapper, guard, command) =
        (unit.wrapper.pid().to_string(), unit.guard.to_string(), unit.command.to_string());
    let target = match way {
        Way::Wrapper => vec![wrapper],
        Way::Group => vec![format!("-{wrapper}")],
        Way::All => vec![command, guard, wrapper],
        Way::Guard => vec![guard],
    };
    let mut wrong = Vec::new();
    for signal in reachable() {
        let expected = match way {
            Way::All => 1,
            Way::Guard => 0,
            Way::Wrapper | Way::Group => usize::from(!NOT_PASSED_ON.contains(&signal)),
        };
        let count = unit.counted(signal, &target).await;
        if count != expected {
            wrong.push(format!("{signal} by way of {way:?}: {count} times, not {expected}"));
        }
        assert!(unit.wrapper.is_running(), "{signal} by way of {way:?}: {}", unit.wrapper.stderr());
    }
    unit.world.write("go", "");
    assert_eq!(unit.wrapper.exit().await, Some(3), "{}", unit.wrapper.stderr());
    wrong
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn each_signal_reaches_the_command_once() {
    let all =
        tokio::join!(wrong_by(Way::Wrapper), wrong_by(Way::Group), wrong_by(Way::All), wrong_by(Way::Guard));
    let wrong: Vec<String> = [all.0, all.1, all.2, all.3].concat();
    assert_eq!(wrong, Vec::<String>::new());
}

// Proves law 27.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_sent_to_all_ends_the_command_too() {
    for signal in FAULTS {
        let unit = Unit::of(COUNTS).await;
        let job = unit.wrapper.job().await;
        let all = [unit.command, unit.guard, unit.wrapper.pid()].map(|pid| pid.to_string());
        kill_by(signal, &all);
        // Rust ignores one SIGSEGV or SIGBUS that is not a fault.
        eventually("the end of the wrapper", async || {
            let is_there = runs(unit.wrapper.pid());
            if is_there {
                kill_by(signal, &[unit.wrapper.pid().to_string()]);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            !is_there
        })
        .await;
        gone(unit.command).await;
        gone(unit.guard).await;
        let client = unit.world.client(WORKER).await;
        eventually("no lease is left", async || client.stands(&job).await.0.live_leases == 0).await;
        assert_eq!(unit.wrapper.directory(), None, "signal {signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_command_is_continued_to_end() {
    let mut unit = Unit::of("import os, time\nos.write(1, b'up')\ntime.sleep(600)").await;
    kill_by(19, &[unit.command.to_string()]);
    kill_by(15, &[unit.wrapper.pid().to_string()]);
    assert_eq!(unit.wrapper.exit().await, Some(143), "{}", unit.wrapper.stderr());
    let client = unit.world.client(WORKER).await;
    let (job, _) = client.stands(&unit.wrapper.job().await).await;
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Interrupted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_signal_is_answered_by_a_message() {
    let mut unit = Unit::of(COUNTS).await;
    let wrapper = [unit.wrapper.pid().to_string()];
    for _ in 0..2 {
        kill_by(2, &wrapper);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    unit.wrapper.says("SIGINT again: passed on to the command, but it has not ended").await;
    unit.world.write("go", "");
    assert_eq!(unit.wrapper.exit().await, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_kills_what_is_left_behind() {
    let world = world().await;
    let script =
        format!("setsid {} & until [ -e $HERE/deaf ]; do sleep 0.02; done; exit 0", rank("deaf", "TERM"));
    let mut wrapper = world.wrap(&job_toml("", "[run]\ngrace = \"5m\"\n"), &[], &script);
    let deaf = pid_in(&world, "deaf").await;
    wrapper.says("the command left processes behind").await;
    wrapper.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert!(!runs(deaf));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_ends_the_command_is_named() {
    for (limit, script, words, code) in [
        (
            "--cpu=3:60",
            "while :; do :; done",
            "its limit of processor time is 3 s, RLIMIT_CPU (ulimit -t)",
            152,
        ),
        ("--fsize=65536", "exec head -c 100000 /dev/zero > $HERE/big", "RLIMIT_FSIZE (ulimit -f)", 153),
    ] {
        let world = world().await;
        world.write("job.toml", &job_toml("", ""));
        let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
        let args =
            ["run", "--spec", spec.to_str().unwrap(), "--dir", dir.to_str().unwrap(), "--", "sh", "-c"];
        let mut wrapper = world.leasehold(WORKER, &["prlimit", limit], &[&args[..], &[script]].concat());
        assert_eq!(wrapper.exit().await, Some(code), "{limit}: {}", wrapper.stderr());
        assert!(wrapper.stderr().contains(words), "{limit}: {}", wrapper.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_hits_the_wrapper_is_named() {
    let world = world().await;
    world.write("job.toml", &job_toml("", ""));
    let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
    let args = ["run", "--spec", spec.to_str().unwrap(), "--dir", dir.to_str().unwrap(), "--", "true"];
    let mut wrapper = world.leasehold(WORKER, &["prlimit", "--fsize=64"], &args);
    assert_eq!(wrapper.exit().await, Some(125), "{}", wrapper.stderr());
    assert!(wrapper.stderr().contains("RLIMIT_FSIZE (ulimit -f)"), "{}", wrapper.stderr());
}

//! A daemon under attack, its well-behaved client and operator, and the measurements.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use leasehold::proto::v1;

use crate::{
    harness::*,
    process::{Place, Process},
};

/// How much the daemon's resident memory may grow under any attack. It covers the buffers of one peer several times, since
/// messages are also decoded and encoded, and connections, and freed memory that the allocator keeps.
pub const MEMORY: u64 = 256 << 20;
/// The address space of the daemon, in KiB. If a bound is broken, the daemon ends, and not what else runs on this machine.
const ADDRESS_SPACE_KIB: u64 = 4 << 20;
/// The limit for the 99th percentile of a well-behaved client's calls.
pub const ANSWER: Duration = Duration::from_secs(1);
/// The limit for the median of an operator's revocations. Their 99th percentile has the limit [`ANSWER`].
pub const REVOKE: Duration = Duration::from_millis(100);

/// A daemon with one job, under attack.
pub struct Siege {
    pub place: Place,
    pub process: Process,
    /// A job that the launcher may look at.
    pub job: String,
}

/// The measurements during an attack.
pub struct Measured {
    what: &'static str,
    grown: u64,
    answers: Vec<Duration>,
    revokes: Vec<Duration>,
}

impl Siege {
    pub async fn begin() -> Self {
        Self::of(Place::new()).await
    }

    pub async fn of(place: Place) -> Self {
        let script = format!("ulimit -v {ADDRESS_SPACE_KIB} && trap '' XFSZ && exec \"$@\"");
        let mut process = place.start_by(&["sh", "-c", &script, "sh"]);
        process.ready().await;
        let launcher = place.client(LAUNCHER);
        let job = launcher.create(spec(), "siege").await.unwrap().into_inner().job.unwrap().id;
        Siege { place, process, job }
    }

    /// Runs an attack while a launcher and an operator work, each over an old connection and over new ones.
    pub async fn during<T>(&self, what: &'static str, attack: impl Future<Output = T>) -> (T, Measured) {
        let (launcher, operator) = (self.place.client(LAUNCHER), self.place.client(OPERATOR));
        self.look(&launcher).await;
        revoke(&operator).await;
        let calm = self.resident("VmRSS");
        let (mut answers, mut revokes) = (Vec::new(), Vec::new());
        let work = async {
            for round in 0u32.. {
                let fresh =
                    (round % 10 == 9).then(|| (self.place.client(LAUNCHER), self.place.client(OPERATOR)));
                let (launcher, operator) = fresh.as_ref().map_or((&launcher, &operator), |(l, o)| (l, o));
                answers.push(self.look(launcher).await);
                revokes.push(revoke(operator).await);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::select! {
            done = attack => done,
            () = work => unreachable!("it works until the attack is over"),
        };
        let grown = self.resident("VmHWM").saturating_sub(calm);
        answers.sort_unstable();
        revokes.sort_unstable();
        (done, Measured { what, grown, answers, revokes })
    }

    /// Makes the call of a well-behaved client: it requests its job.
    async fn look(&self, launcher: &Client) -> Duration {
        let began = Instant::now();
        let request = v1::GetJobRequest { job: self.job.clone() };
        soon("a look at a job", launcher.jobs().get_job(request)).await.expect("a job is shown");
        began.elapsed()
    }

    /// Makes the daemon's disk unwritable: none of its files may grow.
    pub fn take_the_disk_away(&self) {
        let pid = self.process.pid().to_string();
        let done = std::process::Command::new("prlimit").args(["--pid", &pid, "--fsize=1"]).status();
        assert!(done.unwrap().success());
    }

    /// The memory of the daemon in bytes: `VmRSS` now, `VmHWM` the maximum so far.
    pub fn resident(&self, of: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with(of)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

async fn revoke(operator: &Client) -> Duration {
    let began = Instant::now();
    soon("a revoke", operator.revoke(TICKETS)).await.expect("an operator revokes");
    began.elapsed()
}

impl Measured {
    /// Prints the measurements, and fails if one exceeds its limit.
    pub fn holds(&self) {
        let at = |all: &[Duration], percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)];
        let (answers, revokes) = (&self.answers, &self.revokes);
        println!(
            "{}: memory grew by {} MiB (bound {}); {} answers, p50 {:?}, p99 {:?} (bound {ANSWER:?}); \
             revokes p50 {:?} (bound {REVOKE:?}), p99 {:?} (bound {ANSWER:?})",
            self.what,
            self.grown >> 20,
            MEMORY >> 20,
            answers.len(),
            at(answers, 50),
            at(answers, 99),
            at(revokes, 50),
            at(revokes, 99),
        );
        assert!(answers.len() >= 20, "too few answers to judge by: {}", answers.len());
        assert!(self.grown < MEMORY, "{}: memory grew by {} bytes", self.what, self.grown);
        assert!(at(answers, 99) < ANSWER, "{}: answers took {:?}", self.what, at(answers, 99));
        assert!(at(revokes, 50) < REVOKE, "{}: revokes took {:?}", self.what, at(revokes, 50));
        assert!(at(revokes, 99) < ANSWER, "{}: revokes took {:?}", self.what, at(revokes, 99));
    }
}

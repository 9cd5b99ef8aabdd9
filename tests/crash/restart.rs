//! `kill -9` of a daemon with many wrappers and thousands of members, and how all of them come back.
//!
//! `LEASEHOLD_RESTARTS=20 cargo test --test crash -- --nocapture thousands_come_back` restarts it twenty times instead of
//! three, and prints how long each restart took. `LEASEHOLD_MEMBERS` and `LEASEHOLD_RUNS` change the numbers of members, 2,000,
//! and of wrappers, 40.

use std::{collections::BTreeSet, time::Duration};

use leasehold::{
    internals::{
        backoff::Backoff,
        ledger::{self, Dir},
    },
    limits::FEED_STALE,
    proto::v1::{self, AttemptState, Half, MemberState, Outcome},
    secret::Secret,
    verify::Verifier,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    dice::number,
    fleet::{Fleet, answered, is_passing, spread},
    kill::accepts,
    process::{Place, Process, durable},
    runs::Run,
};
use crate::harness::*;

/// The longest time until all are back. It is generous, because the test asserts liveness and not speed.
const ALL_BACK: Duration = Duration::from_secs(600);
/// The same for a new job that begins while they come back.
const NEW_WORK: Duration = Duration::from_secs(600);
/// The greatest number of new jobs meanwhile. Each has a worker with its own identity.
const NEW_JOBS: usize = 100;
/// If at least this many come back at once, new work must still get its share.
const STORM: usize = 1_000;
/// How many tokens of the previous run are tried again and again.
const WATCHED: usize = 40;

// Proves law 39a, law 31.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_come_back_from_a_restart_and_delay_no_one() {
    let restarts = number("LEASEHOLD_RESTARTS", 3);
    let members = usize::try_from(number("LEASEHOLD_MEMBERS", 2_000)).unwrap();
    let runs = u8::try_from(number("LEASEHOLD_RUNS", 40)).unwrap();
    let place = Place::new();
    // Segments of the usual size: each begins with a snapshot of all members.
    let usual = place.world.read("leasehold.toml").replacen("segment = \"1MiB\"", "segment = \"64MiB\"", 1);
    place.world.write("leasehold.toml", &usual);
    let verifier = place.verifier();
    let mut process = place.start();
    let mut epoch = process.ready().await;
    let began = Instant::now();
    let mut runs = Run::several(&place, runs).await;
    let mut fleet = Fleet::launch(&place, members).await;
    soon("a verifier", verifier.ready()).await;
    all_are_back(&fleet, &runs, &verifier, epoch, &Old::none(), &process).await;
    println!(
        "{members} members and {} runs joined within {:.1} s",
        runs.len(),
        began.elapsed().as_secs_f64()
    );

    let mut locks = BTreeSet::new();
    let mut ended = Vec::new();
    for round in 0..restarts {
        locks.insert(lock(&place, round).await);
        let old = Old::of(&fleet, &runs);
        let failed = fleet.failed();
        process.kill().await;
        let killed = Instant::now();
        let watch = Watch::begin(&verifier, &old);
        // One child ends while no daemon can hear of it.
        if runs.len() > 1 {
            let mut run = runs.remove(0);
            run.ended_alone = true;
            run.tell().await;
            ended.push(run);
        }
        process = place.start();
        epoch = process.ready().await;
        assert_eq!(epoch, round + 2);
        let ready = killed.elapsed();
        if round % 3 == 1 && round + 1 < restarts {
            // Killed again while they come back, before the last of them is back.
            eventually("some to be back", async || fleet.back(epoch) > members / 4).await;
            println!("restart {}: killed again when {} were back", round + 1, fleet.back(epoch));
            watch.ended(killed).await;
            continue;
        }
        let newcomers = Newcomers::begin(&place, round);
        let storm = Instant::now();
        let came = all_are_back(&fleet, &runs, &verifier, epoch, &old, &process).await;
        let new_work = newcomers.stop().await;
        let all_back = storm.elapsed();
        let accepted = watch.ended(killed).await;
        nothing_old_is_good(&verifier, &old).await;
        nothing_is_lost(&place, &fleet, &locks).await;
        runs.iter_mut().for_each(Run::goes_on);
        let since = |times: Vec<Instant>| times.into_iter().map(|at| at.duration_since(killed)).collect();
        // The first new job comes while most of them come back.
        assert!(
            members < STORM || new_work[0] * 4 < all_back * 3,
            "new work waited {:?} of {all_back:?} for those who came back",
            new_work[0]
        );
        println!(
            "restart {}: ready after {:.2} s; {members} members back: {} ({} tries in vain); {} runs: {}\n  \
             new work meanwhile, to its first credential: the first {:.2} s, {} jobs, {}; an old token was last accepted {:.2} s after the kill",
            round + 1,
            ready.as_secs_f64(),
            spread(since(fleet.times())),
            fleet.failed() - failed,
            runs.len(),
            spread(since(came)),
            new_work[0].as_secs_f64(),
            new_work.len(),
            spread(new_work),
            accepted.as_secs_f64(),
        );
    }

    for run in &mut runs {
        run.tell().await;
    }
    ended.append(&mut runs);
    for run in &mut ended {
        run.has_ended().await;
    }
    for run in &ended {
        run.is_accounted_for(&place).await;
    }
    let launcher = place.client(LAUNCHER);
    for job in &fleet.jobs {
        answered(async || launcher.end(job, 1, Outcome::Completed).await).await;
    }
    fleet.is_over().await;
    process.stop().await;
    let report = ledger::verify(&Dir::at(place.world.file("state")), None).unwrap();
    assert_eq!(report.epoch, restarts + 1);
    println!(
        "{} records in {} segments; {:.0} s in all",
        report.records,
        report.segments,
        began.elapsed().as_secs_f64()
    );
}

/// The tokens of one run, with their holders.
#[derive(Clone)]
struct Old {
    fleet: Vec<(String, String)>,
    runs: Vec<(String, String)>,
}

impl Old {
    fn none() -> Self {
        Old { fleet: Vec::new(), runs: Vec::new() }
    }

    fn of(fleet: &Fleet, runs: &[Run]) -> Self {
        let runs = runs.iter().filter_map(|r| Some((r.token()?, r.holder.clone()))).collect();
        Old { fleet: fleet.tokens(), runs }
    }

    /// A sample of the tokens.
    fn sample(&self, count: usize) -> Vec<(String, String)> {
        let step = (self.fleet.len() / count).max(1);
        self.fleet.iter().step_by(step).chain(&self.runs).filter(|(t, _)| !t.is_empty()).cloned().collect()
    }
}

/// Waits until each holds a credential of this run that the verifier accepts. Returns when each wrapper did.
async fn all_are_back(
    fleet: &Fleet,
    runs: &[Run],
    verifier: &Verifier,
    epoch: u64,
    old: &Old,
    process: &Process,
) -> Vec<Instant> {
    let size = fleet.tokens().len();
    let mut waiting: Vec<&Run> = runs.iter().collect();
    let mut came = Vec::new();
    let back = tokio::time::timeout(ALL_BACK, async {
        while fleet.back(epoch) < size || !waiting.is_empty() {
            let mut still = Vec::new();
            for run in waiting {
                match run.token() {
                    Some(token)
                        if !old.runs.iter().any(|(t, _)| *t == token)
                            && accepts(verifier, &token, &run.holder).await =>
                    {
                        came.push(Instant::now());
                    }
                    _ => still.push(run),
                }
            }
            waiting = still;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    if back.is_err() {
        let (members, runs, log) = (fleet.back(epoch), came.len(), process.log());
        let last = log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
        panic!("after {ALL_BACK:?} {members} of {size} members and {runs} runs are back\n{last}");
    }
    // A member that was counted as lost on a slow machine comes back once more, with another token.
    eventually("all that are back to be taken", async || {
        for (token, holder) in Old::of(fleet, runs).sample(WATCHED) {
            if !accepts(verifier, &token, &holder).await {
                return false;
            }
        }
        true
    })
    .await;
    came
}

/// Tries old tokens until it is dropped.
struct Watch {
    stop: CancellationToken,
    task: JoinHandle<Option<Instant>>,
}

impl Watch {
    fn begin(verifier: &Verifier, old: &Old) -> Self {
        let (verifier, tokens, stop) = (verifier.clone(), old.sample(WATCHED), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut accepted = None;
            while !stopped.is_cancelled() {
                for (token, holder) in &tokens {
                    let asked = Instant::now();
                    if accepts(&verifier, token, holder).await {
                        accepted = Some(asked);
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            accepted
        });
        Watch { stop, task }
    }

    /// When the last of them was accepted, counted from the kill. It must be before the feed goes stale.
    async fn ended(self, killed: Instant) -> Duration {
        self.stop.cancel();
        let last = self.task.await.unwrap().map_or(Duration::ZERO, |at| at.duration_since(killed));
        assert!(last <= FEED_STALE, "an old token was accepted {last:?} after the kill");
        last
    }
}

async fn nothing_old_is_good(verifier: &Verifier, old: &Old) {
    eventually("a verifier that is fed: one that refuses all proves nothing", async || {
        verifier.state().is_ok()
    })
    .await;
    for (token, holder) in old.sample(10 * WATCHED) {
        assert!(
            !accepts(verifier, &token, &holder).await,
            "a token of an older epoch is taken from {holder}"
        );
    }
}

/// A lock that was reported as durable.
async fn lock(place: &Place, round: u64) -> String {
    let operator = place.client(OPERATOR);
    let name = format!("identity:spiffe://k8s.acme.example/ns/ml/job/locked-{round}");
    let ending = answered(async || operator.lock(&name).await).await.ending.unwrap();
    eventually("a durable lock", async || durable(&operator, &ending).await).await;
    name
}

/// All locks are in force, and each attempt goes on as the same attempt, with all of its members.
async fn nothing_is_lost(place: &Place, fleet: &Fleet, locks: &BTreeSet<String>) {
    let operator = place.client(OPERATOR);
    let answer = operator.operators().list_locks(v1::ListLocksRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.locks.into_iter().map(|l| l.name).collect::<BTreeSet<_>>(), *locks);
    for job in &fleet.jobs {
        // A member that was counted as lost on a slow machine is away for a moment.
        eventually("all members of an attempt", async || {
            let (_, attempt) = operator.stands(job).await;
            assert_eq!(attempt.number, 1, "{job}");
            attempt.state() == AttemptState::Running
                && attempt.members.iter().all(|m| m.state() == MemberState::Joined)
        })
        .await;
    }
}

/// Jobs that another launcher begins, one after the other, while the others come back.
///
/// They run on separate threads, as they would on other machines: the test measures how the daemon serves them, and not how
/// this process serves its thousands of members.
struct Newcomers {
    stop: CancellationToken,
    task: JoinHandle<Vec<Duration>>,
    runtime: Runtime,
}

impl Newcomers {
    fn begin(place: &Place, round: u64) -> Self {
        let stop = CancellationToken::new();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // A connection belongs to the runtime in which its client was made.
        let within = runtime.enter();
        let launcher = place.client(NIGHTLY);
        let workers: Vec<Client> = (0..NEW_JOBS)
            .map(|n| place.client(&format!("spiffe://k8s.acme.example/ns/ml/job/new-{round}-{n}")))
            .collect();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut times = Vec::new();
            for (turn, worker) in workers.iter().enumerate() {
                // At least one, however fast the others are.
                if stopped.is_cancelled() && !times.is_empty() {
                    break;
                }
                let began = Instant::now();
                let mut newcomer = Newcomer::new(&launcher, worker, format!("new {round} {turn}"));
                let served = tokio::time::timeout(NEW_WORK, newcomer.served()).await;
                assert!(served.is_ok(), "new work was starved for {:?}", began.elapsed());
                times.push(began.elapsed());
                println!("new work was served after {:.2} s", began.elapsed().as_secs_f64());
                newcomer.ends().await;
            }
            times
        });
        drop(within);
        Newcomers { stop, task, runtime }
    }

    /// How long each of them waited for its first credential.
    async fn stop(self) -> Vec<Duration> {
        self.stop.cancel();
        let times = self.task.await.unwrap();
        self.runtime.shutdown_background();
        times
    }
}

/// One new job, with its worker.
struct Newcomer<'a> {
    launcher: &'a Client,
    key: String,
    worker: Worker,
}

impl<'a> Newcomer<'a> {
    fn new(launcher: &'a Client, client: &Client, key: String) -> Self {
        let worker = Worker {
            client: client.clone(),
            job: String::new(),
            attempt: 1,
            instance: "rank-0".to_owned(),
            secret: Secret::random().unwrap().expose().to_vec(),
            ticket: String::new(),
            joined: v1::JoinAttemptResponse::default(),
            stream: None,
        };
        Newcomer { launcher, key, worker }
    }

    /// Gets a first credential for a new job. Repeats requests as a wrapper does.
    async fn served(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.serve().await {
                Ok(()) => break,
                Err(status) => assert!(is_passing(&status), "{status:?}"),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Makes room for the next job.
    async fn ends(self) {
        let mut backoff = Backoff::default();
        loop {
            match self.launcher.end(&self.worker.job, 1, Outcome::Completed).await {
                Ok(_) => return,
                Err(status) => assert!(is_passing(&status), "{status:?}"),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let members = v1::Members { join: vec![self.worker.client.id.clone()], ..Default::default() };
        let spec = v1::JobSpec { members: Some(members), acting_for: String::new(), ..spec() };
        self.worker.job = self.launcher.create(spec, &self.key).await?.into_inner().job.unwrap().id;
        self.launcher.begin(&self.worker.job, "run-1").await?;
        self.worker.rejoin().await?;
        self.worker.stream = Some(self.worker.open_stream().await?);
        self.worker.try_issue(Half::Reading).await.map(drop)
    }
}

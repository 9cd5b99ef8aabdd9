//! The story of a job with four members: one dies, one is preempted, the job is requeued, and the daemon is killed.

use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use tokio::process::Child;

use super::{
    Claim, Stage,
    calls::describe,
    child,
    story::Story,
    team::{CHECKPOINT, Mate, SPEC_FILE, Team},
    watch::{Checks, LOOK, Observed, Stopwatch, claims_of, within},
};
use crate::{
    dev::{ClientError, FileClient, Pace, Role, deployment::TENANT},
    name::Half,
    proto::v1,
    secret::SecretText,
};

/// A pace with seconds instead of minutes, so that the story is short.
const PACE: Pace = Pace { beat: Duration::from_secs(1), lost_after: 2, drain_read: Duration::from_secs(2) };
/// The time from the SIGTERM of a preemption to the end of checkpoint writes.
const GRACE: Duration = Duration::from_secs(4);

const NODES: [&str; 4] = ["node-0", "node-1", "node-2", "node-3"];
/// The node that is preempted.
const PREEMPTED: &str = "node-0";
/// The node that is killed.
const KILLED: &str = "node-3";

pub(super) async fn run(stage: &Stage, report: &mut (dyn FnMut(&Claim) + Send)) -> Observed<bool> {
    stage.deployment.set_pace(&PACE).map_err(|e| e.to_string())?;
    let spec = std::fs::read_to_string(stage.deployment.path("job.toml")).map_err(|e| e.to_string())?;
    let spec = format!("{spec}\n[run]\ndrain = \"{}s\"\n", GRACE.as_secs());
    std::fs::write(stage.deployment.path(SPEC_FILE), spec).map_err(|e| e.to_string())?;

    let mut story = Story::new(stage, report);
    let (mut daemon, running) = story.open().await?;
    let holder = stage.trainer()?;
    let checks = Checks::of(&running.verifier, &holder)?;
    let done = story.run_acts(&checks, &mut daemon).await;
    let all_hold = story.close(daemon, running).await?;
    Ok(done.is_some() && all_hold)
}

impl Story<'_> {
    /// Shows the claims in order. Stops if a claim is not observed and later claims need it.
    async fn run_acts(&mut self, checks: &Checks<'_>, daemon: &mut Child) -> Option<()> {
        let start = Stopwatch::now();
        let seen = self.join_all(checks).await;
        let mut team = self.require("four wrappers with one key are one attempt", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.kill_one(&mut team, checks).await;
        self.require("one of them is killed, and the others lose nothing", start, seen)?;
        // During this time, the daemon keeps the name for the lost member.
        tokio::time::sleep(PACE.window()).await;
        let start = Stopwatch::now();
        let seen = self.restart_one(&mut team, checks).await;
        self.require("the killed wrapper is started again and is a member of the same attempt", start, seen)?;

        self.drain(&mut team, checks).await?;

        let start = Stopwatch::now();
        let seen = self.requeue(&mut team, checks).await;
        let mut team = self.require("a requeue ends all access of the attempt before it", start, seen)?;
        let start = Stopwatch::now();
        let seen = self.read_checkpoint(&mut team).await;
        self.require("the new attempt reads the checkpoint of the old one", start, seen)?;
        let start = Stopwatch::now();
        let seen = self.rejoin_all(&mut team, checks).await;
        self.require("the other three members join the new attempt", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.kill_daemon(&mut team, checks, daemon).await;
        self.require("the daemon is killed and comes back, and no child notices", start, seen)?;

        let start = Stopwatch::now();
        let seen = self.complete_all(&mut team, checks).await;
        self.require("the job completes when its last member ends", start, seen)
    }

    async fn join_all(&mut self, checks: &Checks<'_>) -> Observed<(String, Team)> {
        let trainer = self.stage.deployment.id(Role::Trainer).map_err(|e| e.to_string())?.to_string();
        let count = u32::try_from(NODES.len()).unwrap_or(u32::MAX);
        let members = v1::Members {
            start: vec![trainer.clone()],
            join: vec![trainer],
            expect: count,
            attempts: 2,
            ..Default::default()
        };
        let spec = v1::JobSpec { members: Some(members), ..self.stage.spec(2) };
        let job = self.stage.create_job_as(Role::Launcher, spec).await.map_err(|s| describe(&s))?.id;
        let mut team = Team { job, key: "run-1", mates: Vec::new() };
        self.start(&mut team, &NODES, checks).await?;
        let attempt = self.stage.last_attempt(&team.job).await?;
        let joined = attempt.members.iter().filter(|m| m.state() == v1::MemberState::Joined).count();
        if (attempt.number, joined) != (1, NODES.len()) {
            return Err(format!("attempt {} has {joined} members joined", attempt.number));
        }
        Ok((format!("attempt 1: {} joined, each with its own credentials", NODES.join(", ")), team))
    }

    /// Starts several wrappers at once, and waits until each is ready.
    async fn start(&self, team: &mut Team, instances: &[&str], checks: &Checks<'_>) -> Observed<()> {
        let mut started = Vec::new();
        for instance in instances {
            let saves = *instance == PREEMPTED && team.key == "run-1";
            started.push((instance, self.stage.wrap_member(&team.job, team.key, instance, saves)?));
        }
        for (instance, wrapped) in started {
            team.mates.push(Mate::ready(instance, wrapped, checks).await?);
        }
        Ok(())
    }

    async fn kill_one(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let start = Stopwatch::now();
        let victim = team.mate(KILLED)?;
        kill(victim.wrapped.pid()?, Signal::SIGKILL).map_err(|e| e.to_string())?;
        let refusal = checks.refused(&victim.token).await?;
        let ms = start.ms();
        self.stage.member_is(&team.job, KILLED, v1::MemberState::Away).await?;
        let others = team.others_unharmed(KILLED, checks).await?;
        let attempt = self.stage.last_attempt(&team.job).await?;
        if attempt.state() != v1::AttemptState::Running {
            return Err(format!("the attempt is {:?}", attempt.state()));
        }
        Ok((
            format!(
                "{KILLED} is away after {ms:.0} ms: {}; the other {others} keep their leases and children",
                refusal.text
            ),
            (),
        ))
    }

    async fn restart_one(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let wrapped = self.stage.wrap_member(&team.job, team.key, KILLED, false)?;
        let back = Mate::ready(KILLED, wrapped, checks).await?;
        self.stage.member_is(&team.job, KILLED, v1::MemberState::Joined).await?;
        let attempt = self.stage.last_attempt(&team.job).await?;
        if attempt.number != 1 || claims_of(&back.token)?.lh.attempt.value() != 1 {
            return Err(format!("it is attempt {}", attempt.number));
        }
        *team.mate(KILLED)? = back;
        let others = team.others_unharmed(KILLED, checks).await?;
        Ok((
            format!("attempt 1, {KILLED} joined with new credentials; the other {others} did not notice"),
            (),
        ))
    }

    // ---------- a preemption ----------

    async fn drain(&mut self, team: &mut Team, checks: &Checks<'_>) -> Option<()> {
        let start = Stopwatch::now();
        let seen = self.preempt_one(team, checks).await;
        self.require("SIGTERM of one wrapper drains only that member", start, seen)?;
        let seen = self.check_saved(team, start).await;
        self.require("its child gets SIGTERM, and saves a checkpoint", start, seen)?;
        let seen = self.await_reading_end(team, checks).await;
        self.require("reading ends first, and writing goes on", start, seen)?;
        let seen = self.await_writing_end(team, checks).await;
        self.require("after the grace time writing ends too", start, seen)
    }

    async fn preempt_one(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let mate = team.mate(PREEMPTED)?;
        kill(mate.wrapped.pid()?, Signal::SIGTERM).map_err(|e| e.to_string())?;
        let drains = within("the member to drain", async {
            loop {
                let attempt = self.stage.last_attempt(&team.job).await?;
                let draining: Vec<_> = attempt.members.iter().filter(|m| m.writing_ends.is_some()).collect();
                if let [one] = draining.as_slice()
                    && one.instance == PREEMPTED
                {
                    return Ok(attempt.state());
                }
                if !draining.is_empty() {
                    return Err(format!("{} members drain", draining.len()));
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await??;
        if drains != v1::AttemptState::Running {
            return Err(format!("the attempt is {drains:?}"));
        }
        let others = team.others_unharmed(PREEMPTED, checks).await?;
        let (read, write) = (PACE.drain_read.as_secs_f64(), GRACE.as_secs());
        Ok((
            format!("{PREEMPTED}: reading for {read} s, writing for {write} s; the other {others} go on"),
            (),
        ))
    }

    async fn check_saved(&mut self, team: &mut Team, start: Stopwatch) -> Observed<(String, ())> {
        let file = team.mate(PREEMPTED)?.wrapped.go.with_extension("saved");
        let said = within("the child to save a checkpoint", async {
            loop {
                if let Ok(said) = std::fs::read_to_string(&file) {
                    return said;
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await?;
        let ms = start.ms();
        if said != child::SAVED {
            return Err(format!("the child could not: {said}"));
        }
        let below = format!("{TENANT}/tuned/{}/{CHECKPOINT}", team.job);
        let there =
            std::fs::read(self.stage.deployment.checkpoints().join(&below)).map_err(|e| e.to_string())?;
        if there != child::CHECKPOINT {
            return Err(format!("{below} is not what was saved"));
        }
        let left = GRACE.as_secs_f64() - ms / 1_000.0;
        if left <= 0.0 {
            return Err(format!("it took {ms:.0} ms, longer than the grace"));
        }
        Ok((format!("{CHECKPOINT}, {} bytes, {left:.1} s before the end of the grace", there.len()), ()))
    }

    async fn await_reading_end(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let job = team.job.clone();
        let mate = team.mate(PREEMPTED)?;
        let refusal = checks.refused(&mate.token).await?;
        let writing = mate.wrapped.held(Half::Writing).ok_or("the writing half is gone too")?;
        self.put(&job, &writing, "step-101").await.map_err(|e| format!("writing has ended too: {e}"))?;
        mate.has_its_child()?;
        Ok((format!("{}; step-101 can still be written", refusal.text), ()))
    }

    async fn await_writing_end(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let job = team.job.clone();
        let mate = team.mate(PREEMPTED)?;
        let writing = mate.wrapped.held(Half::Writing).ok_or("the writing half is gone before its time")?;
        let refusal = within("writing to be refused", async {
            loop {
                match self.put(&job, &writing, "step-102").await {
                    Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(ClientError::Refused(refusal)) => return Ok(refusal),
                    Err(e) => return Err(e.to_string()),
                }
            }
        })
        .await??;
        mate.wrapped.end_child(0)?;
        let ended = mate.wrapped.ended().await?;
        if ended != "exit 0" || mate.wrapped.files_left() {
            return Err(format!("the wrapper ended with {ended}: {}", mate.wrapped.said()));
        }
        let member = self.stage.member_is(&job, PREEMPTED, v1::MemberState::Left).await?;
        let others = team.others_unharmed(PREEMPTED, checks).await?;
        team.mates.retain(|m| m.instance != PREEMPTED);
        Ok((
            format!(
                "{}; {PREEMPTED} has left ({}); the other {others} go on",
                refusal.text,
                member.outcome().as_str_name().trim_start_matches("OUTCOME_").to_lowercase()
            ),
            (),
        ))
    }

    async fn put(&self, job: &str, token: &SecretText, name: &str) -> Result<(), ClientError> {
        let path = format!("/checkpoint/{TENANT}/tuned/{job}/{name}");
        self.files()?.put(&path, token, Bytes::from_static(child::CHECKPOINT)).await
    }

    fn files(&self) -> Result<FileClient, ClientError> {
        let connector = self.stage.deployment.files_connector(Role::Trainer, self.stage.clock.clone());
        connector.map(FileClient::new).map_err(|e| ClientError::Http(e.to_string()))
    }

    // ---------- a requeue ----------

    async fn requeue(&mut self, old: &mut Team, checks: &Checks<'_>) -> Observed<(String, Team)> {
        let mut team = Team { job: old.job.clone(), key: "run-2", mates: Vec::new() };
        let start = Stopwatch::now();
        let wrapped = self.stage.wrap_member(&team.job, team.key, PREEMPTED, false)?;
        let mut refused = String::new();
        for mate in &old.mates {
            refused = checks.refused(&mate.token).await?.text.into_owned();
        }
        let ms = start.ms();
        for mate in &mut old.mates {
            let ended = mate.wrapped.ended().await?;
            let said = mate.wrapped.said();
            if ended != "exit 143" || !said.contains("ATTEMPT_STALE") || mate.wrapped.files_left() {
                return Err(format!("the wrapper of {} ended with {ended}: {said}", mate.instance));
            }
        }
        team.mates.push(Mate::ready(PREEMPTED, wrapped, checks).await?);
        let attempt = self.stage.last_attempt(&team.job).await?;
        if attempt.number != 2 {
            return Err(format!("it is attempt {}", attempt.number));
        }
        Ok((
            format!(
                "attempt 2, begun by a member's own identity; {ms:.0} ms after its start: {refused}; the {} old wrappers end with exit 143 and say ATTEMPT_STALE",
                old.mates.len()
            ),
            team,
        ))
    }

    async fn read_checkpoint(&mut self, team: &mut Team) -> Observed<(String, ())> {
        let path = format!("/checkpoint/{TENANT}/tuned/{}/{CHECKPOINT}", team.job);
        let token = team.mate(PREEMPTED)?.wrapped.held(Half::Writing).ok_or("it holds no writing half")?;
        let download = self.files().map_err(|e| e.to_string())?.get(&path, &token).await;
        let mut bytes = Vec::new();
        download.map_err(|e| e.to_string())?.write_to(&mut bytes).await.map_err(|e| e.to_string())?;
        if bytes != child::CHECKPOINT {
            return Err(format!("{CHECKPOINT} is not what was saved"));
        }
        Ok((format!("{CHECKPOINT}, {} bytes, as it was saved", bytes.len()), ()))
    }

    async fn rejoin_all(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let others: Vec<&str> = NODES.into_iter().filter(|n| *n != PREEMPTED).collect();
        self.start(team, &others, checks).await?;
        let attempt = self.stage.last_attempt(&team.job).await?;
        let joined = attempt.members.iter().filter(|m| m.state() == v1::MemberState::Joined).count();
        if (attempt.number, joined) != (2, NODES.len()) {
            return Err(format!("attempt {} has {joined} members joined", attempt.number));
        }
        Ok((format!("attempt 2: {} joined", NODES.join(", ")), ()))
    }

    // ---------- a restart ----------

    async fn kill_daemon(
        &mut self,
        team: &mut Team,
        checks: &Checks<'_>,
        daemon: &mut Child,
    ) -> Observed<(String, ())> {
        let old: Vec<SecretText> = team.mates.iter().map(|m| m.token.clone()).collect();
        daemon.kill().await.map_err(|e| e.to_string())?;
        let start = Stopwatch::now();
        *daemon = self.stage.start_daemon().await?;
        let served = start.ms();
        let mut epoch = 0;
        for mate in &mut team.mates {
            mate.renewed(checks).await?;
            epoch = claims_of(&mate.token)?.lh.epoch;
        }
        let back = start.ms();
        for token in &old {
            if claims_of(token)?.lh.epoch >= epoch {
                return Err("a credential from before the restart has the new epoch".to_owned());
            }
            if checks.check(token).await.is_ok() {
                return Err("a credential from before the restart is still valid".to_owned());
            }
        }
        let attempt = self.stage.last_attempt(&team.job).await?;
        if (attempt.number, attempt.state()) != (2, v1::AttemptState::Running) {
            return Err(format!("attempt {} is {:?}", attempt.number, attempt.state()));
        }
        for mate in &mut team.mates {
            mate.has_its_child()?;
        }
        Ok((
            format!(
                "it serves again after {served:.0} ms; {} members hold credentials of epoch {epoch} after {back:.0} ms, the old ones are refused; same attempt, same children",
                team.mates.len()
            ),
            (),
        ))
    }

    async fn complete_all(&mut self, team: &mut Team, checks: &Checks<'_>) -> Observed<(String, ())> {
        let count = team.mates.len();
        for (n, mate) in team.mates.iter_mut().enumerate() {
            let job = self.stage.job(&team.job).await?;
            if job.state() != v1::JobState::Running {
                return Err(format!("after {n} of {count} the job is {:?}", job.state()));
            }
            mate.wrapped.end_child(0)?;
            let ended = mate.wrapped.ended().await?;
            if ended != "exit 0" || mate.wrapped.files_left() {
                return Err(format!("the wrapper ended with {ended}: {}", mate.wrapped.said()));
            }
            checks.refused(&mate.token).await?;
        }
        let job = self.stage.job(&team.job).await?;
        if (job.state(), job.outcome(), job.live_leases) != (v1::JobState::Closed, v1::Outcome::Completed, 0)
        {
            return Err(format!("the job is {:?}, {:?}", job.state(), job.outcome()));
        }
        Ok((
            format!("exit 0 of each, running until the last; {} attempts, no lease left", job.attempts.len()),
            (),
        ))
    }
}

//! Measures what happens when the deadlines of many leases pass together.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    crowd::{Crowd, Filling, KeptToken, LeaseEnd},
    figure::Measured,
    lab::BenchLab,
    load::Load,
    revocations::Revoker,
};
use crate::{
    clock::Wall,
    dev::demo::{Stage, describe},
    limits,
};

/// Issues a second while the leases end, if the plan has no other rate.
const RATE: u32 = 500;
/// The number of issues in flight at most.
const IN_FLIGHT: usize = 64;
/// The number of leases that are issued first, to see how fast this machine is.
const FIRST_LEASES: usize = 200;
/// A short time between the last lease and the load, and between the load and the first deadline.
const MARGIN: Duration = Duration::from_millis(200);
/// How many times the leases are made at most. If this machine is too slow, they are made again with later deadlines.
const TRIES: u32 = 4;
/// How long after its deadline a token is checked. The clocks of the daemon, of the verifier and of the bench differ by a few
/// milliseconds.
const AFTER: Duration = Duration::from_millis(10);
/// The most tokens about which the daemon is asked.
const ASKED_MAX: usize = 500;
/// The time between two questions about the number of leases that are left.
const LOOK: Duration = Duration::from_millis(5);
/// How long to wait until the daemon has ended the leases.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened when the deadlines of many leases passed within a second.
#[derive(Clone, Debug)]
pub struct StormFigure {
    /// The number of leases.
    pub leases: usize,
    /// The time from the first to the last deadline.
    pub within: Duration,
    /// The time from the last deadline until the daemon had removed all leases.
    pub ended_after: Duration,
    /// The issues before the deadlines, at a steady rate.
    pub before: Measured,
    /// The issues while the leases end, at the same rate.
    pub during: Measured,
    /// Uses that a verifier refused, one of each token, just after the deadline.
    pub checks: usize,
    /// Introspections of tokens just after their deadline. The daemon said of each token that it is not good.
    pub introspections: usize,
}

/// How to measure a storm.
#[derive(Clone, Copy)]
pub(super) struct StormPlan {
    pub(super) leases: usize,
    pub(super) rate: Option<u32>,
    /// How long issues are measured before the first deadline, and as long again after it.
    pub(super) window: Duration,
}

/// Leases whose deadlines pass together.
struct Storm {
    crowd: Crowd,
    kept: Vec<KeptToken>,
    first: Wall,
    last: Wall,
}

impl BenchLab<'_> {
    /// Makes leases whose deadlines pass together, and watches their end. Afterwards, none of them and none of the load is live.
    pub(super) async fn measure_storm(&self, plan: StormPlan) -> Result<StormFigure, String> {
        let mut revoker = Revoker::connect(self).await?;
        let mut load = Crowd::open(self).await?;
        let filling = |count, end, verifier| Filling { count, end, kept_every: 1, verifier, until: None };
        let first = filling(FIRST_LEASES, LeaseEnd::Latest, Some(self.verifier().clone()));
        let took = load.fill_whole(&first).await?.sample.time;
        let times = u32::try_from(plan.leases.div_ceil(FIRST_LEASES)).unwrap_or(u32::MAX);
        let mut allowed = took.saturating_mul(times).saturating_mul(2).saturating_add(MARGIN);
        for _ in 0..TRIES {
            let ahead = allowed.saturating_add(plan.window).saturating_add(MARGIN);
            if ahead > limits::LEASE_TTL_MAX {
                break;
            }
            let begin = self.stage().clock.now().wall;
            let deadline = begin.plus(ahead);
            let mut crowd = Crowd::open(self).await?;
            let wanted = filling(plan.leases, LeaseEnd::At(deadline), Some(self.verifier().clone()));
            let filled = crowd.fill_whole(&wanted).await?;
            let left = deadline.since(self.stage().clock.now().wall);
            let kept = filled.kept;
            if left > plan.window {
                let deadlines = || kept.iter().map(|kept| kept.deadline);
                let (Some(first), Some(last)) = (deadlines().min(), deadlines().max()) else { break };
                let figure =
                    self.watch(plan, Storm { crowd, kept, first, last }, &load, &mut revoker).await?;
                revoker.revoke(format!("job:{}", load.job)).await?;
                return Ok(figure);
            }
            revoker.revoke(format!("job:{}", crowd.job)).await?;
            allowed = allowed.saturating_mul(2);
        }
        Err(format!("this machine is too slow to make {} leases that end together", plan.leases))
    }

    /// Issues at a steady rate before the first deadline and after it. Meanwhile, checks that no token is accepted after its
    /// deadline, and waits until the daemon has removed all leases.
    async fn watch(
        &self,
        plan: StormPlan,
        mut storm: Storm,
        load: &Crowd,
        revoker: &mut Revoker,
    ) -> Result<StormFigure, String> {
        storm.kept.sort_unstable_by_key(|kept| kept.deadline);
        let stage = self.stage();
        let issues = Load { in_flight: IN_FLIGHT, time: plan.window, rate: Some(plan.rate.unwrap_or(RATE)) };
        let issue = || (0..IN_FLIGHT).map(|worker| load.issue_work(worker));
        let lead = storm.first.since(stage.clock.now().wall).saturating_sub(plan.window);
        tokio::time::sleep(lead.saturating_sub(MARGIN)).await;
        let before = issues.apply(issue()).await?.measured();
        sleep_until(stage, storm.first).await;
        let (during, gone, checks, introspections) = tokio::try_join!(
            issues.apply(issue()),
            wait_for_end(stage, revoker, &storm.crowd.job),
            check_all(stage, &storm.kept),
            self.ask_about(&storm),
        )?;
        Ok(StormFigure {
            leases: storm.kept.len(),
            within: storm.last.since(storm.first),
            ended_after: gone.since(storm.last),
            before,
            during: during.measured(),
            checks,
            introspections,
        })
    }

    /// Asks the daemon about some of the tokens, just after their deadlines.
    async fn ask_about(&self, storm: &Storm) -> Result<usize, String> {
        let stage = self.stage();
        let mut client = stage.verifier_client()?;
        let step = storm.kept.len().div_ceil(ASKED_MAX).max(1);
        let mut asked: usize = 0;
        for kept in storm.kept.iter().step_by(step) {
            sleep_until(stage, kept.deadline.plus(AFTER)).await;
            let request = storm.crowd.introspect_request(&kept.token);
            if client.introspect(request).await.map_err(|status| describe(&status))?.into_inner().active {
                return Err("the daemon says that a token is good after its deadline".to_owned());
            }
            asked = asked.saturating_add(1);
        }
        Ok(asked)
    }
}

/// Checks each token once, just after its deadline. The tokens are in the order of their deadlines.
async fn check_all(stage: &Stage, kept: &[KeptToken]) -> Result<usize, String> {
    let mut checks: usize = 0;
    for kept in kept {
        sleep_until(stage, kept.deadline.plus(AFTER)).await;
        let access = kept.access.as_ref().ok_or("a token was not checked before its deadline")?;
        if access.check().is_ok() {
            return Err("a verifier accepts a token after its deadline".to_owned());
        }
        checks = checks.saturating_add(1);
    }
    Ok(checks)
}

/// Waits until the daemon has removed all leases of a job, and returns the time of that.
async fn wait_for_end(stage: &Stage, revoker: &mut Revoker, job: &str) -> Result<Wall, String> {
    let begin = Instant::now();
    loop {
        let left = revoker.leases_behind(format!("job:{job}")).await?;
        let now = stage.clock.now().wall;
        if left == 0 {
            return Ok(now);
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("{left} leases are left {} s after their deadline", PATIENCE.as_secs()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn sleep_until(stage: &Stage, at: Wall) {
    loop {
        let left = at.since(stage.clock.now().wall);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

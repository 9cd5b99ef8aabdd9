//! What is measured at one number of live leases.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    GrowthFinding, GrowthStep, JobRevocation,
    population::{Goal, Population},
};
use crate::{
    dev::{
        bench::{
            BenchPlan, StormFigure,
            figure::{Measured, Sample},
            lab::BenchLab,
            revocations::Revoker,
            storm::StormPlan,
        },
        demo::describe,
    },
    proto::v1,
};

/// The most leases that end together in one storm. At most twice as many issues are measured.
const SHARE_MAX: usize = 10_000;
/// One part in ten of the time is kept for the measurements after the last lease was made.
const KEPT_TIME: u32 = 10;
/// How long look-ups are measured.
const LOOK_UPS: Duration = Duration::from_secs(1);
/// A step that stopped early is measured if it has at least this many times the leases of the step before.
const WORTH_MEASURING: usize = 2;

impl BenchLab<'_> {
    /// Makes more and more leases, and measures at each number of them.
    pub(super) async fn measure_growth(
        &self,
        plan: &BenchPlan,
        until: Instant,
        report: &mut (dyn FnMut(GrowthFinding) + Send),
    ) -> Result<(), String> {
        let mut population = Population::default();
        let mut revoker = Revoker::connect(self).await?;
        // The leases of the lab's jobs would count for the bound of the tenant.
        for job in self.jobs() {
            revoker.revoke(format!("job:{job}")).await?;
        }
        let until = until.checked_sub(plan.growth.time / KEPT_TIME).unwrap_or(until);
        let mut before = 0;
        for wanted in &plan.growth.leases {
            let goal = |leases| Goal { leases, of: *wanted, until };
            let share = (*wanted / 4).min(SHARE_MAX);
            let base = goal(wanted.saturating_sub(share.saturating_mul(2)));
            let (mut issues, mut stopped) = population.fill(self, base, report).await?;
            let mut storm = None;
            if stopped.is_none() {
                let window = plan.time / 3;
                let storm_plan = StormPlan { leases: share.max(1), rate: plan.rate, window };
                storm = Some(self.measure_storm(storm_plan).await?);
                (issues, stopped) = population.fill(self, goal(*wanted), report).await?;
            }
            let reached = population.leases();
            if let Some(why) = &stopped {
                report(GrowthFinding::Stopped(format!("{wanted} leases: {reached} were made: {why}")));
                if reached < before * WORTH_MEASURING || reached == 0 {
                    return Ok(());
                }
            }
            let step = self.measure_step(&mut population, &mut revoker, (issues.measured(), storm)).await?;
            report(GrowthFinding::Step(step));
            if stopped.is_some() {
                return Ok(());
            }
            before = reached;
        }
        Ok(())
    }

    /// Measures with the leases that are live now. Revokes one of their jobs.
    async fn measure_step(
        &self,
        population: &mut Population,
        revoker: &mut Revoker,
        (issue, storm): (Measured, Option<StormFigure>),
    ) -> Result<GrowthStep, String> {
        let leases = population.leases();
        let memory = self.daemon_memory()?;
        let look_up = self.measure_look_ups(&population.questions()).await?;
        let part = population.take_largest().ok_or("there is no job")?;
        let newest = part.newest.as_ref().ok_or("a job has no lease")?;
        let times = self.revoke_crowd(revoker, &part.crowd, newest).await?;
        let revocation =
            JobRevocation { leases: part.crowd.leases, call: times.call, refused: times.refused };
        Ok(GrowthStep { leases, memory, issue, look_up, storm, revocation })
    }

    /// Asks the daemon about each token once. Then asks again for a second, and measures only these look-ups.
    async fn measure_look_ups(&self, questions: &[v1::IntrospectRequest]) -> Result<Measured, String> {
        let mut client = self.stage().verifier_client()?;
        let mut ask = async |question: &v1::IntrospectRequest| {
            let from = Instant::now();
            let answer = client.introspect(question.clone()).await.map_err(|status| describe(&status))?;
            let answer = answer.into_inner();
            if !answer.active {
                return Err(format!("a token of a live lease is not good: {}", answer.reason));
            }
            Ok(from.elapsed())
        };
        for question in questions {
            ask(question).await?;
        }
        let mut sample = Sample::new()?;
        let begin = Instant::now();
        for question in questions.iter().cycle() {
            sample.record(ask(question).await?);
            if begin.elapsed() >= LOOK_UPS {
                break;
            }
        }
        sample.time = begin.elapsed();
        Ok(sample.measured())
    }
}

//! The live leases of a growing daemon, and the jobs that have them.

use tokio::time::Instant;

use super::GrowthFinding;
use crate::{
    dev::bench::{
        crowd::{Crowd, Filling, KeptToken, LeaseEnd},
        figure::Sample,
        lab::BenchLab,
    },
    limits,
    proto::v1,
};

/// Leases that are made between two reports of the progress.
const REPORTED_EVERY: usize = 20_000;
/// About this many tokens are kept, for look-ups.
const KEPT_TOKENS: usize = 1_000;

/// Jobs whose leases stay live until the bench revokes them. All jobs except the newest have as many leases as a job can have.
#[derive(Default)]
pub(super) struct Population {
    parts: Vec<PopulationPart>,
}

/// One of the jobs.
pub(super) struct PopulationPart {
    pub(super) crowd: Crowd,
    /// Questions to the daemon about some of its tokens.
    questions: Vec<v1::IntrospectRequest>,
    /// The newest of its tokens that were kept.
    pub(super) newest: Option<KeptToken>,
}

/// The number of leases to reach.
#[derive(Clone, Copy)]
pub(super) struct Goal {
    /// The number of leases now.
    pub(super) leases: usize,
    /// The number of leases of the whole step.
    pub(super) of: usize,
    /// No lease is made after this moment.
    pub(super) until: Instant,
}

impl Population {
    /// Returns the number of live leases.
    pub(super) fn leases(&self) -> usize {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.crowd.leases))
    }

    /// Makes leases until there are enough. Returns their latencies, and if there are fewer leases, the reason.
    pub(super) async fn fill(
        &mut self,
        lab: &BenchLab<'_>,
        goal: Goal,
        report: &mut (dyn FnMut(GrowthFinding) + Send),
    ) -> Result<(Sample, Option<String>), String> {
        let mut all = Sample::new()?;
        loop {
            let missing = goal.leases.saturating_sub(self.leases());
            if missing == 0 {
                return Ok((all, None));
            }
            let part = self.newest_part(lab).await?;
            let room = limits::LEASES_PER_JOB_MAX.saturating_sub(part.crowd.leases);
            let filling = Filling {
                count: missing.min(room).min(REPORTED_EVERY),
                end: LeaseEnd::Latest,
                kept_every: (goal.of / KEPT_TOKENS).max(1),
                verifier: None,
                until: Some(goal.until),
            };
            let filled = part.crowd.fill(&filling).await?;
            all.add(&filled.sample)?;
            all.time = all.time.saturating_add(filled.sample.time);
            for kept in filled.kept {
                part.questions.push(part.crowd.introspect_request(&kept.token));
                part.newest = Some(kept);
            }
            report(GrowthFinding::Progress { leases: self.leases(), wanted: goal.of });
            if let Some(why) = filled.stopped {
                return Ok((all, Some(why)));
            }
        }
    }

    /// Returns the job that gets the next lease. If there is no job, or the newest is full, creates one.
    async fn newest_part(&mut self, lab: &BenchLab<'_>) -> Result<&mut PopulationPart, String> {
        let is_full = |part: &PopulationPart| part.crowd.leases >= limits::LEASES_PER_JOB_MAX;
        if self.parts.last().is_none_or(is_full) {
            let crowd = Crowd::open(lab).await?;
            self.parts.push(PopulationPart { crowd, questions: Vec::new(), newest: None });
        }
        self.parts.last_mut().ok_or_else(|| "there is no job".to_owned())
    }

    /// Returns questions about tokens of all jobs.
    pub(super) fn questions(&self) -> Vec<v1::IntrospectRequest> {
        let all: Vec<_> = self.parts.iter().flat_map(|part| &part.questions).collect();
        let step = all.len().div_ceil(KEPT_TOKENS).max(1);
        all.into_iter().step_by(step).cloned().collect()
    }

    /// Removes the job with the most leases, and returns it.
    pub(super) fn take_largest(&mut self) -> Option<PopulationPart> {
        let place = (0..self.parts.len()).max_by_key(|n| self.parts.get(*n).map(|part| part.crowd.leases))?;
        Some(self.parts.remove(place))
    }
}

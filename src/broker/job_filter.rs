//! The filter of a list of jobs.

use crate::{
    clock::{Now, Wall},
    job::{Job, JobState},
    name::{Outcome, ResourceName, SpiffeId, TenantName},
};

/// The state of a job in a filter. `Closed` covers all outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStateFilter {
    AwaitingApproval,
    Ready,
    Running,
    Closed,
    ClosedAs(Outcome),
}

impl JobStateFilter {
    fn is_of(self, state: JobState) -> bool {
        match state {
            JobState::AwaitingApproval => self == JobStateFilter::AwaitingApproval,
            JobState::Ready => self == JobStateFilter::Ready,
            JobState::Running => self == JobStateFilter::Running,
            JobState::Closed(outcome) => {
                self == JobStateFilter::Closed || self == JobStateFilter::ClosedAs(outcome)
            }
        }
    }
}

/// A filter of jobs. A job must match each field that is set.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    pub open_only: bool,
    /// The job is in one of these states. If it is empty, the job may be in any state.
    pub states: Vec<JobStateFilter>,
    pub tenant: Option<TenantName>,
    pub launcher: Option<SpiffeId>,
    /// The job reads or writes all of these resources. A name without a version matches each version.
    pub resources: Vec<ResourceName>,
    /// The job was created at this time or later.
    pub created_from: Option<Wall>,
    /// The beginning of the job's id.
    pub id_prefix: String,
}

impl JobFilter {
    pub(super) fn matches(&self, job: &Job, now: Now) -> bool {
        (!self.open_only || !job.is_closed())
            && (self.states.is_empty() || self.states.iter().any(|s| s.is_of(job.state)))
            && self.tenant.as_ref().is_none_or(|t| job.spec.tenant == *t)
            && self.launcher.as_ref().is_none_or(|id| job.launcher == *id)
            && self.resources.iter().all(|wanted| uses(job, wanted))
            && self.created_from.is_none_or(|from| now.wall_at(job.created) >= from)
            && (self.id_prefix.is_empty() || job.id.to_string().starts_with(&self.id_prefix))
    }
}

fn uses(job: &Job, wanted: &ResourceName) -> bool {
    job.spec.resources().any(|r| r == wanted || r.unversioned() == *wanted)
}

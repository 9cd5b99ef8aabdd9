//! An emergency: one person opens the gates of a job without the required approvals, for a short time.

use super::{Change, Illegal, Job, JobState};
use crate::{
    clock::LeaseTime,
    name::{Digest, HumanName, SpiffeId},
};

/// The gates of a job that one person opened in an emergency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// The identity that opened the gates.
    pub by: SpiffeId,
    /// The human who uses the identity, if the catalog names one.
    pub human: Option<HumanName>,
    /// The ids of the gates.
    pub gates: Vec<String>,
    pub reason: String,
    pub at: LeaseTime,
    /// The end of all access of the job.
    pub until: LeaseTime,
}

/// A person who opens gates in an emergency, with the reason and the end.
#[derive(Clone, Copy, Debug)]
pub struct GlassBreaker<'a> {
    pub by: &'a SpiffeId,
    pub human: Option<&'a HumanName>,
    pub reason: &'a str,
    pub until: LeaseTime,
}

impl Job {
    /// Whether an emergency opened this gate and is not over.
    pub fn is_open_by_emergency(&self, gate: &str, now: LeaseTime) -> bool {
        self.emergency.as_ref().is_some_and(|e| now < e.until && e.gates.iter().any(|g| g == gate))
    }

    /// Returns the change that opens all gates of the job in an emergency. `None` if the job already had an emergency:
    /// a job has only one, and it cannot be extended.
    pub fn break_glass(
        &self,
        breaker: GlassBreaker<'_>,
        request: Digest,
        now: LeaseTime,
    ) -> Result<Option<Change>, Illegal> {
        match self.state {
            JobState::Closed(outcome) => Err(Illegal::JobClosed(outcome)),
            _ if self.gates.is_empty() => Err(Illegal::NoGates),
            _ if self.emergency.is_some() => Ok(None),
            _ => {
                let emergency = Emergency {
                    by: breaker.by.clone(),
                    human: breaker.human.cloned(),
                    gates: self.gates.iter().map(|gate| gate.id.clone()).collect(),
                    reason: breaker.reason.to_owned(),
                    at: now,
                    until: breaker.until,
                };
                Ok(Some(Change::GlassBroken { request, emergency }))
            }
        }
    }

    pub(super) fn break_glass_now(&mut self, emergency: &Emergency) {
        self.ends = self.ends.min(emergency.until);
        self.emergency = Some(emergency.clone());
        if !self.has_begun() {
            self.wait_or_be_ready(emergency.at);
        }
    }
}

//! The origin of the checkpoints that a job reads.

use std::collections::BTreeSet;

use super::Job;
use crate::{
    limits::LINEAGE_MAX,
    name::{JobId, ResourceName},
};

/// The origin of the checkpoints that a job reads: the jobs that wrote them, and the data that those jobs read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The jobs that wrote the checkpoints, and the jobs in their lineage.
    pub jobs: BTreeSet<JobId>,
    /// What `jobs` read: datasets, models, and checkpoint lines.
    pub resources: BTreeSet<ResourceName>,
}

impl Lineage {
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.resources.is_empty()
    }

    /// Adds a job that wrote checkpoints, with its own lineage.
    pub fn add(&mut self, writer: &Job) {
        self.jobs.insert(writer.id);
        self.jobs.extend(&writer.lineage.jobs);
        self.resources.extend(writer.spec.read.iter().chain(&writer.lineage.resources).cloned());
        let lines = writer.spec.read_checkpoints.iter().map(|folder| folder.resource().clone());
        self.resources.extend(lines);
    }

    /// Whether a job may have this lineage: it has at most [`LINEAGE_MAX`] jobs and resources together.
    pub fn fits(&self) -> bool {
        self.jobs.len().saturating_add(self.resources.len()) <= LINEAGE_MAX
    }
}

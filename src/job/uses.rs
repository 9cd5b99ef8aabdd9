//! The use of each resource by a job, as gateways reported it.

use std::collections::BTreeMap;

use crate::{
    clock::Wall,
    limits::JOB_RESOURCES_MAX,
    name::{LeaseId, Object},
};

/// The use of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceUse {
    /// The number of objects, counted once for each lease.
    pub objects: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// The number of transfers that were cut because access ended.
    pub cut: u64,
    /// The number of requests that the lease does not allow.
    pub refused: u64,
    pub first: Wall,
    pub last: Wall,
}

impl ResourceUse {
    fn add(&mut self, more: &ResourceUse) {
        let counts = [
            (&mut self.objects, more.objects),
            (&mut self.reads, more.reads),
            (&mut self.read_bytes, more.read_bytes),
            (&mut self.writes, more.writes),
            (&mut self.written_bytes, more.written_bytes),
            (&mut self.cut, more.cut),
            (&mut self.refused, more.refused),
        ];
        for (count, more) in counts {
            *count = count.saturating_add(more);
        }
        self.first = self.first.min(more.first);
        self.last = self.last.max(more.last);
    }
}

/// The use of one resource by one lease since the previous report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedUse {
    pub lease: LeaseId,
    /// The resource. A folder stands for the checkpoints of another job.
    pub resource: Object,
    pub done: ResourceUse,
}

/// The use of each resource of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobUses(BTreeMap<Object, ResourceUse>);

impl JobUses {
    /// Adds reports. The broker accepts only resources of the job, so there are at most [`JOB_RESOURCES_MAX`] entries.
    pub(super) fn add_all(&mut self, uses: &[ReportedUse]) {
        for ReportedUse { resource, done, .. } in uses {
            if let Some(known) = self.0.get_mut(resource) {
                known.add(done);
            } else if self.0.len() < JOB_RESOURCES_MAX {
                self.0.insert(resource.clone(), done.clone());
            }
        }
    }

    /// Returns the resources and their use, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&Object, &ResourceUse)> {
        self.0.iter()
    }

    /// Makes the uses of a job from a snapshot.
    pub fn from_parts(uses: impl IntoIterator<Item = (Object, ResourceUse)>) -> Self {
        JobUses(uses.into_iter().take(JOB_RESOURCES_MAX).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Reports of several leases of a job add up for each resource, and there are no more resources than a job may name.
    #[test]
    fn reports_add_up() {
        let done = |bytes: u64, at: u64| ResourceUse {
            objects: 1,
            reads: 2,
            read_bytes: bytes,
            writes: 0,
            written_bytes: 0,
            cut: 0,
            refused: 1,
            first: Wall(at),
            last: Wall(at + 1),
        };
        let of = |name: &str, bytes: u64, at: u64| ReportedUse {
            lease: LeaseId(at.into()),
            resource: name.parse().unwrap(),
            done: done(bytes, at),
        };
        let mut uses = JobUses::default();
        uses.add_all(&[
            of("dataset:a/b@1", 5, 20),
            of("dataset:a/b@1", u64::MAX, 10),
            of("dataset:a/c@1", 1, 1),
        ]);
        let all: Vec<_> = uses.iter().collect();
        assert_eq!(all.len(), 2);
        let first = all[0].1;
        assert_eq!((first.objects, first.reads, first.read_bytes, first.refused), (2, 4, u64::MAX, 2));
        assert_eq!((first.first, first.last), (Wall(10), Wall(21)));
        for n in 0..2 * JOB_RESOURCES_MAX {
            uses.add_all(&[of(&format!("dataset:a/x{n}@1"), 1, 1)]);
        }
        assert_eq!(uses.iter().count(), JOB_RESOURCES_MAX);
    }
}

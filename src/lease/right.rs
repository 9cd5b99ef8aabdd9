//! One lease, and what it is for.

use std::sync::Arc;

use super::{LeaseRefused, cell::LeaseCell};
use crate::{
    clock::LeaseTime,
    fence::Stand,
    name::{AttemptNumber, Half, InstanceName, JobId, LeaseId, Scope, SpiffeId, TenantName},
    policy::Grant,
};

/// What a lease is for. Leases of one member, half and audience share one.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    pub tenant: TenantName,
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub instance: InstanceName,
    pub holder: SpiffeId,
    pub half: Half,
    pub audience: SpiffeId,
    pub scopes: Arc<[Scope]>,
}

impl Facts {
    /// Shares the scopes of another lease of the job if they are equal, to save memory: members mostly ask for the
    /// same.
    pub(super) fn share(&mut self, others: &Facts) {
        if self.scopes == others.scopes {
            self.scopes = others.scopes.clone();
        }
    }
}

/// The terms of a new lease.
#[derive(Debug)]
pub struct Terms {
    pub id: LeaseId,
    pub issued: LeaseTime,
    pub deadline: LeaseTime,
    /// No renewal goes past it.
    pub latest: LeaseTime,
    pub facts: Arc<Facts>,
}

/// A bounded right.
#[derive(Debug)]
pub struct Lease {
    pub id: LeaseId,
    pub(super) cell: LeaseCell,
    pub(super) stand: Stand,
    pub issued: LeaseTime,
    pub latest: LeaseTime,
    pub facts: Arc<Facts>,
}

impl Lease {
    /// Makes a lease that no one can find before it is in the table.
    pub(super) fn new(stand: Stand, terms: Terms) -> Self {
        let Terms { id, issued, deadline, latest, facts } = terms;
        Lease { id, cell: LeaseCell::new(deadline.min(latest)), stand, issued, latest, facts }
    }

    /// Checks that it is good at `now`. No lock, no look-up: a few loads.
    pub fn check(&self, now: LeaseTime) -> Result<(), LeaseRefused> {
        self.cell.check(now)?;
        if self.stand.is_up() { Ok(()) } else { Err(LeaseRefused::Lowered) }
    }

    pub fn deadline(&self) -> LeaseTime {
        self.cell.deadline()
    }

    pub fn generation(&self) -> u32 {
        self.cell.generation()
    }

    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// Prolongs it from `now` under a fresh decision, never past its latest end. It keeps its stand.
    ///
    /// `generation` is the one that the credential was prepared for. If another renewal made it first, nothing changes.
    pub fn renew(
        &self,
        _decided: &Grant,
        generation: u32,
        now: LeaseTime,
        deadline: LeaseTime,
    ) -> Result<(), LeaseRefused> {
        if !self.stand.is_up() {
            return Err(LeaseRefused::Lowered);
        }
        self.cell.renew(generation, now, deadline.min(self.latest))?;
        // A fence was lowered meanwhile: the lease is dead whatever its deadline is, and the caller must know.
        if self.stand.is_up() { Ok(()) } else { Err(LeaseRefused::Lowered) }
    }
}

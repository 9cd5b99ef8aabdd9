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
    /// The tenant of the job.
    pub tenant: TenantName,
    /// The job that the holder works on.
    pub job: JobId,
    /// The attempt of that job.
    pub attempt: AttemptNumber,
    /// The member of that attempt.
    pub instance: InstanceName,
    /// The member's SPIFFE ID: the `sub` of its tokens.
    pub holder: SpiffeId,
    /// The half of the work that it opens.
    pub half: Half,
    /// The resource server: the `aud` of its tokens.
    pub audience: SpiffeId,
    /// The resources that it opens there, and the actions on each.
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
    /// 128 random bits.
    pub id: LeaseId,
    /// When it begins.
    pub issued: LeaseTime,
    /// When it ends unless it is renewed, exclusive.
    pub deadline: LeaseTime,
    /// No renewal goes past it.
    pub latest: LeaseTime,
    /// What it is for.
    pub facts: Arc<Facts>,
}

/// A bounded right.
#[derive(Debug)]
pub struct Lease {
    /// 128 random bits.
    pub id: LeaseId,
    pub(super) cell: LeaseCell,
    pub(super) stand: Stand,
    /// When it began.
    pub issued: LeaseTime,
    /// No renewal goes past it.
    pub latest: LeaseTime,
    /// What it is for.
    pub facts: Arc<Facts>,
}

impl Lease {
    /// Makes a lease that no one can find before it is in the table.
    pub(super) fn new(stand: Stand, terms: Terms) -> Self {
        let Terms { id, issued, deadline, latest, facts } = terms;
        Lease { id, cell: LeaseCell::new(deadline.min(latest)), stand, issued, latest, facts }
    }

    /// Checks that it is good at `now`. No lock, no look-up: a few loads.
    ///
    /// # Errors
    ///
    /// Why it is not good: it ended, expired, or a fence was lowered.
    pub fn check(&self, now: LeaseTime) -> Result<(), LeaseRefused> {
        self.cell.check(now)?;
        if self.stand.is_up() { Ok(()) } else { Err(LeaseRefused::Lowered) }
    }

    /// When it ends unless it is renewed, exclusive.
    pub fn deadline(&self) -> LeaseTime {
        self.cell.deadline()
    }

    /// How often it was renewed.
    pub fn generation(&self) -> u32 {
        self.cell.generation()
    }

    /// The fences that end it.
    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// Prolongs it from `now` under a fresh decision, never past its latest end. It keeps its stand.
    ///
    /// `generation` is the one that the credential was prepared for. If another renewal made it first, nothing changes.
    ///
    /// # Errors
    ///
    /// It is no longer good, cannot be renewed further, or another renewal came first.
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
        // A fence was lowered meanwhile: the lease has ended even if its deadline has not come, and the caller must
        // know.
        if self.stand.is_up() { Ok(()) } else { Err(LeaseRefused::Lowered) }
    }
}

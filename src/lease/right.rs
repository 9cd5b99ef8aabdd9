//! A lease, and its facts and terms.

use std::sync::Arc;

use super::{LeaseRefused, cell::LeaseCell, newest_token::NewestTokenDigest};
use crate::{
    clock::LeaseTime,
    fence::Stand,
    name::{AttemptNumber, Half, InstanceName, JobId, LeaseId, Scope, SpiffeId, TenantName},
    policy::Grant,
    secret::S3Secret,
};

/// The facts of a lease. Leases of one member, half and audience share one value.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    /// The tenant of the job.
    pub tenant: TenantName,
    /// The job of the holder.
    pub job: JobId,
    /// The attempt of that job.
    pub attempt: AttemptNumber,
    /// The member of that attempt.
    pub instance: InstanceName,
    /// The SPIFFE ID of the member: the `sub` of the tokens.
    pub holder: SpiffeId,
    /// The half of the job's access to which the lease belongs.
    pub half: Half,
    /// The resource server: the `aud` of the tokens.
    pub audience: SpiffeId,
    /// The resources that the lease opens at the audience, and the actions on each.
    pub scopes: Arc<[Scope]>,
}

impl Facts {
    /// Shares the scopes of another lease of the job if they are equal. This saves memory, because most members ask for
    /// the same scopes.
    pub(super) fn share(&mut self, others: &Facts) {
        if self.scopes == others.scopes {
            self.scopes = others.scopes.clone();
        }
    }
}

/// The terms of a new lease.
#[derive(Debug)]
pub struct Terms {
    /// The id of the lease: 128 random bits.
    pub id: LeaseId,
    /// The begin of the lease.
    pub issued: LeaseTime,
    /// The end of the lease unless it is renewed, exclusive.
    pub deadline: LeaseTime,
    /// The latest end of the lease, also after renewals.
    pub latest: LeaseTime,
    /// The facts of the lease.
    pub facts: Arc<Facts>,
    /// The secret of its S3 key, if clients without an SVID may use it.
    pub s3_secret: Option<Box<S3Secret>>,
}

/// A lease: a bounded right to resources.
#[derive(Debug)]
pub struct Lease {
    /// The id of the lease: 128 random bits.
    pub id: LeaseId,
    pub(super) cell: LeaseCell,
    pub(super) stand: Stand,
    newest_token_digest: NewestTokenDigest,
    /// The begin of the lease.
    pub issued: LeaseTime,
    /// The latest end of the lease, also after renewals.
    pub latest: LeaseTime,
    /// The facts of the lease.
    pub facts: Arc<Facts>,
    /// The secret of its S3 key, if it has one. The secret is stored only here, so it is wiped with the lease.
    pub s3_secret: Option<Box<S3Secret>>,
}

impl Lease {
    /// Makes a lease that is not in the table yet.
    pub(super) fn new(stand: Stand, terms: Terms) -> Self {
        let Terms { id, issued, deadline, latest, facts, s3_secret } = terms;
        Lease {
            id,
            cell: LeaseCell::new(deadline.min(latest)),
            stand,
            newest_token_digest: NewestTokenDigest::none(),
            issued,
            latest,
            facts,
            s3_secret,
        }
    }

    /// Checks that the lease is valid at `now`. The check takes no lock and only a few loads.
    ///
    /// # Errors
    ///
    /// The lease ended or expired, or one of its fences was lowered.
    pub fn check(&self, now: LeaseTime) -> Result<(), LeaseRefused> {
        self.cell.check(now)?;
        if self.stand.is_up() { Ok(()) } else { Err(LeaseRefused::Lowered) }
    }

    /// Returns the end of the lease unless it is renewed, exclusive.
    pub fn deadline(&self) -> LeaseTime {
        self.cell.deadline()
    }

    /// Returns the number of renewals.
    pub fn generation(&self) -> u32 {
        self.cell.generation()
    }

    /// Returns the stand with the fences that can end the lease.
    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// Keeps the SHA-256 of the token that was just signed for this lease.
    pub fn set_newest_token_digest(&self, digest: &[u8; 32]) {
        self.newest_token_digest.set(digest);
    }

    /// Returns true if this is the SHA-256 of the newest token of the lease. If it returns false, the token can still be a token
    /// of this lease: an earlier one, or one of two that were signed at the same time.
    pub fn is_newest_token_digest(&self, digest: &[u8; 32]) -> bool {
        self.newest_token_digest.is(digest)
    }

    /// Sets a new deadline after a new decision, never past the latest end of the lease. The lease keeps its stand.
    ///
    /// `generation` is the generation of the prepared credential. If another renewal made this generation first,
    /// nothing changes.
    ///
    /// # Errors
    ///
    /// The lease is no longer valid, cannot be renewed further, or another renewal came first.
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
        // If a fence was lowered meanwhile, the lease has ended before its deadline, and the caller must know this.
        if self.stand.is_up() { Ok(()) } else { Err(LeaseRefused::Lowered) }
    }
}

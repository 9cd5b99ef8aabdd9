//! The answers of the engine: grants, gates, denials.

use std::fmt;

use crate::{
    fence::{Revision, Stand},
    job::Gate,
    name::{Action, Digest, Object, SpiffeId, TenantName},
    reason::Refusal,
};

/// One action of a [`Bundle`](super::Bundle) (a *part*), and the rules that decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub action: Action,
    /// The resource, or the folder of another job.
    pub resource: Object,
    /// The ids of the rules, sorted.
    pub rules: Vec<String>,
    /// Set if the part was allowed only because the job's tenant is observed: policy decides about its jobs, but
    /// refuses nothing. The value is the verdict of policy, `deny` or `wait`.
    pub observed: Option<&'static str>,
    /// Ids of the rules that could apply to the part, but did not because of a waiver.
    pub waived: Vec<String>,
}

impl Decided {
    /// Returns about how many bytes it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let texts =
            self.rules.iter().chain(&self.waived).map(|id| id.len().saturating_add(size_of::<String>()));
        let resource = self.resource.resource().as_str().len();
        texts.fold(size_of::<Self>().saturating_add(resource), usize::saturating_add)
    }
}

/// `read_dataset dataset:acme/tickets@v3: trainer-reads-own-or-shared-data`, as the ledger has it.
impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.action, self.resource, self.rules.join(", "))?;
        if !self.waived.is_empty() {
            write!(f, " (waived: {})", self.waived.join(", "))?;
        }
        self.observed.map_or(Ok(()), |said| write!(f, " (observed: {said})"))
    }
}

/// The verdict of policy on a bundle. Gives no access by itself.
#[derive(Clone, Debug)]
pub enum Verdict {
    Allow {
        parts: Vec<Decided>,
    },
    /// Policy allows the bundle after people approve at these gates.
    Wait {
        gates: Vec<Gate>,
        parts: Vec<Decided>,
    },
    Deny {
        refusal: Refusal,
        /// The ids of the rules that denied. Empty if no rule permitted. For operators and the ledger.
        rules: Vec<String>,
    },
}

/// The verdict of policy on a call.
#[derive(Clone, Debug)]
pub enum CallVerdict {
    /// The call is allowed. Has the ids of the rules that permit the call.
    Allow(Vec<String>),
    /// Only gates prevent the call. Only calls that change the rules have gates.
    Wait {
        gates: Vec<Gate>,
        /// The ids of the gates, and of the rules that permit the call after approval.
        rules: Vec<String>,
    },
    Deny {
        refusal: Refusal,
        /// The ids of the rules that denied.
        rules: Vec<String>,
    },
}

/// The decision on a request. Each decision has the stand of the request: the state of its fences, which was read
/// before policy decided.
#[derive(Debug)]
pub enum Decision {
    /// The request is allowed.
    Grant(Grant),
    /// The request is allowed after people approve.
    Waiting {
        /// The approvals that are missing.
        gates: Vec<Gate>,
        /// The parts that are allowed after approval.
        parts: Vec<Decided>,
        /// The fences that were read first.
        stand: Stand,
    },
    /// The request is denied.
    Denied {
        /// The answer to the caller.
        refusal: Refusal,
        /// The ids of the rules that denied. Empty if no rule permitted.
        rules: Vec<String>,
        /// The fences that were read first.
        stand: Stand,
    },
}

/// Proof that policy allowed exactly these parts, for the fences in `stand`. Only the engine makes a grant. Each grant
/// becomes one lease.
#[derive(Debug)]
#[must_use = "a grant is made to be turned into a lease"]
pub struct Grant {
    parts: GrantParts,
}

/// The content of a [`Grant`].
#[derive(Debug)]
pub struct GrantParts {
    pub holder: SpiffeId,
    pub tenant: TenantName,
    pub job: String,
    pub attempt: u64,
    pub granted: Vec<Decided>,
    /// The digest of the policy that decided.
    pub policy: Digest,
    /// The digest of the catalog that decided.
    pub catalog: Digest,
    pub stand: Stand,
    /// The revision that was read before the stand was taken.
    pub revision: Revision,
}

impl Grant {
    pub(super) fn new(parts: GrantParts) -> Self {
        Grant { parts }
    }

    /// Makes a grant without policy, for tests and for the model checkers (loom, shuttle). Not in builds that ship.
    #[cfg(any(test, feature = "loom", feature = "shuttle"))]
    #[expect(clippy::unwrap_used, reason = "two names that are valid")]
    pub fn for_test(stand: Stand, revision: Revision) -> Self {
        let (holder, tenant) = ("spiffe://td.example/holder".parse().unwrap(), "acme".parse().unwrap());
        let (policy, catalog) = (Digest::ZERO, Digest::ZERO);
        let (job, attempt, granted) = (String::new(), 1, Vec::new());
        Grant::new(GrantParts { holder, tenant, job, attempt, granted, policy, catalog, stand, revision })
    }

    /// Returns the identity that may have the lease.
    pub fn holder(&self) -> &SpiffeId {
        &self.parts.holder
    }

    /// Returns the tenant of the job.
    pub fn tenant(&self) -> &TenantName {
        &self.parts.tenant
    }

    /// Returns the id of the job.
    pub fn job(&self) -> &str {
        &self.parts.job
    }

    /// Returns the number of the attempt. 0 before the first attempt.
    pub fn attempt(&self) -> u64 {
        self.parts.attempt
    }

    /// Returns the allowed parts, each with the rules that allowed it.
    pub fn granted(&self) -> &[Decided] {
        &self.parts.granted
    }

    /// Returns the digest of the policy that decided.
    pub fn policy(&self) -> Digest {
        self.parts.policy
    }

    /// Returns the digest of the catalog that decided.
    pub fn catalog(&self) -> Digest {
        self.parts.catalog
    }

    /// Returns the stand that the lease will have.
    pub fn stand(&self) -> &Stand {
        &self.parts.stand
    }

    /// Returns the revision that was read before the stand was taken.
    pub fn revision(&self) -> Revision {
        self.parts.revision
    }

    /// Returns the content of the grant, to make the lease.
    pub fn into_parts(self) -> GrantParts {
        self.parts
    }
}

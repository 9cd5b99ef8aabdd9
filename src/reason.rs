//! Why something was refused: a closed list of stable codes, the same on the wire, in metrics and in the ledger, and the
//! [`Refusal`] that carries one with the words for the person who meets it.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// The `domain` of every `ErrorInfo` that leasehold makes.
pub const ERROR_DOMAIN: &str = "leasehold";

/// What can be done about [`Reason::ApprovalRequired`] in this version.
#[cfg(feature = "server")]
pub(crate) const APPROVALS_ABSENT: &str = "this version has no command to approve a job: ask for what the rule lets pass without \
                                           approval, or have the owners of the policy change the rule";

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident = $code:literal, )*) => {
        /// A stable code for each refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $( $(#[$doc])* #[serde(rename = $code)] $variant, )* }

        impl Reason {
            /// All of them, in order.
            pub const ALL: &'static [Reason] = &[ $(Reason::$variant,)* ];

            /// The code, as in `ErrorInfo.reason`.
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$variant => $code,)* }
            }

            pub fn parse(code: &str) -> Option<Self> {
                match code { $($code => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    // ---------- who is calling ----------
    /// The connection has no client certificate.
    NoClientCertificate = "NO_CLIENT_CERTIFICATE",
    /// The client certificate is not an X.509-SVID.
    SvidInvalid = "SVID_INVALID",
    /// The SVID's validity is over, or has not begun.
    SvidExpired = "SVID_EXPIRED",
    /// No bundle for the SVID's trust domain is configured.
    TrustDomainUnknown = "TRUST_DOMAIN_UNKNOWN",
    /// The SVID does not chain to its own trust domain's roots.
    SvidUntrusted = "SVID_UNTRUSTED",
    /// No catalog entry matches the caller.
    PrincipalUnknown = "PRINCIPAL_UNKNOWN",
    /// The caller's kind may not call this.
    KindNotAllowed = "KIND_NOT_ALLOWED",

    // ---------- what was asked ----------
    /// A field is not in the form it must have.
    FieldInvalid = "FIELD_INVALID",
    /// A required field is absent.
    FieldMissing = "FIELD_MISSING",
    /// A life of zero, below zero, or beyond every limit.
    TtlInvalid = "TTL_INVALID",
    /// A message larger than the daemon reads.
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    /// Known, but not served by this daemon.
    NotSupported = "NOT_SUPPORTED",
    /// No such job, or not one that the caller may know of.
    JobNotFound = "JOB_NOT_FOUND",
    /// The job has no such attempt.
    AttemptNotFound = "ATTEMPT_NOT_FOUND",
    /// No such lease, or not one that the caller may know of.
    LeaseNotFound = "LEASE_NOT_FOUND",
    /// No such dataset, model or checkpoint line, or not one that the caller may know of.
    ResourceNotFound = "RESOURCE_NOT_FOUND",
    /// No such lock.
    LockNotFound = "LOCK_NOT_FOUND",
    /// Nothing has the name that was to be revoked or locked.
    NameUnknown = "NAME_UNKNOWN",
    /// A lock would shut operators out, and that was not confirmed.
    OperatorsLockedOut = "OPERATORS_LOCKED_OUT",
    /// The caller does not verify for this audience, or the job has none by this name.
    AudienceUnknown = "AUDIENCE_UNKNOWN",
    /// The pin that the caller relies on is not the catalog's.
    PinMismatch = "PIN_MISMATCH",

    // ---------- what policy says ----------
    /// A rule forbids it, or none permits it.
    PolicyDenied = "POLICY_DENIED",
    /// A rule could not be evaluated, which denies.
    PolicyError = "POLICY_ERROR",
    /// People must approve first.
    ApprovalRequired = "APPROVAL_REQUIRED",
    /// A lock stands.
    Locked = "LOCKED",

    // ---------- jobs, attempts, members ----------
    /// The job is over.
    JobClosed = "JOB_CLOSED",
    /// One idempotency key, two specifications.
    IdempotencyConflict = "IDEMPOTENCY_CONFLICT",
    /// A newer attempt has begun.
    AttemptStale = "ATTEMPT_STALE",
    /// The attempt is over.
    AttemptEnded = "ATTEMPT_ENDED",
    /// The attempt key belongs to an attempt that ended.
    AttemptKeyUsed = "ATTEMPT_KEY_USED",
    /// The attempt before is still draining.
    AttemptDraining = "ATTEMPT_DRAINING",
    /// The job has used all of its attempts.
    AttemptsExhausted = "ATTEMPTS_EXHAUSTED",
    /// The move is not legal in this state.
    StateConflict = "STATE_CONFLICT",
    /// The job does not name this identity.
    NotAMember = "NOT_A_MEMBER",
    /// The member is not joined now.
    NotJoined = "NOT_JOINED",
    /// The session secret is not that of this member.
    SessionMismatch = "SESSION_MISMATCH",
    /// Another participant holds this instance name.
    InstanceTaken = "INSTANCE_TAKEN",
    /// The identity is shared between jobs and brought no ticket, or a wrong one.
    TicketRequired = "TICKET_REQUIRED",
    /// The identity belongs to one job alone, and that is another one.
    IdentityBound = "IDENTITY_BOUND",
    /// The attempt has as many members as it may.
    MembersFull = "MEMBERS_FULL",

    // ---------- leases ----------
    /// The lease's time is over.
    LeaseExpired = "LEASE_EXPIRED",
    /// The lease was released or ended.
    LeaseEnded = "LEASE_ENDED",
    /// What the lease depends on was revoked.
    Revoked = "REVOKED",
    /// As many as there may be.
    QuotaExceeded = "QUOTA_EXCEEDED",

    // ---------- tokens ----------
    /// Not a token of the form that this issuer makes.
    TokenMalformed = "TOKEN_MALFORMED",
    /// Signed with a key that is not known.
    TokenKeyUnknown = "TOKEN_KEY_UNKNOWN",
    /// The signature is not that of its key.
    TokenSignature = "TOKEN_SIGNATURE",
    /// Another issuer's.
    TokenIssuer = "TOKEN_ISSUER",
    /// For another audience.
    TokenAudience = "TOKEN_AUDIENCE",
    /// Its time is over.
    TokenExpired = "TOKEN_EXPIRED",
    /// Its time has not begun.
    TokenNotYetValid = "TOKEN_NOT_YET_VALID",
    /// Presented by somebody else than its subject.
    TokenPresenter = "TOKEN_PRESENTER",
    /// Bound to another certificate.
    TokenCertificate = "TOKEN_CERTIFICATE",
    /// Of another life of the daemon.
    TokenEpoch = "TOKEN_EPOCH",
    /// Does not open this resource for this action.
    TokenScope = "TOKEN_SCOPE",

    // ---------- feeds ----------
    /// The fence feed is too old to decide by.
    FeedStale = "FEED_STALE",
    /// The verifier's clock and the daemon's differ too much.
    ClockDifference = "CLOCK_DIFFERENCE",
    /// The daemon has started anew.
    EpochChanged = "EPOCH_CHANGED",
    /// The consumer fell behind and must start over.
    FellBehind = "FELL_BEHIND",

    // ---------- the daemon ----------
    /// The record could not be written, so nothing was given.
    LedgerUnavailable = "LEDGER_UNAVAILABLE",
    /// No SVID to be met by, or none that may be used any more.
    IdentityUnavailable = "IDENTITY_UNAVAILABLE",
    /// A new catalog was not taken.
    CatalogInvalid = "CATALOG_INVALID",
    /// Too many changes at once; try again.
    Contended = "CONTENDED",
    /// Too much work at once; try again later.
    Overloaded = "OVERLOADED",
    /// The daemon is stopping; connect again.
    ShuttingDown = "SHUTTING_DOWN",
    /// The daemon cannot be reached. Made by clients only.
    Unreachable = "UNREACHABLE",
    /// A fault of the daemon. The log has the cause.
    Internal = "INTERNAL",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A refusal, in the words that the one who is refused reads.
///
/// `text` says in one lower-case line what was wrong with what. `facts` are short labelled lines below it: `rule` what
/// decided, `fix` what would change it. Nothing in it is the cause of an internal failure: that goes to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub text: Cow<'static, str>,
    pub facts: Vec<(Cow<'static, str>, String)>,
}

impl Refusal {
    pub fn new(reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Refusal { reason, text: text.into(), facts: Vec::new() }
    }

    /// Adds a labelled line.
    #[must_use]
    pub fn with(mut self, label: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.facts.push((label.into(), value.into()));
        self
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn fix(self, value: impl Into<String>) -> Self {
        self.with("fix", value)
    }

    /// The value of a labelled line.
    pub fn fact(&self, label: &str) -> Option<&str> {
        self.facts.iter().find(|(l, _)| l == label).map(|(_, v)| v.as_str())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back_from_its_code() {
        for r in Reason::ALL {
            assert_eq!(Reason::parse(r.code()), Some(*r));
            assert!(r.code().chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{r}");
        }
        assert_eq!(Reason::parse("NOPE"), None);
    }
}

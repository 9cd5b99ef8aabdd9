//! The reasons of refusals: a closed list of stable codes. They are the same on the wire, in metrics and in the ledger.
//! A [`Refusal`] has a reason and a text for its reader.

use std::{borrow::Cow, collections::HashMap, fmt, time::Duration};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `domain` of every `ErrorInfo` from leasehold.
pub const ERROR_DOMAIN: &str = "leasehold";

/// The advice for [`Reason::ApprovalRequired`].
#[cfg(feature = "server")]
pub(crate) const ASK_APPROVERS: &str = "people of these groups approve it: leasehold approve JOB --reason TEXT; `leasehold job show JOB` shows the missing approvals";

/// The class of a refusal. It determines the exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A failure that is in no other class.
    Failure,
    /// The caller may not do this.
    Denied,
    /// People must approve first.
    AwaitingApproval,
    /// The job, attempt or lease is over, or a newer attempt has begun.
    Ended,
    /// A change could not be written to disk, or a check could not be made safely.
    NotDurable,
    /// A token or another proof failed its check.
    VerificationFailed,
    /// The request is malformed.
    Usage,
}

/// The next step of a running member when one of its requests is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberStep {
    /// Try again later. Nothing was decided, or the member's SVID may be renewed by then.
    TryLater,
    /// Join again, because the daemon does not see the member as joined.
    Rejoin,
    /// Ask for another lease, because this lease is over.
    ReplaceLease,
    /// Stop reading or stop writing, because this half of the access is over for the attempt.
    StopHalf,
    /// Stop, because the access is over.
    Stop,
}

/// Whether the daemon decided the request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finality {
    /// The request was not decided. It may succeed a moment later.
    Undecided,
    /// The request was decided. It would be refused again.
    Refused,
    /// The request was decided, and the ledger records the refusal as a denial.
    Recorded,
}

/// The properties of a reason: one row of the table below.
struct Row {
    code: &'static str,
    grpc: Code,
    http: StatusCode,
    class: Class,
    finality: Finality,
    member: MemberStep,
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident = $code:literal: $grpc:ident, $http:ident, $class:ident, $finality:ident, $member:ident; )*) => {
        /// A stable code for each refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $( $(#[$doc])* #[serde(rename = $code)] $variant, )* }

        impl Reason {
            /// All reasons, in order.
            pub const ALL: &'static [Reason] = &[ $(Reason::$variant,)* ];

            /// Reads a [`code`](Self::code). Returns `None` if this build does not know it.
            pub fn parse(code: &str) -> Option<Self> {
                match code { $($code => Some(Reason::$variant),)* _ => None }
            }

            const fn row(self) -> &'static Row {
                match self {
                    $(Reason::$variant => const { &Row {
                        code: $code,
                        grpc: Code::$grpc,
                        http: StatusCode::$http,
                        class: Class::$class,
                        finality: Finality::$finality,
                        member: MemberStep::$member,
                    } },)*
                }
            }
        }
    };
}

// reason = code: gRPC code, HTTP status, class, whether it was decided, what a running member does
reasons! {
    // ---------- the caller ----------
    /// The connection has no client certificate.
    NoClientCertificate = "NO_CLIENT_CERTIFICATE": Unauthenticated, UNAUTHORIZED, Denied, Refused, TryLater;
    /// The client certificate is not an X.509-SVID.
    SvidInvalid = "SVID_INVALID": Unauthenticated, UNAUTHORIZED, Denied, Refused, TryLater;
    /// The SVID has expired, or is not valid yet.
    SvidExpired = "SVID_EXPIRED": Unauthenticated, UNAUTHORIZED, Denied, Refused, TryLater;
    /// No bundle for the SVID's trust domain is configured.
    TrustDomainUnknown = "TRUST_DOMAIN_UNKNOWN": Unauthenticated, UNAUTHORIZED, Denied, Refused, TryLater;
    /// The SVID does not chain to its own trust domain's roots.
    SvidUntrusted = "SVID_UNTRUSTED": Unauthenticated, UNAUTHORIZED, Denied, Refused, TryLater;
    /// No catalog entry matches the caller.
    PrincipalUnknown = "PRINCIPAL_UNKNOWN": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// The caller's kind may not call this.
    KindNotAllowed = "KIND_NOT_ALLOWED": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;

    /// The proof of a person's login is not accepted, or the person may not log in.
    LoginRefused = "LOGIN_REFUSED": Unauthenticated, FORBIDDEN, Denied, Refused, TryLater;
    /// The login of the person is over: log in again.
    LoginRequired = "LOGIN_REQUIRED": Unauthenticated, UNAUTHORIZED, Denied, Refused, TryLater;
    /// The identity provider of people gave no usable answer.
    ProviderUnavailable = "PROVIDER_UNAVAILABLE": Unavailable, SERVICE_UNAVAILABLE, Failure, Undecided, TryLater;

    // ---------- the request ----------
    /// A field has an invalid value.
    FieldInvalid = "FIELD_INVALID": InvalidArgument, BAD_REQUEST, Usage, Refused, TryLater;
    /// A required field is absent.
    FieldMissing = "FIELD_MISSING": InvalidArgument, BAD_REQUEST, Usage, Refused, TryLater;
    /// A duration of zero, below zero, or beyond the limit.
    TtlInvalid = "TTL_INVALID": InvalidArgument, BAD_REQUEST, Usage, Refused, TryLater;
    /// The message is larger than the daemon reads.
    MessageTooLarge = "MESSAGE_TOO_LARGE": InvalidArgument, PAYLOAD_TOO_LARGE, Failure, Refused, TryLater;
    /// This daemon does not support the request.
    NotSupported = "NOT_SUPPORTED": Unimplemented, METHOD_NOT_ALLOWED, Failure, Refused, TryLater;
    /// No such job, or the caller may not know of it.
    JobNotFound = "JOB_NOT_FOUND": NotFound, NOT_FOUND, Failure, Recorded, Stop;
    /// The job has no such attempt.
    AttemptNotFound = "ATTEMPT_NOT_FOUND": NotFound, NOT_FOUND, Failure, Refused, Stop;
    /// No such lease, or the caller may not know of it.
    LeaseNotFound = "LEASE_NOT_FOUND": NotFound, NOT_FOUND, Failure, Recorded, ReplaceLease;
    /// No such dataset, model or checkpoint line, or the caller may not know of it.
    ResourceNotFound = "RESOURCE_NOT_FOUND": NotFound, NOT_FOUND, Failure, Recorded, Stop;
    /// No such lock.
    LockNotFound = "LOCK_NOT_FOUND": NotFound, NOT_FOUND, Failure, Refused, TryLater;
    /// Nothing has the name that was to be revoked or locked.
    NameUnknown = "NAME_UNKNOWN": NotFound, NOT_FOUND, Failure, Refused, TryLater;
    /// A lock would shut operators out, and that was not confirmed.
    OperatorsLockedOut = "OPERATORS_LOCKED_OUT": FailedPrecondition, CONFLICT, Denied, Refused, TryLater;
    /// The caller does not verify for this audience, or the job has no such audience.
    AudienceUnknown = "AUDIENCE_UNKNOWN": NotFound, NOT_FOUND, Failure, Recorded, Stop;
    /// The caller's pin differs from the catalog's.
    PinMismatch = "PIN_MISMATCH": FailedPrecondition, CONFLICT, Denied, Recorded, Stop;
    /// The job reads checkpoints of another job that are quarantined, or that come from data that is no longer shared.
    CheckpointQuarantined = "CHECKPOINT_QUARANTINED": FailedPrecondition, CONFLICT, Denied, Recorded, Stop;

    // ---------- policy ----------
    /// A rule forbids the act, or no rule permits it.
    PolicyDenied = "POLICY_DENIED": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// A rule could not be evaluated. That denies the request.
    PolicyError = "POLICY_ERROR": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// People must approve first.
    ApprovalRequired = "APPROVAL_REQUIRED": FailedPrecondition, CONFLICT, AwaitingApproval, Recorded, Stop;
    /// The caller is in none of the groups that may approve at the gates of the job or the change.
    NotAnApprover = "NOT_AN_APPROVER": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// The caller is involved in the job, or proposed the change of the rules, so another person must approve it.
    ApproverInvolved = "APPROVER_INVOLVED": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// The request that the caller approved differs from the job's request.
    RequestMismatch = "REQUEST_MISMATCH": FailedPrecondition, CONFLICT, Denied, Recorded, Stop;
    /// A lock is in force.
    Locked = "LOCKED": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;

    // ---------- jobs, attempts, members ----------
    /// The job is over.
    JobClosed = "JOB_CLOSED": FailedPrecondition, CONFLICT, Ended, Refused, Stop;
    /// The idempotency key was used with another specification.
    IdempotencyConflict = "IDEMPOTENCY_CONFLICT": AlreadyExists, CONFLICT, Failure, Refused, TryLater;
    /// A newer attempt has begun.
    AttemptStale = "ATTEMPT_STALE": FailedPrecondition, CONFLICT, Ended, Recorded, Stop;
    /// The attempt is over.
    AttemptEnded = "ATTEMPT_ENDED": FailedPrecondition, CONFLICT, Ended, Refused, Stop;
    /// The attempt key belongs to an attempt that ended.
    AttemptKeyUsed = "ATTEMPT_KEY_USED": FailedPrecondition, CONFLICT, Ended, Refused, TryLater;
    /// The previous attempt is still draining.
    AttemptDraining = "ATTEMPT_DRAINING": FailedPrecondition, CONFLICT, Failure, Refused, StopHalf;
    /// The job has used all of its attempts.
    AttemptsExhausted = "ATTEMPTS_EXHAUSTED": FailedPrecondition, CONFLICT, Ended, Refused, TryLater;
    /// The state does not allow the change.
    StateConflict = "STATE_CONFLICT": FailedPrecondition, CONFLICT, Failure, Refused, TryLater;
    /// The job does not name this identity.
    NotAMember = "NOT_A_MEMBER": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// The member is not joined now.
    NotJoined = "NOT_JOINED": FailedPrecondition, CONFLICT, Ended, Refused, Rejoin;
    /// The session secret is not this member's.
    SessionMismatch = "SESSION_MISMATCH": PermissionDenied, FORBIDDEN, Denied, Recorded, Rejoin;
    /// Another participant has this instance name.
    InstanceTaken = "INSTANCE_TAKEN": AlreadyExists, CONFLICT, Failure, Recorded, Stop;
    /// The identity is shared between jobs, and the ticket is missing or wrong.
    TicketRequired = "TICKET_REQUIRED": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// The identity may be used by one job only, and another job has it.
    IdentityBound = "IDENTITY_BOUND": PermissionDenied, FORBIDDEN, Denied, Recorded, Stop;
    /// The attempt has its greatest number of members.
    MembersFull = "MEMBERS_FULL": ResourceExhausted, TOO_MANY_REQUESTS, Failure, Refused, Stop;

    // ---------- leases ----------
    /// The lease has expired.
    LeaseExpired = "LEASE_EXPIRED": FailedPrecondition, CONFLICT, Ended, Refused, ReplaceLease;
    /// The lease was released or ended.
    LeaseEnded = "LEASE_ENDED": FailedPrecondition, CONFLICT, Ended, Refused, ReplaceLease;
    /// What the lease depends on was revoked.
    Revoked = "REVOKED": FailedPrecondition, FORBIDDEN, Ended, Refused, ReplaceLease;
    /// A quota is used up.
    QuotaExceeded = "QUOTA_EXCEEDED": ResourceExhausted, TOO_MANY_REQUESTS, Failure, Recorded, TryLater;

    // ---------- tokens ----------
    /// The token does not have this issuer's form.
    TokenMalformed = "TOKEN_MALFORMED": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token is signed with an unknown key.
    TokenKeyUnknown = "TOKEN_KEY_UNKNOWN": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token's signature is wrong.
    TokenSignature = "TOKEN_SIGNATURE": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token is from another issuer.
    TokenIssuer = "TOKEN_ISSUER": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token is for another audience.
    TokenAudience = "TOKEN_AUDIENCE": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token has expired.
    TokenExpired = "TOKEN_EXPIRED": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token is not valid yet.
    TokenNotYetValid = "TOKEN_NOT_YET_VALID": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The presenter is not the token's subject.
    TokenPresenter = "TOKEN_PRESENTER": PermissionDenied, FORBIDDEN, VerificationFailed, Refused, TryLater;
    /// The token is bound to another certificate.
    TokenCertificate = "TOKEN_CERTIFICATE": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token was issued before the daemon's last restart.
    TokenEpoch = "TOKEN_EPOCH": PermissionDenied, UNAUTHORIZED, VerificationFailed, Refused, TryLater;
    /// The token does not allow this action on this resource.
    TokenScope = "TOKEN_SCOPE": PermissionDenied, FORBIDDEN, VerificationFailed, Refused, TryLater;

    // ---------- feeds ----------
    /// The fence feed is too old for a decision.
    FeedStale = "FEED_STALE": Unavailable, SERVICE_UNAVAILABLE, NotDurable, Refused, TryLater;
    /// The verifier's clock and the daemon's differ too much.
    ClockDifference = "CLOCK_DIFFERENCE": Unavailable, SERVICE_UNAVAILABLE, NotDurable, Refused, TryLater;
    /// The daemon was restarted.
    EpochChanged = "EPOCH_CHANGED": FailedPrecondition, CONFLICT, Ended, Refused, ReplaceLease;
    /// The consumer fell behind and must start over.
    FellBehind = "FELL_BEHIND": DataLoss, SERVICE_UNAVAILABLE, Failure, Refused, TryLater;

    // ---------- the daemon ----------
    /// The record could not be written, so no access was given.
    LedgerUnavailable = "LEDGER_UNAVAILABLE": Unavailable, SERVICE_UNAVAILABLE, NotDurable, Undecided, TryLater;
    /// There is no valid SVID: the daemon cannot accept connections, or the client cannot connect.
    IdentityUnavailable = "IDENTITY_UNAVAILABLE": Unavailable, SERVICE_UNAVAILABLE, Failure, Undecided, TryLater;
    /// A new catalog was rejected.
    CatalogInvalid = "CATALOG_INVALID": InvalidArgument, BAD_REQUEST, Failure, Refused, TryLater;
    /// Too many changes at once. Try again.
    Contended = "CONTENDED": Aborted, SERVICE_UNAVAILABLE, Failure, Undecided, TryLater;
    /// Too much work at once; try again later.
    Overloaded = "OVERLOADED": ResourceExhausted, TOO_MANY_REQUESTS, Failure, Undecided, TryLater;
    /// The daemon is stopping; connect again.
    ShuttingDown = "SHUTTING_DOWN": Unavailable, SERVICE_UNAVAILABLE, Failure, Undecided, TryLater;
    /// The daemon cannot be reached. Made by clients only.
    Unreachable = "UNREACHABLE": Unavailable, SERVICE_UNAVAILABLE, Failure, Undecided, TryLater;
    /// A fault of the daemon. The log has the cause.
    Internal = "INTERNAL": Internal, INTERNAL_SERVER_ERROR, Failure, Undecided, TryLater;
}

impl Reason {
    /// Returns the code, as it is in `ErrorInfo.reason`.
    pub const fn code(self) -> &'static str {
        self.row().code
    }

    /// Returns the code of a gRPC status with this reason.
    pub const fn grpc_code(self) -> Code {
        self.row().grpc
    }

    /// Returns the status of an HTTP response with this reason. For a refused token or certificate, it is 401 if another one may
    /// be accepted, 403 if another one would be refused too, and 503 if this is not known now.
    pub const fn http_status(self) -> StatusCode {
        self.row().http
    }

    /// Returns the class of the refusal.
    pub const fn class(self) -> Class {
        self.row().class
    }

    /// Whether the same request may succeed a moment later, because nothing was decided.
    pub fn is_passing(self) -> bool {
        self.row().finality == Finality::Undecided
    }

    /// Whether the ledger records a refusal with this reason as a denial.
    pub fn is_denial(self) -> bool {
        self.row().finality == Finality::Recorded
    }

    /// Returns the next step of a running member.
    pub const fn member_step(self) -> MemberStep {
        self.row().member
    }

    /// Returns the nearest reason for a gRPC code without a reason.
    pub const fn of_code(code: Code) -> Self {
        match code {
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => {
                Reason::Unreachable
            }
            Code::Unauthenticated => Reason::SvidUntrusted,
            Code::PermissionDenied => Reason::PolicyDenied,
            Code::InvalidArgument => Reason::FieldInvalid,
            Code::ResourceExhausted => Reason::Overloaded,
            Code::Unimplemented => Reason::NotSupported,
            Code::FailedPrecondition => Reason::StateConflict,
            _ => Reason::Internal,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A refusal with a text for its reader.
///
/// `text` is one lower-case line about the problem. `facts` are short labelled lines below it: `rule` names the rule
/// that decided, and `fix` says what to do. The cause of an internal failure is only in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub reason: Reason,
    /// One lower-case line that states the problem and the value.
    pub text: Cow<'static, str>,
    /// Labelled lines, in the order in which they are shown.
    pub facts: Vec<(Cow<'static, str>, String)>,
}

impl Refusal {
    /// Makes a refusal without labelled lines.
    pub fn new(reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Refusal { reason, text: text.into(), facts: Vec::new() }
    }

    /// Adds a labelled line.
    #[must_use]
    pub fn with(mut self, label: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.facts.push((label.into(), value.into()));
        self
    }

    /// Adds advice for the reader.
    #[must_use]
    pub fn fix(self, value: impl Into<String>) -> Self {
        self.with("fix", value)
    }

    /// Returns the value of a labelled line.
    pub fn fact(&self, label: &str) -> Option<&str> {
        self.facts.iter().find(|(l, _)| l == label).map(|(_, v)| v.as_str())
    }

    /// Returns the gRPC status of the refusal: the text as the message, the reason and the facts as `ErrorInfo`.
    pub fn status(&self) -> Status {
        let mut facts: HashMap<String, String> = HashMap::new();
        for (label, value) in &self.facts {
            facts
                .entry(label.to_string())
                .and_modify(|v| {
                    v.push('\n');
                    v.push_str(value);
                })
                .or_insert_with(|| value.clone());
        }
        let retry_after = facts.get("retry_after").and_then(|t| t.strip_suffix('s')?.parse().ok());
        let mut details = ErrorDetails::with_error_info(self.reason.code(), ERROR_DOMAIN, facts);
        if let Some(seconds) = retry_after {
            details.set_retry_info(Some(Duration::from_secs(seconds)));
        }
        Status::with_error_details(self.reason.grpc_code(), self.text.to_string(), details)
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

    #[test]
    fn every_reason_has_a_code_that_is_not_ok() {
        for r in Reason::ALL {
            assert_ne!(r.grpc_code(), Code::Ok, "{r}");
            let s = Refusal::new(*r, "text").with("rule", "a").with("rule", "b").fix("c").status();
            let info = s.get_error_details().error_info().cloned().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (r.code(), "leasehold"));
            assert_eq!(info.metadata["rule"], "a\nb");
        }
    }

    #[test]
    fn the_retry_delay_is_sent_as_google_rpc_clients_read_it() {
        let refusal = Refusal::new(Reason::Overloaded, "too often").with("retry_after", "7s");
        let retry = refusal.status().get_error_details().retry_info().cloned().unwrap();
        assert_eq!(retry.retry_delay, Some(Duration::from_secs(7)));
    }
}

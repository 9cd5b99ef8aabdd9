//! The reasons for which a transition is not legal.

use crate::{
    name::{AttemptNumber, InstanceName, Outcome, SpiffeId},
    reason::Reason,
};

/// The reason for which a transition is not legal now. The refusal shows the `Display` text to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    #[error("the job is closed: {0}")]
    JobClosed(Outcome),
    #[error("the job waits for approval")]
    AwaitingApproval,
    #[error("the job waits for no approval")]
    NoGates,
    #[error("no gate of the job is called `{0}`")]
    NoGate(String),
    #[error("the same person approved at {0} as {1}")]
    SameHuman(String, SpiffeId),
    #[error("the job has reached its limit of approvals: {0}")]
    TooManyApprovals(usize),
    #[error("the job has begun")]
    Begun,
    #[error("the job has no attempt {0}")]
    NoAttempt(AttemptNumber),
    #[error("attempt {0} is not the current one: attempt {1} has begun")]
    Stale(AttemptNumber, AttemptNumber),
    #[error("attempt {0} is over: {1}")]
    Ended(AttemptNumber, Outcome),
    #[error("the key belongs to attempt {0}, which is over")]
    KeyUsed(AttemptNumber),
    #[error("attempt {0} began with this key and without these members")]
    OtherMembers(AttemptNumber),
    #[error("attempt {0} is still draining; set `supersede` to end it now")]
    Draining(AttemptNumber),
    #[error("the job has used all of its attempts: {0}")]
    AttemptsExhausted(u32),
    #[error("the attempt has reached its limit of joined members: {0}")]
    MembersFull(u32),
    #[error("another participant is joined as `{0}`")]
    InstanceTaken(InstanceName),
    #[error("`{0}` is draining: its name is free after the drain")]
    InstanceDraining(InstanceName),
    #[error("`{0}` is not a member of the attempt")]
    NotAMember(InstanceName),
    #[error("`{0}` is not joined: {1}")]
    NotJoined(InstanceName, &'static str),
    #[error("the attempt has reached its limit of members, including those that left: {0}")]
    InstancesExhausted(usize),
}

impl Illegal {
    pub fn reason(&self) -> Reason {
        match self {
            Illegal::JobClosed(_) => Reason::JobClosed,
            Illegal::AwaitingApproval => Reason::ApprovalRequired,
            Illegal::NoGate(_) => Reason::FieldInvalid,
            Illegal::SameHuman(..) => Reason::ApproverInvolved,
            Illegal::TooManyApprovals(_) => Reason::QuotaExceeded,
            Illegal::NoAttempt(_) => Reason::AttemptNotFound,
            Illegal::Stale(..) => Reason::AttemptStale,
            Illegal::Ended(..) => Reason::AttemptEnded,
            Illegal::KeyUsed(_) => Reason::AttemptKeyUsed,
            Illegal::OtherMembers(_) | Illegal::NoGates | Illegal::Begun => Reason::StateConflict,
            Illegal::Draining(_) => Reason::AttemptDraining,
            Illegal::AttemptsExhausted(_) => Reason::AttemptsExhausted,
            Illegal::MembersFull(_) | Illegal::InstancesExhausted(_) => Reason::MembersFull,
            Illegal::InstanceTaken(_) | Illegal::InstanceDraining(_) => Reason::InstanceTaken,
            Illegal::NotAMember(_) => Reason::NotAMember,
            Illegal::NotJoined(..) => Reason::NotJoined,
        }
    }
}

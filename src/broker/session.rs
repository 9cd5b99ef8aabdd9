//! The session of a member.

use crate::{
    name::{AttemptNumber, InstanceName, JobId},
    secret::Secret,
};

/// Names a member, with the secret that proves that the caller is this member.
#[derive(Clone, Debug)]
pub struct MemberSession {
    /// The job that it works on.
    pub job: JobId,
    /// The attempt that it joined.
    pub attempt: AttemptNumber,
    /// Its name in that attempt.
    pub instance: InstanceName,
    /// Given when it joined. Only its digest is kept.
    pub secret: Secret,
}

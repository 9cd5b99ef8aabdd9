//! The session of a member.

use crate::{
    name::{AttemptNumber, InstanceName, JobId},
    secret::Secret,
};

/// The name of a member, and the secret that proves that the caller is this member.
#[derive(Clone, Debug)]
pub struct MemberSession {
    /// The job of the member.
    pub job: JobId,
    /// The attempt that the member joined.
    pub attempt: AttemptNumber,
    /// The name of the member in that attempt.
    pub instance: InstanceName,
    /// The member made this secret when it joined. The daemon keeps only the digest of the secret.
    pub secret: Secret,
}

//! The session of a member.

use crate::{
    name::{AttemptNumber, InstanceName, JobId},
    secret::Secret,
};

/// Names a member, with the secret that proves that the caller is this member.
#[derive(Clone, Debug)]
pub struct MemberSession {
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub instance: InstanceName,
    pub secret: Secret,
}

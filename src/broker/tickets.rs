//! Tickets: what a shared identity brings to join an attempt.

use ring::hmac;

use crate::{name::JobId, secret::Secret};

/// Makes the ticket of an attempt from its job and its key: HMAC-SHA-256 under a secret that outlives the daemon. The same
/// key has the same ticket in every life, and the ledger holds its digest alone.
pub struct Tickets(hmac::Key);

impl Tickets {
    /// From a secret that nothing else is made from.
    pub fn new(root: &Secret) -> Self {
        Tickets(hmac::Key::new(hmac::HMAC_SHA256, root.expose()))
    }

    /// Of the attempt that this key began, or begins. A key is used once in the life of a job.
    pub(super) fn of(&self, job: JobId, key: &str) -> Option<Secret> {
        // A job's id has one length, so no two pairs read the same.
        Secret::from_bytes(hmac::sign(&self.0, format!("{job}|{key}").as_bytes()).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_that_of_its_job_key_and_root_and_of_no_other() {
        let roots = [Secret::random().unwrap(), Secret::random().unwrap()];
        let of = |root: &Secret, job, key| Tickets::new(root).of(JobId(job), key).unwrap().digest();
        let one = of(&roots[0], 1, "run-1");
        assert_eq!(one, of(&roots[0].clone(), 1, "run-1"));
        for other in [of(&roots[0], 2, "run-1"), of(&roots[0], 1, "run-2"), of(&roots[1], 1, "run-1")] {
            assert_ne!(one, other);
        }
    }
}

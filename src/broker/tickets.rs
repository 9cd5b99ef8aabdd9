//! Tickets: what a shared identity shows to join an attempt.

use ring::hmac;

use crate::{name::JobId, secret::Secret};

/// Makes the ticket of an attempt from its job and its key: HMAC-SHA-256 under a secret that outlives the daemon. The same
/// key gives the same ticket in every run, and the ledger keeps only its digest.
pub struct Tickets(hmac::Key);

impl Tickets {
    /// Makes the key from a secret that has no other use.
    pub fn new(root: &Secret) -> Self {
        Tickets(hmac::Key::new(hmac::HMAC_SHA256, root.expose()))
    }

    /// Returns the ticket of the attempt that a key began, or begins. A key is used once in a job.
    pub(super) fn of(&self, job: JobId, key: &str) -> Option<Secret> {
        // All job ids have one length, so no two pairs give the same text.
        Secret::from_bytes(hmac::sign(&self.0, format!("{job}|{key}").as_bytes()).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_depends_on_its_job_key_and_root() {
        let roots = [Secret::random().unwrap(), Secret::random().unwrap()];
        let of = |root: &Secret, job, key| Tickets::new(root).of(JobId(job), key).unwrap().digest();
        let one = of(&roots[0], 1, "run-1");
        assert_eq!(one, of(&roots[0].clone(), 1, "run-1"));
        for other in [of(&roots[0], 2, "run-1"), of(&roots[0], 1, "run-2"), of(&roots[1], 1, "run-1")] {
            assert_ne!(one, other);
        }
    }
}

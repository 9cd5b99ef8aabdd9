//! Tickets: an identity that several jobs share shows a ticket to join an attempt.

use ring::hmac;

use crate::{name::JobId, secret::Secret};

/// The secret that makes the ticket of an attempt from the job and the key of the attempt, with HMAC-SHA-256. The
/// secret outlives the daemon, so a key gives the same ticket in every run. The ledger keeps only the digest of a
/// ticket.
pub struct Tickets(hmac::Key);

impl Tickets {
    /// Makes the HMAC key from a secret that has no other use.
    pub fn new(root: &Secret) -> Self {
        Tickets(hmac::Key::new(hmac::HMAC_SHA256, root.expose()))
    }

    /// Returns the ticket of the attempt with this key. A key is used once in a job.
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

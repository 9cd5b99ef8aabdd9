//! The digest of the newest token of a lease. The daemon recognizes the token by it.

use std::sync::atomic::Ordering;

use crate::sync::AtomicU64;

/// The SHA-256 of the newest token of a lease, in four words.
///
/// If two renewals of a lease finish at the same time, the four words can come from two digests. No token has this mixed digest,
/// so the daemon checks the signature of each token.
#[derive(Debug)]
pub(super) struct NewestTokenDigest([AtomicU64; 4]);

impl NewestTokenDigest {
    /// The state before the first token: no token is recognized.
    pub(super) fn none() -> Self {
        NewestTokenDigest(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    pub(super) fn set(&self, digest: &[u8; 32]) {
        for (word, new) in self.0.iter().zip(words(digest)) {
            word.store(new, Ordering::Relaxed);
        }
    }

    pub(super) fn is(&self, digest: &[u8; 32]) -> bool {
        self.0.iter().zip(words(digest)).all(|(word, other)| word.load(Ordering::Relaxed) == other)
    }
}

fn words(digest: &[u8; 32]) -> impl Iterator<Item = u64> {
    digest.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_token_is_recognized() {
        let newest = NewestTokenDigest::none();
        assert!(!newest.is(&[1; 32]));
        newest.set(&[1; 32]);
        assert!(newest.is(&[1; 32]));
        newest.set(&[2; 32]);
        assert!(newest.is(&[2; 32]) && !newest.is(&[1; 32]));
        for at in 0..32 {
            let mut changed = [2; 32];
            changed[at] = 3;
            assert!(!newest.is(&changed), "byte {at}");
        }
    }
}

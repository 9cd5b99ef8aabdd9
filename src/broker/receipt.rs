//! Receipts for ledger records. A caller that revoked access passes the receipt to `WaitDurable`, to wait until the
//! record is on disk.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use crate::secret::{NoRandomness, Secret};

/// The key that encrypts the index of a record. A plain index would show a tenant how active the other tenants are. A
/// receipt is valid in one run of the daemon.
pub(super) struct Receipts {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Receipts {
    pub(super) fn new() -> Result<Self, NoRandomness> {
        let secret = Secret::random()?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, secret.expose()).map_err(|_| NoRandomness)?;
        Ok(Receipts { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Returns a nonce and the encrypted index. Empty if the system has no random bytes: then the caller cannot wait.
    pub(super) fn issue(&self, index: u64) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        let mut sealed = index.to_be_bytes().to_vec();
        let done = self.random.fill(&mut nonce).and_then(|()| {
            let unique = Nonce::assume_unique_for_key(nonce);
            self.key.seal_in_place_append_tag(unique, Aad::empty(), &mut sealed)
        });
        match done {
            Ok(()) => [nonce.as_slice(), &sealed].concat(),
            Err(_) => Vec::new(),
        }
    }

    /// Returns the index if the receipt is from this run.
    pub(super) fn read(&self, receipt: &[u8]) -> Option<u64> {
        let (nonce, sealed) = receipt.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        Some(u64::from_be_bytes((&*opened).try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_hides_the_index_and_is_valid_for_one_run() {
        let (one, other) = (Receipts::new().unwrap(), Receipts::new().unwrap());
        let receipt = one.issue(7);
        assert_eq!(one.read(&receipt), Some(7));
        assert_ne!(receipt, one.issue(7), "two receipts of one record differ");
        assert_eq!(other.read(&receipt), None);
        let mut changed = receipt.clone();
        changed[15] ^= 1;
        for text in [&[][..], &receipt[..10], &changed] {
            assert_eq!(one.read(text), None);
        }
    }
}

//! A cache of chains that a handshake has just verified, until a [`Peer`](super::peer::Peer) is made from them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ring::digest;
use rustls::pki_types::CertificateDer;

use super::leaf::{Side, VerifiedLeaf};
use crate::{clock::Wall, limits};

/// The chains that were verified against the bundles of this cache. The handshake verifies a chain, and the code that
/// makes the `Peer` removes the result, so that no chain is verified twice.
///
/// An entry gives the same result as a second verification. The key is the whole presented chain and the side that presented it.
/// An entry counts only while each certificate of its path is valid. A copy or a change of the bundles begins with an
/// empty cache. An entry does not show that the peer has the private key of its leaf: the code that makes a `Peer`
/// checks that. The mutex is held for one look-up. This type uses no clock and is not async.
#[derive(Default)]
pub(super) struct HandshakeCache(Mutex<HashMap<ChainDigest, CachedChain>>);

/// SHA-256 of the side and of each certificate with its length.
type ChainDigest = [u8; 32];

struct CachedChain {
    at: Wall,
    verified: VerifiedLeaf,
}

impl HandshakeCache {
    /// Stores the result of a handshake until the `Peer` is made.
    pub(super) fn keep(&self, chain: &[CertificateDer<'_>], side: Side, at: Wall, verified: &VerifiedLeaf) {
        let kept = CachedChain { at, verified: verified.clone() };
        let mut all = self.lock();
        if all.len() >= limits::HANDSHAKES_MAX {
            // These entries are left from handshakes that were never completed. A peer without an entry is verified
            // again.
            all.clear();
        }
        all.insert(key(chain, side), kept);
    }

    /// Removes and returns the result for this chain if it is still valid.
    pub(super) fn take(&self, chain: &[CertificateDer<'_>], side: Side, now: Wall) -> Option<VerifiedLeaf> {
        let CachedChain { at, verified } = self.lock().remove(&key(chain, side))?;
        (at <= now && now < verified.ends).then_some(verified)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChainDigest, CachedChain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The copy is empty, because its bundles may get other roots.
impl Clone for HandshakeCache {
    fn clone(&self) -> Self {
        HandshakeCache::default()
    }
}

fn key(chain: &[CertificateDer<'_>], side: Side) -> ChainDigest {
    let mut all = digest::Context::new(&digest::SHA256);
    all.update(match side {
        Side::Client => b"client",
        Side::Server => b"server",
    });
    for der in chain {
        // The length comes first, so that two chains never hash the same bytes.
        all.update(&u64::try_from(der.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.update(der);
    }
    let mut key = [0; 32];
    key.copy_from_slice(all.finish().as_ref());
    key
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{
        bundle::TrustBundles,
        judge::{judged_by, presenting, shaken},
        path::{self, VERIFIED},
        source::IdentitySource,
        testing::{HOUR, NOW, TestCa, bundles},
    };

    const CLIENT: Side = Side::Client;

    fn found(ca: &TestCa, chain: &[CertificateDer<'static>]) -> VerifiedLeaf {
        path::verify(chain, CLIENT, NOW, &bundles(&[ca])).unwrap()
    }

    #[test]
    fn an_entry_is_taken_once_by_its_chain_side_and_time() {
        let ca = TestCa::new("example.org");
        let upper = ca.intermediate("upper", &|_| {});
        let chain = upper.svid("/a").chain;
        let verified = found(&ca, &chain);
        let fresh = HandshakeCache::default();
        let keep = || fresh.keep(&chain, CLIENT, NOW, &verified);
        keep();
        let mut longer = chain.clone();
        longer.push(ca.der.clone());
        let mut swapped = chain.clone();
        swapped.swap(0, 1);
        let mut joined = chain.clone();
        let second = joined.pop().unwrap();
        joined[0] = [joined[0].as_ref(), second.as_ref()].concat().into();
        for other in [&longer, &swapped, &joined, &chain[..1].to_vec(), &upper.svid("/a").chain] {
            assert!(fresh.take(other, CLIENT, NOW).is_none());
        }
        assert!(fresh.take(&chain, Side::Server, NOW).is_none());
        let taken = fresh.take(&chain, CLIENT, NOW).unwrap();
        assert_eq!((&taken.leaf, taken.ends), (&verified.leaf, verified.ends));
        assert!(fresh.take(&chain, CLIENT, NOW).is_none(), "once");
        for (when, holds) in [
            (Wall(NOW.0 - 1), false), // the clock was set back: the path may not be valid yet
            (Wall(verified.ends.0 - 1), true),
            (verified.ends, false),
        ] {
            keep();
            assert_eq!(fresh.take(&chain, CLIENT, when).is_some(), holds, "{when}");
        }
    }

    #[test]
    fn unfinished_handshakes_leave_a_bounded_number_of_entries() {
        let ca = TestCa::new("example.org");
        let chain = ca.svid("/a").chain;
        let verified = found(&ca, &chain);
        let fresh = HandshakeCache::default();
        for n in 0..10 * limits::HANDSHAKES_MAX {
            fresh.keep(&[n.to_be_bytes().to_vec().into()], CLIENT, NOW, &verified);
            assert!(fresh.lock().len() <= limits::HANDSHAKES_MAX);
        }
    }

    /// Counts how often a chain is verified during `work`.
    fn verified(work: impl FnOnce()) -> usize {
        let before = VERIFIED.get();
        work();
        VERIFIED.get() - before
    }

    #[test]
    fn handshake_and_peer_verify_a_chain_once_together() {
        let ca = TestCa::new("example.org");
        let issued = ca.svid("/a");
        let with = |same: bool| {
            verified(|| {
                let (tls, source) = judged_by(&bundles(&[&ca]), presenting(&issued));
                let trust = source.current();
                // A copy has the same roots and an empty cache.
                let copy = TrustBundles::clone(&trust.bundles);
                let bundles = if same { &*trust.bundles } else { &copy };
                let peer = crate::identity::Peer::of_client(&tls, NOW, bundles).unwrap();
                assert_eq!((peer.spiffe_id().path(), peer.not_after()), ("/a", NOW.plus(HOUR)));
            })
        };
        // The client verifies the chain of the server as well.
        assert_eq!((with(true), with(false)), (2, 3));
    }

    #[test]
    fn any_change_of_the_bundles_empties_the_cache() {
        let (ca, other) = (TestCa::new("example.org"), TestCa::new("other.example"));
        let chain = ca.svid("/a").chain;
        let verified = found(&ca, &chain);
        let kept = || {
            let trust = bundles(&[&ca]);
            trust.handshakes().keep(&chain, CLIENT, NOW, &verified);
            trust
        };
        let knows = |trust: &TrustBundles| trust.handshakes().take(&chain, CLIENT, NOW).is_some();
        assert!(knows(&kept()));
        let pem = other.pem();
        let mut added = kept();
        added.add_missing(&bundles(&[&other]), |_| true);
        for changed in [
            kept().clone(),
            kept().with_pem(other.domain(), "bundle", pem.as_bytes(), NOW).unwrap(),
            kept().with_svid_life_max(Duration::from_secs(1)),
            kept().with_revision(2),
            added,
        ] {
            assert!(!knows(&changed));
        }
    }

    #[test]
    fn a_verified_chain_without_its_key_makes_no_peer() {
        let ca = TestCa::new("example.org");
        let (victim, thief) = (ca.svid("/victim"), ca.svid("/thief"));
        let stolen =
            crate::identity::testing::IssuedCertificate { chain: victim.chain.clone(), key: thief.key };
        let trust = bundles(&[&ca]);
        let own = std::sync::Arc::new(crate::identity::judge::own().1.svid());
        let source = std::sync::Arc::new(crate::identity::StaticSource::new(Some(own), trust));
        let clock = std::sync::Arc::new(crate::clock::manual::ManualClock::new(NOW));
        let config = crate::identity::server_config(source.clone(), clock, &[]);
        assert!(shaken(config, presenting(&stolen)).is_err());
        // The remaining entry is only useful to a client with this chain and its key.
        let left = source.current().bundles.handshakes().take(&victim.chain, CLIENT, NOW).unwrap();
        assert_eq!(left.leaf.spiffe_id.path(), "/victim");
    }
}

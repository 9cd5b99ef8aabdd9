//! Chains that a handshake has just verified, until the [`Peer`](super::peer::Peer) is made of it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ring::digest;
use rustls::pki_types::CertificateDer;

use super::leaf::{Side, VerifiedLeaf};
use crate::{clock::Wall, limits};

/// What verified against the bundles that hold this, to be taken once: the handshake has verified a chain, and the `Peer` that
/// is made of it need not verify it again.
///
/// It says nothing that verifying would not say. It lives in the bundles that the chain was verified against, and a copy or a
/// change of them begins with none; it is found by the whole chain as it was presented, and the side that presented it; and it
/// counts for as long only as every certificate of the path that was found is valid. Whether the peer holds the key of its leaf
/// is not in it: that is for whoever makes a `Peer`. A mutex that is held for a look-up; no clock, no await here.
#[derive(Default)]
pub(super) struct HandshakeCache(Mutex<HashMap<ChainDigest, CachedChain>>);

/// SHA-256 of the side and of each certificate with its length.
type ChainDigest = [u8; 32];

struct CachedChain {
    at: Wall,
    verified: VerifiedLeaf,
}

impl HandshakeCache {
    /// Keeps what a handshake found, until it is taken.
    pub(super) fn keep(&self, chain: &[CertificateDer<'_>], side: Side, at: Wall, verified: &VerifiedLeaf) {
        let kept = CachedChain { at, verified: verified.clone() };
        let mut all = self.lock();
        if all.len() >= limits::HANDSHAKES_MAX {
            // What is left of handshakes that never came to their end. Who loses by it is verified once more.
            all.clear();
        }
        all.insert(key(chain, side), kept);
    }

    /// What was found of this very chain, once, where it still holds at this moment.
    pub(super) fn take(&self, chain: &[CertificateDer<'_>], side: Side, now: Wall) -> Option<VerifiedLeaf> {
        let CachedChain { at, verified } = self.lock().remove(&key(chain, side))?;
        (at <= now && now < verified.ends).then_some(verified)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChainDigest, CachedChain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy is of bundles that may come to hold other roots.
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
        // Its length first, so that no two chains are one text.
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
    fn what_a_handshake_found_is_taken_once_by_the_chain_as_presented_the_side_and_the_time() {
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
            (Wall(NOW.0 - 1), false), // a clock that was set back: the path may not have begun
            (Wall(verified.ends.0 - 1), true),
            (verified.ends, false),
        ] {
            keep();
            assert_eq!(fresh.take(&chain, CLIENT, when).is_some(), holds, "{when}");
        }
    }

    #[test]
    fn handshakes_that_never_end_leave_a_bounded_number_behind() {
        let ca = TestCa::new("example.org");
        let chain = ca.svid("/a").chain;
        let verified = found(&ca, &chain);
        let fresh = HandshakeCache::default();
        for n in 0..10 * limits::HANDSHAKES_MAX {
            fresh.keep(&[n.to_be_bytes().to_vec().into()], CLIENT, NOW, &verified);
            assert!(fresh.lock().len() <= limits::HANDSHAKES_MAX);
        }
    }

    /// How often a chain was verified until there was a peer, or none.
    fn verified(work: impl FnOnce()) -> usize {
        let before = VERIFIED.get();
        work();
        VERIFIED.get() - before
    }

    #[test]
    fn a_chain_is_verified_once_for_its_handshake_and_the_peer_and_by_other_bundles_once_more() {
        let ca = TestCa::new("example.org");
        let issued = ca.svid("/a");
        let with = |same: bool| {
            verified(|| {
                let (tls, source) = judged_by(&bundles(&[&ca]), presenting(&issued));
                let trust = source.current();
                // A copy has the same roots, and knows nothing of the handshake.
                let copy = TrustBundles::clone(&trust.bundles);
                let bundles = if same { &*trust.bundles } else { &copy };
                let peer = crate::identity::Peer::of_client(&tls, NOW, bundles).unwrap();
                assert_eq!((peer.spiffe_id().path(), peer.not_after()), ("/a", NOW.plus(HOUR)));
            })
        };
        // The client verifies the server's chain, too.
        assert_eq!((with(true), with(false)), (2, 3));
    }

    #[test]
    fn bundles_that_changed_in_any_way_know_nothing_of_what_verified_before() {
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
        added.add_all(&bundles(&[&other]), |_| true);
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
    fn who_does_not_hold_the_key_is_no_peer_though_its_chain_was_verified() {
        let ca = TestCa::new("example.org");
        let (victim, thief) = (ca.svid("/victim"), ca.svid("/thief"));
        let stolen = crate::identity::testing::Issued { chain: victim.chain.clone(), key: thief.key };
        let trust = bundles(&[&ca]);
        let own = std::sync::Arc::new(crate::identity::judge::own().1.svid());
        let source = std::sync::Arc::new(crate::identity::StaticSource::new(Some(own), trust));
        let clock = std::sync::Arc::new(crate::clock::manual::ManualClock::new(NOW));
        let config = crate::identity::server_config(source.clone(), clock, &[]);
        assert!(shaken(config, presenting(&stolen)).is_err());
        // What is left of it says who the chain is of, to whoever comes with that chain and its key, and to nobody else.
        let left = source.current().bundles.handshakes().take(&victim.chain, CLIENT, NOW).unwrap();
        assert_eq!(left.leaf.spiffe_id.path(), "/victim");
    }
}

//! A remote verifier with tokens and a feed: it knows only what the feed has brought.

use std::{collections::BTreeMap, time::Duration};

use leasehold::{
    clock::LeaseTime,
    internals::fence::{Registry, Seq},
    limits,
    name::FenceName,
};
use shuttle::{sync::atomic::Ordering, thread};

use super::world::{NOW, World, attempt, explore, job};

/// The names and the Seq in a token.
#[derive(Clone, Debug)]
pub struct Token {
    pub epoch: u64,
    pub stood_at: Seq,
    pub expires: LeaseTime,
    pub fences: Vec<FenceName>,
}

impl Token {
    pub fn of(w: &World, epoch: u64, expires: LeaseTime) -> Self {
        let fences = w.names();
        Token { epoch, stood_at: w.fences.stand(fences.iter().cloned()).at(), expires, fences }
    }
}

/// What a verifier has heard.
pub struct Verifier {
    pub epoch: u64,
    pub lowered: BTreeMap<FenceName, Seq>,
}

impl Verifier {
    /// Connects: it starts from the snapshot only.
    pub fn connected(epoch: u64, fences: &Registry) -> Self {
        Verifier { epoch, lowered: fences.subscribe().snapshot.into_iter().collect() }
    }

    pub fn accepts(&self, token: &Token, now: LeaseTime) -> bool {
        let lowered = |n| self.lowered.get(n).is_some_and(|seq| *seq > token.stood_at);
        token.epoch == self.epoch && now < token.expires && !token.fences.iter().any(lowered)
    }
}

/// A verifier connects again long after a lowering, while old entries are pruned.
fn a_verifier_reconnects(retention: Duration) {
    explore(move || {
        let w = World::new();
        let token = Token::of(&w, 1, NOW.plus(limits::LEASE_TTL_MAX));
        w.fences.lower(&attempt(), NOW);
        // At the last moment at which a token can be valid, and later.
        let moments =
            [Duration::ZERO, limits::LEASE_TTL_MAX / 2, limits::LEASE_TTL_MAX, limits::LEASE_TTL_MAX * 2];
        for passed in moments {
            let now = NOW.plus(passed);
            let w2 = w.clone();
            let pruner = thread::spawn(move || {
                w2.fences.prune(now, retention);
            });
            let verifier = Verifier::connected(1, &w.fences);
            assert!(!verifier.accepts(&token, now), "a revoked token is good again after a reconnect");
            pruner.join().unwrap();
        }
        assert!(w.fences.is_empty(), "old entries are not kept for ever");
    });
}

// Proves law 13.
#[test]
fn a_reconnect_after_a_prune_takes_no_revoked_token() {
    a_verifier_reconnects(limits::LEASE_TTL_MAX.saturating_add(limits::FENCE_RETENTION_MARGIN));
}

// Proves law 13.
#[test]
#[should_panic(expected = "good again after a reconnect")]
fn a_retention_shorter_than_a_tokens_life_is_caught() {
    a_verifier_reconnects(limits::LEASE_TTL_MAX / 3);
}

/// A lock, an unlock, and a token that is older than both.
fn a_lock_is_lifted(unlock: fn(&World)) {
    explore(move || {
        let w = World::new();
        let old = Token::of(&w, 1, NOW.plus(limits::LEASE_TTL_MAX));
        let w2 = w.clone();
        let operator = thread::spawn(move || {
            w2.locked.store(true, Ordering::SeqCst);
            w2.fences.lower(&job(), NOW);
            w2.locked.store(false, Ordering::SeqCst);
            unlock(&w2);
        });
        let w3 = w.clone();
        let asker = thread::spawn(move || {
            let stand = w3.stand();
            let token = Token { stood_at: stand.at(), ..Token::of(&w3, 1, NOW.plus(limits::LEASE_TTL_MAX)) };
            (token, stand)
        });
        operator.join().unwrap();
        let (new, stand) = asker.join().unwrap();
        let verifier = Verifier::connected(1, &w.fences);
        assert!(!verifier.accepts(&old, NOW), "a token from before the lock is good after the unlock");
        // The daemon and the verifier agree on the other token, whenever it took its stand.
        assert_eq!(verifier.accepts(&new, NOW), stand.is_up());
        assert!(
            verifier.accepts(&Token::of(&w, 1, NOW.plus(limits::LEASE_TTL_MAX)), NOW),
            "a new stand is good"
        );
    });
}

// Proves law 13.
#[test]
fn a_token_from_before_a_lock_stays_dead_after_the_unlock() {
    a_lock_is_lifted(|_| {});
}

// Proves law 13.
#[test]
#[should_panic(expected = "good after the unlock")]
fn an_unlock_that_raises_the_fence_is_caught() {
    a_lock_is_lifted(|w| w.fences.raise(&job()));
}

//! The keys of clients without an SVID: each is resolved at the daemon, and kept while its lease lasts.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use s3s::auth::SecretKey;

use crate::{
    limits::{GATEWAY_DATES_PER_KEY_MAX, GATEWAY_DIRECT_KEYS_MAX, GATEWAY_KEYLESS_LEASES_MAX},
    name::LeaseId,
    reason::{Reason, Refusal},
    secret::{DateKey, NoRandomness, S3Secret},
    verify::{Access, KeyResolver},
};

/// Resolves access keys, and keeps what was resolved. A clone is a pointer.
#[derive(Clone)]
pub(super) struct DirectKeys(Arc<DirectKeyState>);

struct DirectKeyState {
    resolver: KeyResolver,
    kept: Mutex<KeptKeys>,
    /// Signs requests for s3s, after their own signature was checked.
    local: S3Secret,
}

/// The keys of each lease, by date. If there are too many leases, the oldest ones are removed.
#[derive(Default)]
struct KeptKeys {
    by_lease: HashMap<LeaseId, Vec<(String, DateKey)>>,
    in_order: VecDeque<LeaseId>,
    /// Leases that have no key, as the daemon said. Such a lease never gets a key later. Only the latest of these
    /// leases are kept.
    keyless: VecDeque<LeaseId>,
}

impl DirectKeys {
    pub(super) fn new(resolver: KeyResolver) -> Result<Self, NoRandomness> {
        let local = S3Secret::random()?;
        Ok(DirectKeys(Arc::new(DirectKeyState { resolver, kept: Mutex::default(), local })))
    }

    /// Returns the key for the signatures of one day. The session token of the lease was accepted before.
    pub(super) async fn date_key(
        &self,
        lease: LeaseId,
        date: &str,
        access: &Access,
    ) -> Result<DateKey, Refusal> {
        if let Some(known) = self.kept().find(lease, date) {
            return Ok(known);
        }
        if self.kept().keyless.contains(&lease) {
            return Err(keyless());
        }
        let key = self.0.resolver.resolve(&lease.to_access_key(), date).await.inspect_err(|refusal| {
            if refusal.reason == Reason::LeaseNotFound {
                self.kept().add_keyless(lease);
            }
        })?;
        let is_first = self.kept().add(lease, date, key.clone());
        if is_first {
            let (keys, ended) = (self.clone(), access.ended());
            tokio::spawn(async move {
                ended.await;
                keys.kept().remove(lease);
            });
        }
        Ok(key)
    }

    /// The key of one day that s3s compares signatures with.
    pub(super) fn local_key(&self, date: &str) -> DateKey {
        self.0.local.date_key(date)
    }

    /// Returns the secret of the keys that [`Self::local_key`] makes.
    pub(super) fn local_secret(&self) -> SecretKey {
        SecretKey::from(self.0.local.to_text().expose().to_owned())
    }

    fn kept(&self) -> MutexGuard<'_, KeptKeys> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.kept().by_lease.len()
    }
}

fn keyless() -> Refusal {
    Refusal::new(Reason::LeaseNotFound, "the lease has no S3 key")
}

impl KeptKeys {
    fn find(&self, lease: LeaseId, date: &str) -> Option<DateKey> {
        self.by_lease.get(&lease)?.iter().find(|(known, _)| known == date).map(|(_, key)| key.clone())
    }

    /// Adds a key. Returns whether it is the first one of its lease.
    fn add(&mut self, lease: LeaseId, date: &str, key: DateKey) -> bool {
        let keys = self.by_lease.entry(lease).or_default();
        let is_first = keys.is_empty();
        if keys.len() >= GATEWAY_DATES_PER_KEY_MAX {
            keys.remove(0);
        }
        keys.push((date.to_owned(), key));
        if is_first {
            self.in_order.push_back(lease);
        }
        while self.by_lease.len() > GATEWAY_DIRECT_KEYS_MAX {
            let Some(oldest) = self.in_order.pop_front() else { break };
            self.by_lease.remove(&oldest);
        }
        is_first
    }

    fn add_keyless(&mut self, lease: LeaseId) {
        if self.keyless.len() >= GATEWAY_KEYLESS_LEASES_MAX {
            self.keyless.pop_front();
        }
        self.keyless.push_back(lease);
    }

    fn remove(&mut self, lease: LeaseId) {
        if self.by_lease.remove(&lease).is_some() {
            self.in_order.retain(|known| *known != lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::{
        name::FenceName,
        reason::Reason,
        token::{KeyHolder, Presenter},
        verify::testing::{AUDIENCE, JOB, ScriptedDaemon, soon},
    };

    // A key is resolved once for each date, and forgotten when its lease ends.
    #[tokio::test]
    async fn a_key_is_kept_while_its_lease_lasts() {
        let mut daemon = ScriptedDaemon::start().await;
        let (verifier, feed) = daemon.following().await;
        let lowering = feed.go_on(daemon.clock.clone());
        let resolver =
            KeyResolver::new(&daemon.connector("/files"), AUDIENCE.parse().unwrap(), daemon.clock.clone());
        let keys = DirectKeys::new(resolver).unwrap();
        let lease = LeaseId(9);
        let token = daemon.token(|claims| claims.lh.lease = lease);
        let access = verifier.accept(&token, Presenter::KeyHolder(KeyHolder::new(lease))).await.unwrap();
        let other = Presenter::KeyHolder(KeyHolder::new(LeaseId(8)));
        let other = verifier.accept(&token, other).await.unwrap_err();
        assert_eq!(other.reason, Reason::TokenPresenter);

        // The daemon is asked only once about a lease without a key.
        for _ in 0..3 {
            let unknown = keys.date_key(LeaseId(10), "20261120", &access).await.unwrap_err();
            assert_eq!((unknown.reason, keys.count()), (Reason::LeaseNotFound, 0));
        }
        let secret = Arc::new(S3Secret::of_test("secret"));
        *daemon.wire.s3_secret.lock().unwrap() = Ok(secret.clone());
        for date in ["20261120", "20261121", "20261120"] {
            let key = keys.date_key(lease, date, &access).await.unwrap();
            assert_eq!(key.expose(), secret.date_key(date).expose());
        }
        assert_eq!((daemon.wire.keys_resolved.load(Ordering::SeqCst), keys.count()), (3, 1));
        lowering.lower(FenceName::job(JOB));
        soon(|| keys.count() == 0).await;
    }

    #[test]
    fn the_keys_and_their_dates_are_bounded() {
        let (mut kept, key) = (KeptKeys::default(), S3Secret::of_test("s").date_key("20261120"));
        for n in 0..GATEWAY_DIRECT_KEYS_MAX + 10 {
            for date in ["1", "2", "3", "4"] {
                kept.add(LeaseId(n as u128), date, key.clone());
            }
        }
        assert_eq!(
            (kept.by_lease.len(), kept.in_order.len()),
            (GATEWAY_DIRECT_KEYS_MAX, GATEWAY_DIRECT_KEYS_MAX)
        );
        assert!(kept.by_lease.values().all(|dates| dates.len() == GATEWAY_DATES_PER_KEY_MAX));
        assert!(kept.find(LeaseId(9), "4").is_none() && kept.find(LeaseId(10), "4").is_some());
    }
}

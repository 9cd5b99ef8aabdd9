//! Idempotency keys, and the job that each key made.

use std::collections::HashMap;

use super::{KeyedJob, rebuild::CallerKey, size::JobsSize};
use crate::{
    clock::LeaseTime,
    limits,
    name::{SpiffeId, TenantName},
};

/// The state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// The job's record is being written.
    Pending {
        tenant: TenantName,
    },
    Made(KeyedJob),
}

impl KeyUse {
    fn tenant(&self) -> &TenantName {
        match self {
            KeyUse::Pending { tenant } => tenant,
            KeyUse::Made(key) => &key.tenant,
        }
    }
}

/// The bound on keys that was reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyKeys {
    #[error("you used {0} idempotency keys within a day, which is the limit for one caller")]
    Caller(usize),
    #[error(
        "the tenant {tenant} used {count} idempotency keys of {mib} MiB within a day, which is the limit for one tenant"
    )]
    Tenant { tenant: TenantName, count: usize, mib: usize },
    #[error("all callers used {0} idempotency keys within a day, which is the limit")]
    All(usize),
}

/// The remembered keys. Past a bound, a new key is refused. Old keys are not dropped, because a caller that sends a
/// dropped key again would make two jobs with one request.
#[derive(Debug, Default)]
pub(super) struct IdempotencyKeys {
    by_caller: HashMap<SpiffeId, HashMap<String, KeyUse>>,
    tenants: HashMap<TenantName, JobsSize>,
    count: usize,
}

/// The memory of a key without its text, in bytes.
const KEY_BYTES: usize = 160;

impl IdempotencyKeys {
    /// Adds a key from the ledger, even above the bounds.
    pub(super) fn put(&mut self, (caller, key): CallerKey, of: KeyedJob) {
        self.insert(&caller, &key, KeyUse::Made(of));
    }

    fn insert(&mut self, caller: &SpiffeId, key: &str, new: KeyUse) {
        let bytes = key.len().saturating_add(KEY_BYTES);
        self.tenants.entry(new.tenant().clone()).or_default().add(bytes);
        self.count = self.count.saturating_add(1);
        let keys = self.by_caller.entry(caller.clone()).or_default();
        if let Some(before) = keys.insert(key.to_owned(), new) {
            self.discount(&before, bytes);
        }
    }

    fn discount(&mut self, gone: &KeyUse, bytes: usize) {
        self.count = self.count.saturating_sub(1);
        if let Some(held) = self.tenants.get_mut(gone.tenant()) {
            held.remove(bytes);
            if held.count == 0 {
                self.tenants.remove(gone.tenant());
            }
        }
    }

    pub(super) fn find(&self, caller: &SpiffeId, key: &str) -> Option<&KeyUse> {
        self.by_caller.get(caller)?.get(key)
    }

    /// Holds a new key while the record of its job is being written.
    pub(super) fn hold(
        &mut self,
        caller: &SpiffeId,
        key: &str,
        tenant: &TenantName,
    ) -> Result<(), TooManyKeys> {
        let of_caller = self.by_caller.get(caller).map_or(0, HashMap::len);
        if of_caller >= limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX {
            return Err(TooManyKeys::Caller(of_caller));
        }
        let held = self.tenants.get(tenant).copied().unwrap_or_default();
        if held.count >= limits::IDEMPOTENCY_KEYS_PER_TENANT_MAX
            || held.bytes >= limits::IDEMPOTENCY_KEYS_BYTES_PER_TENANT_MAX
        {
            let (count, mib) = (held.count, held.bytes >> 20);
            return Err(TooManyKeys::Tenant { tenant: tenant.clone(), count, mib });
        }
        if self.count >= limits::IDEMPOTENCY_KEYS_MAX {
            return Err(TooManyKeys::All(self.count));
        }
        self.insert(caller, key, KeyUse::Pending { tenant: tenant.clone() });
        Ok(())
    }

    /// Gives a held key back, because its job was not made.
    pub(super) fn release(&mut self, caller: &SpiffeId, key: &str) {
        let Some(keys) = self.by_caller.get_mut(caller) else { return };
        let gone = keys.remove(key);
        if keys.is_empty() {
            self.by_caller.remove(caller);
        }
        if let Some(gone) = gone {
            self.discount(&gone, key.len().saturating_add(KEY_BYTES));
        }
    }

    /// Removes the keys that have expired.
    pub(super) fn prune(&mut self, now: LeaseTime) {
        let is_over = |of: &KeyUse| matches!(of, KeyUse::Made(key) if !key.is_remembered(now));
        let mut gone = Vec::new();
        self.by_caller.retain(|_, keys| {
            gone.extend(keys.extract_if(|_, of| is_over(of)));
            !keys.is_empty()
        });
        for (key, of) in gone {
            self.discount(&of, key.len().saturating_add(KEY_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Digest, JobId};

    const AT: LeaseTime = LeaseTime(1_000);

    fn caller(n: usize) -> SpiffeId {
        format!("spiffe://td/launcher/{n}").parse().unwrap()
    }

    fn tenant(n: usize) -> TenantName {
        format!("t{n}").parse().unwrap()
    }

    fn made(job: u128) -> KeyedJob {
        made_of(job, 0)
    }

    fn made_of(job: u128, of: usize) -> KeyedJob {
        KeyedJob { job: JobId(job), tenant: tenant(of), spec: Digest::ZERO, at: AT }
    }

    #[test]
    fn keys_of_one_tenant_leave_room_for_another() {
        let (mut keys, mut callers) = (IdempotencyKeys::default(), 0);
        let full = loop {
            if let Err(full) = keys.hold(&caller(callers / 1_000), &callers.to_string(), &tenant(0)) {
                break full;
            }
            callers += 1;
        };
        assert_eq!(callers, limits::IDEMPOTENCY_KEYS_PER_TENANT_MAX);
        assert!(full.to_string().contains("the tenant t0 used"), "{full}");
        assert_eq!(keys.hold(&caller(0), "other", &tenant(1)), Ok(()));
        // Long keys are counted in bytes: the bound on bytes is reached before the bound on keys.
        let long = "k".repeat(limits::KEY_BYTES_MAX - 8);
        let (mut keys, mut n) = (IdempotencyKeys::default(), 0);
        while keys.hold(&caller(n / 1_000), &format!("{long}{n}"), &tenant(0)).is_ok() {
            n += 1;
        }
        assert!(n < limits::IDEMPOTENCY_KEYS_PER_TENANT_MAX, "{n}");
        keys.release(&caller(0), &format!("{long}0"));
        assert_eq!(keys.hold(&caller(0), "again", &tenant(0)), Ok(()));
    }

    #[test]
    fn a_caller_with_too_many_keys_waits_until_one_is_a_day_old() {
        let mut keys = IdempotencyKeys::default();
        for n in 0..limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX {
            keys.put((caller(1), format!("key {n}")), made(n as u128));
        }
        let full = TooManyKeys::Caller(limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX);
        assert_eq!(keys.hold(&caller(1), "one more", &tenant(0)), Err(full));
        assert_eq!(keys.find(&caller(1), "one more"), None);
        assert_eq!(keys.find(&caller(1), "key 0"), Some(&KeyUse::Made(made(0))), "none was given up for it");
        assert_eq!(keys.hold(&caller(2), "one more", &tenant(0)), Ok(()));
        // A slot that is given back is free, and a caller without a key uses no memory.
        keys.release(&caller(1), "key 0");
        assert_eq!(keys.hold(&caller(1), "one more", &tenant(0)), Ok(()));
        keys.release(&caller(2), "one more");
        assert_eq!((keys.by_caller.len(), keys.count), (1, limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX));
        let day = AT.plus(limits::IDEMPOTENCY);
        keys.prune(LeaseTime(day.0 - 1));
        assert_eq!(keys.count, limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX, "a day is not over yet");
        keys.prune(day);
        assert_eq!(
            (keys.count, keys.find(&caller(1), "one more")),
            (1, Some(&KeyUse::Pending { tenant: tenant(0) }))
        );
        assert_eq!(keys.hold(&caller(1), "and one", &tenant(0)), Ok(()));
    }

    #[test]
    fn past_all_keys_every_caller_waits_for_a_freed_place() {
        let mut keys = IdempotencyKeys::default();
        let each = limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX - 1;
        for n in 0..limits::IDEMPOTENCY_KEYS_MAX {
            keys.put((caller(n / each), n.to_string()), made_of(n as u128, n % 100));
        }
        keys.put((caller(0), "0".to_owned()), made(0));
        let full = TooManyKeys::All(limits::IDEMPOTENCY_KEYS_MAX);
        assert_eq!(
            keys.hold(&caller(999_999), "new", &tenant(0)),
            Err(full.clone()),
            "the same key twice counts once"
        );
        keys.release(&caller(0), "never used");
        assert_eq!(keys.hold(&caller(999_999), "new", &tenant(0)), Err(full.clone()));
        keys.release(&caller(0), "0");
        assert_eq!(keys.hold(&caller(999_999), "new", &tenant(0)), Ok(()));
        assert_eq!(keys.hold(&caller(999_999), "newer", &tenant(0)), Err(full));
    }
}

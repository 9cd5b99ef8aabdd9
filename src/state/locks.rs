//! Locks: prohibitions that stay in force until they are lifted or expire.

use std::{collections::BTreeMap, fmt, ops::Bound, str::FromStr};

use crate::{
    clock::LeaseTime,
    ledger::Actor,
    limits,
    name::{FenceKind, FenceName, NameError, ResourceName, SpiffeId, SpiffePattern, TenantName},
};

/// The subject of a lock: a name on which access depends, all SPIFFE IDs below a path, or the jobs that an identity
/// launches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockName {
    Name(FenceName),
    /// `identity-prefix:spiffe://td/a/`: every SPIFFE ID that begins with this text. The text ends in a slash, so that
    /// only whole segments count.
    Prefix(String),
    /// `launcher:spiffe://…`: the jobs that this SPIFFE ID launches. The launcher may still see and end its jobs.
    Launcher(SpiffeId),
    /// `recall:dataset:…`: one version or all versions of a recalled dataset. `lock` cannot set it, and `unlock` cannot
    /// lift it.
    Recall(ResourceName),
}

impl LockName {
    /// Returns the fence that is lowered with the lock, if the lock has a fence.
    pub fn fence(&self) -> Option<FenceName> {
        match self {
            LockName::Name(name) => Some(name.clone()),
            LockName::Recall(name) => Some(FenceName::resource(name.clone())),
            LockName::Prefix(_) | LockName::Launcher(_) => None,
        }
    }
}

const RECALL: &str = "recall:";
const LAUNCHER: &str = "launcher:";
const PREFIX: &str = "identity-prefix:";

impl FromStr for LockName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some(id) = text.strip_prefix(LAUNCHER) {
            return Ok(LockName::Launcher(id.parse()?));
        }
        if let Some(name) = text.strip_prefix(RECALL) {
            return Ok(LockName::Recall(name.parse()?));
        }
        let Some(prefix) = text.strip_prefix(PREFIX) else { return Ok(LockName::Name(text.parse()?)) };
        let bad = |why| NameError::new(text, "a SPIFFE ID prefix", why);
        let inner = prefix.strip_suffix('/').ok_or_else(|| bad("it does not end in a slash"))?;
        // A path below the trust domain, or the trust domain itself.
        if format!("{inner}/x").parse::<SpiffeId>().is_err() {
            return Err(bad(
                "without its last slash it must be a SPIFFE ID, or `spiffe://` and a trust domain",
            ));
        }
        Ok(LockName::Prefix(prefix.to_owned()))
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockName::Name(n) => n.fmt(f),
            LockName::Prefix(p) => write!(f, "{PREFIX}{p}"),
            LockName::Launcher(id) => write!(f, "{LAUNCHER}{id}"),
            LockName::Recall(name) => write!(f, "{RECALL}{name}"),
        }
    }
}

/// A lock: no new access behind this name until the lock is lifted or expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    pub name: LockName,
    pub reason: String,
    pub by: Actor,
    /// The tenant whose operators set the lock and may lift it. `None` if only an operator who is
    /// responsible for all tenants may lift it.
    pub of: Option<TenantName>,
    pub since: LeaseTime,
    pub until: Option<LeaseTime>,
}

impl Lock {
    /// Returns the tenant whose bound on the number of locks counts this lock. A recall counts for the owner of the data,
    /// who may set it.
    fn counts_for(&self) -> Option<TenantName> {
        match &self.name {
            LockName::Recall(name) => Some(name.tenant()),
            _ => self.of.clone(),
        }
    }

    pub fn stands(&self, now: LeaseTime) -> bool {
        self.until.is_none_or(|u| now < u)
    }

    /// Whether the lock shuts out an identity, by SPIFFE ID, trust domain or prefix.
    pub fn shuts_out(&self, id: &SpiffeId) -> bool {
        match &self.name {
            LockName::Name(name) => match name.kind() {
                FenceKind::Identity(locked) => locked == *id,
                FenceKind::Domain(domain) => domain == id.trust_domain(),
                _ => false,
            },
            LockName::Prefix(prefix) => id.as_str().starts_with(prefix),
            LockName::Launcher(_) | LockName::Recall(_) => false,
        }
    }

    /// Returns whether the lock shuts out none, some or all identities of a pattern.
    pub fn shuts_out_of(&self, pattern: &SpiffePattern) -> Extent {
        let all_or_none = |all| if all { Extent::All } else { Extent::None };
        match &self.name {
            LockName::Name(name) => match name.kind() {
                FenceKind::Identity(locked) if pattern.exact().as_ref() == Some(&locked) => Extent::All,
                FenceKind::Identity(locked) if pattern.matches(&locked) => Extent::Some,
                FenceKind::Domain(domain) => all_or_none(domain == *pattern.trust_domain()),
                _ => Extent::None,
            },
            // A wildcard stands for whole segments and a prefix ends with a whole segment, so their texts can be
            // compared.
            LockName::Prefix(prefix) if pattern.to_string().starts_with(prefix) => Extent::All,
            LockName::Prefix(prefix) => match format!("{prefix}**").parse::<SpiffePattern>() {
                Ok(below) if below.overlaps(pattern) => Extent::Some,
                _ => Extent::None,
            },
            LockName::Launcher(_) | LockName::Recall(_) => Extent::None,
        }
    }
}

/// The part of a pattern's identities that a lock shuts out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    None,
    Some,
    All,
}

/// The locks in force.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    by_name: BTreeMap<LockName, (LockSetting, Lock)>,
    last: LockSetting,
}

/// Identifies one act of setting a lock. If the same name is locked again later, that is another act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockSetting(u64);

impl Locks {
    /// Sets a lock, and returns the lock in force. If the lock exists, the later expiry counts. If an operator of one
    /// tenant sets a lock of the platform again, it stays a lock of the platform, with the platform's reason.
    pub fn insert(&mut self, mut lock: Lock) -> &Lock {
        self.last.0 = self.last.0.saturating_add(1);
        if let Some((_, before)) = self.by_name.get(&lock.name)
            && before.stands(lock.since)
        {
            lock.until = before.until.zip(lock.until).map(|(a, b)| a.max(b));
            if before.of.is_none() && lock.of.is_some() {
                lock = Lock { until: lock.until, ..before.clone() };
            }
        }
        let slot = self.by_name.entry(lock.name.clone()).insert_entry((self.last, lock));
        &slot.into_mut().1
    }

    /// Lifts a lock, regardless of the act that set it.
    pub fn remove(&mut self, name: &LockName) -> Option<Lock> {
        self.by_name.remove(name).map(|(_, lock)| lock)
    }

    /// Lifts a lock if this act set it. If the lock was set again later, it stays in force.
    pub fn lift(&mut self, name: &LockName, turn: LockSetting) {
        if self.by_name.get(name).is_some_and(|(t, _)| *t == turn) {
            self.by_name.remove(name);
        }
    }

    pub fn find(&self, name: &LockName, now: LeaseTime) -> Option<&Lock> {
        self.set(name, now).map(|(_, lock)| lock)
    }

    /// Returns the lock in force, and the act that set it.
    pub fn set(&self, name: &LockName, now: LeaseTime) -> Option<(LockSetting, &Lock)> {
        self.by_name.get(name).filter(|(_, l)| l.stands(now)).map(|(turn, lock)| (*turn, lock))
    }

    /// Whether the bounds allow one more lock: the bound for all tenants, and the bound for the tenant of the operator.
    pub fn has_room(&self, lock: &Lock) -> bool {
        let is_full_for = |tenant: &TenantName| {
            let theirs = self.by_name.values().filter(|(_, set)| set.counts_for().as_ref() == Some(tenant));
            theirs.count() >= limits::LOCKS_PER_TENANT_MAX
        };
        self.by_name.contains_key(&lock.name)
            || self.len() < limits::LOCKS_MAX && !lock.counts_for().is_some_and(|tenant| is_full_for(&tenant))
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Removes the locks that have expired.
    pub fn prune(&mut self, now: LeaseTime) {
        self.by_name.retain(|_, (_, l)| l.stands(now));
    }

    /// Returns the locks in the order of their names. Begins after the name `after`.
    pub fn beyond(&self, after: Option<&LockName>) -> impl Iterator<Item = &Lock> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_name.range::<LockName, _>((from, Bound::Unbounded)).map(|(_, (_, lock))| lock)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Lock> {
        self.by_name.values().map(|(_, lock)| lock)
    }

    /// Returns the lock in force on one of these names, if there is one.
    pub fn against<'a>(&self, names: impl Iterator<Item = &'a FenceName>, now: LeaseTime) -> Option<&Lock> {
        if self.is_empty() {
            return None;
        }
        for name in names {
            if let Some(lock) = self.find(&LockName::Name(name.clone()), now) {
                return Some(lock);
            }
            let kind = name.kind();
            if let FenceKind::Resource(resource) = &kind
                && let Some(recall) = self.find(&LockName::Recall(resource.clone()), now)
            {
                return Some(recall);
            }
            if let FenceKind::Identity(id) = kind {
                // All prefixes that end with a segment. The length of the ID bounds their number.
                let text = id.as_str();
                let ends = text.match_indices('/').map(|(i, _)| i).filter(|i| *i > "spiffe://".len());
                for end in ends {
                    let prefix = text.get(..=end).unwrap_or_default().to_owned();
                    if let Some(lock) = self.find(&LockName::Prefix(prefix), now) {
                        return Some(lock);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: LeaseTime = LeaseTime(1_000);

    fn lock(name: &str, until: Option<LeaseTime>) -> Lock {
        Lock {
            name: name.parse().unwrap(),
            reason: "r".into(),
            by: Actor::Daemon("test".into()),
            of: None,
            since: NOW,
            until,
        }
    }

    fn hits(locks: &Locks, name: &str, now: LeaseTime) -> bool {
        locks.against([name.parse().unwrap()].iter(), now).is_some()
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let mut locks = Locks::default();
        locks.insert(lock("identity-prefix:spiffe://td/ns/ml/", None));
        assert!(hits(&locks, "identity:spiffe://td/ns/ml/a", NOW));
        assert!(hits(&locks, "identity:spiffe://td/ns/ml/a/b", NOW));
        assert!(!hits(&locks, "identity:spiffe://td/ns/mlx/a", NOW));
        assert!(!hits(&locks, "identity:spiffe://td/ns/ml", NOW));
        assert!(!hits(&locks, "identity:spiffe://td2/ns/ml/a", NOW));
        locks.insert(lock("identity-prefix:spiffe://td2/", None));
        assert!(hits(&locks, "identity:spiffe://td2/ns/ml/a", NOW));
    }

    #[test]
    fn a_recall_is_found_by_the_name_of_its_dataset() {
        let mut locks = Locks::default();
        locks.insert(lock("recall:dataset:acme/tickets", None));
        assert!(hits(&locks, "dataset:acme/tickets", NOW));
        assert!(
            !hits(&locks, "dataset:acme/tickets@v3", NOW),
            "callers ask for both names, because a job stands behind both"
        );
        assert!(!hits(&locks, "dataset:acme/other", NOW));
        // A lock on the same name is another lock: lifting it leaves the recall.
        locks.insert(lock("dataset:acme/tickets", None));
        locks.remove(&"dataset:acme/tickets".parse().unwrap());
        assert!(hits(&locks, "dataset:acme/tickets", NOW));
    }

    #[test]
    fn a_lock_stands_until_its_time_is_over() {
        let mut locks = Locks::default();
        locks.insert(lock("tenant:acme", Some(LeaseTime(2_000))));
        assert!(hits(&locks, "tenant:acme", LeaseTime(1_999)));
        assert!(!hits(&locks, "tenant:acme", LeaseTime(2_000)));
        locks.prune(LeaseTime(2_000));
        assert!(locks.is_empty());
    }

    #[test]
    fn a_second_lock_never_shortens_the_first() {
        let mut locks = Locks::default();
        for (first, second, stands) in [
            (None, Some(2_000), None),
            (Some(2_000), None, None),
            (Some(3_000), Some(2_000), Some(3_000)),
            (Some(2_000), Some(3_000), Some(3_000)),
        ] {
            locks.insert(lock("tenant:acme", first.map(LeaseTime)));
            let again = Lock { reason: "again".into(), ..lock("tenant:acme", second.map(LeaseTime)) };
            let set = locks.insert(again);
            assert_eq!((set.until, set.reason.as_str()), (stands.map(LeaseTime), "again"));
            locks.remove(&"tenant:acme".parse().unwrap());
        }
        // An expired lock does not count as the first one.
        locks.insert(lock("tenant:acme", Some(LeaseTime(500))));
        assert_eq!(locks.insert(lock("tenant:acme", Some(LeaseTime(2_000)))).until, Some(LeaseTime(2_000)));
    }

    #[test]
    fn a_tenant_takes_no_lock_of_the_platform_over() {
        let name: LockName = "tenant:acme".parse().unwrap();
        let of = |tenant: Option<&str>, until| Lock {
            of: tenant.map(|t| t.parse().unwrap()),
            reason: tenant.unwrap_or("platform").into(),
            ..lock("tenant:acme", until)
        };
        for (first, second, stays) in [
            (None, Some("acme"), None),
            (Some("acme"), None, None),
            (Some("acme"), Some("acme"), Some("acme")),
        ] {
            let mut locks = Locks::default();
            locks.insert(of(first, Some(LeaseTime(2_000))));
            locks.insert(of(second, Some(LeaseTime(3_000))));
            let stands = locks.find(&name, NOW).unwrap();
            assert_eq!(stands.of, stays.map(|t: &str| t.parse().unwrap()));
            assert_eq!(
                (stands.reason.as_str(), stands.until),
                (stays.unwrap_or("platform"), Some(LeaseTime(3_000)))
            );
        }
        // An expired lock does not count as set.
        let mut locks = Locks::default();
        locks.insert(of(None, Some(LeaseTime(500))));
        assert!(locks.insert(of(Some("acme"), None)).of.is_some());
    }

    #[test]
    fn a_lock_shuts_out_all_or_some_of_a_pattern() {
        let share = |name: &str, pattern: &str| lock(name, None).shuts_out_of(&pattern.parse().unwrap());
        for (name, pattern, wanted) in [
            ("domain:td", "spiffe://td/u/*", Extent::All),
            ("domain:td2", "spiffe://td/u/*", Extent::None),
            ("identity:spiffe://td/u/a", "spiffe://td/u/a", Extent::All),
            ("identity:spiffe://td/u/a", "spiffe://td/u/*", Extent::Some),
            ("identity:spiffe://td/u/a", "spiffe://td/v/*", Extent::None),
            ("identity-prefix:spiffe://td/", "spiffe://td/**", Extent::All),
            ("identity-prefix:spiffe://td/u/", "spiffe://td/u/*", Extent::All),
            ("identity-prefix:spiffe://td/u/", "spiffe://td/*/a", Extent::Some),
            ("identity-prefix:spiffe://td/u/a/", "spiffe://td/u/**", Extent::Some),
            ("identity-prefix:spiffe://td/u/a/", "spiffe://td/u/*", Extent::None),
            ("identity-prefix:spiffe://td/ux/", "spiffe://td/u/*", Extent::None),
            ("tenant:acme", "spiffe://td/u/*", Extent::None),
        ] {
            assert_eq!(share(name, pattern), wanted, "{name} {pattern}");
        }
        assert!(lock("identity-prefix:spiffe://td/u/", None).shuts_out(&"spiffe://td/u/a".parse().unwrap()));
        assert!(
            !lock("identity-prefix:spiffe://td/u/", None).shuts_out(&"spiffe://td/ux/a".parse().unwrap())
        );
    }

    #[test]
    fn one_tenant_leaves_room_for_the_locks_of_others() {
        let of = |n: usize, tenant: Option<&str>| Lock {
            of: tenant.map(|t| t.parse().unwrap()),
            ..lock(&format!("dataset:acme/d{n}"), None)
        };
        let mut locks = Locks::default();
        for n in 0..limits::LOCKS_PER_TENANT_MAX {
            assert!(locks.has_room(&of(n, Some("acme"))), "{n}");
            locks.insert(of(n, Some("acme")));
        }
        let next = limits::LOCKS_PER_TENANT_MAX;
        assert!(!locks.has_room(&of(next, Some("acme"))));
        assert!(locks.has_room(&of(0, Some("acme"))), "a lock that is set already can be set again");
        assert!(locks.has_room(&of(next, Some("globex"))));
        assert!(locks.has_room(&of(next, None)), "the platform's");
    }

    #[test]
    fn a_lock_that_is_set_while_another_is_being_lifted_stays() {
        let mut locks = Locks::default();
        let name: LockName = "tenant:acme".parse().unwrap();
        locks.insert(lock("tenant:acme", None));
        let (turn, _) = locks.set(&name, NOW).unwrap();
        locks.insert(lock("tenant:acme", None));
        locks.lift(&name, turn);
        assert!(
            locks.find(&name, LeaseTime(0)).is_some(),
            "the one that was meant is gone, and this is another"
        );
        let (turn, _) = locks.set(&name, NOW).unwrap();
        locks.lift(&name, turn);
        assert!(locks.is_empty());
    }

    #[test]
    fn names_that_could_lock_by_mistake_are_refused() {
        for t in [
            "identity-prefix:spiffe://td/a",
            "identity-prefix:spiffe:///",
            "identity-prefix:spiffe://",
            "identity-prefix:",
            "nope:x",
            "launcher:",
            "launcher:td/a",
            "identity-prefix:spiffe://td/a//",
        ] {
            assert!(t.parse::<LockName>().is_err(), "{t}");
        }
        let p: LockName = "identity-prefix:spiffe://td/a/".parse().unwrap();
        assert_eq!(p.to_string(), "identity-prefix:spiffe://td/a/");
    }
}

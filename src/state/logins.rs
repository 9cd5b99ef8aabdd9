//! Logins of people. Each login has one SVID of the people trust domain. The daemon accepts this SVID only during the
//! login.

use std::{collections::BTreeMap, sync::Arc};

use super::LockName;
use crate::{
    clock::LeaseTime,
    limits,
    name::{Digest, FenceKind, FenceName, HumanName, SpiffeId},
};

/// A person's login: the person, the authentication methods, and the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// SHA-256 of the certificate's DER.
    pub certificate: Digest,
    /// The serial number of the certificate, in lower-case hex.
    pub serial: String,
    pub id: SpiffeId,
    pub human: HumanName,
    /// The issuer of the ID token.
    pub issuer: String,
    /// The issuer's name for the person.
    pub sub: String,
    /// All groups of the person that the configuration knows.
    pub groups: Vec<String>,
    /// The authentication methods of the person (`amr`).
    pub amr: Vec<String>,
    /// The digest of the configuration that admitted the login. `None` in older records.
    pub terms: Option<Digest>,
    pub at: LeaseTime,
    pub until: LeaseTime,
}

/// The logins in force, by the digest of their certificate.
#[derive(Clone, Debug, Default)]
pub struct Logins(BTreeMap<Digest, Arc<Login>>);

impl Logins {
    /// Adds a login, and removes expired logins. Ends the oldest login of a person who has too many.
    pub fn insert(&mut self, login: Login) {
        self.prune(login.at);
        let same = self.0.values().filter(|l| l.human == login.human);
        if self.is_full_for(&login.human)
            && let Some(oldest) = same.min_by_key(|l| (l.at, l.certificate)).map(|l| l.certificate)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(login.certificate, Arc::new(login));
    }

    /// Whether one more login of a person ends the person's oldest login.
    pub fn is_full_for(&self, human: &HumanName) -> bool {
        self.0.values().filter(|l| l.human == *human).count() >= limits::LOGINS_PER_PERSON_MAX
    }

    /// Adds a login from a snapshot, regardless of the time.
    pub(super) fn keep(&mut self, login: Login) {
        self.0.insert(login.certificate, Arc::new(login));
    }

    /// Returns the login of a certificate, if it is in force.
    pub fn find(&self, certificate: &Digest, now: LeaseTime) -> Option<&Arc<Login>> {
        self.0.get(certificate).filter(|login| now < login.until)
    }

    /// Returns the newest login of an identity that is in force.
    pub fn of(&self, id: &SpiffeId, now: LeaseTime) -> Option<&Arc<Login>> {
        self.0.values().filter(|login| login.id == *id && now < login.until).max_by_key(|login| login.at)
    }

    /// Ends one login.
    pub fn remove(&mut self, certificate: &Digest) -> Option<Arc<Login>> {
        self.0.remove(certificate)
    }

    /// Ends the logins behind a revoked name: of an identity, a person, or a trust domain. Returns their number.
    pub fn end_behind(&mut self, name: &FenceName) -> u64 {
        let kind = name.kind();
        self.end(|login| is_behind(login, &kind))
    }

    /// Counts the logins in force that a revocation of a name would end.
    pub fn count_behind(&self, name: &FenceName, now: LeaseTime) -> usize {
        let kind = name.kind();
        self.0.values().filter(|login| now < login.until && is_behind(login, &kind)).count()
    }

    /// Ends the logins that a lock shuts out. Returns their number.
    pub fn end_locked(&mut self, name: &LockName) -> u64 {
        match name {
            LockName::Name(name) => self.end_behind(name),
            LockName::Prefix(prefix) => self.end(|login| login.id.as_str().starts_with(prefix)),
            LockName::Launcher(_) | LockName::Recall(_) => 0,
        }
    }

    fn end(&mut self, is_over: impl Fn(&Login) -> bool) -> u64 {
        let before = self.0.len();
        self.0.retain(|_, login| !is_over(login));
        u64::try_from(before.saturating_sub(self.0.len())).unwrap_or(u64::MAX)
    }

    /// Removes the expired logins.
    pub fn prune(&mut self, now: LeaseTime) {
        self.0.retain(|_, login| now < login.until);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Login> {
        self.0.values().map(|login| &**login)
    }
}

fn is_behind(login: &Login, name: &FenceKind) -> bool {
    match name {
        FenceKind::Identity(id) => login.id == *id,
        FenceKind::Human(human) => login.human == *human,
        FenceKind::Domain(domain) => login.id.trust_domain() == *domain,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(n: u64, human: &str) -> Login {
        Login {
            certificate: Digest::of(&n.to_be_bytes()),
            serial: format!("{n:x}"),
            id: format!("spiffe://people.example/human/{human}/ml").parse().unwrap(),
            human: human.parse().unwrap(),
            issuer: "https://id.example".into(),
            sub: human.into(),
            groups: vec!["ml".into()],
            amr: vec!["mfa".into()],
            terms: None,
            at: LeaseTime(n),
            until: LeaseTime(n + 1_000),
        }
    }

    // A revocation or a lock ends the logins behind its name, and no other.
    #[test]
    fn a_name_ends_its_own_logins_only() {
        for (name, left) in [
            ("identity:spiffe://people.example/human/ada/ml", vec!["bob"]),
            ("human:ada", vec!["bob"]),
            ("human:adam", vec!["ada", "bob"]),
            ("domain:people.example", vec![]),
            ("domain:example", vec!["ada", "bob"]),
            ("tenant:people", vec!["ada", "bob"]),
            ("identity-prefix:spiffe://people.example/human/ada/", vec!["bob"]),
            ("identity-prefix:spiffe://people.example/human/", vec![]),
            ("launcher:spiffe://people.example/human/ada/ml", vec!["ada", "bob"]),
        ] {
            let mut logins = Logins::default();
            logins.insert(login(1, "ada"));
            logins.insert(login(2, "bob"));
            let ended = logins.end_locked(&name.parse().unwrap());
            let mut found: Vec<_> = logins.iter().map(|l| l.human.to_string()).collect();
            found.sort();
            assert_eq!(
                (found, ended),
                (left.iter().map(|h| (*h).to_owned()).collect(), 2 - left.len() as u64),
                "{name}"
            );
        }
    }

    #[test]
    fn one_more_login_ends_the_oldest_of_its_person() {
        let mut logins = Logins::default();
        logins.insert(login(0, "bob"));
        let most = limits::LOGINS_PER_PERSON_MAX as u64;
        (1..=most + 1).for_each(|n| logins.insert(login(n, "ada")));
        let is_there = |n| logins.find(&login(n, "ada").certificate, LeaseTime(20)).is_some();
        assert!(is_there(0) && !is_there(1) && is_there(2) && is_there(most + 1));
        let now = LeaseTime(1_000 + most);
        assert!(logins.find(&login(most, "ada").certificate, now).is_none(), "it is over at its end");
        logins.prune(now);
        assert_eq!(logins.len(), 1);
    }
}

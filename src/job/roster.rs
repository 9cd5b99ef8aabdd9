//! The members of an attempt.

use rpds::RedBlackTreeMapSync;

use super::{Member, MemberState};
use crate::name::{InstanceName, Outcome, SpiffeId};

/// The members of an attempt by instance, with counts that are kept up to date.
///
/// A copy shares unchanged data, so a change of one member costs little, regardless of the number of members.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    members: RedBlackTreeMapSync<InstanceName, Member>,
    /// The number of instances that each identity has had.
    identities: RedBlackTreeMapSync<SpiffeId, u32>,
    joined: usize,
    present: usize,
    completed: usize,
    /// The size of all members, by [`member_bytes`].
    bytes: usize,
}

/// Returns the approximate size of a member in memory and in a snapshot, in bytes.
pub fn member_bytes(instance: &InstanceName, identity: &SpiffeId) -> usize {
    const MEMBER: usize = 384;
    MEMBER + instance.as_str().len() + identity.as_str().len()
}

impl Roster {
    /// Returns all members by instance, including members that have left.
    pub fn iter(&self) -> impl Iterator<Item = (&InstanceName, &Member)> {
        self.members.iter()
    }

    pub fn values(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Returns the identities that are or were members.
    pub fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        self.identities.keys()
    }

    pub fn get(&self, instance: &InstanceName) -> Option<&Member> {
        self.members.get(instance)
    }

    pub fn contains(&self, instance: &InstanceName) -> bool {
        self.members.contains_key(instance)
    }

    /// Whether an identity is or was a member.
    pub fn has(&self, identity: &SpiffeId) -> bool {
        self.identities.contains_key(identity)
    }

    /// Returns the number of instances that an identity has had.
    pub fn instances_of(&self, identity: &SpiffeId) -> u32 {
        self.identities.get(identity).copied().unwrap_or(0)
    }

    /// Returns the number of instances, including those that have left.
    pub fn len(&self) -> usize {
        self.members.size()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the approximate size of all members in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of joined members.
    pub fn joined(&self) -> usize {
        self.joined
    }

    /// Returns the number of members that are joined or may come back.
    pub fn present(&self) -> usize {
        self.present
    }

    /// Returns the number of members that have reported completion.
    pub fn completed(&self) -> usize {
        self.completed
    }

    pub(super) fn put(&mut self, instance: InstanceName, member: Member) {
        if let Some(before) = self.members.get(&instance) {
            self.joined = self.joined.saturating_sub(usize::from(before.state == MemberState::Joined));
            self.present = self.present.saturating_sub(usize::from(before.is_present()));
            let completed = before.outcome == Some(Outcome::Completed);
            self.completed = self.completed.saturating_sub(usize::from(completed));
            self.bytes = self.bytes.saturating_sub(member_bytes(&instance, &before.spiffe_id));
        }
        self.bytes = self.bytes.saturating_add(member_bytes(&instance, &member.spiffe_id));
        if self.members.get(&instance).is_none_or(|before| before.spiffe_id != member.spiffe_id) {
            let had = self.identities.get(&member.spiffe_id).copied().unwrap_or(0);
            self.identities.insert_mut(member.spiffe_id.clone(), had.saturating_add(1));
        }
        self.joined = self.joined.saturating_add(usize::from(member.state == MemberState::Joined));
        self.present = self.present.saturating_add(usize::from(member.is_present()));
        let completed = member.outcome == Some(Outcome::Completed);
        self.completed = self.completed.saturating_add(usize::from(completed));
        self.members.insert_mut(instance, member);
    }
}

impl FromIterator<(InstanceName, Member)> for Roster {
    fn from_iter<I: IntoIterator<Item = (InstanceName, Member)>>(members: I) -> Self {
        let mut roster = Roster::default();
        members.into_iter().for_each(|(instance, member)| roster.put(instance, member));
        roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::LeaseTime, secret::SecretDigest};

    #[test]
    fn what_is_counted_is_what_is_there_after_any_history() {
        let mut roster = Roster::default();
        let states = [
            MemberState::Joined,
            MemberState::Away { since: LeaseTime(1) },
            MemberState::Left,
            MemberState::Lost,
        ];
        let outcomes = [None, Some(Outcome::Completed), Some(Outcome::Interrupted)];
        let mut dice = 7u64;
        for _ in 0..2_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let roll = |sides: u64, shift: u32| usize::try_from((dice >> shift) % sides).unwrap();
            let before = roster.clone();
            let counts = (before.len(), before.joined(), before.present(), before.completed());
            let member = Member {
                spiffe_id: format!("spiffe://td/w{}", roll(3, 20)).parse().unwrap(),
                session: SecretDigest([1; 32]),
                state: states[roll(4, 30)],
                joined: LeaseTime(1),
                drain: None,
                outcome: outcomes[roll(3, 40)],
            };
            roster.put(format!("i{}", roll(8, 50)).parse().unwrap(), member.clone());
            assert!(roster.has(&member.spiffe_id));
            let count = |f: fn(&Member) -> bool| roster.values().filter(|m| f(m)).count();
            assert_eq!(roster.joined(), count(|m| m.state == MemberState::Joined));
            assert_eq!(roster.present(), count(Member::is_present));
            assert_eq!(roster.completed(), count(|m| m.outcome == Some(Outcome::Completed)));
            let bytes: usize = roster.iter().map(|(i, m)| member_bytes(i, &m.spiffe_id)).sum();
            assert_eq!(roster.bytes(), bytes);
            // A copy does not change.
            assert_eq!((before.len(), before.joined(), before.present(), before.completed()), counts);
        }
    }
}

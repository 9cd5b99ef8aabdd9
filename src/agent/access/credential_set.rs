//! All credentials of one member together: their files, their index, and what is due next.

use std::{sync::Arc, time::Duration};

use super::{
    credential::{Granted, HeldCredential, index},
    credential_dir::{CredentialDir, CredentialError, MendResult},
    index::DrainNote,
    member::stream::MemberSession,
};
use crate::{
    agent::{
        messages::MessageSink,
        retry::{Fraction, SystemFraction},
    },
    clock::{LeaseTime, Now, Wall},
    limits::CREDENTIALS_MAX,
    name::{Half, LeaseId},
    proto::v1,
    reason::Refusal,
};

/// What a member holds, and the directory that it is in.
pub(crate) struct CredentialSet {
    held: Vec<HeldCredential>,
    dir: Arc<CredentialDir>,
    voice: MessageSink,
    draw: SystemFraction,
    /// Leases that live and that we no longer use: to be given back.
    spent: Vec<LeaseId>,
}

impl CredentialSet {
    /// What was offered; nothing of it is held yet, and all of it is due.
    pub(crate) fn of_offers(
        offers: Vec<v1::Offer>,
        now: LeaseTime,
        dir: Arc<CredentialDir>,
        voice: MessageSink,
    ) -> Result<Self, Refusal> {
        let held = HeldCredential::of_offers(offers, now)?;
        Ok(CredentialSet { held, dir, voice, draw: SystemFraction::new(), spent: Vec::new() })
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn get(&self, at: usize) -> Option<&HeldCredential> {
        self.held.get(at)
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut HeldCredential> {
        self.held.get_mut(at)
    }

    /// What the credentials open.
    pub(crate) fn opens(&self) -> Vec<String> {
        self.held.iter().map(HeldCredential::opens).collect()
    }

    // ---------- what is due ----------

    /// Those to ask for now, each with its place.
    pub(crate) fn due(&mut self, now: LeaseTime) -> impl Iterator<Item = (usize, &mut HeldCredential)> {
        self.held.iter_mut().enumerate().filter(move |(_, h)| h.schedule.due().is_some_and(|at| at <= now))
    }

    pub(crate) fn next_due(&self) -> Option<LeaseTime> {
        self.held.iter().filter_map(|h| h.schedule.due()).min()
    }

    pub(crate) fn next_end(&self) -> Option<LeaseTime> {
        self.held.iter().filter_map(|h| h.schedule.expires()).min()
    }

    /// When the last of what is held dies; none where nothing is held.
    pub(crate) fn last_end(&self) -> Option<LeaseTime> {
        self.held.iter().filter_map(|h| h.schedule.expires()).max()
    }

    /// All that is wanted is asked for at once: over a new connection.
    pub(crate) fn hurry(&mut self, now: LeaseTime) {
        self.held.iter_mut().filter(|h| h.schedule.is_wanted()).for_each(|h| h.schedule.hurry(now));
    }

    /// The leases are over: other ones are asked for at once.
    pub(crate) fn ask_anew(&mut self, now: LeaseTime) {
        self.held.iter_mut().for_each(|h| h.lease = None);
        self.hurry(now);
    }

    /// Notes a lease that lives beside the one that we use: its answer came too late.
    pub(crate) fn give_back(&mut self, lease: LeaseId) {
        if self.spent.len() < CREDENTIALS_MAX && self.held.iter().all(|h| h.lease != Some(lease)) {
            self.spent.push(lease);
        }
    }

    /// Leases to be given back now.
    pub(crate) fn take_spent(&mut self) -> Vec<LeaseId> {
        std::mem::take(&mut self.spent)
    }

    /// Whether all that is wanted is held.
    pub(crate) fn is_complete(&self) -> bool {
        self.held.iter().filter(|h| h.schedule.is_wanted()).all(HeldCredential::is_held)
    }

    /// Takes up what is offered now, and writes the index where that is other than before.
    pub(crate) fn reoffer(&mut self, offers: Vec<v1::Offer>, who: &MemberSession, now: LeaseTime) {
        let before: Vec<_> = self.held.iter().map(|h| h.lease).collect();
        let changed = HeldCredential::reoffered(&mut self.held, offers, &self.dir, now);
        let dropped = before.into_iter().zip(&self.held).filter(|(_, held)| held.lease.is_none());
        self.spent.extend(dropped.filter_map(|(lease, _)| lease));
        match changed {
            Ok(false) => {}
            Ok(true) => {
                self.voice.say("what this job is offered has changed: see credentials.json");
                self.refresh_index(who);
            }
            Err(refusal) => self.voice.say(&format!("what this job is offered has changed: {refusal}")),
        }
    }

    // ---------- files ----------

    /// Puts a credential into its files. The daemon's clock is ahead of ours by `lead_ms`.
    pub(crate) fn put(
        &mut self,
        at: usize,
        granted: Granted,
        now: Now,
        lead_ms: i64,
    ) -> Result<(), CredentialError> {
        let wall = Wall(now.wall.0.saturating_add_signed(lead_ms));
        let draw = self.draw.draw();
        match self.held.get_mut(at) {
            Some(held) => held.put(&self.dir, granted, now.lease, wall, draw),
            None => Ok(()),
        }
    }

    pub(crate) fn write_index(&self, who: &MemberSession) -> Result<(), CredentialError> {
        self.dir.write_index(&index(&self.held, who)).map(drop)
    }

    /// Writes the index for a run that goes on. What cannot be written now is written when it can be.
    pub(crate) fn refresh_index(&self, who: &MemberSession) {
        match self.write_index(who) {
            Ok(()) | Err(CredentialError::Wiped | CredentialError::Write { .. }) => {}
            Err(error) => self.voice.say(&error.to_string()),
        }
    }

    /// Writes again what another program removed, or what had no space. Says each cause once.
    pub(crate) fn mend(&self) {
        let place = self.dir.path().display();
        match self.dir.mend() {
            MendResult::Nothing => {}
            MendResult::Again(cause) => {
                self.voice.say(&format!("the credential files in {place} are written again ({cause})"));
            }
            MendResult::Failing(cause) => self.voice.say(&format!(
                "credential files in {place} cannot be written ({cause}): those that are there stay, and your program goes on; trying again until it works"
            )),
        }
    }

    /// Says in the files until when the program may finish.
    pub(crate) fn note_drain(&self, note: DrainNote) {
        // What cannot be written now is written when it can be.
        let _ = self.dir.note_drain(note);
    }

    /// Takes away what is dead by now. Answers a line for each.
    pub(crate) fn remove_expired(&mut self, now: LeaseTime) -> Vec<String> {
        let mut gone = Vec::new();
        for held in self.held.iter_mut().filter(|h| h.schedule.expires().is_some_and(|at| at <= now)) {
            held.remove(&self.dir);
            held.schedule.expired();
            gone.push(match held.schedule.due() {
                None if !held.shortened_by.is_empty() => {
                    format!("what {} has ended: {}", held.opens(), held.shortened_by.join(", "))
                }
                _ => format!("what {} has expired, for want of a renewal", held.opens()),
            });
        }
        gone
    }

    /// Takes the reading half away for good: the attempt drains.
    pub(crate) fn end_reading(&mut self) {
        for held in self.held.iter_mut().filter(|h| h.half == Half::Reading) {
            held.schedule.stop();
            held.lease = None;
            held.remove(&self.dir);
        }
    }

    /// Takes everything away for good.
    pub(crate) fn end(&mut self) {
        self.dir.wipe();
        self.held.iter_mut().for_each(|h| h.schedule.stop());
    }
}

/// Text for a span that people set: whole seconds.
pub(crate) fn shown(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use super::*;
    use crate::{
        name::{AttemptNumber, JobId},
        secret::{Secret, SecretText},
    };

    const NOW: Now =
        Now { wall: Wall(1_800_000_000_000), lease: LeaseTime(1_000_000), boot: crate::clock::BootTime(1) };

    struct Scene {
        base: tempfile::TempDir,
        dir: Arc<CredentialDir>,
        all: CredentialSet,
        who: MemberSession,
    }

    fn scene() -> Scene {
        let base = tempfile::tempdir().unwrap();
        let dir = Arc::new(CredentialDir::create(Some(base.path()), Default::default()).unwrap());
        let offer = |half: v1::Half, resource: &str| v1::Offer {
            half: half.into(),
            audience: "spiffe://td.example/gateway".into(),
            scopes: vec![v1::Scope { resource: resource.into(), actions: vec![] }],
            locations: HashMap::new(),
        };
        let offers = vec![
            offer(v1::Half::Reading, "dataset:acme/t@v1"),
            offer(v1::Half::Writing, "checkpoint:acme/c"),
        ];
        let all = CredentialSet::of_offers(offers, NOW.lease, dir.clone(), MessageSink::new(|_| {})).unwrap();
        let who = MemberSession {
            job: JobId(1),
            attempt: AttemptNumber::FIRST,
            instance: "a".parse().unwrap(),
            secret: Secret::random().unwrap(),
            ticket: SecretText::new(String::new()),
        };
        Scene { base, dir, all, who }
    }

    impl Scene {
        /// Grants a credential of ten seconds on the daemon's clock.
        fn grant(&mut self, at: usize, lead_ms: i64) {
            let daemon = Wall(NOW.wall.0.saturating_add_signed(lead_ms));
            let granted = Granted {
                lease: LeaseId(at as u128),
                token: SecretText::new("t".into()),
                token_expires: daemon.plus(Duration::from_secs(10)),
                latest: None,
                shortened_by: Vec::new(),
            };
            self.all.get_mut(at).unwrap().schedule.asked();
            self.all.get_mut(at).unwrap().schedule.answered();
            self.all.put(at, granted, NOW, lead_ms).unwrap();
        }

        fn files(&self) -> usize {
            assert!(self.base.path().exists());
            fs::read_dir(self.dir.path()).unwrap().count()
        }
    }

    #[test]
    fn a_clock_that_differs_from_the_daemons_shortens_and_lengthens_nothing() {
        for lead_ms in [0, 3_600_000, -3_600_000] {
            let mut scene = scene();
            scene.grant(0, lead_ms);
            assert_eq!(scene.all.next_end(), Some(NOW.lease.plus(Duration::from_secs(10))), "{lead_ms}");
        }
    }

    #[test]
    fn what_is_dead_is_taken_away_at_its_moment_and_asked_for_all_the_same() {
        let mut scene = scene();
        (0..2).for_each(|at| scene.grant(at, 0));
        assert_eq!(scene.files(), 4);
        let end = NOW.lease.plus(Duration::from_secs(10));
        assert!(scene.all.remove_expired(LeaseTime(end.0 - 1)).is_empty());
        assert_eq!(scene.all.remove_expired(end).len(), 2);
        assert_eq!((scene.files(), scene.all.last_end()), (0, None));
        assert_eq!(scene.all.due(end).count(), 2);
    }

    #[test]
    fn a_drain_takes_the_reading_half_and_leaves_the_writing_half() {
        let mut scene = scene();
        (0..2).for_each(|at| scene.grant(at, 0));
        scene.all.end_reading();
        scene.all.write_index(&scene.who).unwrap();
        let index = fs::read_to_string(scene.dir.path().join("credentials.json")).unwrap();
        assert!(index.contains("writing") && !index.contains("reading"), "{index}");
        scene.all.ask_anew(NOW.lease);
        let due: Vec<usize> = scene.all.due(NOW.lease).map(|(at, _)| at).collect();
        assert_eq!(due, [1], "the reading half is not asked for again");
    }

    #[test]
    fn after_the_end_nothing_is_held_due_or_put_again() {
        let mut scene = scene();
        (0..2).for_each(|at| scene.grant(at, 0));
        scene.all.end();
        scene.all.hurry(NOW.lease);
        assert_eq!((scene.files(), scene.all.next_due(), scene.all.next_end()), (0, None, None));
        assert!(matches!(scene.all.write_index(&scene.who), Err(CredentialError::Wiped)));
    }
}

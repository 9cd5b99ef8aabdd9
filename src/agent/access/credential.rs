//! The credentials that one member holds: what was offered, the files that they are in, and the pace of each.

use std::{collections::HashMap, time::Duration};

use super::{
    credential_dir::{CredentialDir, CredentialError},
    index::{CredentialIndex, IndexEntry, IndexResource},
    member::stream::{MemberSession, wall_of},
    schedule::{More, Schedule},
};
use crate::{
    clock::{LeaseTime, Wall},
    limits::CREDENTIALS_MAX,
    name::{Action, Half, LeaseId, Scope},
    proto::v1,
    reason::{Reason, Refusal},
    secret::SecretText,
};

/// Two times of the daemon that are closer than this are one: tokens count in whole seconds.
const SAME: Duration = Duration::from_secs(1);

/// One credential, held or to be asked for.
#[derive(Debug)]
pub(crate) struct HeldCredential {
    /// The name of its file. The header for `curl -H @FILE` is beside it.
    pub(crate) name: String,
    pub(crate) half: Half,
    pub(crate) audience: String,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) schedule: Schedule,
    /// What shortened the life that was asked for, at the last answer.
    pub(crate) shortened_by: Vec<String>,
    scopes: Vec<Scope>,
    locations: HashMap<String, String>,
    /// On the daemon's clock; none where no file is there.
    token_expires: Option<Wall>,
    /// No longer offered.
    withdrawn: bool,
}

/// What the daemon answered, of an issue and of a renewal alike.
pub(crate) struct Granted {
    pub(crate) lease: LeaseId,
    pub(crate) token: SecretText,
    pub(crate) token_expires: Wall,
    pub(crate) latest: Option<Wall>,
    pub(crate) shortened_by: Vec<String>,
}

impl Granted {
    pub(crate) fn of_issue(answer: v1::IssueCredentialResponse) -> Result<Self, Refusal> {
        Self::new(answer.lease, answer.token, answer.token_expires, answer.shortened_by)
    }

    pub(crate) fn of_renewal(answer: v1::RenewLeaseResponse) -> Result<Self, Refusal> {
        Self::new(answer.lease, answer.token, answer.token_expires, answer.shortened_by)
    }

    fn new(
        lease: Option<v1::Lease>,
        token: String,
        token_expires: Option<prost_types::Timestamp>,
        shortened_by: Vec<String>,
    ) -> Result<Self, Refusal> {
        let token = SecretText::new(token);
        let whole = lease.and_then(|l| Some((l.id.parse().ok()?, l.expires_at_latest))).zip(token_expires);
        let ((lease, latest), expires) = whole.ok_or_else(not_understood)?;
        let latest = latest.as_ref().map(wall_of);
        Ok(Granted { lease, token, token_expires: wall_of(&expires), latest, shortened_by })
    }
}

fn not_understood() -> Refusal {
    Refusal::new(Reason::NotSupported, "the daemon's answer is not understood")
        .fix("update leasehold, or use the one that came with the daemon")
}

impl HeldCredential {
    /// All that was offered, each under a name of its own.
    pub(crate) fn of_offers(offers: Vec<v1::Offer>, now: LeaseTime) -> Result<Vec<HeldCredential>, Refusal> {
        let mut all: Vec<HeldCredential> = Vec::with_capacity(offers.len());
        for offer in offers {
            let half = match offer.half() {
                v1::Half::Reading => Half::Reading,
                v1::Half::Writing => Half::Writing,
                v1::Half::Unspecified => return Err(not_understood()),
            };
            let scopes = offer.scopes.iter().map(scope_of).collect::<Option<_>>();
            let taken = |name: &str| all.iter().any(|h| h.name == name);
            all.push(HeldCredential {
                name: file_name(half, &offer.audience, taken),
                half,
                scopes: scopes.ok_or_else(not_understood)?,
                audience: offer.audience,
                lease: None,
                schedule: Schedule::new(now),
                shortened_by: Vec::new(),
                locations: offer.locations,
                token_expires: None,
                withdrawn: false,
            });
        }
        Ok(all)
    }

    /// Takes up what is offered now: the catalog may have changed while we were away. Places stay what they are, since answers
    /// that are under way name them. True where anything is other than before.
    pub(crate) fn reoffered(
        held: &mut Vec<HeldCredential>,
        offers: Vec<v1::Offer>,
        dir: &CredentialDir,
        now: LeaseTime,
    ) -> Result<bool, Refusal> {
        let mut fresh = HeldCredential::of_offers(offers, now)?;
        let mut changed = false;
        for old in held.iter_mut() {
            let same = |new: &HeldCredential| {
                (new.half, &new.audience, &new.scopes) == (old.half, &old.audience, &old.scopes)
            };
            match fresh.iter().position(same).map(|i| fresh.swap_remove(i)) {
                Some(new) => {
                    changed |= old.locations != new.locations || old.withdrawn;
                    old.locations = new.locations;
                    if std::mem::take(&mut old.withdrawn) {
                        old.schedule = new.schedule;
                    }
                }
                None if old.withdrawn => {}
                None => {
                    (changed, old.withdrawn, old.lease) = (true, true, None);
                    old.schedule.stop();
                    old.remove(dir);
                }
            }
        }
        for mut new in fresh.into_iter().take(CREDENTIALS_MAX.saturating_sub(held.len())) {
            let taken = |name: &str| held.iter().any(|h| h.name == name);
            new.name = file_name(new.half, &new.audience, taken);
            held.push(new);
            changed = true;
        }
        Ok(changed)
    }

    pub(crate) fn request(&self, member: &MemberSession) -> v1::IssueCredentialRequest {
        v1::IssueCredentialRequest {
            session: Some(member.session()),
            half: match self.half {
                Half::Reading => v1::Half::Reading,
                Half::Writing => v1::Half::Writing,
            }
            .into(),
            audience: self.audience.clone(),
            ..Default::default()
        }
    }

    /// Puts a credential into its files. `wall` is the daemon's time. A file that cannot be written now is written later, so
    /// what was granted counts all the same.
    pub(crate) fn put(
        &mut self,
        dir: &CredentialDir,
        granted: Granted,
        now: LeaseTime,
        wall: Wall,
        draw: f64,
    ) -> Result<(), CredentialError> {
        let header = SecretText::new(format!("Authorization: Bearer {}\n", granted.token.expose()));
        let written = [dir.put(&self.name, &granted.token), dir.put(&header_name(&self.name), &header)];
        let written = written.into_iter().collect::<Result<Vec<_>, _>>().map(drop);
        if !matches!(written, Ok(()) | Err(CredentialError::Write { .. })) {
            return written;
        }
        let more = self.more(&granted);
        self.schedule.granted(now, granted.token_expires.since(wall), more, draw);
        self.lease = Some(granted.lease);
        self.token_expires = Some(granted.token_expires);
        self.shortened_by = granted.shortened_by;
        written
    }

    /// Whether a token that is good is held.
    pub(crate) fn is_held(&self) -> bool {
        self.token_expires.is_some()
    }

    fn more(&self, granted: &Granted) -> More {
        if granted.latest.is_some_and(|latest| granted.token_expires.plus(SAME) >= latest) {
            return More::Never;
        }
        match self.token_expires {
            Some(before) if granted.token_expires <= before => More::NotYet,
            _ => More::Yes,
        }
    }

    /// Takes the files away: what is in them opens nothing any more.
    pub(crate) fn remove(&mut self, dir: &CredentialDir) {
        dir.remove(&self.name);
        dir.remove(&header_name(&self.name));
        self.token_expires = None;
    }

    /// What it opens, as in `reads dataset:acme/tickets@v3`.
    pub(crate) fn opens(&self) -> String {
        let names: Vec<String> = self.scopes.iter().map(|s| s.resource.to_string()).collect();
        let does = match self.half {
            Half::Reading => "reads",
            Half::Writing => "writes",
        };
        format!("{does} {}", names.join(", "))
    }

    fn entry(&self) -> Option<IndexEntry> {
        Some(IndexEntry {
            name: self.name.clone(),
            half: self.half,
            audience: self.audience.clone(),
            lease: self.lease?,
            expires: self.token_expires?,
            resources: self
                .scopes
                .iter()
                .map(|scope| IndexResource {
                    scope: scope.clone(),
                    location: self.locations.get(scope.resource.as_str()).cloned(),
                })
                .collect(),
        })
    }
}

/// What is there now.
pub(crate) fn index(held: &[HeldCredential], member: &MemberSession) -> CredentialIndex {
    CredentialIndex {
        job: member.job,
        attempt: member.attempt,
        credentials: held.iter().filter_map(HeldCredential::entry).collect(),
    }
}

fn header_name(name: &str) -> String {
    format!("{name}.header")
}

/// `reading-gateway`: the half, and the end of the audience's path.
fn file_name(half: Half, audience: &str, taken: impl Fn(&str) -> bool) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let last: String = audience.rsplit('/').next().unwrap_or_default().chars().take(64).map(plain).collect();
    let first = format!("{half}-{last}");
    let mut name = first.clone();
    for n in 2_u32.. {
        if !taken(&name) {
            break;
        }
        name = format!("{first}-{n}");
    }
    name
}

fn scope_of(wire: &v1::Scope) -> Option<Scope> {
    let whole = Scope::whole(wire.resource.parse().ok()?);
    if wire.actions.is_empty() {
        return Some(whole);
    }
    let action = |a: v1::Action| {
        Some(match a {
            v1::Action::Unspecified => return None,
            v1::Action::ReadDataset => Action::ReadDataset,
            v1::Action::ReadModel => Action::ReadModel,
            v1::Action::Finetune => Action::Finetune,
            v1::Action::WriteCheckpoint => Action::WriteCheckpoint,
            v1::Action::ReadCheckpoint => Action::ReadCheckpoint,
            v1::Action::DeleteCheckpoint => Action::DeleteCheckpoint,
        })
    };
    Some(Scope { actions: wire.actions().map(action).collect::<Option<_>>()?, ..whole })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::name::{AttemptNumber, JobId};

    const NOW: LeaseTime = LeaseTime(1_000_000);
    const WALL: Wall = Wall(1_800_000_000_000);

    fn offer(half: v1::Half, audience: &str, resource: &str) -> v1::Offer {
        v1::Offer {
            half: half.into(),
            audience: audience.into(),
            scopes: vec![v1::Scope { resource: resource.into(), actions: vec![] }],
            locations: HashMap::from([(resource.to_owned(), "s3://b/p/".to_owned())]),
        }
    }

    fn one() -> HeldCredential {
        let offer = offer(v1::Half::Reading, "spiffe://td.example/data/gateway", "dataset:acme/tickets@v3");
        HeldCredential::of_offers(vec![offer], NOW).unwrap().remove(0)
    }

    fn granted(life: u64, latest: u64) -> Granted {
        Granted {
            lease: LeaseId(7),
            token: SecretText::new("t0ken".into()),
            token_expires: WALL.plus(Duration::from_secs(life)),
            latest: Some(WALL.plus(Duration::from_secs(latest))),
            shortened_by: Vec::new(),
        }
    }

    fn member() -> MemberSession {
        MemberSession {
            job: JobId(1),
            attempt: AttemptNumber::FIRST,
            instance: "a".parse().unwrap(),
            secret: crate::secret::Secret::random().unwrap(),
            ticket: SecretText::new(String::new()),
        }
    }

    #[test]
    fn every_credential_has_a_file_name_of_its_own() {
        let offers = vec![
            offer(v1::Half::Reading, "spiffe://a.example/gateway", "dataset:acme/t@v1"),
            offer(v1::Half::Reading, "spiffe://b.example/gateway", "dataset:acme/u@v1"),
            offer(v1::Half::Writing, "spiffe://a.example/gateway", "checkpoint:acme/c"),
            offer(v1::Half::Writing, "spiffe://a.example/../é", "checkpoint:acme/d"),
        ];
        let names: Vec<_> =
            HeldCredential::of_offers(offers, NOW).unwrap().into_iter().map(|h| h.name).collect();
        assert_eq!(names, ["reading-gateway", "reading-gateway-2", "writing-gateway", "writing--"]);
    }

    #[test]
    fn what_is_offered_but_not_understood_is_refused() {
        for bad in [
            offer(v1::Half::Unspecified, "spiffe://a.example/g", "dataset:acme/t@v1"),
            offer(v1::Half::Reading, "spiffe://a.example/g", "tape:acme/t"),
        ] {
            assert_eq!(HeldCredential::of_offers(vec![bad], NOW).unwrap_err().reason, Reason::NotSupported);
        }
    }

    #[test]
    fn a_credential_is_a_token_and_a_header_and_its_removal_takes_both() {
        let base = tempfile::tempdir().unwrap();
        let dir = CredentialDir::create(Some(base.path()), Default::default()).unwrap();
        let mut held = vec![one()];
        held[0].put(&dir, granted(300, 3_600), NOW, WALL, 0.5).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name));
        assert_eq!(read("reading-gateway").unwrap(), "t0ken");
        assert_eq!(read("reading-gateway.header").unwrap(), "Authorization: Bearer t0ken\n");
        assert_eq!(held[0].schedule.expires(), Some(NOW.plus(Duration::from_secs(300))));
        dir.write_index(&index(&held, &member())).unwrap();
        assert!(read("credentials.json").unwrap().contains("s3://b/p/"));
        held[0].remove(&dir);
        assert!(read("reading-gateway").is_err() && read("reading-gateway.header").is_err());
        assert!(index(&held, &member()).credentials.is_empty());
    }

    #[test]
    fn what_is_offered_anew_is_taken_up_and_what_is_not_is_taken_away() {
        let base = tempfile::tempdir().unwrap();
        let dir = CredentialDir::create(Some(base.path()), Default::default()).unwrap();
        let tickets = |audience: &str| offer(v1::Half::Reading, audience, "dataset:acme/tickets@v3");
        let (here, moved) = ("spiffe://td.example/data/gateway", "spiffe://td.example/new/gateway");
        let mut held = vec![one()];
        held[0].put(&dir, granted(300, 3_600), NOW, WALL, 0.5).unwrap();
        let mut again =
            |offers| HeldCredential::reoffered(&mut held, offers, &dir, NOW).map(|c| (c, held.len()));
        assert_eq!(again(vec![tickets(here)]).unwrap(), (false, 1), "nothing has changed");
        assert_eq!(again(vec![tickets(moved)]).unwrap(), (true, 2), "it has moved to another audience");
        assert_eq!(again(vec![tickets(moved)]).unwrap(), (false, 2));
        assert!(!held[0].schedule.is_wanted() && held[1].schedule.is_wanted());
        assert_eq!((held[0].name.as_str(), held[1].name.as_str()), ("reading-gateway", "reading-gateway-2"));
        assert!(!dir.path().join("reading-gateway").exists());
        let back = HeldCredential::reoffered(&mut held, vec![tickets(here)], &dir, NOW).unwrap();
        assert!(back && held[0].schedule.is_wanted() && !held[1].schedule.is_wanted(), "and back");
    }

    #[test]
    fn a_drained_half_does_not_come_back_with_its_offer() {
        let base = tempfile::tempdir().unwrap();
        let dir = CredentialDir::create(Some(base.path()), Default::default()).unwrap();
        let mut held = vec![one()];
        held[0].schedule.stop();
        let same = offer(v1::Half::Reading, "spiffe://td.example/data/gateway", "dataset:acme/tickets@v3");
        assert!(!HeldCredential::reoffered(&mut held, vec![same], &dir, NOW).unwrap());
        assert!(!held[0].schedule.is_wanted());
    }

    #[test]
    fn a_renewal_that_gains_nothing_is_not_repeated_in_haste() {
        let base = tempfile::tempdir().unwrap();
        let dir = CredentialDir::create(Some(base.path()), Default::default()).unwrap();
        let mut held = one();
        held.put(&dir, granted(10, 3_600), NOW, WALL, 0.5).unwrap();
        assert_eq!(held.more(&granted(10, 3_600)), More::NotYet, "an SVID ends before the lease");
        assert_eq!(held.more(&granted(15, 3_600)), More::Yes);
        assert_eq!(held.more(&granted(15, 15)), More::Never, "the lease is at its latest end");
    }
}

use std::fs;

use super::*;
use crate::{
    name::{AttemptNumber, JobId},
    reason::Reason,
    secret::Secret,
};

const NOW: Now =
    Now { wall: Wall(1_800_000_000_000), lease: LeaseTime(1_000_000), boot: crate::clock::BootTime(1) };
const HERE: &str = "spiffe://td.example/data/gateway";
const TICKETS: &str = "dataset:acme/tickets@v3";

fn offer(half: v1::Half, audience: &str, resource: &str) -> v1::Offer {
    v1::Offer {
        half: half.into(),
        audience: audience.into(),
        scopes: vec![v1::Scope { resource: resource.into(), actions: vec![] }],
        locations: HashMap::from([(resource.to_owned(), "s3://b/p/".to_owned())]),
        s3_endpoint: String::new(),
        s3_server_id: String::new(),
    }
}

struct CredentialScene {
    base: tempfile::TempDir,
    dir: Arc<CredentialDir>,
    all: CredentialSet,
    session: AttemptSession,
}

fn scene_of(offers: Vec<v1::Offer>) -> CredentialScene {
    let base = tempfile::tempdir().unwrap();
    let dir = Arc::new(CredentialDir::create(Some(base.path()), Default::default()).unwrap());
    let all = CredentialSet::from_offers(offers, NOW.lease, dir.clone(), MessageSink::new(|_| {})).unwrap();
    let session = AttemptSession {
        job: JobId(1),
        attempt: AttemptNumber::FIRST,
        instance: "a".parse().unwrap(),
        secret: Secret::random().unwrap(),
        ticket: SecretText::new(String::new()),
    };
    CredentialScene { base, dir, all, session }
}

/// Makes a scene with one reading and one writing credential.
fn scene() -> CredentialScene {
    let writing = offer(v1::Half::Writing, HERE, "checkpoint:acme/c");
    scene_of(vec![offer(v1::Half::Reading, HERE, TICKETS), writing])
}

/// Makes a grant by a daemon whose clock is ahead of this host's clock by `lead_ms`.
fn granted(lease: u128, life_seconds: u64, latest_seconds: Option<u64>, lead_ms: i64) -> Granted {
    let daemon = Wall(NOW.wall.0.saturating_add_signed(lead_ms));
    let after = |seconds| daemon.plus(Duration::from_secs(seconds));
    Granted {
        lease: LeaseId(lease),
        token: SecretText::new("t0ken".into()),
        token_expires: after(life_seconds),
        latest: latest_seconds.map(after),
        shortened_by: Vec::new(),
    }
}

impl CredentialScene {
    /// Grants a credential of ten seconds on the daemon's clock.
    fn grant(&mut self, at: usize, lead_ms: i64) {
        self.all.get_mut(at).unwrap().schedule.mark_requested();
        self.all.get_mut(at).unwrap().schedule.mark_answered();
        self.all.put(at, granted(at as u128, 10, None, lead_ms), NOW, lead_ms).unwrap();
    }

    fn files(&self) -> usize {
        assert!(self.base.path().exists());
        fs::read_dir(self.dir.path()).unwrap().count()
    }

    fn read(&self, name: &str) -> std::io::Result<String> {
        fs::read_to_string(self.dir.path().join(name))
    }

    fn is_wanted(&self, at: usize) -> bool {
        self.all.get(at).unwrap().schedule.is_wanted()
    }
}

#[test]
fn every_credential_has_its_own_file_name() {
    let offers = vec![
        offer(v1::Half::Reading, "spiffe://a.example/gateway", "dataset:acme/t@v1"),
        offer(v1::Half::Reading, "spiffe://b.example/gateway", "dataset:acme/u@v1"),
        offer(v1::Half::Writing, "spiffe://a.example/gateway", "checkpoint:acme/c"),
        offer(v1::Half::Writing, "spiffe://a.example/../é", "checkpoint:acme/d"),
    ];
    let names: Vec<_> =
        HeldCredential::from_offers(offers, NOW.lease).unwrap().into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["reading-gateway", "reading-gateway-2", "writing-gateway", "writing--"]);
}

#[test]
fn an_offer_that_is_not_understood_is_refused() {
    for bad in [
        offer(v1::Half::Unspecified, "spiffe://a.example/g", "dataset:acme/t@v1"),
        offer(v1::Half::Reading, "spiffe://a.example/g", "tape:acme/t"),
    ] {
        let refusal = HeldCredential::from_offers(vec![bad], NOW.lease).unwrap_err();
        assert_eq!(refusal.reason, Reason::NotSupported);
    }
}

#[test]
fn a_credential_has_a_token_file_and_a_header_file() {
    let mut scene = scene();
    scene.all.put(0, granted(7, 300, Some(3_600), 0), NOW, 0).unwrap();
    assert_eq!(scene.read("reading-gateway").unwrap(), "t0ken");
    assert_eq!(scene.read("reading-gateway.header").unwrap(), "Authorization: Bearer t0ken\n");
    assert_eq!(scene.all.next_expiry(), Some(NOW.lease.plus(Duration::from_secs(300))));
    scene.all.write_index(&scene.session).unwrap();
    assert!(scene.read("credentials.json").unwrap().contains("s3://b/p/"));
    scene.all.end_reading();
    assert!(scene.read("reading-gateway").is_err() && scene.read("reading-gateway.header").is_err());
    scene.all.write_index(&scene.session).unwrap();
    assert!(!scene.read("credentials.json").unwrap().contains("s3://b/p/"));
}

#[test]
fn new_offers_add_credentials_and_withdrawn_ones_remove_them() {
    let tickets = |audience: &str| offer(v1::Half::Reading, audience, TICKETS);
    let moved = "spiffe://td.example/new/gateway";
    let mut scene = scene_of(vec![tickets(HERE)]);
    scene.grant(0, 0);
    let mut again = |offers| scene.all.replace_offers(offers, NOW.lease).map(|c| (c, scene.all.len()));
    assert_eq!(again(vec![tickets(HERE)]).unwrap(), (false, 1), "nothing has changed");
    assert_eq!(again(vec![tickets(moved)]).unwrap(), (true, 2), "it has moved to another audience");
    assert_eq!(again(vec![tickets(moved)]).unwrap(), (false, 2));
    assert!(!scene.is_wanted(0) && scene.is_wanted(1));
    let names: Vec<&str> = scene.all.credentials.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["reading-gateway", "reading-gateway-2"]);
    assert!(scene.read("reading-gateway").is_err());
    let back = scene.all.replace_offers(vec![tickets(HERE)], NOW.lease).unwrap();
    assert!(back && scene.is_wanted(0) && !scene.is_wanted(1), "and back");
}

#[test]
fn a_drained_half_does_not_come_back_with_its_offer() {
    let tickets = || vec![offer(v1::Half::Reading, HERE, TICKETS)];
    let mut scene = scene_of(tickets());
    scene.all.end_reading();
    assert!(!scene.all.replace_offers(tickets(), NOW.lease).unwrap());
    assert!(!scene.is_wanted(0));
}

#[test]
fn a_renewal_that_gains_no_time_waits_before_the_next() {
    let mut scene = scene();
    scene.all.put(0, granted(7, 10, Some(3_600), 0), NOW, 0).unwrap();
    let credential = scene.all.get(0).unwrap();
    let more = |life, latest| credential.more(&granted(7, life, Some(latest), 0));
    assert_eq!(more(10, 3_600), More::NotYet, "an SVID ends before the lease");
    assert_eq!(more(15, 3_600), More::Yes);
    assert_eq!(more(15, 15), More::Never, "the lease is at its latest end");
}

#[test]
fn a_difference_between_clocks_changes_no_lifetime() {
    for lead_ms in [0, 3_600_000, -3_600_000] {
        let mut scene = scene();
        scene.grant(0, lead_ms);
        assert_eq!(scene.all.next_expiry(), Some(NOW.lease.plus(Duration::from_secs(10))), "{lead_ms}");
    }
}

#[test]
fn an_expired_token_is_removed_and_still_requested() {
    let mut scene = scene();
    (0..2).for_each(|at| scene.grant(at, 0));
    assert_eq!(scene.files(), 4);
    let end = NOW.lease.plus(Duration::from_secs(10));
    assert!(scene.all.remove_expired(LeaseTime(end.0 - 1)).is_empty());
    assert_eq!(scene.all.remove_expired(end).len(), 2);
    assert_eq!((scene.files(), scene.all.last_expiry()), (0, None));
    assert_eq!(scene.all.due(end).count(), 2);
}

#[test]
fn a_drain_ends_the_reading_half_and_keeps_the_writing_half() {
    let mut scene = scene();
    (0..2).for_each(|at| scene.grant(at, 0));
    scene.all.end_reading();
    scene.all.write_index(&scene.session).unwrap();
    let index = scene.read("credentials.json").unwrap();
    assert!(index.contains("writing") && !index.contains("reading"), "{index}");
    scene.all.replace_leases(NOW.lease);
    let due: Vec<usize> = scene.all.due(NOW.lease).map(|(at, _)| at).collect();
    assert_eq!(due, [1], "the reading half is not requested again");
}

#[test]
fn after_a_wipe_nothing_is_due_or_written() {
    let mut scene = scene();
    (0..2).for_each(|at| scene.grant(at, 0));
    scene.all.wipe();
    scene.all.request_now(NOW.lease);
    assert_eq!((scene.files(), scene.all.next_due(), scene.all.next_expiry()), (0, None, None));
    assert!(matches!(scene.all.write_index(&scene.session), Err(CredentialError::Wiped)));
}

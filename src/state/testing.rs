//! Sample jobs and locks, and the state that is rebuilt from a disk, for tests.

use std::{sync::Arc, time::Duration};

use super::{Lock, Recorded, records::spec_digest};
use crate::{
    clock::{Clock, LeaseTime, SystemClock},
    job::{
        Gate, Job, Spec,
        testing::{sample_job, sample_spec},
    },
    ledger::{
        Actor, DecisionRecord, Fold, Ledger, Options, RiskRecord,
        forgetful::{Dice, Forgetful},
    },
    name::{Digest, SpiffeId},
};

pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

pub(super) fn worker() -> SpiffeId {
    "spiffe://td/worker".parse().unwrap()
}

pub(super) fn actor() -> Actor {
    Actor::from(worker())
}

pub(super) fn decision() -> DecisionRecord {
    DecisionRecord {
        result: "allow".into(),
        rules: Vec::new(),
        policy: Digest::ZERO,
        catalog: Digest::ZERO,
        approved: Vec::new(),
        risk: RiskRecord::default(),
    }
}

pub(super) fn job(id: u128, at: LeaseTime) -> Job {
    let mut spec = Spec {
        name: format!("job {id}"),
        purpose: "tuning".into(),
        why: "to \"see\"".into(),
        read: vec!["dataset:acme/tickets@v3".parse().unwrap()],
        write: vec!["checkpoint:acme/support-lora".parse().unwrap()],
        credential_ttl: Some(Duration::from_secs(60)),
        ..sample_spec(1, 3)
    };
    spec.members.max = 2;
    let spec_digest = spec_digest(&spec).unwrap();
    Job { spec_digest, launcher: worker(), ..sample_job(id, spec, at) }
}

pub(super) const GATE: &str = "gate-a";

/// Returns a job that waits until two people have approved it.
pub(super) fn gated(id: u128, at: LeaseTime) -> Job {
    job(id, at).held_by(vec![Gate {
        id: GATE.into(),
        explanation: "people first".into(),
        approver_group: "owners".into(),
        approvals_needed: 2,
        approval_ttl: Duration::from_secs(3_600),
    }])
}

pub(super) fn person(n: u64) -> SpiffeId {
    format!("spiffe://td/people/{n}").parse().unwrap()
}

pub(super) fn lock(n: u64, now: LeaseTime) -> Lock {
    let name = if n == 0 { "identity-prefix:spiffe://td/a/".into() } else { format!("tenant:t{n}") };
    Lock {
        name: name.parse().unwrap(),
        reason: format!("reason {n}"),
        by: actor(),
        of: None,
        since: now,
        until: None,
    }
}

pub(super) fn quick(dice: &mut Dice) -> Options {
    Options {
        segment_bytes: 4_000 + dice.roll(20_000),
        segment_records: 10 + dice.roll(30),
        compress: dice.roll(2) == 0,
        reserve_bytes: 64 << 10,
        look: LONG,
        retry_first: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        ..Options::default()
    }
}

/// Returns the state that is rebuilt from all records.
pub(super) fn read_all(disk: &Forgetful) -> Recorded {
    let mut all = Recorded::default();
    let each = &mut |record: crate::ledger::Record| all.take(record.index, record.event).unwrap();
    // This reads a copy, because the ledger takes ownership of the disk.
    let opened = Ledger::open_with(Arc::new(disk.kill()), clock(), Options::default(), each).unwrap();
    drop(opened);
    all
}

pub(super) fn written(recorded: &Recorded) -> Vec<u8> {
    let mut out = Vec::new();
    recorded.write(&mut out).unwrap();
    out
}

pub(super) fn text(recorded: &Recorded) -> String {
    String::from_utf8(written(recorded)).unwrap()
}

//! The state after dropped jobs and withdrawn records.

use std::sync::Arc;

use super::{
    Created, KeyedJob, NewJob, Rebuilt, Recorded, Refused, Store, Use,
    keys::TooManyKeys,
    records::{change_record, created_record},
    testing::{actor, clock, decision, job, text, worker, written},
};
use crate::{
    clock::LeaseTime,
    fence::Registry,
    job::{Change, Drain, Job, JobState},
    ledger::{Event, Fold, Ledger, Options, forgetful::Forgetful},
    limits,
    name::{AttemptNumber, Digest, JobId, Outcome, SpiffeId},
    reason::Reason,
    secret::SecretDigest,
};

// Proves law 39.
#[test]
fn the_key_of_a_dropped_job_is_remembered() {
    let mut recorded = Recorded::default();
    let max = limits::JOBS_CLOSED_MAX as u128;
    let at = LeaseTime(1_000_000);
    for n in 1..=max + 3 {
        let job = job(n, at);
        recorded.take(1, created_record(&job, decision())).unwrap();
        let change = Change::Closed { outcome: Outcome::Failed, at, detail: String::new() };
        recorded.take(2, change_record(job.id, &change, actor(), None, Default::default())).unwrap();
    }
    let mut again = Recorded::default();
    again.read(&mut written(&recorded).as_slice()).unwrap();
    assert_eq!(text(&again), text(&recorded));
    let rebuilt = again.rebuilt(at);
    assert_eq!(rebuilt.jobs.len() as u128, max);
    let mut forgotten: Vec<_> = rebuilt.keys.iter().map(|((_, key), k)| (key.as_str(), k.job.0)).collect();
    forgotten.sort_unstable();
    assert_eq!(forgotten, [("key 1", 1), ("key 2", 2), ("key 3", 3)]);
    // A day later they no longer count.
    recorded.take(1, created_record(&job(max + 9, at.plus(limits::IDEMPOTENCY)), decision())).unwrap();
    assert!(recorded.rebuilt(at).keys.is_empty());
}

// Proves law 39.
#[test]
fn a_completion_during_a_begin_closes_the_job() {
    let at = LeaseTime(1_000_000);
    let job = job(1, at);
    let began = |n| Change::AttemptBegan {
        attempt: AttemptNumber::new(n).unwrap(),
        key: format!("run {n}"),
        at,
        ticket: SecretDigest([1; 32]),
        vouched: Vec::new(),
    };
    let (attempt, detail) = (AttemptNumber::FIRST, "done".to_owned());
    let completed = Change::AttemptEnded { attempt, outcome: Outcome::Completed, at, detail };
    let mut recorded = Recorded::default();
    recorded.take(1, created_record(&job, decision())).unwrap();
    // In memory the second begin was never made: the completion came before its record was durable.
    for change in [began(1), began(2), completed] {
        recorded.take(2, change_record(job.id, &change, actor(), None, Default::default())).unwrap();
    }
    let found = recorded.rebuilt(at);
    assert_eq!(found.jobs[0].state, JobState::Closed(Outcome::Completed));
}

// Proves law 39.
#[test]
fn a_withdrawn_record_has_no_effect_after_a_restart() {
    let at = LeaseTime(1_000_000);
    let (kept, never) = (job(1, at), job(2, at));
    let (attempt, ticket) = (AttemptNumber::FIRST, SecretDigest([1; 32]));
    let began = Change::AttemptBegan { attempt, key: "run 1".into(), at, ticket, vouched: Vec::new() };
    let draining = Change::AttemptDraining {
        attempt,
        drain: Drain { reading_ends: at, writing_ends: at },
        detail: "by hand".into(),
    };
    let joined = |instance: &str, session| Change::MemberJoined {
        attempt,
        instance: instance.parse().unwrap(),
        member: worker(),
        session: SecretDigest([session; 32]),
        at,
    };
    let record = |change: &Change| change_record(kept.id, change, actor(), None, Default::default());
    let withdrawn = |index, job| Event::Withdrawn { index, job, why: "overtaken".into() };
    let events = [
        created_record(&kept, decision()),
        created_record(&never, decision()),
        record(&began),
        withdrawn(2, never.id),
        // Joins are recorded independently: if one is withdrawn, later ones stay.
        record(&joined("rank-0", 2)),
        record(&joined("rank-1", 3)),
        record(&joined("rank-1", 4)),
        record(&draining),
        withdrawn(5, kept.id),
        withdrawn(7, kept.id),
    ];
    // A snapshot at any point changes nothing.
    for cut in 0..=events.len() {
        let mut recorded = Recorded::default();
        for (n, event) in events.iter().enumerate() {
            if n == cut {
                let mut again = Recorded::default();
                again.read(&mut written(&recorded).as_slice()).unwrap();
                assert_eq!(text(&again), text(&recorded));
                recorded = again;
            }
            recorded.take(n as u64 + 1, event.clone()).unwrap();
        }
        let found = recorded.rebuilt(at).jobs;
        assert_eq!(found.len(), 1, "a job that was withdrawn is there, cut at {cut}");
        assert_eq!(found[0].attempts.len(), 1);
        let members: Vec<_> =
            found[0].attempts[0].members.iter().map(|(i, m)| (i.to_string(), m.session)).collect();
        assert_eq!(members, [("rank-1".to_owned(), SecretDigest([3; 32]))], "cut at {cut}");
        assert_eq!(found[0].attempts[0].detail, "by hand", "what came after it is lost, cut at {cut}");
    }
    // And a begin that was withdrawn leaves a job without an attempt.
    let mut recorded = Recorded::default();
    let events = [created_record(&kept, decision()), record(&began), withdrawn(2, kept.id)];
    for (n, event) in events.into_iter().enumerate() {
        recorded.take(n as u64 + 1, event).unwrap();
    }
    assert!(recorded.rebuilt(at).jobs[0].attempts.is_empty());
    // A begin from long before another widening counts as made, and can no longer be withdrawn.
    let late = at.plus(limits::LEDGER_WAIT * 20);
    let second = Change::AttemptBegan {
        attempt: attempt.next(),
        key: "run 2".into(),
        at: late,
        ticket: SecretDigest([1; 32]),
        vouched: Vec::new(),
    };
    let mut recorded = Recorded::default();
    let events = [
        created_record(&kept, decision()),
        record(&began),
        record(&second),
        withdrawn(2, kept.id),
        withdrawn(3, kept.id),
    ];
    for (n, event) in events.into_iter().enumerate() {
        recorded.take(n as u64 + 1, event).unwrap();
    }
    assert_eq!(recorded.rebuilt(at).jobs[0].attempts.len(), 1);
}

// Proves law 39.
#[test]
fn a_dropped_job_still_binds_its_identity() {
    let at = LeaseTime(1_000_000);
    let mut recorded = Recorded::default();
    let max = limits::JOBS_CLOSED_MAX as u128;
    let id = |n: u128| -> SpiffeId { format!("spiffe://td/job/{n}").parse().unwrap() };
    let attempt = AttemptNumber::FIRST;
    for n in 1..=max + 2 {
        let job = job(n, at);
        recorded.take(1, created_record(&job, decision())).unwrap();
        let began = Change::AttemptBegan {
            attempt,
            key: "run 1".into(),
            at,
            ticket: SecretDigest([1; 32]),
            vouched: Vec::new(),
        };
        let joined = Change::MemberJoined {
            attempt,
            instance: "rank-0".parse().unwrap(),
            member: id(n),
            session: SecretDigest([2; 32]),
            at,
        };
        let closed = Change::Closed { outcome: Outcome::Completed, at, detail: String::new() };
        for change in [began, joined, closed] {
            recorded.take(2, change_record(job.id, &change, actor(), None, Default::default())).unwrap();
        }
    }
    let mut again = Recorded::default();
    again.read(&mut written(&recorded).as_slice()).unwrap();
    assert_eq!(text(&again), text(&recorded));
    let kept = again.rebuilt(at).identities;
    let own = |n| Use { job: JobId(n), first: at, closed: Some(at) };
    assert_eq!(kept, [(id(1), own(1)), (id(2), own(2))]);
    // And no longer than an SVID from that time can be valid.
    let late = LeaseTime(at.plus(limits::IDENTITY_BOUND).0 + 1);
    recorded.take(3, created_record(&job(max + 9, late), decision())).unwrap();
    assert!(recorded.rebuilt(late).identities.is_empty());
}

#[tokio::test]
async fn past_its_keys_a_caller_makes_no_job_but_finds_its_own() {
    const MAX: usize = limits::IDEMPOTENCY_KEYS_PER_CALLER_MAX;
    let disk = Forgetful::default();
    let clock = clock();
    let (opened, _) =
        Ledger::open_folded_on::<Recorded>(Arc::new(disk.clone()), clock.clone(), Options::default())
            .unwrap();
    let at = clock.now().lease;
    let used = |n: usize| {
        let (job, tenant) = (JobId(1_000_000 + n as u128), "acme".parse().unwrap());
        let made = KeyedJob { job, tenant, spec: Digest::ZERO, at };
        ((worker(), format!("used {n}")), made)
    };
    // One key belongs to an existing job, all others to forgotten jobs.
    let rebuilt =
        Rebuilt { jobs: vec![job(1, at)], keys: (1..MAX).map(used).collect(), ..Rebuilt::default() };
    let fences = Arc::new(Registry::new(rebuilt.seq));
    let store = Store::new(rebuilt, fences, opened.ledger.clone(), clock);
    let create = async |job| store.create(NewJob { job, decision: decision() }).await;
    let full = create(job(2, at)).await.unwrap_err();
    assert_eq!(full, Refused::TooManyKeys(TooManyKeys::Caller(MAX)));
    assert_eq!(full.reason(), Some(Reason::QuotaExceeded));
    // A client that sends a key again gets the same answer: no key was dropped, so no request makes two jobs.
    assert!(matches!(create(job(1, at)).await, Ok(Created::Existing(j)) if j.id == JobId(1)));
    let again = Job { idempotency_key: "used 7".into(), ..job(3, at) };
    assert_eq!(create(again).await.unwrap_err(), Refused::KeyConflict(JobId(1_000_007)));
    assert!(!disk.durable_text().contains("job.created"));
    // Other callers are not affected, and after a day this caller is not either.
    let other = Job { launcher: "spiffe://td/other".parse().unwrap(), ..job(4, at) };
    assert!(matches!(create(other).await, Ok(Created::New(_))));
    store.prune(at.plus(limits::IDEMPOTENCY));
    assert!(matches!(create(job(2, at)).await, Ok(Created::New(_))));
}

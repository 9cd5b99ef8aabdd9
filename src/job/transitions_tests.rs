use super::*;
use crate::{
    job::{
        JobState, Spec,
        testing::{sample_job, sample_spec},
    },
    name::{FenceName, JobId},
};

const NOW: LeaseTime = LeaseTime(1_000_000);
const N1: AttemptNumber = AttemptNumber::FIRST;
const MINUTE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(15);

fn spans(grace: Duration) -> DrainSpans {
    DrainSpans { reading: limits::DRAIN_READ, grace }
}

fn digest(n: u8) -> SecretDigest {
    SecretDigest([n; 32])
}

fn node(n: u32) -> InstanceName {
    format!("node-{n}").parse().unwrap()
}

fn worker() -> SpiffeId {
    "spiffe://td/worker".parse().unwrap()
}

fn job(expect: u32, attempts: u32) -> Job {
    let spec = Spec { max_duration: MINUTE, ..sample_spec(expect, attempts) };
    let ends = NOW.plus(Duration::from_secs(3_600));
    Job { launcher: worker(), ends, ..sample_job(1, spec, NOW) }
}

fn begun(job: &mut Job, key: &str) -> AttemptNumber {
    let Begin::New(change) = job.begin(key, false, digest(0), &[], NOW).unwrap() else { panic!("not new") };
    job.apply(&change);
    job.attempts.last().unwrap().number
}

fn joined(job: &mut Job, n: AttemptNumber, i: u32) {
    let Join::New(change) = job.join(n, &node(i), &worker(), digest(1), WINDOW, NOW).unwrap() else {
        panic!("not new")
    };
    job.apply(&change);
}

fn apply(job: &mut Job, end: Result<End, Illegal>) {
    let End::Now(changes) = end.unwrap() else { panic!("not now") };
    changes.iter().for_each(|c| job.apply(c));
}

/// Each state that a job can be in, by name.
fn states() -> Vec<(&'static str, Job)> {
    let mut all = Vec::new();
    let mut waiting = job(1, 2);
    waiting.state = JobState::AwaitingApproval;
    all.push(("awaiting", waiting));
    all.push(("ready", job(1, 2)));
    let mut running = job(1, 2);
    begun(&mut running, "k1");
    all.push(("begun", running.clone()));
    joined(&mut running, N1, 1);
    all.push(("running", running.clone()));
    let mut suspended = running.clone();
    let away = suspended.away(N1, &node(1), "", NOW).unwrap();
    suspended.apply(&away);
    all.push(("suspended", suspended));
    let mut draining = running.clone();
    let drain = draining.drain(N1, spans(MINUTE), "", NOW).unwrap().unwrap();
    draining.apply(&drain);
    all.push(("draining", draining));
    let mut failed = running.clone();
    let end = failed.end_attempt(N1, Outcome::Failed, "", NOW);
    apply(&mut failed, end);
    all.push(("failed-once", failed));
    let mut completed = running.clone();
    let end = completed.end_attempt(N1, Outcome::Completed, "", NOW);
    apply(&mut completed, end);
    all.push(("completed", completed));
    all
}

/// The result of each move in each state. The table is complete: without a row for a new state or move the test fails.
#[test]
fn every_transition_in_every_state_is_as_the_table_says() {
    let table: &[(&str, [&str; 7])] = &[
        // state, begin a new key, begin the first key again, join, drain, end attempt 1 completed, member's end, close
        (
            "awaiting",
            [
                "APPROVAL_REQUIRED",
                "APPROVAL_REQUIRED",
                "ATTEMPT_NOT_FOUND",
                "ATTEMPT_NOT_FOUND",
                "ATTEMPT_NOT_FOUND",
                "ATTEMPT_NOT_FOUND",
                "ok",
            ],
        ),
        (
            "ready",
            [
                "ok",
                "ok",
                "ATTEMPT_NOT_FOUND",
                "ATTEMPT_NOT_FOUND",
                "ATTEMPT_NOT_FOUND",
                "ATTEMPT_NOT_FOUND",
                "ok",
            ],
        ),
        ("begun", ["ok", "same", "ok", "ok", "ok", "NOT_A_MEMBER", "ok"]),
        ("running", ["ok", "same", "same", "ok", "ok", "ok", "ok"]),
        ("suspended", ["ok", "same", "ok", "ok", "ok", "ok", "ok"]),
        ("draining", ["ATTEMPT_DRAINING", "same", "same", "same", "ok", "ok", "ok"]),
        (
            "failed-once",
            ["ok", "ATTEMPT_KEY_USED", "ATTEMPT_ENDED", "ATTEMPT_ENDED", "conflict", "conflict", "ok"],
        ),
        ("completed", ["JOB_CLOSED", "JOB_CLOSED", "JOB_CLOSED", "JOB_CLOSED", "same", "same", "same"]),
    ];
    let code = |r: Result<&'static str, Illegal>| r.unwrap_or_else(|i| i.reason().code());
    let states = states();
    assert_eq!(states.len(), table.len());
    for ((name, job), (row, expected)) in states.iter().zip(table) {
        assert_eq!(name, row);
        let begin = |key| {
            code(job.begin(key, false, digest(0), &[], NOW).map(|b| match b {
                Begin::New(_) => "ok",
                Begin::Existing(_) => "same",
            }))
        };
        let end = |r: Result<End, Illegal>| {
            code(r.map(|e| match e {
                End::Now(_) => "ok",
                End::Already => "same",
                End::Conflict(_) => "conflict",
            }))
        };
        let got = [
            begin("k2"),
            begin("k1"),
            code(job.join(N1, &node(1), &worker(), digest(1), WINDOW, NOW).map(|j| match j {
                Join::New(_) => "ok",
                Join::Same => "same",
            })),
            code(job.drain(N1, spans(MINUTE), "", NOW).map(|d| if d.is_some() { "ok" } else { "same" })),
            end(job.end_attempt(N1, Outcome::Completed, "", NOW)),
            end(job.end_member(N1, &node(1), Outcome::Completed, "", NOW)),
            match job.close(Outcome::Completed, "", NOW) {
                Close::Now(_) => "ok",
                Close::Already => "same",
                Close::Conflict(_) => "conflict",
            },
        ];
        assert_eq!(got, *expected, "in state {name}");
    }
}

#[test]
fn a_second_report_of_an_end_keeps_the_first() {
    let mut j = job(1, 1);
    begun(&mut j, "k");
    joined(&mut j, N1, 1);
    let end = j.end_member(N1, &node(1), Outcome::Failed, "exit code 1", NOW);
    apply(&mut j, end);
    assert_eq!(j.state, JobState::Closed(Outcome::Failed));
    assert_eq!(j.end_member(N1, &node(1), Outcome::Failed, "", NOW), Ok(End::Already));
    assert_eq!(j.end_member(N1, &node(1), Outcome::Completed, "", NOW), Ok(End::Conflict(Outcome::Failed)));
    assert_eq!(j.close(Outcome::Completed, "", NOW), Close::Conflict(Outcome::Failed));
}

#[test]
fn beginning_n_ends_the_one_before_and_its_number_is_stale() {
    let mut j = job(1, 3);
    begun(&mut j, "a");
    joined(&mut j, N1, 1);
    let Begin::New(change) = j.begin("b", false, digest(0), &[], NOW).unwrap() else { panic!() };
    assert_eq!(j.fences_of(&change), [FenceName::attempt(j.id, N1)]);
    j.apply(&change);
    assert_eq!(j.attempts[0].state, AttemptState::Ended(Outcome::Superseded));
    assert!(matches!(j.running(N1), Err(Illegal::Stale(..))));
    assert!(matches!(j.end_attempt(N1, Outcome::Completed, "", NOW), Err(Illegal::Stale(..))));
    assert!(matches!(j.end_member(N1, &node(1), Outcome::Completed, "", NOW), Err(Illegal::Stale(..))));
    assert_eq!(j.begin("b", false, digest(0), &[], NOW), Ok(Begin::Existing(N1.next())));
}

#[test]
fn an_attempt_ends_when_all_complete_or_one_fails() {
    let mut j = job(2, 1);
    begun(&mut j, "k");
    joined(&mut j, N1, 1);
    joined(&mut j, N1, 2);
    assert!(matches!(j.join(N1, &node(3), &worker(), digest(1), WINDOW, NOW), Err(Illegal::MembersFull(2))));
    let mut failing = j.clone();
    let end = j.end_member(N1, &node(1), Outcome::Completed, "", NOW);
    apply(&mut j, end);
    assert_eq!(j.state, JobState::Running);
    let end = j.end_member(N1, &node(2), Outcome::Completed, "", NOW);
    apply(&mut j, end);
    assert_eq!(j.state, JobState::Closed(Outcome::Completed));
    let end = failing.end_member(N1, &node(1), Outcome::Failed, "", NOW);
    apply(&mut failing, end);
    assert_eq!(failing.state, JobState::Closed(Outcome::Failed));
}

#[test]
fn only_its_secret_brings_an_away_member_back() {
    let mut j = job(1, 1);
    begun(&mut j, "k");
    joined(&mut j, N1, 1);
    let away = j.away(N1, &node(1), "", NOW).unwrap();
    assert_eq!(j.fences_of(&away), [FenceName::member(j.id, N1, node(1))]);
    j.apply(&away);
    assert_eq!(j.attempts[0].state, AttemptState::Suspended);
    assert!(j.away(N1, &node(1), "", NOW).is_none(), "twice is once");
    assert!(matches!(
        j.join(N1, &node(1), &worker(), digest(2), WINDOW, NOW),
        Err(Illegal::InstanceTaken(_))
    ));
    let other = "spiffe://td/other".parse().unwrap();
    assert!(matches!(j.join(N1, &node(1), &other, digest(1), WINDOW, NOW), Err(Illegal::InstanceTaken(_))));
    joined(&mut j, N1, 1);
    assert_eq!(j.attempts[0].state, AttemptState::Running);
}

#[test]
fn time_loses_members_ends_drains_and_closes_the_job() {
    let mut j = job(1, 1);
    begun(&mut j, "k");
    joined(&mut j, N1, 1);
    assert_eq!(j.overdue(MINUTE, NOW.plus(MINUTE * 2)), []);
    let away = j.away(N1, &node(1), "", NOW).unwrap();
    j.apply(&away);
    assert_eq!(j.overdue(MINUTE, NOW.plus(MINUTE)), []);
    let changes = j.overdue(MINUTE, NOW.plus(MINUTE * 2));
    assert!(matches!(
        changes[..],
        [Change::MemberLost { .. }, Change::AttemptEnded { outcome: Outcome::Lost, .. }]
    ));

    let mut drained = job(1, 2);
    begun(&mut drained, "k");
    let drain = drained.drain(N1, spans(MINUTE), "", NOW).unwrap().unwrap();
    drained.apply(&drain);
    assert!(
        drained.drain(N1, spans(MINUTE * 2), "", NOW).unwrap().is_none(),
        "a second drain never prolongs the first"
    );
    assert_eq!(drained.overdue(MINUTE, NOW.plus(Duration::from_secs(59))), []);
    assert!(matches!(
        drained.overdue(MINUTE, NOW.plus(MINUTE))[..],
        [Change::AttemptEnded { outcome: Outcome::Interrupted, .. }]
    ));

    let old = job(1, 1);
    assert!(matches!(old.overdue(MINUTE, old.ends)[..], [Change::Closed { outcome: Outcome::Expired, .. }]));
}

#[test]
fn a_shorter_second_drain_ends_no_half_later() {
    let mut j = job(1, 1);
    begun(&mut j, "k");
    let first = j.drain(N1, spans(MINUTE * 2), "", NOW).unwrap().unwrap();
    j.apply(&first);
    let later = NOW.plus(Duration::from_secs(3));
    let second = j.drain(N1, spans(MINUTE), "", later).unwrap().unwrap();
    let Change::AttemptDraining { drain: Drain { reading_ends, writing_ends }, .. } = second else {
        panic!()
    };
    assert_eq!(reading_ends, NOW.plus(limits::DRAIN_READ));
    assert_eq!(writing_ends, later.plus(MINUTE));
}

#[test]
fn a_begin_whose_job_was_closed_meanwhile_changes_nothing() {
    let mut j = job(1, 1);
    let Begin::New(begin) = j.begin("k", false, digest(0), &[], NOW).unwrap() else { panic!() };
    let Close::Now(close) = j.close(Outcome::Revoked, "", NOW) else { panic!() };
    j.apply(&close);
    j.apply(&begin);
    assert!(j.attempts.is_empty() && j.is_closed());
}

#[test]
fn the_drain_of_the_last_who_goes_on_is_that_of_the_attempt() {
    let mut j = job(2, 1);
    begun(&mut j, "k");
    joined(&mut j, N1, 1);
    // One more member is expected, so the attempt may go on.
    let first = j.drain_member(N1, &node(1), spans(MINUTE), "", NOW).unwrap();
    assert!(matches!(first[..], [Change::MemberDraining { .. }]));
    joined(&mut j, N1, 2);
    first.iter().for_each(|c| j.apply(c));
    assert!(
        j.drain_member(N1, &node(1), spans(MINUTE * 2), "", NOW).unwrap().is_empty(),
        "it prolongs nothing"
    );
    let last = j.drain_member(N1, &node(2), spans(MINUTE / 2), "", NOW).unwrap();
    let Change::AttemptDraining { drain, .. } = &last[1] else { panic!("{last:?}") };
    assert_eq!(drain.writing_ends, NOW.plus(MINUTE), "the attempt lasts as long as its last member");
    last.iter().for_each(|c| j.apply(c));
    let a = &j.attempts[0];
    assert_eq!(a.drain_of(&node(2)).unwrap().writing_ends, NOW.plus(MINUTE / 2));
    assert!(matches!(j.begin("k2", false, digest(0), &[], NOW), Err(Illegal::AttemptsExhausted(1))));
    // The second member leaves at the end of its drain, and the attempt ends at the end of the first member's drain.
    let changes = j.overdue(MINUTE * 60, NOW.plus(MINUTE / 2));
    assert!(
        matches!(&changes[..], [Change::MemberLeft { instance, .. }] if *instance == node(2)),
        "{changes:?}"
    );
    changes.iter().for_each(|c| j.apply(c));
    let changes = j.overdue(MINUTE * 60, NOW.plus(MINUTE));
    assert!(
        matches!(changes[..], [Change::AttemptEnded { outcome: Outcome::Interrupted, .. }]),
        "{changes:?}"
    );
}

#[test]
fn an_attempt_waits_for_members_that_are_still_to_come() {
    let mut j = job(2, 1);
    begun(&mut j, "k");
    joined(&mut j, N1, 1);
    let end = j.end_member(N1, &node(1), Outcome::Interrupted, "", NOW);
    apply(&mut j, end);
    assert_eq!(j.attempts[0].state, AttemptState::Suspended, "the second may still come");
    let gone = NOW.plus(MINUTE);
    assert_eq!(j.overdue(MINUTE, gone), []);
    let changes = j.overdue(MINUTE, LeaseTime(gone.0 + 1));
    assert!(matches!(changes[..], [Change::AttemptEnded { outcome: Outcome::Lost, .. }]), "{changes:?}");
    joined(&mut j, N1, 2);
    let end = j.end_member(N1, &node(2), Outcome::Completed, "", NOW);
    apply(&mut j, end);
    // Both have joined and left, and only one completed.
    assert_eq!(j.attempts[0].state, AttemptState::Ended(Outcome::Interrupted));
}

#[test]
fn an_instance_that_its_member_has_left_for_good_is_given_again() {
    let mut j = job(2, 1);
    begun(&mut j, "k");
    let ask = |j: &Job, n, secret, now| {
        j.join(N1, &node(n), &worker(), digest(secret), WINDOW, now)
            .map(|join| j.id == JobId(1) && join != Join::Same)
    };
    for i in [1, 2] {
        joined(&mut j, N1, i);
    }
    let away = j.away(N1, &node(1), "", NOW).unwrap();
    j.apply(&away);
    let late = LeaseTime(NOW.plus(WINDOW).0 + 1);
    assert!(matches!(ask(&j, 1, 2, NOW.plus(WINDOW)), Err(Illegal::InstanceTaken(_))));
    assert_eq!(ask(&j, 1, 2, late), Ok(true), "though the attempt is full: it takes the other's place");
    assert_eq!(ask(&j, 1, 1, late), Ok(true), "and its own member may still be the first");
    let end = j.end_member(N1, &node(2), Outcome::Completed, "", NOW);
    apply(&mut j, end);
    assert!(matches!(ask(&j, 2, 2, late), Err(Illegal::NotJoined(..))), "what is done is done");
    let lost = Change::MemberLost { attempt: N1, instance: node(1), at: late, detail: String::new() };
    j.apply(&lost);
    assert!(matches!(ask(&j, 1, 1, late), Err(Illegal::NotJoined(..))));
    assert_eq!(ask(&j, 1, 2, late), Ok(true));
}

#[test]
fn a_draining_members_name_is_kept_until_its_time_is_over() {
    let mut j = job(2, 1);
    begun(&mut j, "k");
    for i in [1, 2] {
        joined(&mut j, N1, i);
    }
    let drain = j.drain_member(N1, &node(1), spans(MINUTE), "", NOW).unwrap();
    drain.iter().for_each(|change| j.apply(change));
    let away = j.away(N1, &node(1), "", NOW).unwrap();
    j.apply(&away);
    let ask = |j: &Job, secret, now| j.join(N1, &node(1), &worker(), digest(secret), WINDOW, now);
    let late = NOW.plus(MINUTE - Duration::from_millis(1));
    assert_eq!(ask(&j, 2, late), Err(Illegal::InstanceDraining(node(1))));
    assert!(ask(&j, 1, late).is_ok(), "its own member comes back, and is still draining");
    assert!(ask(&j, 2, NOW.plus(MINUTE)).is_ok());
}

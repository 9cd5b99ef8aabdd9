use super::*;
use crate::{
    job::{
        Begin, End,
        testing::{sample_job, sample_spec},
    },
    name::{AttemptNumber, FenceName},
    reason::Reason,
    secret::SecretDigest,
};

const NOW: LeaseTime = LeaseTime(1_000_000);
const HOUR: Duration = Duration::from_secs(3_600);
const TICKET: SecretDigest = SecretDigest([0; 32]);

fn gate(id: &str, people: u32) -> Gate {
    Gate {
        id: id.into(),
        explanation: "a reason".into(),
        approver_group: "owners".into(),
        approvals_needed: people,
        approval_ttl: HOUR,
    }
}

/// A job that waits at gate `a` for two people, and at gate `b` for one.
fn waiting() -> Job {
    let job = sample_job(1, sample_spec(1, 2), NOW);
    job.held_by(vec![gate("a", 2), gate("b", 1)])
}

fn person(name: &str) -> SpiffeId {
    format!("spiffe://td/people/{name}").parse().unwrap()
}

fn decide(job: &Job, name: &str, gates: &[&str], now: LeaseTime) -> Result<Option<Change>, Illegal> {
    let (by, human) = (person(name), name.split('.').next().unwrap().parse().unwrap());
    let gates: Vec<String> = gates.iter().map(|g| (*g).to_owned()).collect();
    job.approve(Approver { by: &by, human: Some(&human), reason: "seen" }, &gates, Digest::ZERO, now)
}

fn approved(job: &mut Job, name: &str, gates: &[&str], now: LeaseTime) {
    let change = decide(job, name, gates, now).unwrap().expect("it is new");
    assert!(change.widens());
    job.apply(&change);
}

fn begun(job: &mut Job, now: LeaseTime) {
    let Begin::New(change) = job.begin("key", false, TICKET, &[], now).unwrap() else { panic!() };
    job.apply(&change);
}

fn withdrawn(job: &mut Job, name: &str, now: LeaseTime) -> Vec<FenceName> {
    let changes = job.withdraw_approval(&person(name), None, "a doubt", now).unwrap();
    let mut lowered = Vec::new();
    for change in &changes {
        assert!(!change.widens());
        lowered.extend(job.fences_of(change));
        job.apply(change);
    }
    lowered
}

fn missing(job: &Job, now: LeaseTime) -> Vec<&str> {
    job.waiting_for(now).map(|g| g.id.as_str()).collect()
}

#[test]
fn a_job_is_ready_when_the_last_gate_has_its_people() {
    let mut job = waiting();
    assert_eq!((job.state, job.detail.as_str()), (JobState::AwaitingApproval, "waits for a, b"));
    approved(&mut job, "ada", &["a", "b"], NOW);
    assert_eq!((job.state, missing(&job, NOW)), (JobState::AwaitingApproval, vec!["a"]));
    assert_eq!(job.begin("key", false, TICKET, &[], NOW), Err(Illegal::AwaitingApproval));
    assert_eq!(decide(&job, "ada", &["a", "b"], NOW), Ok(None), "once is enough");
    approved(&mut job, "bob", &["a"], NOW);
    assert_eq!((job.state, job.detail.as_str()), (JobState::Ready, ""));
    begun(&mut job, NOW);
    assert_eq!(job.state, JobState::Running);
}

#[test]
fn one_human_counts_once_whatever_the_identity() {
    let mut job = waiting();
    approved(&mut job, "ada", &["a"], NOW);
    let refused = decide(&job, "ada.laptop", &["a"], NOW).unwrap_err();
    assert_eq!(refused, Illegal::SameHuman("a".into(), person("ada")));
    assert_eq!(refused.reason(), Reason::ApproverInvolved);
    // If two such approvals are in a record nevertheless, they count as one.
    let mut second = job.approvals[0].clone();
    second.by = person("ada.laptop");
    job.apply(&Change::Approved { request: Digest::ZERO, approvals: vec![second] });
    assert_eq!((job.approvals.len(), missing(&job, NOW)), (2, vec!["a", "b"]));
    // An identity without a human counts by itself.
    let ids = [person("x"), person("y")];
    assert_eq!(count_people(ids.iter().chain(&ids).map(|id| (id, Vec::new()))), 2);
}

#[test]
fn unknown_gates_and_too_many_approvals_are_refused() {
    let mut job = waiting();
    assert_eq!(decide(&job, "ada", &["c"], NOW), Err(Illegal::NoGate("c".into())));
    for n in 0..limits::APPROVALS_PER_JOB_MAX {
        approved(&mut job, &format!("p{n}"), &["a"], NOW);
    }
    let full = Illegal::TooManyApprovals(limits::APPROVALS_PER_JOB_MAX);
    assert_eq!(decide(&job, "ada", &["a"], NOW), Err(full));
}

#[test]
fn the_time_of_a_gated_job_begins_with_its_first_attempt() {
    let mut job = waiting();
    assert_eq!(job.ends, NOW.plus(limits::APPROVAL_WAIT_MAX));
    let late = NOW.plus(HOUR * 48);
    assert_eq!(job.overdue(HOUR, late), []);
    let week = NOW.plus(limits::APPROVAL_WAIT_MAX);
    assert!(matches!(job.overdue(HOUR, week)[..], [Change::Closed { outcome: Outcome::Expired, .. }]));
    approved(&mut job, "ada", &["a", "b"], late);
    approved(&mut job, "bob", &["a"], late);
    begun(&mut job, late);
    assert_eq!(job.ends, late.plus(HOUR));
    assert!(matches!(
        job.overdue(HOUR, late.plus(HOUR))[..],
        [Change::Closed { outcome: Outcome::Interrupted, .. }]
    ));
}

#[test]
fn an_old_approval_counts_only_once_the_job_has_begun() {
    let mut job = waiting();
    approved(&mut job, "ada", &["a", "b"], NOW);
    let later = NOW.plus(HOUR / 2);
    approved(&mut job, "bob", &["a"], later);
    let mut early = job.clone();
    begun(&mut early, NOW.plus(HOUR - Duration::from_millis(1)));
    assert_eq!(early.overdue(HOUR * 9, NOW.plus(HOUR)), [], "its approvals hold");
    assert_eq!(missing(&early, NOW.plus(HOUR * 9)), Vec::<&str>::new());
    // The approval has just expired. The begin notices this before the periodic check.
    let late = NOW.plus(HOUR);
    assert_eq!(job.begin("key", false, TICKET, &[], late), Err(Illegal::AwaitingApproval));
    let lapsed = job.overdue(HOUR * 9, late);
    assert_eq!(lapsed.len(), 2, "those of ada: {lapsed:?}");
    lapsed.iter().for_each(|change| job.apply(change));
    assert_eq!((job.state, missing(&job, late)), (JobState::AwaitingApproval, vec!["a", "b"]));
    approved(&mut job, "ada", &["a", "b"], late);
    begun(&mut job, late);
}

#[test]
fn a_withdrawal_makes_a_job_wait_again_or_ends_what_it_runs() {
    let mut job = waiting();
    approved(&mut job, "ada", &["a", "b"], NOW);
    approved(&mut job, "bob", &["a"], NOW);
    let mut ready = job.clone();
    assert_eq!(withdrawn(&mut ready, "bob", NOW), []);
    assert_eq!((ready.state, missing(&ready, NOW)), (JobState::AwaitingApproval, vec!["a"]));
    assert_eq!(ready.withdraw_approval(&person("bob"), None, "", NOW), Ok(vec![]), "twice is once");
    assert_eq!(ready.withdraw_approval(&person("bob"), Some("c"), "", NOW), Err(Illegal::NoGate("c".into())));
    // A third person is enough for the gate, so the job goes on.
    let mut enough = job.clone();
    approved(&mut enough, "eve", &["a"], NOW);
    begun(&mut enough, NOW);
    assert_eq!((withdrawn(&mut enough, "bob", NOW), enough.state), (vec![], JobState::Running));
    begun(&mut job, NOW);
    assert_eq!(withdrawn(&mut job, "bob", NOW), [FenceName::job(job.id)]);
    assert_eq!((job.state, job.detail.as_str()), (JobState::Closed(Outcome::Revoked), "a doubt"));
    assert_eq!(missing(&job, NOW), Vec::<&str>::new());
}

#[test]
fn a_withdrawal_between_two_attempts_closes_the_job_too() {
    let mut job = waiting();
    approved(&mut job, "ada", &["a", "b"], NOW);
    approved(&mut job, "bob", &["a"], NOW);
    begun(&mut job, NOW);
    let ended = job.end_attempt(AttemptNumber::FIRST, Outcome::Failed, "", NOW);
    let Ok(End::Now(changes)) = ended else { panic!() };
    changes.iter().for_each(|change| job.apply(change));
    assert_eq!(job.state, JobState::Ready);
    withdrawn(&mut job, "ada", NOW);
    assert_eq!(job.state, JobState::Closed(Outcome::Revoked));
}

#[test]
fn a_rejection_closes_only_what_has_not_begun() {
    let mut job = waiting();
    let Ok(Close::Now(change)) = job.reject("not this data", NOW) else { panic!() };
    let mut rejected = job.clone();
    rejected.apply(&change);
    assert_eq!(rejected.state, JobState::Closed(Outcome::Rejected));
    assert_eq!(rejected.reject("again", NOW), Ok(Close::Already));
    let closed = Illegal::JobClosed(Outcome::Rejected);
    assert_eq!(decide(&rejected, "ada", &["a"], NOW), Err(closed.clone()));
    assert_eq!(rejected.withdraw_approval(&person("ada"), None, "", NOW), Err(closed));
    approved(&mut job, "ada", &["a", "b"], NOW);
    approved(&mut job, "bob", &["a"], NOW);
    begun(&mut job, NOW);
    assert_eq!(job.reject("too late", NOW), Err(Illegal::Begun));
    let free = Job { gates: vec![], ..waiting() };
    assert_eq!(free.reject("why", NOW), Err(Illegal::NoGates));
}

/// A begin whose record is being written, and a withdrawal meanwhile: in either order in the ledger, nothing runs.
#[test]
fn a_begin_that_a_withdrawal_overtook_runs_nothing() {
    let mut job = waiting();
    approved(&mut job, "ada", &["a", "b"], NOW);
    approved(&mut job, "bob", &["a"], NOW);
    let Begin::New(begin) = job.begin("key", false, TICKET, &[], NOW).unwrap() else { panic!() };
    let mut replayed = job.clone();
    let withdrawal = job.withdraw_approval(&person("ada"), Some("a"), "", NOW).unwrap();
    withdrawal.iter().for_each(|change| job.apply(change));
    assert_eq!(job.begin("key", false, TICKET, &[], NOW), Err(Illegal::AwaitingApproval));
    // Power fails before the begin is withdrawn: the records say begin, then withdrawal.
    replayed.apply(&begin);
    withdrawal.iter().for_each(|change| replayed.apply(change));
    assert_eq!(replayed.state, JobState::Closed(Outcome::Revoked));
}

//! Explains refusals: whose fault they were, and what to do. The texts are for people who do not know how
//! Leasehold works.

use crate::reason::{Reason, Refusal};

/// The explanation of a refusal: its meaning, and what to do about it.
struct Advice {
    means: &'static str,
    fix: &'static str,
}

/// Reasons whose fix names options of our commands. The daemon does not know these options.
const FIXED_BY_OPTIONS: [Reason; 3] =
    [Reason::TicketRequired, Reason::AttemptDraining, Reason::InstanceTaken];

/// Adds the meaning of a refusal. Also adds what to do, unless the daemon said it. For the reasons in [`FIXED_BY_OPTIONS`], the
/// advice replaces what the daemon said.
pub fn explain_refusal(refusal: Refusal) -> Refusal {
    let Some(Advice { means, fix }) = advice(refusal.reason) else { return refusal };
    let mut refusal = refusal.with("means", means);
    if FIXED_BY_OPTIONS.contains(&refusal.reason) {
        refusal.facts.retain(|(label, _)| label != "fix");
    }
    if refusal.fact("fix").is_some() { refusal } else { refusal.fix(fix) }
}

/// Returns the meaning of a reason, for a message while the work runs.
pub(crate) fn meaning_for_people(reason: Reason) -> Option<&'static str> {
    // While the work runs, this reason means the drain of this run. The advice is about the drain of an earlier run.
    advice(reason).filter(|_| reason != Reason::AttemptDraining).map(|a| a.means)
}

fn advice(reason: Reason) -> Option<Advice> {
    let (means, fix) = advice_about_work(reason).or_else(|| advice_about_access(reason))?;
    Some(Advice { means, fix })
}

/// Advice for reasons that are about jobs, attempts and members.
fn advice_about_work(reason: Reason) -> Option<(&'static str, &'static str)> {
    use Reason as R;
    Some(match reason {
        R::JobNotFound => (
            "no job with this ID is visible to you; a mistyped ID and another team's job look the same",
            "compare it with `leasehold job list`",
        ),
        R::JobClosed => (
            "the job is closed permanently; no run can open it again",
            "see why: leasehold job show ID; then create another job",
        ),
        R::AttemptNotFound => (
            "no run of this job has begun, or its last run has ended",
            "begin one: leasehold run --job ID --spec FILE …",
        ),
        R::AttemptKeyUsed => (
            "a run with this key has ended; no key is used twice, so that a late process of the old run gets no access",
            "give the new run a new key: put the scheduler's restart count into it",
        ),
        R::AttemptsExhausted => (
            "not a fault of this run: the job allows a number of runs, and all of them were used",
            "create another job, with a larger members.attempts in the job file",
        ),
        R::AttemptDraining => (
            "not a fault of this run: the run before it is still saving its work and has some time left for that",
            "start again in a moment, or with --supersede to end the other run now",
        ),
        R::AttemptStale => (
            "not a fault of this run: a newer run of the same job has begun, and only one run at a time has access",
            "stop here; the newer run goes on",
        ),
        R::AttemptEnded => (
            "this run has ended for all its members: one of them failed, or someone ended the run",
            "see why: leasehold job show ID; a new run needs a new --attempt-key",
        ),
        R::NotAMember => (
            "the job does not list your identity among those that may take part",
            "use a listed identity, or add yours to members.join in the job file",
        ),
        R::IdentityBound => (
            "this identity may work for one job at a time, and has taken part in another job that is open or ended a short while ago; a run that was killed counts too",
            "go on with that job while it is open (--job ID), or run each job under its own identity",
        ),
        R::InstanceTaken => (
            "another process takes part under this name: two processes were given the same name, or the previous process has not ended yet",
            "give each process its own --instance; the name of a dead process is free again within seconds",
        ),
        R::NotJoined => (
            "this process no longer takes part in the run: an operator removed it, it has left, or the daemon could not reach it for too long",
            "start it again, with another --instance if the run goes on",
        ),
        R::SessionMismatch => (
            "another process has taken the place of this one in the run",
            "start it again with its own --instance",
        ),
        R::TicketRequired => (
            "several jobs can use your identity, or the job names it only by a pattern that others match too, so each process must prove that it belongs to this job",
            "give the ticket that the launcher wrote: leasehold job begin ID --attempt-key K --ticket-to FILE, then --ticket-file FILE here; if members.start has your full SPIFFE ID, --job ID --attempt-key K is enough, and this command gets the ticket itself",
        ),
        R::MembersFull => (
            "not a fault of this process: the job allows fewer members than have come; the others go on",
            "start fewer, or create a job with a larger members.max",
        ),
        _ => return None,
    })
}

/// Advice for reasons that are about the daemon, the identity and the acts of operators.
fn advice_about_access(reason: Reason) -> Option<(&'static str, &'static str)> {
    use Reason as R;
    Some(match reason {
        R::Unreachable => (
            "nothing was decided: the request did not reach the daemon",
            "check that it runs and that this machine reaches it: leasehold doctor",
        ),
        R::ShuttingDown | R::Overloaded | R::Contended | R::LedgerUnavailable => (
            "nothing was decided, and it is not your fault: the daemon cannot serve at the moment",
            "start again in a moment; if this goes on, tell the people who run the daemon",
        ),
        R::SvidExpired => (
            "the certificate that proves your identity is not valid now: it expired and was not renewed, or it is not valid yet",
            "check the program that renews it, and the clock: leasehold doctor",
        ),
        R::PrincipalUnknown => (
            "your identity was proven, but the catalog has no entry for it",
            "ask the people who run the daemon to add your identity",
        ),
        R::Locked => (
            "an operator has locked this until further notice",
            "ask an operator: leasehold lock list shows who did it and why",
        ),
        R::Revoked => (
            "someone has ended this access on purpose; it does not come back by itself",
            "ask an operator; while a lock is in force, a new run may be refused too",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_fix_has_priority() {
        let theirs = explain_refusal(Refusal::new(Reason::MembersFull, "full").fix("theirs"));
        assert_eq!(theirs.fact("fix"), Some("theirs"));
        assert!(theirs.fact("means").unwrap().contains("not a fault"));
        let ours = explain_refusal(Refusal::new(Reason::MembersFull, "full"));
        assert!(ours.fact("fix").unwrap().contains("members.max"));
        let option =
            explain_refusal(Refusal::new(Reason::TicketRequired, "x").fix("what BeginAttempt answered"));
        assert!(option.fact("fix").unwrap().contains("--ticket-file"));
        assert_eq!(explain_refusal(Refusal::new(Reason::TokenScope, "x")).facts.len(), 0);
    }
}

//! What a refusal means for the one who reads it: whether it was their fault, and what to do. For people who have never heard
//! of the machinery behind it.

use crate::reason::{Reason, Refusal};

/// What it means, and what to do about it.
struct Advice {
    means: &'static str,
    fix: &'static str,
}

/// Where what to do is written in options of these commands, which the daemon does not know.
const OURS: [Reason; 3] = [Reason::TicketRequired, Reason::AttemptDraining, Reason::InstanceTaken];

/// The same refusal with a line that says what it means, and with what to do where the daemon did not say.
pub fn explain_refusal(refusal: Refusal) -> Refusal {
    let Some(Advice { means, fix }) = advice(refusal.reason) else { return refusal };
    let mut refusal = refusal.with("means", means);
    if OURS.contains(&refusal.reason) {
        refusal.facts.retain(|(label, _)| label != "fix");
    }
    if refusal.fact("fix").is_some() { refusal } else { refusal.fix(fix) }
}

/// The meaning alone, for a line.
pub(crate) fn means(reason: Reason) -> Option<&'static str> {
    // Of our own drain there is nothing to explain.
    advice(reason).filter(|_| reason != Reason::AttemptDraining).map(|a| a.means)
}

fn advice(reason: Reason) -> Option<Advice> {
    use Reason as R;
    let (means, fix) = match reason {
        R::JobNotFound => (
            "no job of this name is one that you may see; a mistyped name and another team's job look the same",
            "compare it with `leasehold job list`",
        ),
        R::JobClosed => (
            "the job is over for good, whoever ended it; nothing that you run can open it again",
            "see why: leasehold job show ID; then create another job",
        ),
        R::AttemptNotFound => {
            ("nobody has begun this job, or its run is over", "begin one: leasehold run --job ID …")
        }
        R::AttemptKeyUsed => (
            "a run with this key has been, and is over; a key is never used twice, so that a late process of it gets nothing",
            "give the new run a new key: put the scheduler's restart count into it",
        ),
        R::AttemptsExhausted => (
            "not a fault of this run: the job was described for so many runs, and they have been",
            "create another job, or describe it with more in members.attempts",
        ),
        R::AttemptDraining => (
            "not a fault of this run: the run before is still saving its work and is left the time for it",
            "start again in a moment, or with --supersede to end the other at once",
        ),
        R::AttemptStale => (
            "not a fault of this run: a newer run of the same job has begun, and only one at a time has access",
            "stop here; the newer one goes on",
        ),
        R::AttemptEnded => (
            "this run is over for all who take part in it: one of them has failed, or somebody ended it",
            "see why: leasehold job show ID; a new run needs a new --attempt-key",
        ),
        R::NotAMember => (
            "the job was described for others: your identity is not among those that may take part",
            "run it as one that is, or add yours to members.join in the job file",
        ),
        R::IdentityBound => (
            "this identity is meant for one job, and has taken part in another that is open or ended a short while ago; a run that was killed counts too",
            "go on with that job while it is open (--job ID), or run each job under an identity of its own",
        ),
        R::InstanceTaken => (
            "somebody takes part under this name already; two processes were given one name, or the one before is not yet gone",
            "give each process an --instance of its own; one that has died makes room within seconds",
        ),
        R::NotJoined => (
            "this process's place in the run is gone: it has left, or was out of reach for longer than it may be",
            "start it again, under another --instance where the run goes on",
        ),
        R::SessionMismatch => (
            "another process has taken over this one's place in the run",
            "start it again under an --instance of its own",
        ),
        R::TicketRequired => (
            "several jobs run under your identity, so each process must show that it belongs to this one",
            "give it the run's own key, which brings the ticket: --job ID --attempt-key K; or the ticket that BeginAttempt answered: --ticket-file FILE",
        ),
        R::MembersFull => (
            "not a fault of this process alone: the job was described for fewer than have come; the others are not touched",
            "start fewer, or describe the job with more in members.max",
        ),
        R::Unreachable => (
            "nothing was decided: the daemon could not be asked",
            "look whether it runs and whether this machine reaches it: leasehold doctor",
        ),
        R::ShuttingDown | R::Overloaded | R::Contended | R::LedgerUnavailable => (
            "nothing was decided, and it is not your fault: the daemon cannot serve at the moment",
            "start again in a moment; if it stays so, tell those who run it",
        ),
        R::SvidExpired => (
            "the certificate that shows who you are is not valid now: its end has come and it was not renewed, or its time has not begun",
            "look at what writes it, and at the clock: leasehold doctor",
        ),
        R::PrincipalUnknown => (
            "who you are was proven, but nobody has entered you in the catalog",
            "ask those who run the daemon to add your identity",
        ),
        R::Locked => (
            "somebody has shut this off until further notice, for a reason of theirs",
            "ask an operator: leasehold lock list says who and why",
        ),
        R::Revoked => (
            "somebody has ended this access on purpose; it does not come back by itself",
            "ask an operator; a new run may be refused too while a lock stands",
        ),
        _ => return None,
    };
    Some(Advice { means, fix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_said_to_do_comes_before_what_we_would() {
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

//! Decides who may be a member of an attempt: before the attempt begins, and when a member joins.

use std::sync::Arc;

use super::{
    access::AccessControl,
    caller::Caller,
    context::BrokerContext,
    decide::Decisions,
    refusals::{identity_bound, move_refusal},
    rules::Rules,
    wording::is_measured,
};
use crate::{
    catalog::IdentityUse,
    job::{EndedMembership, Job, Member},
    limits,
    name::{AttemptNumber, FenceName},
    policy::{Relation, Rpc},
    reason::{Reason, Refusal},
    secret::{Secret, SecretDigest},
};

/// Decides which identities may be members.
#[derive(Clone)]
pub struct Joining {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
}

/// Whether a caller has the ticket of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TicketFound {
    Right,
    /// The ticket is missing or wrong.
    None,
}

impl TicketFound {
    pub(super) fn of(text: &str, right: SecretDigest) -> Self {
        match Secret::from_text(text) {
            Some(ticket) if ticket.digest() == right => TicketFound::Right,
            _ => TicketFound::None,
        }
    }
}

impl Joining {
    /// Checks every rule for joining an attempt. An identity needs the ticket if several jobs share it, or if only a
    /// pattern of `members.join` covers it. If an identity belongs to one job only and the launcher vouched for it, it
    /// needs no ticket.
    pub(super) fn may_join(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        names: &[FenceName],
        (attempt, ticket): (AttemptNumber, Option<&str>),
    ) -> Result<(), Refusal> {
        self.may_be_member(rules, caller, job, names)?;
        let Some(why) = needs_ticket(caller, job) else { return Ok(()) };
        let running = job.running(attempt).map_err(move_refusal)?;
        let is_vouched = running.vouched.iter().any(|p| p.matches(caller.id()));
        if is_vouched && caller.principal.identity == IdentityUse::Job {
            return Ok(());
        }
        match TicketFound::of(ticket.unwrap_or_default(), running.ticket) {
            TicketFound::Right => Ok(()),
            TicketFound::None => Err(ticket_required(why)),
        }
    }

    /// Checks whether a caller could join the attempt that it wants to begin. Without this check, a refused join
    /// would use up an attempt.
    pub(super) fn may_join_new(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        names: &[FenceName],
        ticket: TicketFound,
    ) -> Result<(), Refusal> {
        self.may_be_member(rules, caller, job, names)?;
        if caller.principal.identity == IdentityUse::Job
            && let Some(other) = self.context.state.bound_elsewhere(caller.id(), job.id)
        {
            return Err(identity_bound(other));
        }
        match (needs_ticket(caller, job), ticket) {
            (Some(why), TicketFound::None) => Err(ticket_required(why)),
            (Some(_), TicketFound::Right) | (None, _) => Ok(()),
        }
    }

    /// Checks the rules for every membership, with or without a ticket.
    fn may_be_member(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        names: &[FenceName],
    ) -> Result<(), Refusal> {
        self.access.authorize_job(caller, Rpc::JoinAttempt, job, "")?;
        if !caller.relations(job).contains(&Relation::Join) {
            return Err(Refusal::new(
                Reason::NotAMember,
                "the job does not name your identity in members.join",
            )
            .with("you", caller.id().to_string())
            .fix("add it to members.join in the job file, or run with an identity that is there"));
        }
        if !is_measured(job, caller.id()) {
            return Err(Refusal::new(
                Reason::QuotaExceeded,
                format!(
                    "your SPIFFE ID is more than {} bytes longer than the pattern that covers it",
                    limits::WILDCARD_BYTES_MAX
                ),
            )
            .with("you", caller.id().to_string())
            .fix("name it in full in members.join in the job file, or run with a shorter identity"));
        }
        self.access.check_unlocked(caller.id(), names.iter())?;
        self.decisions.check_launcher(rules, job)
    }
}

/// Returns the reason if a member needs the ticket to join. Does not consider whether the launcher vouched for the
/// member.
fn needs_ticket(caller: &Caller, job: &Job) -> Option<&'static str> {
    match caller.principal.identity {
        IdentityUse::Shared => Some("several jobs share your identity"),
        IdentityUse::Job if job.spec.members.names_to_join(caller.id()) => None,
        IdentityUse::Job => Some("the job names your identity only by a pattern, which others match too"),
    }
}

fn ticket_required(why: &str) -> Refusal {
    Refusal::new(Reason::TicketRequired, format!("{why}, so joining needs the ticket of this attempt"))
        .fix("hand over, in a file, the ticket that BeginAttempt returned; or name exactly this identity in members.join")
}

/// Returns the refusal for an ended membership. If an operator ended the membership, the refusal says who and why.
pub(super) fn membership_over(job: &Job, attempt: AttemptNumber, member: &Member) -> String {
    let is_this = |e: &&EndedMembership| e.attempt == attempt && e.identity == member.spiffe_id;
    match job.ended_memberships.iter().rfind(is_this).filter(|_| member.outcome.is_none()) {
        Some(ended) => format!("the membership is over: {}", ended.detail),
        None => "the membership is over".to_owned(),
    }
}

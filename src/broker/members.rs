//! Lets members join an attempt, and marks silent members as away.

use std::{sync::Arc, time::Duration};

use super::{
    access::AccessControl,
    access_request::{AccessRequest, Overtaken},
    caller::Caller,
    context::BrokerContext,
    endings::Endings,
    joining::Joining,
    names,
    offer::Offer,
    refusals::{job_not_found, move_refusal, state_refusal},
};
use crate::{
    catalog::IdentityUse,
    clock::LeaseTime,
    job::{Job, Join, Member, MemberState},
    ledger::Actor,
    limits,
    name::{AttemptNumber, FenceName, InstanceName, JobId, SpiffeId},
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::SecretDigest,
    state::{Belongs, Refused, Widened},
};

/// The answer to a join.
#[derive(Debug)]
pub struct JoinedMember {
    pub job: Arc<Job>,
    pub member: Member,
    pub offers: Vec<Offer>,
}

/// A call to join an attempt.
#[derive(Clone, Debug)]
pub struct JoinRequest<'a> {
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub instance: &'a InstanceName,
    /// The digest of the session secret that the caller made and keeps.
    pub session: SecretDigest,
    pub ticket: Option<&'a str>,
}

/// The use cases of members for their membership: join, and stay connected.
#[derive(Clone)]
pub struct MemberUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) joining: Joining,
    pub(super) endings: Endings,
}

impl MemberUseCases {
    /// Makes the caller a member of an attempt.
    pub async fn join_attempt(
        &self,
        caller: &Caller,
        join: &JoinRequest<'_>,
    ) -> Result<JoinedMember, Refusal> {
        let JoinRequest { job: id, attempt, instance, .. } = *join;
        self.context.refuse_if_held()?;
        let named =
            self.context.state.job(id).ok_or_else(|| self.access.absent_job(caller, Rpc::JoinAttempt))?;
        let _permit = self.context.reconnects.permit_to_join(&named, attempt, instance, caller.id()).await?;
        let request = self.access.access_request(&caller.peer, Rpc::JoinAttempt)?;
        let names = names::of_member(&request.rules, &named, attempt, instance, caller.id());
        let standing = request.stand(&names);
        let AccessRequest { rules, caller, .. } = &standing.request;

        // The stand was taken before all reads below, so `look_again` notices a revocation in between.
        let job = self.context.state.job(id).ok_or_else(job_not_found)?;
        let shown = (attempt, join.ticket);
        self.joining.may_join(rules, caller, &job, &names, shown)?;
        let widened = self.admit_member(caller, &job, join).await?;
        if widened.changed {
            self.report_several(&widened.job, caller.id());
        }
        // The daemon may have lowered the member's own fence when it marked the member as away before. If any other fence
        // is lowered, the join is refused.
        let own = FenceName::member(id, attempt, instance.clone());
        let again = standing.look_again("you were joining", Some(&own), |changed| match changed {
            None => Ok(()),
            Some((rules, caller)) => {
                let names = names::of_member(rules, &widened.job, attempt, instance, caller.id());
                self.joining.may_join(rules, caller, &widened.job, &names, shown)
            }
        });
        if let Err(Overtaken { refusal, .. }) = again {
            self.mark_away(id, attempt, instance, &refusal.text);
            return Err(refusal);
        }
        let running = widened.job.running(attempt).map_err(move_refusal)?;
        let member = running.members.get(instance).cloned();
        let member =
            member.ok_or_else(|| Refusal::new(Reason::NotJoined, "the membership ended meanwhile"))?;
        // If the member does not send a heartbeat soon, it is away again.
        let (key, beat) = ((id, attempt, instance.clone()), self.context.clock.now().boot);
        match widened.changed {
            true => self.context.sessions.begin(key, beat),
            false => self.context.sessions.take_up(key, beat),
        }
        let offers = Offer::all_of(&self.context.rules(), &widened.job);
        Ok(JoinedMember { job: widened.job, member, offers })
    }

    /// Records a member that is new or returns, and sets its state to joined.
    async fn admit_member(
        &self,
        caller: &Caller,
        job: &Job,
        request: &JoinRequest<'_>,
    ) -> Result<Widened, Refusal> {
        let JoinRequest { attempt, instance, session, .. } = *request;
        let belongs = match caller.principal.identity {
            IdentityUse::Job => Belongs::ToOneJob,
            IdentityUse::Shared => Belongs::ToAny,
        };
        let now = self.context.clock.now().lease;
        let window = beat_window(self.context.settings.beat, self.context.settings.lost_after);
        let join = |j: &Job| j.join(attempt, instance, caller.id(), session, window, now);
        if matches!(join(job), Ok(Join::New(_))) {
            self.context
                .rates
                .charge_bytes(caller, instance.as_str().len().saturating_add(caller.id().as_str().len()))?;
        }
        let decide = |j: &Job| match join(j)? {
            Join::New(change) => Ok(Some(change)),
            Join::Same => Ok(None),
        };
        self.context.state.admit(job.id, (caller.id(), belongs), decide).await.map_err(|refused| {
            if matches!(refused, Refused::Bound(_)) {
                tracing::debug!(identity = %caller.id(), job = %job.id, why = %refused, "an identity that belongs to one job tried to join another");
                metrics::counter!("leasehold_identities_in_several_jobs_total", "kind" => "job").increment(1);
            }
            state_refusal(refused, move_refusal)
        })
    }

    /// Reports an identity that is now in several open jobs. There is one report for each job of the identity, not for
    /// each member.
    fn report_several(&self, job: &Job, id: &SpiffeId) {
        if job.current().is_none_or(|a| a.members.instances_of(id) > 1) {
            return;
        }
        let others = self.context.state.open_elsewhere(id, job.id);
        if !others.is_empty() {
            tracing::warn!(identity = %id, job = %job.id, others = others.len(), "an identity is in several open jobs");
            metrics::counter!("leasehold_identities_in_several_jobs_total", "kind" => "shared").increment(1);
        }
    }

    /// Marks a member as away. Its leases end, and it may come back.
    pub(super) fn mark_away(&self, id: JobId, attempt: AttemptNumber, instance: &InstanceName, detail: &str) {
        let now = self.context.clock.now().lease;
        let by = Actor::Daemon(detail.to_owned());
        let done = self.context.state.narrow(id, &by, |j| {
            Ok::<_, std::convert::Infallible>(j.away(attempt, instance, detail, now).into_iter().collect())
        });
        if let Ok(done) = done
            && !done.lowered.is_empty()
        {
            tracing::info!(job = %id, %attempt, %instance, detail, "member away");
            metrics::counter!("leasehold_members_away_total").increment(1);
            self.endings.sweep(&done.lowered, "member away");
        }
    }

    /// Marks members as away if their state is joined, they have no presence (no stream or heartbeat), and they did not
    /// join just now.
    pub(super) fn mark_members_without_presence_away(&self, job: &Job, now: LeaseTime, window: Duration) {
        let Some(a) = job.current() else { return };
        for (instance, m) in a.members.iter() {
            let key = (job.id, a.number, instance.clone());
            if m.state == MemberState::Joined
                && now.since(m.joined) > window
                && !self.context.sessions.has(&key)
            {
                self.mark_away(job.id, a.number, instance, "it is not there");
            }
        }
    }
}

/// Returns the time for which a member may be silent.
pub(super) fn beat_window(beat: Duration, lost_after: u32) -> Duration {
    beat.saturating_mul(lost_after.max(1)).max(limits::TTL_MIN)
}

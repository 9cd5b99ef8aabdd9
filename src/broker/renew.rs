//! Renews and releases leases. A renewal has the steps of issuing, with the names of the lease.

use std::{sync::Arc, time::Duration};

use super::{
    access_request::{AccessRequest, StandingRequest},
    caller::Caller,
    credentials::CredentialUseCases,
    decide::check_inputs,
    draft::{CredentialDraft, Life},
    endings::RecordedEnding,
    leases::LeaseView,
    names,
    offer::CredentialKind,
    prepared::PreparedCredential,
    refusals::lease_not_found,
    rules::Rules,
    session::MemberSession,
    wording::TokenStand,
};
use crate::{
    clock::Wall,
    job::Job,
    lease::{EXPIRED, Ended, Facts, Lease, LeaseRefused},
    ledger::{Ending, Event},
    limits,
    name::{FenceName, LeaseId},
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::{SecretText, sha256},
};

/// A renewed credential.
#[derive(Debug)]
pub struct Renewed {
    pub lease: Arc<Lease>,
    pub token: SecretText,
    pub token_expires: Wall,
    pub shortened_by: Vec<String>,
}

impl CredentialUseCases {
    /// Makes a new decision, and extends a lease from now. The lease never lives past its latest end.
    pub async fn renew(
        &self,
        caller: &Caller,
        session: &MemberSession,
        id: LeaseId,
        ttl: Option<Duration>,
    ) -> Result<Renewed, Refusal> {
        self.context.refuse_if_held()?;
        for _ in 0..limits::REVISION_RETRIES {
            if let Some(renewed) = self.renew_once(caller, session, id, ttl).await? {
                return Ok(renewed);
            }
        }
        Err(Refusal::new(Reason::Contended, "policy, catalog or the lease are changing: try again"))
    }

    /// Renews a lease. Returns `None` if the rules or the lease changed during the request: the request must start
    /// over.
    async fn renew_once(
        &self,
        caller: &Caller,
        session: &MemberSession,
        id: LeaseId,
        ttl: Option<Duration>,
    ) -> Result<Option<Renewed>, Refusal> {
        let request = self.access.access_request(&caller.peer, Rpc::RenewLease)?;
        let (job, _) = self.access.member(&request.caller, session)?;
        let lease = self.live_lease(&request, session, &job, id)?;
        // This stand is only for the decision. The lease keeps its own stand.
        let StandingRequest { request, stand } = request.stand_again(lease.stand());

        // The stand was taken before all reads below, so `lease.renew` notices a revocation in between.
        let job = self.access.member_still(&request.caller, session, job)?;
        let prepared = match self.still_offered(&request, &job, &lease) {
            Ok(prepared) => prepared,
            Err(refusal) => return self.end_unless_new_rules(&request, &lease, refusal),
        };
        lease.check(self.context.clock.now().lease).map_err(|r| lease_refusal(&lease, r))?;
        let draft = self.draft(&request, &job, session, &prepared, kind_of(&lease))?;
        let wanted = ttl.or(job.spec.credential_ttl).unwrap_or(self.context.settings.lease_ttl);
        let mut life = life_within(&draft, &lease, wanted);
        let before = lease.deadline();
        let grant = match self.grant(&draft, &life, stand) {
            Ok(grant) => grant,
            Err(refusal) if self.is_allowed_at_all(&draft) => return Err(refusal),
            Err(refusal) => return self.end_unless_new_rules(&request, &lease, refusal),
        };
        // The last token is valid until `before`, so the lease must not end earlier. Only the new token gets the
        // shorter life.
        life.deadline = life.deadline.max(before.min(life.latest));
        let generation = lease.generation().saturating_add(1);
        let stood = TokenStand { lease: id, generation, stood_at: lease.stand().at() };
        let token = self.prepare_token(&draft, &stood, &life)?;
        let decision = self.decision_record(&draft, &grant);
        let record = Event::CredentialRenewed {
            lease: id,
            job: job.id,
            attempt: lease.facts.attempt,
            generation,
            expires: life.deadline,
            decision,
            credential: self.credential_record(&draft, &token),
        };
        self.record_credential(&request.caller, id, job.id, &record).await?;
        // Each renewal gives the lease the next generation (a number). If two renewals run at once, the second starts
        // over with the number after that.
        if let Err(refused) = lease.renew(&grant, generation, self.context.clock.now().lease, life.deadline) {
            let reason = lease_reason(refused);
            self.cancel(id, job.id, reason);
            return if reason == Reason::Contended { Ok(None) } else { Err(lease_refusal(&lease, refused)) };
        }
        if request.has_new_rules() {
            // Takes back the extension, because the old rules allowed it. If another renewal came in between, that
            // renewal checks the rules itself.
            let _ = lease.renew(&grant, generation.saturating_add(1), self.context.clock.now().lease, before);
            self.cancel(id, job.id, Reason::Contended);
            return Ok(None);
        }
        let token = token.minted.sign(&self.context.key);
        let token = token.map_err(|_| Refusal::new(Reason::Internal, "the token could not be signed"))?;
        lease.set_newest_token_digest(&sha256(token.expose().as_bytes()));
        metrics::counter!("leasehold_leases_renewed_total").increment(1);
        let Life { token_expires, shortened_by, .. } = life;
        Ok(Some(Renewed { lease, token, token_expires, shortened_by }))
    }

    /// Returns the member's lease if it is live, or else the refusal with the cause of its end.
    fn live_lease(
        &self,
        request: &AccessRequest<'_>,
        session: &MemberSession,
        job: &Job,
        id: LeaseId,
    ) -> Result<Arc<Lease>, Refusal> {
        match self.own_lease(&request.caller, session, id)? {
            LeaseView::Live(lease) => Ok(lease),
            LeaseView::Ended(over) => {
                // If a lock ended it, the refusal names the lock.
                let mut names = todays_names(&request.rules, job, &over.facts);
                names.push(FenceName::lease(id));
                self.access.check_unlocked(request.caller.id(), names.iter())?;
                Err(over_refusal(&over))
            }
        }
    }

    /// Returns the preparation of a lease, if the rules still allow the lease. Its holder must be allowed to renew, its
    /// names must not be locked, and the catalog must have its resources unchanged. A refusal here ends the lease.
    fn still_offered(
        &self,
        request: &AccessRequest<'_>,
        job: &Job,
        lease: &Lease,
    ) -> Result<Arc<PreparedCredential>, Refusal> {
        let AccessRequest { rules, caller, .. } = request;
        self.access.authorize_job(caller, Rpc::RenewLease, job, "")?;
        let prepared = self.prepared.for_renewal(rules, job, &lease.facts);
        let launcher = prepared.as_ref().ok().map(|p| &p.launcher);
        self.decisions.check_launcher_of(rules, job, launcher)?;
        let own = FenceName::lease(lease.id);
        self.access.check_unlocked(caller.id(), lease.stand().names().chain([&own]))?;
        let has_todays_names = prepared.as_ref().is_ok_and(|p| lease.stand().names().eq(&p.names));
        if !has_todays_names && !stands_behind_todays_names(rules, job, lease) {
            return Err(Refusal::new(
                Reason::LeaseEnded,
                "the catalog has changed what this lease depends on, so it is not renewed",
            )
            .fix("ask for a new credential, if the job still may"));
        }
        let prepared = prepared?;
        check_inputs(rules, job, &prepared.offer.scopes)?;
        self.context.check_checkpoints(rules, job)?;
        if has_todays_names {
            return Ok(prepared);
        }
        // The lease stands behind more names than a new lease would, and its token has the tags of all these names.
        self.prepared.behind(&prepared, lease.stand().names().cloned().collect())
    }

    /// Ends a lease that the rules no longer allow, and refuses its renewal. If the rules changed during the request,
    /// the new rules may allow the lease. In that case, returns `None`, and the request starts over.
    fn end_unless_new_rules(
        &self,
        request: &AccessRequest<'_>,
        lease: &Lease,
        refusal: Refusal,
    ) -> Result<Option<Renewed>, Refusal> {
        if request.has_new_rules() { Ok(None) } else { Err(self.end_not_renewed(lease, refusal)) }
    }

    /// Ends a lease that a new decision no longer allows, before its deadline.
    fn end_not_renewed(&self, lease: &Lease, refusal: Refusal) -> Refusal {
        // If the lease is over already, the operation that ended it records the cause.
        if lease.check(self.context.clock.now().lease).is_err() {
            return refusal;
        }
        let because = format!("{NOT_RENEWED}{}", refusal.reason);
        let behind = self.endings.end_lease(lease.id, &because);
        self.context.state.lower_lease(lease.id, behind, &because);
        tracing::info!(lease = %lease.id, reason = %refusal.reason, "a lease ended at its renewal");
        refusal.with("lease", "it has ended, because it would not be issued again")
    }

    /// Releases a lease before its time. A second release gets the same answer.
    pub fn release(
        &self,
        caller: &Caller,
        session: &MemberSession,
        id: LeaseId,
    ) -> Result<RecordedEnding, Refusal> {
        let (job, _) = self.access.member(caller, session)?;
        self.access.authorize_job(caller, Rpc::ReleaseLease, &job, "")?;
        let ended_before = match self.own_lease(caller, session, id)? {
            LeaseView::Ended(over) if &*over.cause != RELEASED => {
                return Ok(self
                    .endings
                    .recorded(Ending { seq: self.context.fences.seq().0, behind: 0 }, None));
            }
            LeaseView::Ended(_) => 1,
            LeaseView::Live(_) => 0,
        };
        // The lease is ended in the table first. Then its name is lowered, for those who follow the feed.
        let behind = self.endings.end_lease(id, RELEASED);
        let done = self.context.state.lower_lease(id, behind, RELEASED);
        let ending = Ending { seq: done.ending.seq, behind: behind.max(ended_before) };
        Ok(self.endings.recorded(ending, done.record))
    }

    /// Returns a lease of this member in this attempt. An absent lease and the lease of another member get the same
    /// answer.
    fn own_lease(&self, caller: &Caller, session: &MemberSession, id: LeaseId) -> Result<LeaseView, Refusal> {
        let view = match self.context.table.find(id) {
            Some(lease) => LeaseView::Live(lease),
            None => LeaseView::Ended(self.context.table.find_ended(id).ok_or_else(lease_not_found)?),
        };
        let facts = match &view {
            LeaseView::Live(l) => &l.facts,
            LeaseView::Ended(e) => &e.facts,
        };
        let own = facts.job == session.job
            && facts.attempt == session.attempt
            && facts.instance == session.instance
            && facts.holder == *caller.id();
        if own { Ok(view) } else { Err(lease_not_found()) }
    }
}

/// The cause of an ended lease that its holder released.
const RELEASED: &str = "released";
/// The beginning of the cause of a lease that a new decision did not allow. The reason follows.
const NOT_RENEWED: &str = "not renewed: ";

/// A renewal keeps the S3 key of a lease.
fn kind_of(lease: &Lease) -> CredentialKind {
    if lease.s3_secret.is_some() { CredentialKind::S3Key } else { CredentialKind::Token }
}

/// Returns the lifetime that a renewal gives. It is never past the latest end of the lease.
fn life_within(draft: &CredentialDraft<'_>, lease: &Lease, wanted: Duration) -> Life {
    let mut life = draft.life(wanted);
    if lease.latest < life.deadline {
        life.deadline = lease.latest;
        life.shortened_by.push("the latest end of the lease".to_owned());
    }
    life.token_expires = life.token_expires.min(draft.now.wall_at(life.deadline));
    life
}

/// Whether a lease stands behind all names that a lease issued now would have.
pub(super) fn stands_behind_todays_names(rules: &Rules, job: &Job, lease: &Lease) -> bool {
    todays_names(rules, job, &lease.facts).iter().all(|name| lease.stand().is_behind(name))
}

fn todays_names(rules: &Rules, job: &Job, f: &Facts) -> Vec<FenceName> {
    names::of_lease(rules, job, f.attempt, &f.instance, &f.holder, f.half, &f.scopes)
}

fn lease_reason(refused: LeaseRefused) -> Reason {
    match refused {
        LeaseRefused::Ended | LeaseRefused::WornOut => Reason::LeaseEnded,
        LeaseRefused::Expired => Reason::LeaseExpired,
        LeaseRefused::Lowered => Reason::Revoked,
        LeaseRefused::Overtaken => Reason::Contended,
    }
}

fn over_refusal(over: &Ended) -> Refusal {
    let reason = if &*over.cause == EXPIRED { Reason::LeaseExpired } else { Reason::LeaseEnded };
    Refusal::new(reason, format!("the lease is over: {}", over.cause))
        .fix("ask for a new credential, if the job still may")
}

pub(super) fn lease_refusal(lease: &Lease, refused: LeaseRefused) -> Refusal {
    let text = match (refused, lease.stand().lowered()) {
        (LeaseRefused::Lowered, Some((name, _))) => format!("the lease ended: {name} was revoked"),
        _ => refused.to_string(),
    };
    Refusal::new(lease_reason(refused), text).fix("ask for a new credential, if the job still may")
}

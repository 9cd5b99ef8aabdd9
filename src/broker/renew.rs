//! Renewing and giving back: the same order as issuing, under the names that the lease already stands behind.

use std::time::Duration;

use super::{
    caller::Caller,
    context::Broker,
    decide::{decision_record, unchanged},
    draft::TokenStand,
    issue::Renewed,
    members::{MemberSession, Offer},
    names,
    queries::LeaseView,
    refusals::lease_not_found,
    rules::Rules,
};
use crate::{
    catalog::Audience,
    job::Job,
    lease::{EXPIRED, Ended, Facts, Lease, Refused},
    ledger::{Ending, Event},
    limits,
    name::{FenceName, LeaseId, Scope},
    policy::Rpc,
    reason::{Reason, Refusal},
};

impl Broker {
    /// Prolongs a lease from now, after a fresh decision, never past its latest end.
    pub async fn renew(
        &self,
        caller: &Caller,
        session: &MemberSession,
        id: LeaseId,
        ttl: Option<Duration>,
    ) -> Result<Renewed, Refusal> {
        self.widening()?;
        for _ in 0..limits::REVISION_RETRIES {
            let revision = self.fences.revision();
            let rules = self.rules();
            // Who asks is looked up after the revision was read, as everything that is decided by.
            let caller = &self.caller(&caller.peer)?;
            let (job, _) = self.member(caller, session)?;
            let lease = match self.own_lease(caller, session, id)? {
                LeaseView::Live(lease) => lease,
                LeaseView::Ended(over) => {
                    // A lock says more than the end that it made.
                    let mut names = todays_names(&rules, &job, &over.facts);
                    names.push(FenceName::lease(id));
                    self.unlocked(names.iter())?;
                    return Err(over_refusal(&over));
                }
            };
            let names: Vec<FenceName> = lease.stand().names().cloned().collect();
            // A stand for the decision alone: the lease keeps its own.
            let stand = self.fences.stand(names.iter().cloned());

            // Everything below is read after the stand was taken.
            let (job, _) = self.member(caller, session)?;
            // What the rules of a moment ago no longer allow may be allowed by those of now.
            let over = |refusal| {
                if self.fences.revision() == revision { Err(self.no_longer(&lease, refusal)) } else { Ok(()) }
            };
            let (offer, audience) = match self.still_offered(&rules, caller, &job, &lease) {
                Ok(found) => found,
                Err(refusal) => {
                    over(refusal)?;
                    continue;
                }
            };
            lease.check(self.clock.now().lease).map_err(|r| lease_refusal(&lease, r))?;
            let facts = &lease.facts;
            let draft = self.draft(&rules, caller, &job, session, &offer, &audience)?;
            let wanted = ttl.or(job.spec.credential_ttl).unwrap_or(self.settings.lease_ttl);
            let mut life = draft.life(wanted);
            if lease.latest < life.deadline {
                life.deadline = lease.latest;
                life.shortened_by.push("the latest end of the lease".to_owned());
            }
            life.token_expires = life.token_expires.min(draft.now.wall_at(life.deadline));
            let before = lease.deadline();
            let grant = match self.grant(&draft, &life, stand, revision) {
                Ok(grant) => grant,
                Err(refusal) if self.is_allowed_at_all(&draft) => return Err(refusal),
                Err(refusal) => {
                    over(refusal)?;
                    continue;
                }
            };
            // The token before was promised until then: a shorter life is the new token's only.
            life.deadline = life.deadline.max(before.min(life.latest));
            let generation = lease.generation().saturating_add(1);
            let standing = TokenStand { lease: id, generation, stood_at: lease.stand().at(), names: &names };
            let claims = self.draft_claims(&draft, facts, &standing, &life)?;
            let minted = self.minted(&claims)?;
            let by = grant.granted().iter().map(ToString::to_string).collect();
            let record = Event::CredentialRenewed {
                lease: id,
                job: job.id,
                attempt: facts.attempt,
                generation,
                expires: life.deadline,
                decision: decision_record(&rules, "allow", by),
                credential: self.credential_record(&draft, &claims, &minted),
            };
            self.charge(caller, &record)?;
            if let Err(refusal) = self.record(&record).await {
                self.cancelled(id, job.id, refusal.reason);
                return Err(refusal);
            }
            // One at a time for each lease: of two renewals at once, the second starts over with the next generation.
            match lease.renew(&grant, generation, self.clock.now().lease, life.deadline) {
                Ok(()) => {}
                Err(Refused::Overtaken) => {
                    self.cancelled(id, job.id, Reason::Contended);
                    continue;
                }
                Err(refused) => {
                    self.cancelled(id, job.id, lease_reason(refused));
                    return Err(lease_refusal(&lease, refused));
                }
            }
            if self.fences.revision() != revision {
                // What yesterday's rules prolonged is taken back. Where another renewal came between, it looks by itself.
                let _ = lease.renew(&grant, generation.saturating_add(1), self.clock.now().lease, before);
                self.cancelled(id, job.id, Reason::Contended);
                continue;
            }
            let token = minted
                .sign(&self.key)
                .map_err(|_| Refusal::new(Reason::Internal, "the token could not be signed"))?;
            metrics::counter!("leasehold_leases_renewed_total").increment(1);
            return Ok(Renewed {
                lease,
                token,
                token_expires: life.token_expires,
                shortened_by: life.shortened_by,
            });
        }
        Err(Refusal::new(Reason::Contended, "policy, catalog or the lease are changing: try again"))
    }

    /// What a lease is for, where the rules of today still have it: who holds it may renew, nothing that it stands behind is
    /// locked, and the catalog says of it what it said. Whatever is refused here is refused to the lease, and ends it.
    fn still_offered(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        lease: &Lease,
    ) -> Result<(Offer, Audience), Refusal> {
        let facts = &lease.facts;
        self.authorize_job(caller, Rpc::RenewLease, job, "")?;
        self.launcher_stands(rules, job)?;
        self.unlocked(lease.stand().names().chain([&FenceName::lease(lease.id)]))?;
        if !stands_behind_todays_names(rules, job, lease) {
            return Err(Refusal::new(
                Reason::LeaseEnded,
                "the catalog has changed what this lease depends on, so it is not renewed",
            )
            .fix("ask for a new credential, if the job still may"));
        }
        let audience = rules.catalog().audience(&facts.audience).cloned().ok_or_else(|| {
            Refusal::new(Reason::AudienceUnknown, format!("the catalog has no audience {}", facts.audience))
        })?;
        unchanged(rules, job, &facts.scopes)?;
        let moved =
            |s: &Scope| rules.catalog().resource(&s.resource).is_none_or(|r| r.audience != facts.audience);
        if let Some(s) = facts.scopes.iter().find(|s| moved(s)) {
            return Err(Refusal::new(
                Reason::AudienceUnknown,
                format!("{} is no longer served by {}", s.resource, facts.audience),
            )
            .fix("ask for a new credential: the catalog says where it is served now"));
        }
        let offers = Self::offers(rules, job).into_iter();
        let locations = offers
            .filter(|o| o.half == facts.half && o.audience == facts.audience)
            .flat_map(|o| o.locations)
            .collect();
        let (half, scopes) = (facts.half, facts.scopes.to_vec());
        Ok((Offer { half, audience: facts.audience.clone(), scopes, locations }, audience))
    }

    /// Ends a lease that a fresh decision no longer allows: it does not live on to its deadline.
    fn no_longer(&self, lease: &Lease, refusal: Refusal) -> Refusal {
        // One that is over has its cause, and whoever ended it records it.
        if lease.check(self.clock.now().lease).is_err() {
            return refusal;
        }
        let because = format!("{NOT_RENEWED}{}", refusal.reason);
        let behind = self.end_lease(lease.id, &because);
        self.state.lower_lease(lease.id, behind, &because);
        tracing::info!(lease = %lease.id, reason = %refusal.reason, "a lease ended at its renewal");
        refusal.with("lease", "it has ended, since it would not be given again")
    }

    /// Gives a lease back before its time. A second time answers as the first. Also answers the place of the record, and
    /// whether it is on disk.
    pub fn release(
        &self,
        caller: &Caller,
        session: &MemberSession,
        id: LeaseId,
    ) -> Result<(Ending, u64, bool), Refusal> {
        let (job, _) = self.member(caller, session)?;
        self.authorize_job(caller, Rpc::ReleaseLease, &job, "")?;
        let ended_before = match self.own_lease(caller, session, id)? {
            LeaseView::Ended(over) if &*over.cause != RELEASED => {
                let (index, durable) = self.durability(None);
                return Ok((Ending { seq: self.fences.seq().0, behind: 0 }, index, durable));
            }
            LeaseView::Ended(_) => 1,
            LeaseView::Live(_) => 0,
        };
        // Its own word first, then its name for those who follow the feed.
        let behind = self.end_lease(id, RELEASED);
        let done = self.state.lower_lease(id, behind, RELEASED);
        let (index, durable) = self.durability(done.record.map(|r| r.index));
        Ok((Ending { seq: done.ending.seq, behind: behind.max(ended_before) }, index, durable))
    }

    /// A lease of this member, in this attempt. A foreign lease and an absent one get the same answer.
    fn own_lease(&self, caller: &Caller, session: &MemberSession, id: LeaseId) -> Result<LeaseView, Refusal> {
        let view = match self.table.find(id) {
            Some(lease) => LeaseView::Live(lease),
            None => LeaseView::Ended(self.table.find_ended(id).ok_or_else(lease_not_found)?),
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

/// What is remembered of a lease that its holder gave back.
const RELEASED: &str = "released";
/// What is remembered of a lease that a fresh decision no longer allowed, before the reason.
const NOT_RENEWED: &str = "not renewed: ";

/// Whether a lease stands behind all that it would stand behind if it were issued today: the catalog says what a job tunes.
pub(super) fn stands_behind_todays_names(rules: &Rules, job: &Job, lease: &Lease) -> bool {
    todays_names(rules, job, &lease.facts).iter().all(|name| lease.stand().is_behind(name))
}

fn todays_names(rules: &Rules, job: &Job, f: &Facts) -> Vec<FenceName> {
    names::of_lease(rules, job, f.attempt, &f.instance, &f.holder, f.half, &f.scopes)
}

fn lease_reason(refused: Refused) -> Reason {
    match refused {
        Refused::Ended | Refused::WornOut => Reason::LeaseEnded,
        Refused::Expired => Reason::LeaseExpired,
        Refused::Lowered => Reason::Revoked,
        Refused::Overtaken => Reason::Contended,
    }
}

fn over_refusal(over: &Ended) -> Refusal {
    let reason = if &*over.cause == EXPIRED { Reason::LeaseExpired } else { Reason::LeaseEnded };
    Refusal::new(reason, format!("the lease is over: {}", over.cause))
        .fix("ask for a new credential, if the job still may")
}

pub(super) fn lease_refusal(lease: &Lease, refused: Refused) -> Refusal {
    let text = match (refused, lease.stand().lowered()) {
        (Refused::Lowered, Some((name, _))) => format!("the lease ended: {name} was revoked"),
        _ => refused.to_string(),
    };
    Refusal::new(lease_reason(refused), text).fix("ask for a new credential, if the job still may")
}

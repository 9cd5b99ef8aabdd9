//! Issuing a credential: one request, written once.
//!
//! Peer → revision → names → **stand** → state, catalog → decide → prepare claims → durable record → insert → **look again** →
//! sign → answer. The caller runs it in a task of its own, so that a client that goes away cannot leave half of it behind.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    caller::Caller,
    context::Broker,
    decide::unchanged,
    draft::{Binding, TokenStand},
    members::{MemberSession, Offer},
    names,
    refusals::{job_not_found, no_random},
    rules::Rules,
};
use crate::{
    catalog::{Audience, Checks},
    clock::Wall,
    job::Job,
    lease::{Facts, Lease, Terms, Unborn},
    ledger::Event,
    limits,
    name::{Half, LeaseId, ResourceName, Scope, SpiffeId},
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::SecretText,
};

/// What a member asks for.
#[derive(Clone, Debug)]
pub struct IssueRequest {
    pub session: MemberSession,
    pub half: Half,
    /// May be left out where the half has one audience only.
    pub audience: Option<SpiffeId>,
    /// Narrows; empty takes all that the job has at this half and audience.
    pub scopes: Vec<Scope>,
    pub ttl: Option<Duration>,
}

/// A credential, with what can be said of it.
#[derive(Debug)]
pub struct Issued {
    pub lease: Arc<Lease>,
    pub token: SecretText,
    pub token_expires: Wall,
    pub shortened_by: Vec<String>,
    pub locations: BTreeMap<ResourceName, String>,
    pub bound: Bound,
    pub binding: Binding,
}

/// A renewed credential.
#[derive(Debug)]
pub struct Renewed {
    pub lease: Arc<Lease>,
    pub token: SecretText,
    pub token_expires: Wall,
    pub shortened_by: Vec<String>,
}

/// How soon a revocation is felt, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub at_most: Duration,
    pub by: &'static str,
}

impl Broker {
    /// Issues one credential.
    pub async fn issue(&self, caller: &Caller, request: &IssueRequest) -> Result<Issued, Refusal> {
        self.widening()?;
        let session = &request.session;
        let job = self.state.job(session.job).ok_or_else(job_not_found)?;
        let _turn = self.turn_to_ask(&job, session.attempt, &session.instance, caller.id()).await?;
        for _ in 0..limits::REVISION_RETRIES {
            let revision = self.fences.revision();
            let rules = self.rules();
            // Who asks is looked up after the revision was read, as everything that is decided by.
            let caller = &self.caller(&caller.peer)?;
            let (job, _) = self.member(caller, session)?;
            let (offer, audience) = self.chosen(&rules, &job, request)?;
            let names = names::of_lease(
                &rules,
                &job,
                session.attempt,
                &session.instance,
                caller.id(),
                request.half,
                &offer.scopes,
            );
            let stand = self.fences.stand(names.iter().cloned());

            // Everything below is read after the stand was taken.
            let (job, member) = self.member(caller, session)?;
            self.authorize_job(caller, Rpc::IssueCredential, &job, "")?;
            self.launcher_stands(&rules, &job)?;
            self.unlocked(names.iter())?;
            unchanged(&rules, &job, &offer.scopes)?;
            let draft = self.draft(&rules, caller, &job, session, &offer, &audience)?;
            let now = draft.now;
            let wanted = request.ttl.or(job.spec.credential_ttl).unwrap_or(self.settings.lease_ttl);
            let life = draft.life(wanted);
            let grant = self.grant(&draft, &life, stand, revision)?;

            let id = LeaseId::random().map_err(|_| no_random())?;
            let facts = Arc::new(Facts {
                tenant: job.spec.tenant.clone(),
                job: job.id,
                attempt: session.attempt,
                instance: session.instance.clone(),
                holder: caller.id().clone(),
                half: request.half,
                audience: offer.audience.clone(),
                scopes: offer.scopes.as_slice().into(),
            });
            self.table
                .room(&facts, now.lease)
                .map_err(|q| Refusal::new(Reason::QuotaExceeded, q.to_string()))?;
            let standing =
                TokenStand { lease: id, generation: 0, stood_at: grant.stand().at(), names: &names };
            let claims = self.draft_claims(&draft, &facts, &standing, &life)?;
            let minted = self.minted(&claims)?;
            let record = self.issued_record(&draft, &facts, &grant, &life, &claims, &minted);
            self.charge(caller, &record)?;
            if let Err(refusal) = self.record(&record).await {
                // It may be on disk all the same: what was not handed out is said to be so.
                self.cancelled(id, job.id, refusal.reason);
                return Err(refusal);
            }

            let terms = Terms { id, issued: now.lease, deadline: life.deadline, latest: life.latest, facts };
            let lease = match self.table.insert(grant, terms) {
                Ok(lease) => lease,
                Err(unborn) => {
                    let reason = match &unborn {
                        Unborn::Quota(_) => Reason::QuotaExceeded,
                        Unborn::Lowered(_) => Reason::Revoked,
                        Unborn::IdTaken(_) => Reason::Internal,
                    };
                    self.cancelled(id, job.id, reason);
                    return Err(Refusal::new(reason, unborn.to_string()));
                }
            };
            // Look again: the fences were looked at by the insert; the revision is looked at here.
            if self.fences.revision() != revision {
                self.table.remove(id, self.clock.now().lease, "rules changed while it was issued");
                self.cancelled(id, job.id, Reason::Contended);
                continue;
            }
            let Ok(token) = minted.sign(&self.key) else {
                self.table.remove(id, self.clock.now().lease, "it could not be signed");
                self.cancelled(id, job.id, Reason::Internal);
                return Err(Refusal::new(Reason::Internal, "the token could not be signed"));
            };
            drop(member);
            metrics::counter!("leasehold_credentials_issued_total").increment(1);
            tracing::info!(lease = %id, job = %job.id, holder = %caller.id(), audience = %offer.audience, "credential issued");
            let binding = draft.binding;
            return Ok(Issued {
                lease,
                token,
                token_expires: life.token_expires,
                shortened_by: life.shortened_by,
                locations: offer.locations,
                bound: bound(&audience),
                binding,
            });
        }
        Err(Refusal::new(Reason::Contended, "policy and catalog are changing: try again"))
    }

    /// The offer that a request means, narrowed to its scopes.
    fn chosen(&self, rules: &Rules, job: &Job, request: &IssueRequest) -> Result<(Offer, Audience), Refusal> {
        let mut offers: Vec<Offer> =
            Self::offers(rules, job).into_iter().filter(|o| o.half == request.half).collect();
        if let Some(audience) = &request.audience {
            offers.retain(|o| o.audience == *audience);
        }
        let mut offer = match (offers.pop(), offers.is_empty()) {
            (Some(one), true) => one,
            (Some(_), false) => {
                return Err(Refusal::new(
                    Reason::FieldMissing,
                    format!("the {} half of this job has several audiences: say which", request.half),
                ));
            }
            (None, _) => {
                return Err(Refusal::new(
                    Reason::AudienceUnknown,
                    match &request.audience {
                        Some(a) => format!("this job has nothing of the {} half at {a}", request.half),
                        None => format!("this job has nothing of the {} half", request.half),
                    },
                ));
            }
        };
        if !request.scopes.is_empty() {
            for wanted in &request.scopes {
                let has = offer.scopes.iter().find(|s| s.resource == wanted.resource);
                if wanted.actions.is_empty() || !has.is_some_and(|s| wanted.actions.is_subset(&s.actions)) {
                    return Err(Refusal::new(
                        Reason::ResourceNotFound,
                        format!("the job has no such access to {} at this audience", wanted.resource),
                    )
                    .fix("a scope only narrows: name what the job file names"));
                }
            }
            offer.scopes.clone_from(&request.scopes);
            offer.locations.retain(|name, _| request.scopes.iter().any(|s| s.resource == *name));
        }
        let audience = rules.catalog().audience(&offer.audience).cloned().ok_or_else(|| {
            Refusal::new(Reason::AudienceUnknown, format!("the catalog has no audience {}", offer.audience))
        })?;
        Ok((offer, audience))
    }

    /// Waits until a record that widens access is on disk.
    pub(super) async fn record(&self, event: &Event) -> Result<(), Refusal> {
        let unavailable = |why: String| {
            tracing::debug!(%why, "a record could not be written");
            metrics::counter!("leasehold_ledger_refusals_total").increment(1);
            Refusal::new(Reason::LedgerUnavailable, "the ledger cannot be written, so nothing was given")
                .fix("try again; if it lasts, the operator finds the cause in the daemon's log")
        };
        match tokio::time::timeout(limits::LEDGER_WAIT, self.ledger.append(event)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(unavailable(e.to_string())),
            Err(_) => Err(unavailable("it took too long".into())),
        }
    }

    pub(super) fn cancelled(&self, lease: LeaseId, job: crate::name::JobId, reason: Reason) {
        self.ledger.defer(&Event::CredentialCancelled { lease, job, reason });
    }
}

fn bound(audience: &Audience) -> Bound {
    match audience.checks {
        Checks::Feed => Bound { at_most: limits::FEED_STALE, by: "feed" },
        Checks::Introspect => Bound { at_most: Duration::ZERO, by: "introspect" },
        Checks::Jwt => Bound { at_most: limits::OFFLINE_TOKEN_TTL_MAX, by: "expiry" },
    }
}

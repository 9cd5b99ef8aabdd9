//! Issuing a credential: one request, written once.
//!
//! Peer → revision → names → **stand** → state, catalog → decide → prepare claims → durable record → insert → **look again** →
//! sign → answer. The caller runs it in a task of its own, so that a client that goes away cannot leave half of it behind.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    Broker, Caller, Rules, Session,
    attempts::move_refusal,
    decide::{Question, decision_record, unchanged, work_of_scopes},
    members::Offer,
    names,
};
use crate::{
    catalog::{Audience, Checks, IdentityUse, Presenter},
    clock::{LeaseTime, Now, Wall},
    fence::Seq,
    job::{AttemptState, Job},
    lease::{Facts, Lease, Terms, Unborn},
    ledger::{self, Event},
    limits,
    name::{Digest, FenceName, Half, LeaseId, ResourceName, Scope, SpiffeId},
    policy::{Asker, Grant, Phase, Rpc},
    reason::{Reason, Refusal},
    secret::{SecretText, random_u128},
    state::input_record,
    token::{AuthorizationDetail, Claims, Confirmation, LeaseClaims, Minted},
};

/// What a member asks for.
#[derive(Clone, Debug)]
pub struct IssueRequest {
    pub session: Session,
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

/// What the holder must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    Subject,
    Certificate,
    Bearer,
}

impl Binding {
    pub const fn as_str(self) -> &'static str {
        match self {
            Binding::Subject => "subject",
            Binding::Certificate => "certificate",
            Binding::Bearer => "bearer",
        }
    }
}

/// The terms that one request comes to.
pub(super) struct Life {
    pub deadline: LeaseTime,
    pub latest: LeaseTime,
    pub token_expires: Wall,
    pub shortened_by: Vec<String>,
}

impl Broker {
    /// Issues one credential.
    pub async fn issue(&self, caller: &Caller, request: &IssueRequest) -> Result<Issued, Refusal> {
        self.widening()?;
        let session = &request.session;
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
            self.unlocked(names.iter())?;
            unchanged(&rules, &job, &offer.scopes)?;
            let phase = self.phase(&job, session, request.half)?;
            let now = self.clock.now();
            let wanted = request.ttl.or(job.spec.credential_ttl).unwrap_or(self.settings.lease_ttl);
            let life = self.life(&rules, caller, &job, session, &offer, &audience, request.half, wanted, now);
            let parts = work_of_scopes(&rules, &job, &offer.scopes);
            let question = Question {
                rules: &rules,
                asker: Asker::Identity(caller.id()),
                job: &job,
                attempt: session.attempt.value(),
                phase,
                ttl: life.deadline.since(now.lease),
                parts: &parts,
            };
            let grant = self.ask(caller.id(), question, stand, revision)?;

            let id = LeaseId::random().map_err(|_| no_random())?;
            let facts = Arc::new(Facts {
                tenant: job.spec.tenant.clone(),
                job: job.id,
                attempt: session.attempt,
                instance: session.instance.clone(),
                holder: caller.id().clone(),
                half: request.half,
                audience: offer.audience.clone(),
                scopes: offer.scopes.clone(),
            });
            self.table
                .room(&facts, now.lease)
                .map_err(|q| Refusal::new(Reason::QuotaExceeded, q.to_string()))?;
            let binding = self.binding(caller, &audience, session);
            let standing = Standing { lease: id, generation: 0, stood_at: grant.stand().at(), names: &names };
            let claims = self.claims(&facts, &standing, &life, caller, binding, &offer.locations, now)?;
            let minted = Minted::prepare(&self.key, &claims)
                .map_err(|e| Refusal::new(Reason::QuotaExceeded, e.to_string()))?;
            let record = self
                .issued_record(&job, &facts, &grant, &rules, caller, &claims, &minted, &life, now, binding);
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
            self.offers(job).into_iter().filter(|o| o.half == request.half).collect();
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

    /// Where the attempt is, as far as this half is concerned.
    pub(super) fn phase(&self, job: &Job, session: &Session, half: Half) -> Result<Phase, Refusal> {
        let a = job.running(session.attempt).map_err(move_refusal)?;
        match (a.drain_of(&session.instance), half) {
            (Some(_), Half::Reading) => {
                let who =
                    if matches!(a.state, AttemptState::Draining(_)) { "the attempt is" } else { "you are" };
                Err(Refusal::new(
                    Reason::AttemptDraining,
                    format!("{who} draining: nothing is read any more"),
                )
                .fix("save what you have: checkpoints may still be written"))
            }
            (Some(_), Half::Writing) => Ok(Phase::Draining),
            (None, _) => Ok(Phase::Running),
        }
    }

    /// A token is bound to the certificate where the identity is shared and the audience sees certificates; and where one of
    /// this member was, no later one is bound to less, whatever the catalog says of the identity by then.
    pub(super) fn binding(&self, caller: &Caller, audience: &Audience, session: &Session) -> Binding {
        if audience.presenter == Presenter::None {
            return Binding::Bearer;
        }
        let key = (session.job, session.attempt, session.instance.clone());
        match self.sessions.pin(&key, caller.principal.identity == IdentityUse::Shared) {
            true => Binding::Certificate,
            false => Binding::Subject,
        }
    }

    /// Until when, and what shortened it.
    #[expect(clippy::too_many_arguments, reason = "each bounds the life")]
    pub(super) fn life(
        &self,
        rules: &Rules,
        caller: &Caller,
        job: &Job,
        session: &Session,
        offer: &Offer,
        audience: &Audience,
        half: Half,
        wanted: Duration,
        now: Now,
    ) -> Life {
        let mut shortened_by = Vec::new();
        let mut latest = job.ends;
        let mut why_latest = "the end of the job";
        for r in offer.scopes.iter().filter_map(|s| rules.catalog().resource(&s.resource)) {
            if let Some(until) = r.dataset().and_then(|d| d.retain_until) {
                let until = now.lease_at(until);
                if until < latest {
                    (latest, why_latest) = (until, "the retention of a dataset");
                }
            }
        }
        if half == Half::Writing
            && let Some(drain) = job.attempt(session.attempt).and_then(|a| a.drain_of(&session.instance))
            && drain.writing_ends < latest
        {
            (latest, why_latest) = (drain.writing_ends, "the drain of the attempt, or of this member");
        }
        let mut deadline = now.lease.plus(wanted);
        if wanted > limits::LEASE_TTL_MAX {
            deadline = now.lease.plus(limits::LEASE_TTL_MAX);
            shortened_by.push(format!("the longest life of a lease, {} s", limits::LEASE_TTL_MAX.as_secs()));
        }
        if latest < deadline {
            deadline = latest;
            shortened_by.push(why_latest.to_owned());
        }
        let mut token_expires = now.wall_at(deadline);
        if caller.peer.not_after() < token_expires {
            token_expires = caller.peer.not_after();
            shortened_by.push("the end of your SVID (the token's life only)".to_owned());
        }
        if audience.checks == Checks::Jwt {
            let offline = now.wall.plus(limits::OFFLINE_TOKEN_TTL_MAX);
            if offline < token_expires {
                token_expires = offline;
                shortened_by
                    .push("an audience that checks signatures alone (the token's life only)".to_owned());
            }
        }
        Life { deadline, latest, token_expires, shortened_by }
    }

    #[expect(clippy::too_many_arguments, reason = "a token says all of it")]
    pub(super) fn claims(
        &self,
        facts: &Facts,
        standing: &Standing<'_>,
        life: &Life,
        caller: &Caller,
        binding: Binding,
        locations: &BTreeMap<ResourceName, String>,
        now: Now,
    ) -> Result<Claims, Refusal> {
        let details = facts
            .scopes
            .iter()
            .map(|s| {
                let mut d = AuthorizationDetail::from(s);
                d.locations.extend(locations.get(&s.resource).cloned());
                d
            })
            .collect();
        let jti = random_u128().map_err(|_| no_random())?;
        let mut claims = Claims {
            iss: self.settings.issuer.clone(),
            sub: facts.holder.clone(),
            aud: facts.audience.clone(),
            exp: life.token_expires.seconds(),
            nbf: now.wall.seconds(),
            iat: now.wall.seconds(),
            jti: URL_SAFE_NO_PAD.encode(jti.to_be_bytes()),
            client_id: facts.holder.clone(),
            authorization_details: details,
            lh: LeaseClaims {
                epoch: self.epoch,
                stood_at: standing.stood_at.0,
                lease: standing.lease,
                generation: standing.generation,
                job: facts.job,
                attempt: facts.attempt,
                member: facts.instance.clone(),
                tenant: facts.tenant.clone(),
                fences: Vec::new(),
            },
            cnf: (binding == Binding::Certificate)
                .then(|| Confirmation { x5t_s256: URL_SAFE_NO_PAD.encode(caller.peer.x5t_s256()) }),
        };
        claims.set_fences(standing.names.iter());
        Ok(claims)
    }

    #[expect(clippy::too_many_arguments, reason = "the auditor asks for all of it")]
    fn issued_record(
        &self,
        job: &Job,
        facts: &Facts,
        grant: &Grant,
        rules: &Rules,
        caller: &Caller,
        claims: &Claims,
        minted: &Minted,
        life: &Life,
        now: Now,
        binding: Binding,
    ) -> Event {
        let by = grant.granted().iter().map(ToString::to_string).collect();
        Event::CredentialIssued(Box::new(ledger::CredentialIssued {
            lease: claims.lh.lease,
            job: job.id,
            attempt: facts.attempt,
            tenant: facts.tenant.clone(),
            instance: facts.instance.clone(),
            member: facts.holder.clone(),
            svid_sha256: Digest(*caller.peer.x5t_s256()),
            launcher: job.launcher.clone(),
            acting_for: job.acting_for.clone(),
            purpose: job.spec.purpose.clone(),
            why: job.spec.why.clone(),
            half: facts.half,
            audience: facts.audience.clone(),
            scopes: facts.scopes.clone(),
            inputs: job.inputs.iter().map(input_record).collect(),
            outputs: job.spec.write.clone(),
            method: job.spec.tune.as_ref().map(|t| t.method),
            params_digest: job.spec.tune.as_ref().and_then(|t| t.params_digest),
            prompt_lineage: job.spec.tune.as_ref().map(|t| t.prompts.clone()).unwrap_or_default(),
            decision: decision_record(rules, "allow", by),
            stood_at: claims.lh.stood_at,
            issued: now.lease,
            expires: life.deadline,
            expires_at_latest: life.latest,
            credential: self.credential_record(claims, minted, binding),
        }))
    }

    pub(super) fn credential_record(
        &self,
        claims: &Claims,
        minted: &Minted,
        binding: Binding,
    ) -> ledger::Credential {
        ledger::Credential {
            jti: claims.jti.clone(),
            kid: self.key.id().to_string(),
            claims_sha256: minted.claims_digest,
            expires: claims.exp,
            binding: binding.as_str().to_owned(),
        }
    }

    /// Waits until a record that widens access is on disk.
    pub(super) async fn record(&self, event: &Event) -> Result<(), Refusal> {
        let unavailable = |why: String| {
            tracing::error!(%why, "a record could not be written");
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

/// What a token says of the place that its lease took.
pub(super) struct Standing<'a> {
    pub lease: LeaseId,
    pub generation: u32,
    pub stood_at: Seq,
    pub names: &'a [FenceName],
}

fn bound(audience: &Audience) -> Bound {
    match audience.checks {
        Checks::Feed => Bound { at_most: limits::FEED_STALE, by: "feed" },
        Checks::Introspect => Bound { at_most: Duration::ZERO, by: "introspect" },
        Checks::Jwt => Bound { at_most: limits::OFFLINE_TOKEN_TTL_MAX, by: "expiry" },
    }
}

fn no_random() -> Refusal {
    Refusal::new(Reason::Internal, "the system gave no random bytes")
}

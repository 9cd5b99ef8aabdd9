//! The draft of a credential: its purpose, and the facts that follow from it.

use std::time::Duration;

use super::{
    access_request::AccessRequest,
    caller::Caller,
    credentials::CredentialUseCases,
    decide::{WorkQuestion, granted_by},
    offer::CredentialKind,
    prepared::PreparedCredential,
    refusals::move_refusal,
    rules::Rules,
    session::MemberSession,
    wording::{TokenStand, Wording},
};
use crate::{
    catalog::{Audience, Checks, IdentityUse, Presenter},
    clock::{LeaseTime, Now, Wall},
    fence::Stand,
    job::{AttemptState, Input, Job},
    ledger::{self, DecisionRecord, Event},
    limits,
    name::{Digest, Half},
    policy::{Asker, Grant, Phase, Verdict},
    reason::{Reason, Refusal},
    state::{approval_record, emergency_record, input_record},
    token::{Claims, UnsignedToken},
};

/// The facts of one credential before policy is asked. Issuing and renewing both begin with a draft.
#[derive(Clone, Copy)]
pub(super) struct CredentialDraft<'a> {
    pub request: &'a AccessRequest<'a>,
    pub job: &'a Job,
    pub session: &'a MemberSession,
    pub prepared: &'a PreparedCredential,
    pub phase: Phase,
    /// What a user of the credential must show.
    pub binding: Binding,
    /// Whether its token is bound to the holder's certificate.
    pub has_certificate: bool,
    pub kind: CredentialKind,
    pub now: Now,
}

/// The lifetime of a credential, and the reason if it was shortened.
pub(super) struct Life {
    pub deadline: LeaseTime,
    pub latest: LeaseTime,
    pub token_expires: Wall,
    pub shortened_by: Vec<String>,
}

/// A token that is ready to be signed.
pub(super) struct PreparedToken {
    pub claims: Claims,
    pub minted: UnsignedToken,
}

/// The proof that the presenter of a token must show.
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

impl CredentialDraft<'_> {
    /// Returns the lifetime of the credential if the member asks for `wanted`.
    pub fn life(&self, wanted: Duration) -> Life {
        let CredentialDraft { request: AccessRequest { rules, caller, .. }, job, now, .. } = *self;
        let mut shortened_by = Vec::new();
        let mut latest = job.ends;
        let mut why_latest = "the end of the job";
        for r in self.prepared.offer.scopes.iter().filter_map(|s| rules.catalog().resource(&s.resource)) {
            if let Some(until) = r.dataset().and_then(|d| d.retain_until) {
                let until = now.lease_at(until);
                if until < latest {
                    (latest, why_latest) = (until, "the retention of a dataset");
                }
            }
        }
        if self.prepared.offer.half == Half::Writing
            && let Some(drain) =
                job.attempt(self.session.attempt).and_then(|a| a.drain_of(&self.session.instance))
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
            shortened_by.push("the end of your SVID (it shortens the token, not the lease)".to_owned());
        }
        if self.prepared.audience.checks == Checks::Jwt {
            let offline = now.wall.plus(limits::OFFLINE_TOKEN_TTL_MAX);
            if offline < token_expires {
                token_expires = offline;
                shortened_by
                    .push("an audience that checks only signatures (the token's life only)".to_owned());
            }
        }
        Life { deadline, latest, token_expires, shortened_by }
    }

    fn with_question<R>(&self, ttl: Duration, ask: impl FnOnce(WorkQuestion<'_>) -> R) -> R {
        let rules = &self.request.rules;
        ask(WorkQuestion {
            rules,
            asker: Asker::Identity(self.request.caller.id()),
            job: self.job,
            attempt: self.session.attempt.value(),
            phase: self.phase,
            ttl,
            parts: &self.prepared.parts,
            risk: Some(&self.prepared.risk),
            binding: self.binding.as_str(),
        })
    }
}

impl CredentialUseCases {
    /// Collects the facts of a credential before policy is asked.
    pub(super) fn draft<'a>(
        &self,
        request: &'a AccessRequest<'a>,
        job: &'a Job,
        session: &'a MemberSession,
        prepared: &'a PreparedCredential,
        kind: CredentialKind,
    ) -> Result<CredentialDraft<'a>, Refusal> {
        let phase = phase(job, session, prepared.offer.half)?;
        let of_token = self.binding(&request.caller, &prepared.audience, session);
        // An S3 key works from any machine. The token that comes with it stays bound, for servers that see the presenter.
        let binding = if kind == CredentialKind::S3Key { Binding::Bearer } else { of_token };
        let has_certificate = of_token == Binding::Certificate;
        let now = self.context.clock.now();
        Ok(CredentialDraft { request, job, session, prepared, phase, binding, has_certificate, kind, now })
    }

    /// Returns the proof that the presenter of the token must show. If an earlier token of this member was bound to a
    /// certificate, the new token is bound too, regardless of changes in the catalog.
    fn binding(&self, caller: &Caller, audience: &Audience, session: &MemberSession) -> Binding {
        if audience.presenter == Presenter::None {
            return Binding::Bearer;
        }
        let key = (session.job, session.attempt, session.instance.clone());
        match self.context.sessions.pin(&key, caller.principal.identity == IdentityUse::Shared) {
            true => Binding::Certificate,
            false => Binding::Subject,
        }
    }

    /// Asks policy for the credential. The Grant carries the stand.
    pub(super) fn grant(
        &self,
        draft: &CredentialDraft<'_>,
        life: &Life,
        stand: Stand,
    ) -> Result<Grant, Refusal> {
        let ttl = life.deadline.since(draft.now.lease);
        let AccessRequest { caller, .. } = draft.request;
        let revision = draft.request.revision();
        draft.with_question(ttl, |question| {
            self.decisions.request_grant(caller.id(), question, stand, revision)
        })
    }

    /// Whether policy would allow the credential with the shortest lifetime. If so, policy denied the credential only
    /// because of its lifetime.
    pub(super) fn is_allowed_at_all(&self, draft: &CredentialDraft<'_>) -> bool {
        let ttl = limits::TTL_MIN;
        draft.with_question(ttl, |question| matches!(self.decisions.judge(question), Verdict::Allow { .. }))
    }

    /// Makes the claims of the credential's token, ready to be signed.
    pub(super) fn prepare_token(
        &self,
        draft: &CredentialDraft<'_>,
        stood: &TokenStand,
        life: &Life,
    ) -> Result<PreparedToken, Refusal> {
        let certificate = draft.request.caller.peer.x5t_s256();
        let wording = Wording {
            stood,
            issued: draft.now.wall,
            expires: life.token_expires,
            certificate: draft.has_certificate.then_some(certificate),
        };
        let claims = self.tokens.make_claims(&draft.prepared.claims, &wording)?;
        let minted = self.tokens.prepare(&claims)?;
        Ok(PreparedToken { claims, minted })
    }

    /// Returns the record of the issued credential, with everything that an auditor needs.
    pub(super) fn issued_record(
        &self,
        draft: &CredentialDraft<'_>,
        grant: &Grant,
        life: &Life,
        token: &PreparedToken,
    ) -> Event {
        let (job, lh, facts) = (draft.job, &token.claims.lh, &draft.prepared.facts);
        Event::CredentialIssued(Box::new(ledger::CredentialIssued {
            lease: lh.lease,
            job: job.id,
            attempt: facts.attempt,
            tenant: facts.tenant.clone(),
            instance: facts.instance.clone(),
            member: facts.holder.clone(),
            svid_sha256: Digest(*draft.request.caller.peer.x5t_s256()),
            launcher: job.launcher.clone(),
            acting_for: job.acting_for.clone(),
            purpose: job.spec.purpose.clone(),
            why: job.spec.why.clone(),
            ticket: job.spec.ticket.clone(),
            rollback_to: job.spec.rollback_to.clone(),
            prompt_alternative: job.spec.prompt_alternative.clone(),
            image: job.spec.image.clone(),
            half: facts.half,
            audience: facts.audience.clone(),
            scopes: facts.scopes.to_vec(),
            inputs: inputs_now(&draft.request.rules, job),
            outputs: job.spec.write.clone(),
            method: job.spec.tune.as_ref().map(|t| t.method),
            params_digest: job.spec.tune.as_ref().and_then(|t| t.params_digest),
            prompt_lineage: job.spec.tune.as_ref().map(|t| t.prompts.clone()).unwrap_or_default(),
            approvals: job.approvals.iter().map(approval_record).collect(),
            emergency: job.emergency.as_ref().map(emergency_record),
            decision: self.decision_record(draft, grant),
            stood_at: lh.stood_at,
            issued: draft.now.lease,
            expires: life.deadline,
            expires_at_latest: life.latest,
            credential: self.credential_record(draft, token),
        }))
    }

    /// Returns the decision that allowed the credential, as the ledger keeps it.
    pub(super) fn decision_record(&self, draft: &CredentialDraft<'_>, grant: &Grant) -> DecisionRecord {
        let (rules, holder) = (&draft.request.rules, Some(draft.request.caller.id()));
        let risk = &draft.prepared.risk;
        self.decisions.record_with_risk(rules, draft.job, holder, risk, "allow", granted_by(grant))
    }

    pub(super) fn credential_record(
        &self,
        draft: &CredentialDraft<'_>,
        token: &PreparedToken,
    ) -> ledger::Credential {
        let PreparedToken { claims, minted } = token;
        ledger::Credential {
            jti: claims.jti.clone(),
            kid: self.context.key.id().to_string(),
            claims_sha256: minted.claims_digest,
            expires: claims.exp,
            binding: draft.binding.as_str().to_owned(),
            s3_access_key: (draft.kind == CredentialKind::S3Key).then(|| claims.lh.lease.to_access_key()),
        }
    }
}

/// Returns the phase of the attempt for one half.
fn phase(job: &Job, session: &MemberSession, half: Half) -> Result<Phase, Refusal> {
    let a = job.running(session.attempt).map_err(move_refusal)?;
    match (a.drain_of(&session.instance), half) {
        (Some(_), Half::Reading) => {
            let who = if matches!(a.state, AttemptState::Draining(_)) { "the attempt is" } else { "you are" };
            Err(Refusal::new(
                Reason::AttemptDraining,
                format!("{who} draining: reading is no longer allowed"),
            )
            .fix("save what you have: checkpoints may still be written"))
        }
        (Some(_), Half::Writing) => Ok(Phase::Draining),
        (None, _) => Ok(Phase::Running),
    }
}

/// Returns the inputs of a job with their present locations. A location may have changed since the job was created.
fn inputs_now(rules: &Rules, job: &Job) -> Vec<ledger::InputRecord> {
    let record = |input: &Input| {
        let now = rules.catalog().resource(&input.resource).map(|r| r.location.clone());
        ledger::InputRecord { location: now.unwrap_or_default(), ..input_record(input) }
    };
    job.inputs.iter().map(record).collect()
}

//! The issue of a credential.
//!
//! Peer → revision → names → **stand** → state, catalog → decide → prepare claims → durable record → insert → **look
//! again** → sign → answer. The gRPC server runs these steps in a separate task, so that they are completed even if the
//! client disconnects.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    access_request::{AccessRequest, StandingRequest},
    caller::Caller,
    credentials::CredentialUseCases,
    decide::check_inputs,
    draft::Binding,
    offer::{CredentialKind, IssueRequest},
    prepared::PreparedCredential,
    refusals::{job_not_found, no_random},
    wording::TokenStand,
};
use crate::{
    catalog::{Audience, Checks},
    clock::Wall,
    job::Job,
    lease::{Lease, Terms, Unborn},
    limits,
    name::{JobId, LeaseId, Object},
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::{S3Secret, SecretText, sha256},
};

/// A credential and its terms.
#[derive(Debug)]
pub struct Issued {
    pub lease: Arc<Lease>,
    pub token: SecretText,
    pub token_expires: Wall,
    pub shortened_by: Vec<String>,
    pub locations: BTreeMap<Object, String>,
    pub bound: Bound,
    pub binding: Binding,
    /// The secret of its S3 key, if that was asked for.
    pub s3_secret: Option<SecretText>,
}

/// The longest time until a revocation takes effect at an audience, and the mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub at_most: Duration,
    pub by: &'static str,
}

impl CredentialUseCases {
    /// Issues one credential.
    pub async fn issue(&self, caller: &Caller, wanted: &IssueRequest) -> Result<Issued, Refusal> {
        self.context.refuse_if_held()?;
        let session = &wanted.session;
        let job = self.context.state.job(session.job).ok_or_else(job_not_found)?;
        let _permit = self.context.reconnects.permit_to_ask(&job, session, caller.id()).await?;
        for _ in 0..limits::REVISION_RETRIES {
            if let Some(issued) = self.issue_once(caller, wanted).await? {
                return Ok(issued);
            }
        }
        Err(Refusal::new(Reason::Contended, "policy and catalog are changing: try again"))
    }

    /// Issues one credential. Returns `None` if the rules changed during the request: the request must start over.
    async fn issue_once(&self, caller: &Caller, wanted: &IssueRequest) -> Result<Option<Issued>, Refusal> {
        let session = &wanted.session;
        let request = self.access.access_request(&caller.peer, Rpc::IssueCredential)?;
        let (job, _) = self.access.member(&request.caller, session)?;
        let prepared = self.prepared.for_issue(&request.rules, &job, request.caller.id(), wanted)?;
        let s3_secret = new_s3_secret(wanted.kind, &prepared.audience)?;
        let StandingRequest { request, stand } = request.stand(&prepared.names);

        // The stand was taken before all reads below, so the insert into the lease table notices a
        // revocation in between.
        let job = self.access.member_still(&request.caller, session, job)?;
        self.may_issue(&request, &job, &prepared)?;
        let draft = self.draft(&request, &job, session, &prepared, wanted.kind)?;
        let life =
            draft.life(wanted.ttl.or(job.spec.credential_ttl).unwrap_or(self.context.settings.lease_ttl));
        let grant = self.grant(&draft, &life, stand)?;

        let id = LeaseId::random().map_err(|_| no_random())?;
        let facts = prepared.facts.clone();
        let room = self.context.table.room(&facts, draft.now.lease);
        room.map_err(|full| Refusal::new(Reason::QuotaExceeded, full.to_string()))?;
        let stood = TokenStand { lease: id, generation: 0, stood_at: grant.stand().at() };
        let token = self.prepare_token(&draft, &stood, &life)?;
        let record = self.issued_record(&draft, &grant, &life, &token);
        self.record_credential(&request.caller, id, job.id, &record).await?;

        let issued = draft.now.lease;
        let shown = s3_secret.as_ref().map(|secret| secret.to_text());
        let terms = Terms { id, issued, deadline: life.deadline, latest: life.latest, facts, s3_secret };
        let lease = self
            .context
            .table
            .insert(grant, terms)
            .map_err(|unborn| self.refuse_unborn(id, job.id, &unborn))?;
        // The insert into the table checked the fences again. This checks the revision.
        if request.has_new_rules() {
            self.withdraw(id, job.id, Reason::Contended, "rules changed while it was issued");
            return Ok(None);
        }
        let Ok(token) = token.minted.sign(&self.context.key) else {
            self.withdraw(id, job.id, Reason::Internal, "it could not be signed");
            return Err(Refusal::new(Reason::Internal, "the token could not be signed"));
        };
        lease.set_newest_token_digest(&sha256(token.expose().as_bytes()));
        metrics::counter!("leasehold_credentials_issued_total").increment(1);
        tracing::info!(lease = %id, job = %job.id, holder = %request.caller.id(), audience = %prepared.offer.audience, "credential issued");
        Ok(Some(Issued {
            lease,
            token,
            token_expires: life.token_expires,
            bound: revocation_bound(&prepared.audience),
            binding: draft.binding,
            s3_secret: shown,
            shortened_by: life.shortened_by,
            locations: prepared.offer.locations.clone(),
        }))
    }

    /// Makes all checks for the issue of a credential, except policy's decision on the resources (`grant`).
    fn may_issue(
        &self,
        request: &AccessRequest<'_>,
        job: &Job,
        prepared: &PreparedCredential,
    ) -> Result<(), Refusal> {
        self.access.authorize_job(&request.caller, Rpc::IssueCredential, job, "")?;
        self.decisions.check_launcher_of(&request.rules, job, Some(&prepared.launcher))?;
        self.access.check_unlocked(request.caller.id(), prepared.names.iter())?;
        self.context.check_checkpoints(&request.rules, job)?;
        check_inputs(&request.rules, job, &prepared.offer.scopes)
    }

    /// Cancels the record of a lease that the table did not accept.
    fn refuse_unborn(&self, id: LeaseId, job: JobId, unborn: &Unborn) -> Refusal {
        let reason = match unborn {
            Unborn::Quota(_) => Reason::QuotaExceeded,
            Unborn::Lowered(_) => Reason::Revoked,
            Unborn::IdTaken(_) => Reason::Internal,
        };
        self.cancel(id, job, reason);
        Refusal::new(reason, unborn.to_string())
    }

    /// Removes a lease whose token was not handed out, and cancels its record.
    fn withdraw(&self, id: LeaseId, job: JobId, reason: Reason, cause: &str) {
        self.context.table.remove(id, self.context.clock.now().lease, cause);
        self.cancel(id, job, reason);
    }
}

/// Makes the secret of an S3 key, if one is asked for. Only an S3 gateway can use it.
fn new_s3_secret(kind: CredentialKind, audience: &Audience) -> Result<Option<Box<S3Secret>>, Refusal> {
    if kind == CredentialKind::Token {
        return Ok(None);
    }
    if audience.s3.is_none() || audience.checks != Checks::Feed {
        let text = format!("{} has no S3 gateway, so it cannot use S3 keys", audience.name);
        return Err(Refusal::new(Reason::NotSupported, text)
            .fix("ask for a token, or have s3_endpoint written into that [[audience]] of the catalog"));
    }
    S3Secret::random().map(|secret| Some(Box::new(secret))).map_err(|_| no_random())
}

fn revocation_bound(audience: &Audience) -> Bound {
    match audience.checks {
        Checks::Feed => Bound { at_most: limits::FEED_STALE, by: "feed" },
        Checks::Introspect => Bound { at_most: Duration::ZERO, by: "introspect" },
        Checks::Jwt => Bound { at_most: limits::OFFLINE_TOKEN_TTL_MAX, by: "expiry" },
    }
}

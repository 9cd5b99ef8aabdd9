//! A cache of the facts that follow from a job and the rules for the credentials of one member.
//!
//! A member asks for a credential when it starts, and renews it every few minutes. The specification of its job never
//! changes, and the rules seldom change. So the offer, the names of the fences, their tags and most of the claims are
//! the same as for the last credential. Facts that can change are not in the cache. The revision, the fences, locks,
//! the state of the job, approvals, pins, the time, and the decision of policy are read for each credential, in the
//! order of `broker/issue.rs`.

use std::sync::{Arc, Weak};

use dashmap::DashMap;

use super::{
    decide::{risk_of, work_of_scopes},
    launcher::LauncherWork,
    names,
    offer::{IssueRequest, Offer, audience_of},
    rules::Rules,
    wording::{ClaimsTemplate, Tokens},
};
use crate::{
    catalog::Audience,
    job::{Job, Spec},
    lease::Facts,
    limits,
    name::{Action, AttemptNumber, FenceName, Half, InstanceName, JobId, Object, Scope, SpiffeId},
    policy::JobRisk,
    reason::{Reason, Refusal},
};

/// The scopes of a member's credential, and all facts that follow from its job and the rules.
pub(super) struct PreparedCredential {
    /// The specification and the rules from which the facts follow. The weak pointers are only compared.
    spec: Weak<Spec>,
    rules: Weak<Rules>,
    pub(super) offer: Offer,
    pub(super) audience: Audience,
    /// The names of the credential's fences, sorted and distinct.
    pub(super) names: Vec<FenceName>,
    pub(super) facts: Arc<Facts>,
    /// The actions and resources about which policy is asked.
    pub(super) parts: Vec<(Action, Object)>,
    pub(super) risk: JobRisk,
    pub(super) launcher: LauncherWork,
    pub(super) claims: ClaimsTemplate,
}

impl PreparedCredential {
    /// Whether this preparation is for this job, these rules and this holder.
    fn is_of(&self, rules: &Arc<Rules>, job: &Job, holder: &SpiffeId) -> bool {
        std::ptr::eq(self.spec.as_ptr(), Arc::as_ptr(&job.spec))
            && std::ptr::eq(self.rules.as_ptr(), Arc::as_ptr(rules))
            && self.facts.holder == *holder
    }
}

/// A member, and the credential that it requests.
#[derive(Clone, PartialEq, Eq, Hash)]
struct CredentialKey {
    job: JobId,
    attempt: AttemptNumber,
    instance: InstanceName,
    half: Half,
    /// `None` if the request names no audience.
    audience: Option<SpiffeId>,
}

/// The preparations for recent requests of members. If there are [`limits::PREPARED_MAX`], all are dropped.
pub(super) struct PreparedCredentials {
    tokens: Tokens,
    kept: DashMap<CredentialKey, Arc<PreparedCredential>>,
}

impl PreparedCredentials {
    pub(super) fn new(tokens: Tokens) -> Self {
        PreparedCredentials { tokens, kept: DashMap::new() }
    }

    /// Returns the preparation for a credential that a member requests.
    pub(super) fn for_issue(
        &self,
        rules: &Arc<Rules>,
        job: &Job,
        holder: &SpiffeId,
        wanted: &IssueRequest,
    ) -> Result<Arc<PreparedCredential>, Refusal> {
        let session = &wanted.session;
        let key = CredentialKey {
            job: job.id,
            attempt: session.attempt,
            instance: session.instance.clone(),
            half: wanted.half,
            audience: wanted.audience.clone(),
        };
        let is_whole = wanted.scopes.is_empty();
        if is_whole && let Some(known) = self.find(&key, rules, job, holder) {
            return Ok(known);
        }
        let (offer, audience) = Offer::choose(rules, job, wanted)?;
        let prepared = self.prepare(rules, job, holder, &key, offer, audience)?;
        if is_whole {
            self.keep(key, prepared.clone());
        }
        Ok(prepared)
    }

    /// Returns the preparation for the next token of a lease. Refuses if the lease's audience no longer serves all of its
    /// resources.
    pub(super) fn for_renewal(
        &self,
        rules: &Arc<Rules>,
        job: &Job,
        facts: &Facts,
    ) -> Result<Arc<PreparedCredential>, Refusal> {
        let key = CredentialKey {
            job: job.id,
            attempt: facts.attempt,
            instance: facts.instance.clone(),
            half: facts.half,
            audience: Some(facts.audience.clone()),
        };
        let known = self.find(&key, rules, job, &facts.holder);
        if let Some(known) = known.filter(|known| *known.facts == *facts) {
            return Ok(known);
        }
        let audience = audience_of(rules, &facts.audience)?;
        let moved =
            |s: &Scope| rules.catalog().resource(&s.resource).is_none_or(|r| r.audience != facts.audience);
        if let Some(s) = facts.scopes.iter().find(|s| moved(s)) {
            return Err(Refusal::new(
                Reason::AudienceUnknown,
                format!("{} is no longer served by {}", s.resource, facts.audience),
            )
            .fix("ask for a new credential: the catalog says where it is served now"));
        }
        let offers = Offer::all_of(rules, job).into_iter();
        let locations = offers
            .filter(|o| o.half == facts.half && o.audience == facts.audience)
            .flat_map(|o| o.locations)
            .collect();
        let (half, scopes, s3) = (facts.half, facts.scopes.to_vec(), audience.s3.clone());
        let offer = Offer { half, audience: facts.audience.clone(), scopes, locations, s3 };
        let prepared = self.prepare(rules, job, &facts.holder, &key, offer, audience)?;
        self.keep(key, prepared.clone());
        Ok(prepared)
    }

    /// Returns the preparation for a lease that stands behind these names. A lease that was issued now would have other
    /// names.
    pub(super) fn behind(
        &self,
        prepared: &PreparedCredential,
        names: Vec<FenceName>,
    ) -> Result<Arc<PreparedCredential>, Refusal> {
        let claims = self.tokens.template(&prepared.facts, &names)?;
        Ok(Arc::new(PreparedCredential {
            spec: prepared.spec.clone(),
            rules: prepared.rules.clone(),
            offer: prepared.offer.clone(),
            audience: prepared.audience.clone(),
            names,
            facts: prepared.facts.clone(),
            parts: prepared.parts.clone(),
            risk: prepared.risk.clone(),
            launcher: prepared.launcher.clone(),
            claims,
        }))
    }

    fn find(
        &self,
        key: &CredentialKey,
        rules: &Arc<Rules>,
        job: &Job,
        holder: &SpiffeId,
    ) -> Option<Arc<PreparedCredential>> {
        let known = self.kept.get(key)?.clone();
        known.is_of(rules, job, holder).then_some(known)
    }

    fn keep(&self, key: CredentialKey, prepared: Arc<PreparedCredential>) {
        if self.kept.len() >= limits::PREPARED_MAX && !self.kept.contains_key(&key) {
            self.kept.clear();
        }
        self.kept.insert(key, prepared);
    }

    fn prepare(
        &self,
        rules: &Arc<Rules>,
        job: &Job,
        holder: &SpiffeId,
        key: &CredentialKey,
        offer: Offer,
        audience: Audience,
    ) -> Result<Arc<PreparedCredential>, Refusal> {
        let CredentialKey { attempt, instance, .. } = key;
        let mut names = names::of_lease(rules, job, *attempt, instance, holder, offer.half, &offer.scopes);
        names.sort_unstable();
        names.dedup();
        let facts = Facts {
            tenant: job.spec.tenant.clone(),
            job: job.id,
            attempt: *attempt,
            instance: instance.clone(),
            holder: holder.clone(),
            half: offer.half,
            audience: offer.audience.clone(),
            scopes: offer.scopes.as_slice().into(),
        };
        let claims = self.tokens.template(&facts, &names)?;
        Ok(Arc::new(PreparedCredential {
            spec: Arc::downgrade(&job.spec),
            rules: Arc::downgrade(rules),
            parts: work_of_scopes(rules, job, &offer.scopes),
            risk: risk_of(rules, job, rules.catalog().principal(holder).map(|p| &**p)),
            launcher: LauncherWork::of(rules, job),
            offer,
            audience,
            names,
            facts: Arc::new(facts),
            claims,
        }))
    }
}

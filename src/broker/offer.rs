//! The credentials that a job offers its members: one for each half and audience.

use std::{collections::BTreeMap, time::Duration};

use super::{rules::Rules, session::MemberSession};
use crate::{
    catalog::{Audience, S3Endpoint},
    job::Job,
    name::{Half, Object, Scope, SpiffeId},
    reason::{Reason, Refusal},
};

/// A credential that a member may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub half: Half,
    pub audience: SpiffeId,
    pub scopes: Vec<Scope>,
    /// The location of each resource and folder, by its name.
    pub locations: BTreeMap<Object, String>,
    /// The S3 gateway of the audience.
    pub s3: Option<S3Endpoint>,
}

/// A member's request for a credential.
#[derive(Clone, Debug)]
pub struct IssueRequest {
    pub session: MemberSession,
    pub half: Half,
    /// May be left out if the half has only one audience.
    pub audience: Option<SpiffeId>,
    /// Narrows the access. If it is empty, the request is for all access of the job in this half at this audience.
    pub scopes: Vec<Scope>,
    pub ttl: Option<Duration>,
    pub kind: CredentialKind,
}

/// What a credential consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A token, which its holder presents.
    Token,
    /// A token and an S3 key, for clients of a gateway that have no SVID.
    S3Key,
}

impl Offer {
    /// Returns one offer for each half and audience. An offer contains the job's resources in this half at this audience.
    pub(super) fn all_of(rules: &Rules, job: &Job) -> Vec<Offer> {
        let mut offers: BTreeMap<(Half, SpiffeId), Offer> = BTreeMap::new();
        for scope in job.spec.scopes() {
            let Some(r) = rules.catalog().resource(&scope.resource) else { continue };
            let half = scope.half();
            let offer = offers.entry((half, r.audience.clone())).or_insert_with(|| Offer {
                half,
                audience: r.audience.clone(),
                scopes: Vec::new(),
                locations: BTreeMap::new(),
                s3: rules.catalog().audience(&r.audience).and_then(|a| a.s3.clone()),
            });
            let mut location = r.location.clone();
            if let Some(folder) = scope.object(job.id).job() {
                location.push_str(&format!("{folder}/"));
            }
            offer.locations.insert(scope.name(), location);
            offer.scopes.push(scope);
        }
        offers.into_values().collect()
    }

    /// Returns the offer for a request, with only the scopes of the request. Also returns the audience.
    pub(super) fn choose(
        rules: &Rules,
        job: &Job,
        request: &IssueRequest,
    ) -> Result<(Offer, Audience), Refusal> {
        let mut offers: Vec<Offer> =
            Offer::all_of(rules, job).into_iter().filter(|o| o.half == request.half).collect();
        if let Some(audience) = &request.audience {
            offers.retain(|o| o.audience == *audience);
        }
        let mut offer = match (offers.pop(), offers.is_empty()) {
            (Some(one), true) => one,
            (Some(_), false) => {
                return Err(Refusal::new(
                    Reason::FieldMissing,
                    format!("this job {} at several audiences: name one", does(request.half)),
                ));
            }
            (None, _) => {
                return Err(Refusal::new(
                    Reason::AudienceUnknown,
                    match &request.audience {
                        Some(a) => format!("this job {} nothing at {a}", does(request.half)),
                        None => format!("this job {} nothing", does(request.half)),
                    },
                ));
            }
        };
        if !request.scopes.is_empty() {
            for wanted in &request.scopes {
                let offered = offer.scopes.iter().find(|s| s.name() == wanted.name());
                if wanted.actions.is_empty() || !offered.is_some_and(|s| wanted.actions.is_subset(&s.actions))
                {
                    return Err(Refusal::new(
                        Reason::ResourceNotFound,
                        format!("the job has no such access to {} at this audience", wanted.name()),
                    )
                    .fix("a scope can only narrow the access: name only what the job file names"));
                }
            }
            offer.scopes.clone_from(&request.scopes);
            offer.locations.retain(|name, _| request.scopes.iter().any(|s| s.name() == *name));
        }
        let audience = audience_of(rules, &offer.audience)?;
        Ok((offer, audience))
    }
}

/// Returns the verb for the access of a half.
const fn does(half: Half) -> &'static str {
    match half {
        Half::Reading => "reads",
        Half::Writing => "writes",
    }
}

/// Finds an audience in the catalog.
pub(super) fn audience_of(rules: &Rules, name: &SpiffeId) -> Result<Audience, Refusal> {
    let found = rules.catalog().audience(name).cloned();
    found.ok_or_else(|| Refusal::new(Reason::AudienceUnknown, format!("the catalog has no audience {name}")))
}

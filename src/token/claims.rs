//! What a token says.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::name::{
    Action, AttemptNumber, FenceName, Half, InstanceName, JobId, LeaseId, ResourceName, Scope, SpiffeId,
    TenantName,
};

/// The `type` of the authorization details that this issuer makes (RFC 9396 section 2).
pub const DETAIL_TYPE: &str = "leasehold.v1";

/// The claims of a token. Times are NumericDate: whole seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    /// The holder's SPIFFE ID.
    pub sub: SpiffeId,
    /// One audience, never a list.
    pub aud: SpiffeId,
    pub exp: u64,
    pub nbf: u64,
    pub iat: u64,
    pub jti: String,
    /// RFC 9068 section 2.2: the client, which is the holder.
    pub client_id: SpiffeId,
    pub authorization_details: Vec<AuthorizationDetail>,
    pub lh: LeaseClaims,
    /// RFC 8705 section 3.1, where the token is bound to one certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

/// One resource and what may be done to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationDetail {
    /// [`DETAIL_TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    pub identifier: ResourceName,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<String>,
    pub actions: BTreeSet<Action>,
}

/// What ties the token to its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseClaims {
    pub epoch: u64,
    /// The count of lowerings when the lease took its stand.
    pub stood_at: u64,
    pub lease: LeaseId,
    #[serde(rename = "gen")]
    pub generation: u32,
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub member: InstanceName,
    pub tenant: TenantName,
    /// Fences of the lease that the other claims do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fences: Vec<FenceName>,
}

/// The certificate that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// base64url of the SHA-256 of the certificate.
    #[serde(rename = "x5t#S256")]
    pub x5t_s256: String,
}

impl Claims {
    /// The names of all fences that the token's lease stands behind, sorted and distinct.
    pub fn fence_names(&self) -> Vec<FenceName> {
        let scopes = self.authorization_details.iter().map(|d| (&d.identifier, &d.actions));
        let mut names = said_by(&self.sub, &self.lh, scopes);
        names.extend(self.lh.fences.iter().cloned());
        names.into_iter().collect()
    }

    /// Leaves in `lh.fences` only what the other claims do not say.
    pub fn set_fences<'a>(&mut self, all: impl Iterator<Item = &'a FenceName>) {
        let said = {
            let scopes = self.authorization_details.iter().map(|d| (&d.identifier, &d.actions));
            said_by(&self.sub, &self.lh, scopes)
        };
        self.lh.fences = all.filter(|n| !said.contains(n)).cloned().collect();
    }

    /// Whether the token opens this resource for this action.
    pub fn opens(&self, resource: &ResourceName, action: Action) -> bool {
        self.authorization_details
            .iter()
            .any(|d| d.kind == DETAIL_TYPE && d.identifier == *resource && d.actions.contains(&action))
    }

    /// Where the issuer says that a resource is, if it says so.
    pub fn locations(&self) -> BTreeMap<&ResourceName, &[String]> {
        self.authorization_details.iter().map(|d| (&d.identifier, d.locations.as_slice())).collect()
    }
}

impl From<&Scope> for AuthorizationDetail {
    fn from(scope: &Scope) -> Self {
        AuthorizationDetail {
            kind: DETAIL_TYPE.into(),
            identifier: scope.resource.clone(),
            locations: Vec::new(),
            actions: scope.actions.clone(),
        }
    }
}

/// The fences that subject, lease claims and scopes say by themselves.
fn said_by<'a>(
    sub: &SpiffeId,
    lh: &LeaseClaims,
    scopes: impl Iterator<Item = (&'a ResourceName, &'a BTreeSet<Action>)>,
) -> BTreeSet<FenceName> {
    let mut names = BTreeSet::from([
        FenceName::epoch(),
        FenceName::domain(sub.trust_domain()),
        FenceName::tenant(lh.tenant.clone()),
        FenceName::job(lh.job),
        FenceName::attempt(lh.job, lh.attempt),
        FenceName::member(lh.job, lh.attempt, lh.member.clone()),
        FenceName::identity(sub.clone()),
        FenceName::lease(lh.lease),
    ]);
    for (resource, actions) in scopes {
        names.insert(FenceName::tenant(resource.tenant()));
        names.insert(FenceName::resource(resource.unversioned()));
        names.insert(FenceName::resource(resource.clone()));
        if actions.iter().any(|a| a.half() == Some(Half::Reading)) {
            names.insert(FenceName::attempt_reading(lh.job, lh.attempt));
            names.insert(FenceName::member_reading(lh.job, lh.attempt, lh.member.clone()));
        }
    }
    names
}

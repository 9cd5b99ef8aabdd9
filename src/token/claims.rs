//! The claims of a token.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::tag::{FenceKey, FenceTag, FenceTags};
use crate::name::{
    Action, AttemptNumber, FenceKind, FenceName, Half, JobId, LeaseId, NameError, Object, Scope, SpiffeId,
    TenantName,
};

/// The `type` of our authorization details (RFC 9396 section 2).
pub const DETAIL_TYPE: &str = "leasehold.v1";

/// The index of the lease's fence in [`Claims::named_fences`].
const LEASE_FENCE: usize = 6;

/// The claims of a token. Times are NumericDate: whole seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer: the URL in the daemon's configuration.
    pub iss: String,
    /// The SPIFFE ID of the holder.
    pub sub: SpiffeId,
    /// The only audience of the token. It is never a list.
    pub aud: SpiffeId,
    /// When the token expires. At this second it is no longer valid.
    pub exp: u64,
    /// When the token begins to be valid.
    pub nbf: u64,
    /// When the token was made.
    pub iat: u64,
    /// The token's id for logs: 128 random bits in base64url.
    pub jti: String,
    /// The job that the holder works on. RFC 9068 section 2.2 calls it the client.
    pub client_id: JobId,
    /// The objects that the token opens (RFC 9396).
    pub authorization_details: Vec<AuthorizationDetail>,
    /// The lease of the token, and the fences that end the lease.
    pub lh: LeaseClaims,
    /// The certificate to which the token is bound, if there is one (RFC 8705 section 3.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

/// Objects of one kind and tenant, and the allowed actions. The name of each object is `identifier` followed by one of `names`.
///
/// A job may open many objects, and a token must fit into a header, so the common part is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationDetail {
    /// The type of the detail: always [`DETAIL_TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind and tenant of the objects, such as `dataset:acme/`.
    pub identifier: String,
    /// The rest of each name, such as `tickets@v3`. For a checkpoint line it is `support-lora/JOB`, the folder of that job.
    /// If JOB is another job than `client_id`, the folder can only be read.
    pub names: Vec<String>,
    /// The actions that are allowed on each object.
    pub actions: BTreeSet<Action>,
}

/// The claims that bind the token to its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseClaims {
    /// The epoch: the number of the daemon's run that made the token, counted from 1. Tokens of another epoch are refused.
    pub epoch: u64,
    /// The count of lowerings at the moment of the decision on the lease.
    pub stood_at: u64,
    /// The lease of the token.
    pub lease: LeaseId,
    /// How often the lease was renewed before this token.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// The job that the holder works on.
    pub job: JobId,
    /// The attempt of that job.
    pub attempt: AttemptNumber,
    /// The tenant of that job.
    pub tenant: TenantName,
    /// The tags of all fences of the lease. First come the fences that follow from the other claims, in the order of
    /// [`Claims::named_fences`]. Then come the fences of `others`.
    pub fences: FenceTags,
    /// The kinds of the other fences, with one letter for each: `d` a trust domain, `g` a container image, `h` a human, `i` an
    /// identity, `j` another job, `m` the member, `r` a resource, `t` a tenant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub others: String,
}

/// The certificate to which a token is bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The SHA-256 of the certificate, in base64url.
    #[serde(rename = "x5t#S256")]
    pub x5t_s256: String,
}

impl Claims {
    /// Returns the fences that follow from the other claims, in the order of their tags.
    ///
    /// # Errors
    ///
    /// Fails if an object of [`authorization_details`](Self::authorization_details) is not a valid name.
    pub fn named_fences(&self) -> Result<Vec<FenceName>, NameError> {
        let lh = &self.lh;
        let mut named = vec![
            FenceName::epoch(),
            FenceName::domain(self.sub.trust_domain()),
            FenceName::tenant(lh.tenant.clone()),
            FenceName::job(lh.job),
            FenceName::attempt(lh.job, lh.attempt),
            FenceName::identity(self.sub.clone()),
            FenceName::lease(lh.lease),
        ];
        let reads = |d: &AuthorizationDetail| d.actions.iter().any(|a| a.half() == Some(Half::Reading));
        let is_of_another_job = |object: &Object| object.job().is_some_and(|job| job != lh.job);
        if self.authorization_details.iter().any(reads)
            || self.objects().any(|object| object.is_ok_and(|object| is_of_another_job(&object)))
        {
            named.push(FenceName::attempt_reading(lh.job, lh.attempt));
        }
        let mut known: BTreeSet<FenceName> = named.iter().cloned().collect();
        for object in self.objects() {
            let resource = object?.resource().clone();
            let names = [
                FenceName::tenant(resource.tenant()),
                FenceName::resource(resource.unversioned()),
                FenceName::resource(resource),
            ];
            named.extend(names.into_iter().filter(|name| known.insert(name.clone())));
        }
        Ok(named)
    }

    /// Sets the tags of these fences, and of the fences that follow from the other claims.
    ///
    /// # Errors
    ///
    /// Fails if an object of [`authorization_details`](Self::authorization_details) is not a valid name.
    pub fn set_fences<'a>(
        &mut self,
        all: impl Iterator<Item = &'a FenceName>,
        key: &FenceKey,
    ) -> Result<(), NameError> {
        let named = self.named_fences()?;
        let known: BTreeSet<&FenceName> = named.iter().collect();
        let others: BTreeSet<&FenceName> = all.filter(|name| !known.contains(name)).collect();
        self.lh.others = others.iter().map(|name| letter(&name.kind())).collect();
        self.lh.fences = FenceTags(named.iter().chain(others).map(|name| key.tag(name)).collect());
        Ok(())
    }

    /// Changes these claims to another lease with the same other fences: sets the id of the lease and the tag of its fence.
    pub fn set_lease(&mut self, lease: LeaseId, key: &FenceKey) {
        self.lh.lease = lease;
        if let Some(tag) = self.lh.fences.0.get_mut(LEASE_FENCE) {
            *tag = key.tag(&FenceName::lease(lease));
        }
    }

    /// Returns the tags of all fences of the lease.
    pub fn fences(&self) -> &[FenceTag] {
        &self.lh.fences.0
    }

    /// Whether there is one tag for each fence that follows from the claims, and for each other fence.
    pub fn has_all_fences(&self) -> bool {
        let count = |named: Vec<FenceName>| named.len().saturating_add(self.lh.others.len());
        self.named_fences().is_ok_and(|named| count(named) == self.fences().len())
    }

    /// Describes the fence at an index of [`Claims::fences`]: by its name if it follows from the claims, otherwise by its kind.
    pub fn fence(&self, at: usize) -> String {
        let named = self.named_fences().unwrap_or_default();
        if let Some(name) = named.get(at) {
            return name.to_string();
        }
        let letter = at.checked_sub(named.len()).and_then(|at| self.lh.others.chars().nth(at));
        let kind = match letter {
            Some('d') => "a trust domain",
            Some('g') => "a container image",
            Some('h') => "a human",
            Some('i') => "an identity",
            Some('j') => "another job",
            Some('m') => "the member",
            Some('r') => "a resource",
            Some('t') => "a tenant",
            _ => "a fence",
        };
        format!("{kind} that the token depends on")
    }

    /// Whether the token allows this action on this object.
    pub fn opens(&self, object: &Object, action: Action) -> bool {
        let text = object.to_string();
        object.can_have_token()
            && self.authorization_details.iter().any(|d| {
                let name = text.strip_prefix(&d.identifier);
                d.kind == DETAIL_TYPE
                    && d.actions.contains(&action)
                    && name.is_some_and(|name| d.names.iter().any(|n| n == name))
            })
    }

    /// Returns all objects that the token opens.
    pub fn objects(&self) -> impl Iterator<Item = Result<Object, NameError>> {
        self.authorization_details
            .iter()
            .flat_map(|d| d.names.iter().map(|name| format!("{}{name}", d.identifier).parse()))
    }
}

impl AuthorizationDetail {
    /// Groups the scopes of a job by kind, tenant and set of actions.
    pub fn of_scopes<'a>(scopes: impl IntoIterator<Item = &'a Scope>, job: JobId) -> Vec<Self> {
        let mut groups: BTreeMap<(String, &BTreeSet<Action>), Vec<String>> = BTreeMap::new();
        for scope in scopes {
            let identifier = format!("{}:{}/", scope.resource.kind().as_str(), scope.resource.tenant());
            let text = scope.object(job).to_string();
            let name = text.strip_prefix(&identifier).unwrap_or(&text).to_owned();
            groups.entry((identifier, &scope.actions)).or_default().push(name);
        }
        groups
            .into_iter()
            .map(|((identifier, actions), names)| AuthorizationDetail {
                kind: DETAIL_TYPE.into(),
                identifier,
                names,
                actions: actions.clone(),
            })
            .collect()
    }
}

/// Returns the letter of a kind in [`LeaseClaims::others`].
fn letter(kind: &FenceKind) -> char {
    match kind {
        FenceKind::Domain(_) => 'd',
        FenceKind::Human(_) => 'h',
        FenceKind::Image(_) => 'g',
        FenceKind::Identity(_) => 'i',
        FenceKind::Job(_) => 'j',
        FenceKind::Member(..) | FenceKind::MemberReading(..) => 'm',
        FenceKind::Resource(_) => 'r',
        FenceKind::Tenant(_) => 't',
        FenceKind::Epoch | FenceKind::Attempt(..) | FenceKind::AttemptReading(..) | FenceKind::Lease(_) => {
            'x'
        }
    }
}

//! Makes the claims of tokens, and checks that a token fits into a header. Issuing, renewing and creating a job share
//! this code.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{context::BrokerContext, names, offer::Offer, refusals::no_random, rules::Rules};
use crate::{
    catalog::Presenter,
    clock::Wall,
    fence::Seq,
    job::Job,
    lease::Facts,
    limits::{ATTEMPTS_MAX, TOKEN_BYTES_MAX, WILDCARD_BYTES_MAX},
    name::{AttemptNumber, FenceName, LeaseId, SpiffeId, SpiffePattern},
    reason::{Reason, Refusal},
    secret::random_u128,
    token::{AuthorizationDetail, Claims, Confirmation, FenceKey, LeaseClaims, MintError, UnsignedToken},
};

/// The claims that all tokens of one member, half and audience share.
pub(super) struct ClaimsTemplate {
    claims: Claims,
    key: FenceKey,
}

/// The claims that differ between the tokens of one member.
pub(super) struct Wording<'a> {
    pub stood: &'a TokenStand,
    pub issued: Wall,
    pub expires: Wall,
    /// The digest of the certificate to which the token is bound.
    pub certificate: Option<&'a [u8; 32]>,
}

/// The facts about a lease and its stand that a token carries.
pub(super) struct TokenStand {
    pub lease: LeaseId,
    pub generation: u32,
    pub stood_at: Seq,
}

/// Makes the claims of tokens.
#[derive(Clone)]
pub(super) struct Tokens {
    pub(super) context: Arc<BrokerContext>,
}

impl Tokens {
    /// Returns the claims that all tokens of one member share, for leases behind these names.
    pub(super) fn template(&self, facts: &Facts, names: &[FenceName]) -> Result<ClaimsTemplate, Refusal> {
        let key = self.context.key.fence_key(&facts.audience);
        let mut claims = Claims {
            iss: self.context.settings.issuer.clone(),
            sub: facts.holder.clone(),
            aud: facts.audience.clone(),
            exp: 0,
            nbf: 0,
            iat: 0,
            jti: String::new(),
            client_id: facts.job,
            authorization_details: AuthorizationDetail::of_scopes(facts.scopes.iter(), facts.job),
            lh: LeaseClaims {
                epoch: self.context.epoch,
                stood_at: 0,
                lease: LeaseId(0),
                generation: 0,
                job: facts.job,
                attempt: facts.attempt,
                tenant: facts.tenant.clone(),
                fences: Default::default(),
                others: String::new(),
            },
            cnf: None,
        };
        claims.set_fences(names.iter(), &key).map_err(|e| {
            tracing::error!(error = %e, "the claims of a token cannot be read back");
            Refusal::new(Reason::Internal, "the token could not be made")
        })?;
        Ok(ClaimsTemplate { claims, key })
    }

    /// Makes the claims of one token.
    pub(super) fn make_claims(
        &self,
        template: &ClaimsTemplate,
        wording: &Wording<'_>,
    ) -> Result<Claims, Refusal> {
        let Wording { stood, .. } = *wording;
        let jti = random_u128().map_err(|_| no_random())?;
        let mut claims = template.claims.clone();
        (claims.exp, claims.nbf) = (wording.expires.seconds(), wording.issued.seconds());
        claims.iat = claims.nbf;
        claims.jti = URL_SAFE_NO_PAD.encode(jti.to_be_bytes());
        (claims.lh.stood_at, claims.lh.generation) = (stood.stood_at.0, stood.generation);
        claims.set_lease(stood.lease, &template.key);
        claims.cnf = wording.certificate.map(|x| Confirmation { x5t_s256: URL_SAFE_NO_PAD.encode(x) });
        Ok(claims)
    }

    /// Makes claims ready to be signed, or refuses a token that is too large.
    pub(super) fn prepare(&self, claims: &Claims) -> Result<UnsignedToken, Refusal> {
        UnsignedToken::prepare(&self.context.key, claims).map_err(|e| match e {
            MintError::TooLarge(bytes) => too_large(bytes, claims),
            MintError::Sign => Refusal::new(Reason::Internal, e.to_string()),
        })
    }

    /// Refuses a job that would need a token that is too large for a header. Without this check, its members
    /// would be refused later, one by one.
    pub(super) fn tokens_fit(&self, rules: &Rules, job: &Job) -> Result<(), Refusal> {
        for offer in Offer::all_of(rules, job) {
            let sees = rules.catalog().audience(&offer.audience).map(|a| a.presenter);
            let certificate = (sees != Some(Presenter::None)).then_some(&[0; 32]);
            for holder in longest_holders(job) {
                let claims = self.largest_claims(rules, job, &offer, &holder, certificate)?;
                self.prepare(&claims)?;
            }
        }
        Ok(())
    }

    /// Returns the claims of the largest token that a holder can get for an offer.
    fn largest_claims(
        &self,
        rules: &Rules,
        job: &Job,
        offer: &Offer,
        holder: &SpiffeId,
        certificate: Option<&[u8; 32]>,
    ) -> Result<Claims, Refusal> {
        // The token does not contain these two names, only the tags (keyed digests) of their fences. All tags have the
        // same size, so any two names will do.
        let (attempt, instance) = (AttemptNumber::new(ATTEMPTS_MAX.into()), "any".parse());
        let (Some(attempt), Ok(instance)) = (attempt, instance) else {
            return Err(Refusal::new(Reason::Internal, "the token could not be measured"));
        };
        let mut names = names::of_lease(rules, job, attempt, &instance, holder, offer.half, &offer.scopes);
        // The holder may be a person. The name of the person is one more fence. All tags have one size.
        let mut joiners =
            job.spec.members.join.iter().flat_map(|p| rules.catalog().principals_overlapping(p));
        if joiners.any(|p| p.human_text().is_some())
            && let Ok(anyone) = "any".parse()
        {
            names.push(FenceName::human(anyone));
        }
        let facts = Facts {
            tenant: job.spec.tenant.clone(),
            job: job.id,
            attempt,
            instance,
            holder: holder.clone(),
            half: offer.half,
            audience: offer.audience.clone(),
            scopes: offer.scopes.as_slice().into(),
        };
        let stood = TokenStand { lease: LeaseId(0), generation: u32::MAX, stood_at: Seq(u64::MAX) };
        let now = self.context.clock.now().wall;
        let template = self.template(&facts, &names)?;
        self.make_claims(&template, &Wording { stood: &stood, issued: now, expires: now, certificate })
    }
}

/// Returns the longest identities that may join. Every token has tags for the launcher's identity and trust domain. If
/// the holder is not the launcher, the token has one more tag for its identity, and another one if its trust domain
/// differs.
fn longest_holders(job: &Job) -> impl Iterator<Item = SpiffeId> {
    let mut longest: BTreeMap<(bool, bool), SpiffeId> = BTreeMap::new();
    for holder in job.spec.members.join.iter().map(longest_match) {
        let known = (holder == job.launcher, holder.trust_domain() == job.launcher.trust_domain());
        let place = longest.entry(known).or_insert_with(|| holder.clone());
        if place.as_str().len() < holder.as_str().len() {
            *place = holder;
        }
    }
    longest.into_values()
}

/// Returns an identity of the greatest length that may join by a pattern.
fn longest_match(pattern: &SpiffePattern) -> SpiffeId {
    pattern.exact().unwrap_or_else(|| {
        let example = pattern.example();
        let missing = longest_by(pattern).saturating_sub(example.as_str().len());
        // If the result is longer than any SPIFFE ID, the example stays, because such an identity cannot exist.
        format!("{example}{}", "x".repeat(missing)).parse().unwrap_or(example)
    })
}

/// Returns the bytes of the longest identity that may join by a pattern with wildcards.
fn longest_by(pattern: &SpiffePattern) -> usize {
    pattern.to_string().len().saturating_add(WILDCARD_BYTES_MAX)
}

/// Whether an identity is not longer than the identities for which the job's tokens were measured.
pub(super) fn is_measured(job: &Job, id: &SpiffeId) -> bool {
    let matching = job.spec.members.join.iter().filter(|p| p.matches(id));
    matching.into_iter().any(|p| p.exact().is_some() || id.as_str().len() <= longest_by(p))
}

fn too_large(bytes: usize, claims: &Claims) -> Refusal {
    let names: usize = claims.authorization_details.iter().flat_map(|d| &d.names).map(String::len).sum();
    let resources: usize = claims.authorization_details.iter().map(|d| d.names.len()).sum();
    Refusal::new(
        Reason::QuotaExceeded,
        format!(
            "a token for {} would be {bytes} bytes, and headers of common servers carry {TOKEN_BYTES_MAX}",
            claims.aud
        ),
    )
    .with("resources", format!("{resources}, and their names are {names} bytes"))
    .with("holder", format!("an identity of {} bytes", claims.sub.as_str().len()))
    .fix("name fewer resources in one job, or give them shorter names and versions; a shorter SPIFFE ID of the members helps too")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_of_a_pattern_is_as_long_as_it_may_be() {
        let pattern: SpiffePattern = "spiffe://td.example/ns/*/job/*".parse().unwrap();
        assert_eq!(longest_match(&pattern).as_str().len(), longest_by(&pattern));
        let exact: SpiffePattern = "spiffe://td.example/one".parse().unwrap();
        assert_eq!(longest_match(&exact).as_str(), "spiffe://td.example/one");
        let near_the_end: SpiffePattern =
            format!("spiffe://td.example/{}/*", "x".repeat(1_900)).parse().unwrap();
        assert!(longest_match(&near_the_end).as_str().len() > 1_900);
    }
}

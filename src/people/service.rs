//! Everything that a daemon needs for logins.

use std::time::Duration;

use super::{
    authority::PeopleAuthority,
    fault::LoginFault,
    key_request::KeyRequest,
    provider::{IdentityProvider, PersonClaims, ProviderOptions},
    rules::LoginRules,
    spent_tokens::SpentTokens,
};
use crate::{
    clock::{Clock, Wall},
    name::{Digest, TrustDomain},
    secret::SecretText,
};

/// The domain separator and version for the digest of the terms of a login.
const TERMS: &str = "leasehold/login-terms/v1";

/// The people trust domain of a daemon: the provider that vouches for people, and the authority that signs their SVIDs.
#[derive(Debug)]
pub struct People {
    /// The trust domain of all people who log in here. Only people have SVIDs in it.
    pub domain: TrustDomain,
    /// The authority that signs the people's SVIDs.
    pub authority: PeopleAuthority,
    /// The provider that checks the people's ID tokens.
    pub provider: IdentityProvider,
    /// The rules about who may log in, and with which groups.
    pub rules: LoginRules,
    /// The ID tokens that were used.
    pub spent: SpentTokens,
    /// When this run of the daemon opened its ledger. The run does not know which older ID tokens were used.
    pub began: Wall,
}

impl People {
    /// Returns the digest of the facts that made a person a member of a group, or of no group, at the login. The facts are the
    /// provider, our client, the provider's name for the group, and whether the ID token was bound to the key. `None` if the
    /// configuration does not know the group.
    pub fn terms(&self, group: Option<&str>, is_bound: bool) -> Option<Digest> {
        let ProviderOptions { issuer, client_id, groups_claim } = self.provider.options();
        let called = |wanted: &str| self.rules.groups.iter().find(|(name, _)| name.as_str() == wanted);
        let member = match group {
            Some(wanted) => Some(called(wanted)?),
            None => None,
        };
        let member = member.map(|(name, value)| (name.as_str(), value.as_str()));
        let terms = (TERMS, issuer, client_id, groups_claim, member, is_bound);
        serde_json::to_vec(&terms).ok().map(|json| Digest::of(&json))
    }

    /// Whether the configuration would still admit a login that is `age` old. The [terms](Self::terms) must be the same,
    /// the person must have used the methods that are required now, and the present lifetime of a login must not be over.
    pub fn still_admits(
        &self,
        terms: Option<Digest>,
        group: Option<&str>,
        amr: &[String],
        age: Duration,
    ) -> bool {
        let is_on = |is_bound| terms.is_some() && self.terms(group, is_bound) == terms;
        (is_on(true) || self.rules.device_flow && is_on(false))
            && self.rules.required_amr.iter().all(|method| amr.contains(method))
            && age < self.rules.life
    }

    /// Checks an ID token for a key, and how the person logged in. Does not spend the token, and does not wait until the time
    /// of the token ([`People::wait_until_issued`]).
    ///
    /// # Errors
    ///
    /// Fails if the token is not accepted, if it was issued before this run of the daemon, or if the person logged in without a
    /// required method.
    pub async fn check(
        &self,
        token: &SecretText,
        key: &KeyRequest,
        clock: &dyn Clock,
    ) -> Result<PersonClaims, LoginFault> {
        let claims = self.provider.check(token, &key.nonce(), clock.now()).await?;
        if claims.issued.seconds() < self.began.seconds() {
            return Err(LoginFault::TokenNotFresh);
        }
        self.rules.check(&claims)?;
        Ok(claims)
    }

    /// Waits until our clock has reached the time of a token, if the clock of the provider is ahead. So each used token is
    /// older than the next run of the daemon.
    ///
    /// # Errors
    ///
    /// Fails if our clock was set back meanwhile.
    pub async fn wait_until_issued(
        &self,
        claims: &PersonClaims,
        clock: &dyn Clock,
    ) -> Result<(), LoginFault> {
        clock.sleep(claims.issued.since(clock.now().wall)).await;
        match claims.issued > clock.now().wall {
            true => Err(LoginFault::TokenNotFresh),
            false => Ok(()),
        }
    }
}

//! All that a daemon needs for logins.

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

/// The domain and version of the digest of the terms of a login.
const TERMS: &str = "leasehold/login-terms/v1";

/// The people trust domain of a daemon: who vouches for people, and who signs their SVIDs.
#[derive(Debug)]
pub struct People {
    /// The trust domain of all people who log in here. Only people have SVIDs of it.
    pub domain: TrustDomain,
    /// Signs their SVIDs.
    pub authority: PeopleAuthority,
    /// Checks their ID tokens.
    pub provider: IdentityProvider,
    /// Who may log in, and as what.
    pub rules: LoginRules,
    /// Which ID tokens were used.
    pub spent: SpentTokens,
    /// When this run of the daemon opened its ledger. The run does not know which older ID tokens were used.
    pub began: Wall,
}

impl People {
    /// The digest of what made a person a member of a group, or of none, when they logged in: the provider, our client, what the
    /// provider calls the group, and whether the ID token was bound to the key. `None` if the configuration does not know the group.
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

    /// Whether the configuration would admit a login again that began so long ago: on the same [terms](Self::terms), with the
    /// methods that are required now, and within the time that a login lasts now.
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

    /// Checks an ID token for a key, and how the person logged in. Does not spend the token, and does not wait until its time has
    /// come ([`People::wait_until_issued`]).
    ///
    /// # Errors
    ///
    /// The token is not accepted, was issued before this run of the daemon, or the person logged in without what is required.
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

    /// Waits until our clock has the time of a token, if the clock of the provider is ahead. So each token that was used is older
    /// than the next run of the daemon.
    ///
    /// # Errors
    ///
    /// Our clock was set back meanwhile.
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

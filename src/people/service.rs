//! All that a daemon needs for logins.

use super::{
    authority::PeopleAuthority,
    fault::LoginFault,
    key_request::KeyRequest,
    provider::{IdentityProvider, PersonClaims},
    rules::LoginRules,
    spent_tokens::SpentTokens,
};
use crate::{
    clock::{Clock, Wall},
    name::TrustDomain,
    secret::SecretText,
};

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
    /// Checks an ID token for a key, and how the person logged in. It does not spend the token. If the clock of the provider is
    /// ahead, it waits until our clock reaches the time of the token. So each used token is older than the next run of the daemon.
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
        let ahead = claims.issued.since(clock.now().wall);
        if !ahead.is_zero() {
            clock.sleep(ahead).await;
        }
        if claims.issued > clock.now().wall {
            return Err(LoginFault::TokenNotFresh);
        }
        Ok(claims)
    }
}

//! The ID tokens that were used for a login.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::fault::LoginFault;
use crate::{
    clock::Wall,
    limits::{ID_TOKEN_AGE_MAX, ID_TOKEN_EARLY_MAX, ID_TOKENS_REMEMBERED_MAX},
    name::Digest,
    secret::SecretText,
};

/// Remembers the digests of ID tokens while they are fresh. After that their age keeps them out.
#[derive(Debug, Default)]
pub struct SpentTokens(Mutex<HashMap<Digest, Wall>>);

impl SpentTokens {
    /// Spends a token that was checked.
    ///
    /// # Errors
    ///
    /// It was spent before, or too many are remembered.
    pub fn spend(&self, token: &SecretText, now: Wall) -> Result<(), LoginFault> {
        let kept = ID_TOKEN_AGE_MAX.saturating_add(ID_TOKEN_EARLY_MAX);
        let digest = Digest::of(token.expose().as_bytes());
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.contains_key(&digest) {
            return Err(LoginFault::TokenSpent);
        }
        if spent.len() >= ID_TOKENS_REMEMBERED_MAX {
            spent.retain(|_, at| now.since(*at) <= kept);
        }
        if spent.len() >= ID_TOKENS_REMEMBERED_MAX {
            return Err(LoginFault::Busy);
        }
        spent.insert(digest, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // An ID token gives one login.
    #[test]
    fn a_token_is_spent_once() {
        let spent = SpentTokens::default();
        let token = |text: &str| SecretText::new(text.to_owned());
        assert_eq!(spent.spend(&token("a"), Wall(0)), Ok(()));
        assert_eq!(spent.spend(&token("a"), Wall(1)), Err(LoginFault::TokenSpent));
        for n in 1..ID_TOKENS_REMEMBERED_MAX {
            assert_eq!(spent.spend(&token(&n.to_string()), Wall(0)), Ok(()));
        }
        assert_eq!(spent.spend(&token("one more"), Wall(1)), Err(LoginFault::Busy));
        let later = Wall(0).plus(ID_TOKEN_AGE_MAX).plus(ID_TOKEN_EARLY_MAX).plus(ID_TOKEN_EARLY_MAX);
        assert_eq!(
            spent.spend(&token("one more"), later),
            Ok(()),
            "old ones are dropped: their age keeps them out"
        );
    }
}

//! The ID tokens that were already used for a login.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::fault::LoginFault;
use crate::{
    clock::Wall,
    limits::{ID_TOKEN_AGE_MAX, ID_TOKEN_EARLY_MAX, ID_TOKENS_PER_PERSON_MAX, ID_TOKENS_REMEMBERED_MAX},
    name::{Digest, HumanName},
    secret::SecretText,
};

/// Remembers the digests of used ID tokens, by person, until the tokens are too old to be accepted.
#[derive(Debug, Default)]
pub struct SpentTokens(Mutex<BTreeMap<HumanName, Vec<SpentToken>>>);

/// A token that was used, and the time of its use.
#[derive(Debug)]
struct SpentToken {
    signed: Digest,
    at: Wall,
}

impl SpentToken {
    fn is_remembered(&self, now: Wall) -> bool {
        now.since(self.at) <= ID_TOKEN_AGE_MAX.saturating_add(ID_TOKEN_EARLY_MAX)
    }
}

impl SpentTokens {
    /// Marks a checked token of a person as used. Only the signed parts of tokens are compared, because a signature can be
    /// written in several ways.
    ///
    /// # Errors
    ///
    /// Fails if the token was spent before, if the person has spent too many tokens lately, or if too many tokens are
    /// remembered.
    pub fn spend(&self, token: &SecretText, human: &HumanName, now: Wall) -> Result<(), LoginFault> {
        let text = token.expose();
        let (signed, _) = text.rsplit_once('.').unwrap_or((text, ""));
        let signed = Digest::of(signed.as_bytes());
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = spent.get_mut(human) {
            own.retain(|token| token.is_remembered(now));
            if own.iter().any(|token| token.signed == signed) {
                return Err(LoginFault::TokenSpent);
            }
            if own.len() >= ID_TOKENS_PER_PERSON_MAX {
                return Err(LoginFault::TooOften);
            }
        }
        let count = |all: &BTreeMap<HumanName, Vec<SpentToken>>| all.values().map(Vec::len).sum::<usize>();
        if count(&spent) >= ID_TOKENS_REMEMBERED_MAX {
            spent.retain(|_, own| {
                own.retain(|token| token.is_remembered(now));
                !own.is_empty()
            });
        }
        if count(&spent) >= ID_TOKENS_REMEMBERED_MAX {
            return Err(LoginFault::Busy);
        }
        spent.entry(human.clone()).or_default().push(SpentToken { signed, at: now });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend(spent: &SpentTokens, token: &str, human: &str, now: Wall) -> Result<(), LoginFault> {
        spent.spend(&SecretText::new(token.to_owned()), &human.parse().unwrap(), now)
    }

    fn later() -> Wall {
        Wall(0).plus(ID_TOKEN_AGE_MAX).plus(ID_TOKEN_EARLY_MAX).plus(ID_TOKEN_EARLY_MAX)
    }

    // An ID token gives only one login, in every spelling of its signature.
    #[test]
    fn a_token_is_spent_once_in_any_spelling() {
        let spent = SpentTokens::default();
        assert_eq!(spend(&spent, "head.claims.sigA", "ada", Wall(0)), Ok(()));
        for token in ["head.claims.sigA", "head.claims.sigB", "head.claims."] {
            assert_eq!(spend(&spent, token, "ada", Wall(1)), Err(LoginFault::TokenSpent), "{token}");
        }
        assert_eq!(spend(&spent, "head.other.sigA", "ada", Wall(1)), Ok(()));
    }

    // One person cannot use up the limit for all people.
    #[test]
    fn tokens_are_bounded_by_person_and_in_all() {
        let spent = SpentTokens::default();
        let mut people = 0;
        for n in 0..ID_TOKENS_REMEMBERED_MAX {
            people = n / ID_TOKENS_PER_PERSON_MAX;
            assert_eq!(spend(&spent, &n.to_string(), &format!("p{people}"), Wall(0)), Ok(()));
        }
        assert_eq!(spend(&spent, "one more", "p0", Wall(1)), Err(LoginFault::TooOften));
        assert_eq!(spend(&spent, "one more", &format!("p{}", people + 1), Wall(1)), Err(LoginFault::Busy));
        assert_eq!(
            spend(&spent, "one more", "p0", later()),
            Ok(()),
            "old ones are dropped: their age keeps them out"
        );
    }
}

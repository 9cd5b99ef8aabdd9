//! Introspection: answers whether a token is valid now, for verifiers that do not follow the feed.

use std::sync::Arc;

use super::{caller::Caller, verifiers::VerifierUseCases};
use crate::{
    catalog,
    clock::Wall,
    lease::{Lease, LeaseRefused},
    name::SpiffeId,
    policy::{Relation, Rpc},
    reason::{Reason, Refusal},
    token::{Claims, Expected, Presenter, peek_key_id},
};

/// The answer to an introspection. An invalid token is an answer, not an error.
#[derive(Debug)]
pub enum TokenVerdict {
    Active { claims: Arc<Claims>, lease: Arc<Lease> },
    Inactive { reason: Reason },
}

impl VerifierUseCases {
    /// Checks a token for the audiences that the caller verifies. The caller learns nothing about other audiences.
    pub fn introspect(
        &self,
        caller: &Caller,
        token: &str,
        presenter: Option<&SpiffeId>,
        certificate: Option<&[u8; 32]>,
    ) -> Result<TokenVerdict, Refusal> {
        self.access.authorize(caller, Rpc::Introspect, Some(caller.tenant()), &[Relation::Verifier], "")?;
        Ok(match self.judge_token(caller, token, presenter, certificate) {
            Ok((claims, lease)) => TokenVerdict::Active { claims, lease },
            Err(reason) => TokenVerdict::Inactive { reason },
        })
    }

    fn judge_token(
        &self,
        caller: &Caller,
        token: &str,
        presenter: Option<&SpiffeId>,
        certificate: Option<&[u8; 32]>,
    ) -> Result<(Arc<Claims>, Arc<Lease>), Reason> {
        let rules = self.context.rules();
        let catalog = rules.catalog();
        if catalog.audiences_of_verifier(caller.id()).next().is_none() {
            return Err(Reason::TokenAudience);
        }
        let claims = self
            .context
            .verified_tokens
            .claims_recognizing(token, self.context.key.public(), |lease, digest| {
                self.context.table.find(lease).is_some_and(|lease| lease.is_newest_token_digest(digest))
            })
            .map_err(|e| self.reason_of_key(token, e.reason()))?;
        let audience = catalog
            .audience(&claims.aud)
            .filter(|audience| audience.verifiers.contains(caller.id()))
            .ok_or(Reason::TokenAudience)?;
        let expected = Expected {
            issuer: &self.context.settings.issuer,
            audience: &audience.name,
            presenter: match presenter {
                Some(id) => Presenter::Svid { id, x5t_s256: certificate },
                None => Presenter::Unseen,
            },
        };
        let now = self.context.clock.now().wall;
        expected.accept(&claims, now).map_err(|e| e.reason())?;
        if presenter.is_none() && audience.presenter == catalog::Presenter::Mtls {
            return Err(Reason::TokenPresenter);
        }
        let lease = self.still_good(&claims, now)?;
        Ok((claims, lease))
    }

    /// Returns a more exact reason if the key that signed the token is of an earlier epoch, and not a foreign key.
    fn reason_of_key(&self, token: &str, reason: Reason) -> Reason {
        let epoch = peek_key_id(token).and_then(|k| k.split('.').next()?.parse::<u64>().ok());
        match epoch {
            Some(e) if reason == Reason::TokenKeyUnknown && e < self.context.epoch => Reason::TokenEpoch,
            _ => reason,
        }
    }

    fn still_good(&self, claims: &Claims, now: Wall) -> Result<Arc<Lease>, Reason> {
        if claims.lh.epoch != self.context.epoch {
            return Err(Reason::TokenEpoch);
        }
        let lease = self.context.table.find(claims.lh.lease).ok_or(Reason::LeaseEnded)?;
        let agrees = lease.facts.job == claims.lh.job
            && lease.facts.attempt == claims.lh.attempt
            && lease.facts.holder == claims.sub
            && lease.stand().at().0 == claims.lh.stood_at;
        if !agrees || now >= Wall::from_seconds(claims.exp) {
            return Err(Reason::LeaseEnded);
        }
        lease.check(self.context.clock.now().lease).map_err(|r| match r {
            LeaseRefused::Expired => Reason::LeaseExpired,
            LeaseRefused::Lowered => Reason::Revoked,
            LeaseRefused::Ended | LeaseRefused::WornOut | LeaseRefused::Overtaken => Reason::LeaseEnded,
        })?;
        Ok(lease)
    }

    /// Refuses a caller that may not follow the feed of an audience.
    pub fn may_watch(&self, caller: &Caller, audience: &SpiffeId) -> Result<(), Refusal> {
        self.check_verifies(caller, audience)?;
        self.access.authorize(caller, Rpc::WatchFences, Some(caller.tenant()), &[Relation::Verifier], "")
    }

    /// Refuses a caller that does not verify for an audience. An audience that does not exist gets the same answer.
    pub(super) fn check_verifies(&self, caller: &Caller, audience: &SpiffeId) -> Result<(), Refusal> {
        let rules = self.context.rules();
        let verifies = rules.catalog().audience(audience).is_some_and(|a| a.verifiers.contains(caller.id()));
        if !verifies {
            return Err(Refusal::new(
                Reason::AudienceUnknown,
                format!("you do not verify for {audience}, or there is no such audience"),
            )
            .fix("have your SPIFFE ID added to verifiers of that [[audience]]"));
        }
        Ok(())
    }
}

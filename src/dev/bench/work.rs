//! One request that is repeated.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tonic::{Status, transport::Channel};

use super::vault::{VaultClient, VaultRequest};
use crate::{
    dev::demo::describe,
    identity::Leaf,
    name::{Action, Object},
    proto::v1::{
        self, member_service_client::MemberServiceClient, verifier_service_client::VerifierServiceClient,
    },
    secret::{SecretText, sha256},
    token::Presenter,
    verify::Verifier,
};

/// A request, with the connection that it uses.
pub(super) enum Work {
    Issue {
        at: MemberServiceClient<Channel>,
        request: v1::IssueCredentialRequest,
    },
    Renew {
        at: MemberServiceClient<Channel>,
        request: v1::RenewLeaseRequest,
    },
    Introspect {
        at: VerifierServiceClient<Channel>,
        request: v1::IntrospectRequest,
    },
    /// An introspection of one of many tokens, a different one each time.
    IntrospectFirst {
        at: VerifierServiceClient<Channel>,
        tokens: Arc<UnseenTokens>,
    },
    Check(Box<OfflineCheck>),
    /// Vault creates a token.
    Vault {
        at: VaultClient,
        request: VaultRequest,
    },
    /// The least that a check can cost: computes the digest of the token.
    Digest(SecretText),
    /// Several requests in turns. `next` is the place of the next one.
    Mixed {
        turns: Vec<Work>,
        next: usize,
    },
}

/// More tokens than the daemon remembers, so that it has forgotten each one when its turn comes again.
#[derive(Default)]
pub(super) struct UnseenTokens {
    pub(super) requests: Vec<v1::IntrospectRequest>,
    pub(super) next: AtomicUsize,
}

impl UnseenTokens {
    fn take_turn(&self) -> Option<v1::IntrospectRequest> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.requests.len().max(1);
        self.requests.get(turn).cloned()
    }
}

/// A token that a resource server checks without a call to the daemon.
pub(super) struct OfflineCheck {
    pub(super) verifier: Verifier,
    pub(super) holder: Leaf,
    pub(super) token: SecretText,
    pub(super) object: Object,
}

impl Work {
    /// Makes the request once, and waits for its answer.
    pub(super) async fn once(&mut self) -> Result<(), String> {
        let failed = |status: Status| describe(&status);
        let Some(work) = self.take_turn() else { return Err("a mix has no requests".to_owned()) };
        match work {
            Work::Issue { at, request } => {
                at.issue_credential(request.clone()).await.map(drop).map_err(failed)
            }
            Work::Renew { at, request } => at.renew_lease(request.clone()).await.map(drop).map_err(failed),
            Work::Introspect { at, request } => introspect(at, request.clone()).await,
            Work::IntrospectFirst { at, tokens } => {
                introspect(at, tokens.take_turn().ok_or("there are no tokens")?).await
            }
            Work::Check(check) => check.once().await,
            Work::Vault { at, request } => at.send(request).await.map(drop),
            Work::Digest(token) => {
                std::hint::black_box(sha256(token.expose().as_bytes()));
                // Yield to other tasks from time to time, as a check does.
                tokio::task::consume_budget().await;
                Ok(())
            }
            Work::Mixed { .. } => Err("a mix cannot be in a mix".to_owned()),
        }
    }

    /// Returns the request whose turn it is.
    fn take_turn(&mut self) -> Option<&mut Work> {
        match self {
            Work::Mixed { turns, next } => {
                let turn = *next % turns.len().max(1);
                *next = turn.wrapping_add(1);
                turns.get_mut(turn)
            }
            work => Some(work),
        }
    }
}

async fn introspect(
    at: &mut VerifierServiceClient<Channel>,
    request: v1::IntrospectRequest,
) -> Result<(), String> {
    let answer = at.introspect(request).await.map_err(|status| describe(&status))?.into_inner();
    if answer.active { Ok(()) } else { Err(format!("the token is not good: {}", answer.reason)) }
}

impl OfflineCheck {
    pub(super) async fn once(&self) -> Result<(), String> {
        let presenter = Presenter::Svid { id: &self.holder.spiffe_id, x5t_s256: Some(&self.holder.x5t_s256) };
        let access = self
            .verifier
            .check(self.token.expose(), presenter, &self.object, Action::ReadDataset)
            .await
            .map_err(|refusal| refusal.to_string())?;
        tokio::task::consume_budget().await;
        access.check().map_err(|refusal| refusal.to_string())
    }
}

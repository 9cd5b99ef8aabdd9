//! The wait before the refusal of a caller that asks for more than its share: its next call comes no sooner.

use std::sync::Arc;

use http::HeaderMap;

use crate::{
    limits,
    link::{Connection, Shares},
};

/// Makes callers wait. A wait holds no room for requests, only a place here: if there is none, the refusal is sent at once.
pub(super) struct Brake(Arc<Shares>);

impl Default for Brake {
    fn default() -> Self {
        Brake(Shares::new(limits::REFUSALS_WAITING_MAX, limits::REFUSALS_WAITING_PER_PEER_MAX))
    }
}

impl Brake {
    /// Waits if an answer without a body refuses its caller because of its share.
    pub(super) async fn wait(&self, headers: &HeaderMap, connection: Option<&Connection>) {
        const RESOURCE_EXHAUSTED: &[u8] = b"8";
        let is_spent = headers.get("grpc-status").is_some_and(|code| code.as_bytes() == RESOURCE_EXHAUSTED);
        let Some(connection) = connection.filter(|_| is_spent) else { return };
        let Ok(_place) = self.0.take(connection.peer.spiffe_id(), 1) else { return };
        // In real time: this only slows a program down.
        tokio::select! {
            () = tokio::time::sleep(limits::REFUSAL_WAIT) => {}
            () = connection.ended.cancelled() => {}
        }
    }
}

//! The wait before the refusal of a caller that exceeds its share. So the next call of this caller comes later.

use std::sync::Arc;

use http::HeaderMap;

use crate::{
    limits,
    link::{Connection, Shares},
};

/// Makes callers wait. A wait takes no slot for requests, only a slot for waits. If no such slot is free, the refusal
/// is sent at once.
pub(super) struct Brake(Arc<Shares>);

impl Default for Brake {
    fn default() -> Self {
        Brake(Shares::new(limits::REFUSALS_WAITING_MAX, limits::REFUSALS_WAITING_PER_PEER_MAX))
    }
}

impl Brake {
    /// Waits if an answer without a body is a refusal because of the caller's share.
    pub(super) async fn wait(&self, headers: &HeaderMap, connection: Option<&Connection>) {
        const RESOURCE_EXHAUSTED: &[u8] = b"8";
        let is_spent = headers.get("grpc-status").is_some_and(|code| code.as_bytes() == RESOURCE_EXHAUSTED);
        let Some(connection) = connection.filter(|_| is_spent) else { return };
        let Ok(_place) = self.0.take(connection.peer.spiffe_id(), 1) else { return };
        // This uses real time, because it only slows a program down.
        tokio::select! {
            () = tokio::time::sleep(limits::REFUSAL_WAIT) => {}
            () = connection.ended.cancelled() => {}
        }
    }
}

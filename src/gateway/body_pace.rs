//! The pace of a body: a client that sends too slowly loses its slot for requests.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    clock::{Clock, LeaseTime},
    limits::{GATEWAY_BODY_PACE, GATEWAY_BODY_PATIENCE, GATEWAY_WRITER_STALL},
};

/// The time that a client may still take. Only the time in which the gateway waits for bytes counts, because a slow disk is not
/// the client's fault.
pub(super) struct BodyPace {
    clock: Arc<dyn Clock>,
    /// The time for which the gateway still waits for bytes. Received bytes add to this time.
    patience: Duration,
    waiting: Option<BodyWait>,
}

struct BodyWait {
    since: LeaseTime,
    deadline: BoxFuture<'static, ()>,
}

/// No bytes or too few bytes came for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body comes too slowly: at least {GATEWAY_BODY_PACE} bytes a second, and some every {} s", GATEWAY_WRITER_STALL.as_secs())]
pub(super) struct TooSlow;

impl BodyPace {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        BodyPace { clock, patience: GATEWAY_BODY_PATIENCE, waiting: None }
    }

    /// Adds time for received bytes.
    pub(super) fn received(&mut self, bytes: usize) {
        if let Some(waiting) = self.waiting.take() {
            self.patience = self.patience.saturating_sub(self.clock.now().lease.since(waiting.since));
        }
        let earned = Duration::from_secs(bytes as u64) / GATEWAY_BODY_PACE;
        self.patience = self.patience.saturating_add(earned).min(GATEWAY_BODY_PATIENCE);
    }

    /// Waits until the client has taken too long.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<TooSlow> {
        let (clock, patience) = (&self.clock, self.patience);
        let waiting = self.waiting.get_or_insert_with(|| BodyWait {
            since: clock.now().lease,
            deadline: clock.sleep(patience.min(GATEWAY_WRITER_STALL)),
        });
        waiting.deadline.poll_unpin(cx).map(|()| TooSlow)
    }
}

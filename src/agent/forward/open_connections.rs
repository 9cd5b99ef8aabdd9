//! The open connections of programs. If there are too many, the connections that have waited longest for a request are closed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, LeaseTime},
    limits::FORWARD_QUIET_MIN,
};

/// The open connections. A clone is a pointer.
#[derive(Clone, Default)]
pub(super) struct OpenConnections(Arc<Mutex<ConnectionTable>>);

#[derive(Default)]
struct ConnectionTable {
    next: u64,
    open: HashMap<u64, ConnectionState>,
}

struct ConnectionState {
    /// The number of requests whose answers are not complete.
    requests: usize,
    /// The time when the last request ended or, before the first request, when the connection was opened.
    quiet_since: LeaseTime,
    close: CancellationToken,
}

impl OpenConnections {
    /// Adds a connection until the returned value is dropped.
    pub(super) fn add(&self, now: LeaseTime) -> OpenConnection {
        let close = CancellationToken::new();
        let mut table = self.table();
        let id = table.next;
        table.next = id.wrapping_add(1);
        table.open.insert(id, ConnectionState { requests: 0, quiet_since: now, close: close.clone() });
        OpenConnection { all: self.clone(), id, close }
    }

    /// Finds the connection that has waited longest for a request, and asks it to close. Returns `false` if no connection has
    /// waited for [`FORWARD_QUIET_MIN`].
    pub(super) fn close_quietest(&self, now: LeaseTime) -> bool {
        let table = self.table();
        let is_quiet = |c: &&ConnectionState| {
            c.requests == 0 && !c.close.is_cancelled() && now.since(c.quiet_since) >= FORWARD_QUIET_MIN
        };
        let quiet = table.open.values().filter(is_quiet);
        let Some(quietest) = quiet.min_by_key(|c| c.quiet_since) else { return false };
        quietest.close.cancel();
        true
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut ConnectionState)) {
        if let Some(state) = self.table().open.get_mut(&id) {
            change(state);
        }
    }

    fn table(&self) -> MutexGuard<'_, ConnectionTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection.
pub(super) struct OpenConnection {
    all: OpenConnections,
    id: u64,
    close: CancellationToken,
}

impl OpenConnection {
    /// Waits until the connection must close because another connection needs its slot.
    pub(super) async fn must_close(&self) {
        self.close.cancelled().await;
    }

    /// Counts a request until the returned value is dropped. The caller drops it at the end of the answer.
    pub(super) fn begin_request(&self, clock: &Arc<dyn Clock>) -> UnansweredRequest {
        self.all.change(self.id, |state| state.requests = state.requests.saturating_add(1));
        UnansweredRequest { all: self.all.clone(), id: self.id, clock: clock.clone() }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.all.table().open.remove(&self.id);
    }
}

/// A request whose answer is not complete.
pub(super) struct UnansweredRequest {
    all: OpenConnections,
    id: u64,
    clock: Arc<dyn Clock>,
}

impl Drop for UnansweredRequest {
    fn drop(&mut self) {
        let now = self.clock.now().lease;
        self.all.change(self.id, |state| {
            state.requests = state.requests.saturating_sub(1);
            state.quiet_since = now;
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::{Wall, manual::ManualClock};

    #[test]
    fn the_connection_that_waits_longest_closes_first() {
        let time = Arc::new(ManualClock::new(Wall(1_000_000)));
        let clock: Arc<dyn Clock> = time.clone();
        let all = OpenConnections::default();
        let [first, second, busy] = [0; 3].map(|_| {
            time.advance(std::time::Duration::from_secs(1));
            all.add(clock.now().lease)
        });
        let is_closing = |c: &OpenConnection| c.must_close().now_or_never().is_some();
        let request = busy.begin_request(&clock);
        drop(first.begin_request(&clock));
        let close = || all.close_quietest(clock.now().lease);
        time.advance(FORWARD_QUIET_MIN / 2);
        assert!(close());
        assert!(is_closing(&second) && !is_closing(&first));
        drop(second);
        assert!(!close(), "it may be about to send a request");
        time.advance(FORWARD_QUIET_MIN / 2);
        assert!(close() && is_closing(&first));
        time.advance(FORWARD_QUIET_MIN);
        assert!(!close(), "its answer is not complete");
        drop(request);
        time.advance(FORWARD_QUIET_MIN);
        assert!(close() && is_closing(&busy));
        assert!(!close());
    }
}

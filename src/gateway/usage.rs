//! What was read and written: counted for each transfer, added up for each lease and object, logged when the lease is over.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::live_access::LiveAccess;
use crate::{
    clock::{Clock, LeaseTime, Wall},
    limits::{GATEWAY_USAGE_IDLE, GATEWAY_USAGE_LOOK, GATEWAY_USAGES_MAX},
    name::{LeaseId, Object},
    reason::{Reason, Refusal},
};

/// Whether bytes went out or came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// One transfer. It is counted when it is dropped.
pub(super) struct Transfer {
    direction: Direction,
    access: LiveAccess,
    bytes: u64,
    end: &'static str,
}

impl Transfer {
    /// Begins to count.
    pub(super) fn begin(direction: Direction, access: &LiveAccess) -> Self {
        Transfer { direction, access: access.clone(), bytes: 0, end: "broken" }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Notes that all bytes were sent or received.
    pub(super) fn finish(&mut self) {
        self.end = "whole";
    }

    /// Notes that the access ended first.
    pub(super) fn cut(&mut self, refusal: &Refusal) {
        self.end = "cut";
        let claims = self.access.access().claims();
        tracing::info!(
            lease = %claims.lh.lease,
            job = %claims.lh.job,
            object = %self.access.object(),
            bytes = self.bytes,
            reason = refusal.reason.code(),
            "a transfer was cut"
        );
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        metrics::counter!("leasehold_gateway_transfers_total", "end" => self.end).increment(1);
        match self.direction {
            Direction::Read => metrics::counter!("leasehold_gateway_read_bytes_total").increment(self.bytes),
            Direction::Write => {
                metrics::counter!("leasehold_gateway_written_bytes_total").increment(self.bytes);
            }
        }
        self.access.usages().add(self);
    }
}

/// What one lease read and wrote of one object.
#[derive(Clone)]
struct Usage {
    /// The newest access that it was used with.
    access: LiveAccess,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    cuts: u64,
    first: Wall,
    last: Wall,
    used: LeaseTime,
}

/// The usages of all leases that are not over.
pub(super) struct Usages {
    clock: Arc<dyn Clock>,
    all: Mutex<HashMap<(LeaseId, Object), Usage>>,
}

impl Usages {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Usages { clock, all: Mutex::default() }
    }

    fn add(&self, transfer: &Transfer) {
        let now = self.clock.now();
        let key = (transfer.access.access().claims().lh.lease, transfer.access.object().clone());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= GATEWAY_USAGES_MAX && !all.contains_key(&key) {
            return; // the metrics have counted it
        }
        let usage = all.entry(key).or_insert_with(|| Usage {
            access: transfer.access.clone(),
            reads: 0,
            read_bytes: 0,
            writes: 0,
            written_bytes: 0,
            cuts: 0,
            first: now.wall,
            last: now.wall,
            used: now.lease,
        });
        usage.access = transfer.access.clone();
        (usage.last, usage.used) = (now.wall, now.lease);
        usage.cuts = usage.cuts.saturating_add(u64::from(transfer.end == "cut"));
        let (count, bytes) = match transfer.direction {
            Direction::Read => (&mut usage.reads, &mut usage.read_bytes),
            Direction::Write => (&mut usage.writes, &mut usage.written_bytes),
        };
        *count = count.saturating_add(1);
        *bytes = bytes.saturating_add(transfer.bytes);
    }

    /// Logs the usages of leases that are over or idle, until `shutdown`. Then logs those of all leases.
    pub(super) async fn watch(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.clock.sleep(GATEWAY_USAGE_LOOK) => {}
            }
            let now = self.clock.now().lease;
            self.log_if(|usage| usage.is_over(now));
        }
        self.log_if(|_| true);
    }

    /// Logs and forgets some usages.
    fn log_if(&self, mut is_over: impl FnMut(&Usage) -> bool) {
        let over: Vec<_> = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.extract_if(|_, usage| is_over(usage)).collect()
        };
        for ((lease, object), usage) in over {
            let claims = usage.access.access().claims();
            tracing::info!(
                %lease,
                job = %claims.lh.job,
                attempt = %claims.lh.attempt,
                holder = %claims.sub,
                %object,
                reads = usage.reads,
                read_bytes = usage.read_bytes,
                writes = usage.writes,
                written_bytes = usage.written_bytes,
                cuts = usage.cuts,
                first = %usage.first,
                last = %usage.last,
                "a lease was used"
            );
        }
    }
}

impl Usage {
    /// Whether nothing more is expected of it. A lease whose token expired may come back with another.
    fn is_over(&self, now: LeaseTime) -> bool {
        let has_ended = self.access.check().is_err_and(|refusal| {
            !matches!(refusal.reason, Reason::TokenExpired | Reason::FeedStale | Reason::ClockDifference)
        });
        has_ended || now.since(self.used) >= GATEWAY_USAGE_IDLE
    }
}

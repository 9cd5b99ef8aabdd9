//! What was read and written: counted for each transfer, logged, and added to the metrics.

use super::live_access::LiveAccess;
use crate::reason::Refusal;

/// Whether bytes went out or came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Direction::Read => "read",
            Direction::Write => "write",
        }
    }
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

    /// Notes that all bytes went.
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
            direction = self.direction.as_str(),
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
                metrics::counter!("leasehold_gateway_written_bytes_total").increment(self.bytes)
            }
        }
    }
}

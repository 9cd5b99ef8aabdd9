//! How a ledger is written.

use std::time::Duration;

use crate::limits;

/// How a ledger is written. The defaults are those of [`limits`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes past which a new segment is begun.
    pub segment_bytes: u64,
    /// Records past which a new segment is begun, where segments begin with snapshots.
    pub segment_records: u64,
    /// Bytes kept back for endings on a full disk; 0 keeps none.
    pub reserve_bytes: u64,
    /// From a write error to the first try again; doubled up to `retry_max`.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// Endings kept one by one while the disk is away.
    pub deferred_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: limits::LEDGER_SEGMENT_BYTES,
            segment_records: limits::LEDGER_SEGMENT_RECORDS,
            reserve_bytes: limits::LEDGER_RESERVE_BYTES,
            retry_first: limits::LEDGER_RETRY_FIRST,
            retry_max: limits::LEDGER_RETRY_MAX,
            deferred_max: limits::LEDGER_DEFERRED_MAX,
        }
    }
}

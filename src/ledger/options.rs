//! How a ledger is written.

use std::time::Duration;

use super::record::Head;
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
    /// Between two looks at whether the files are still where they belong; as often the head is kept.
    pub look: Duration,
    /// Bytes of a snapshot at the most.
    pub snapshot_bytes_max: u64,
    /// A record that was durable once, as it was kept elsewhere: a ledger that ends before it is refused.
    pub kept: Option<Head>,
    /// What a start does if the directory shows that there was a ledger, and there is none.
    pub lost: Lost,
}

/// What a start does if the directory shows that there was a ledger, and there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lost {
    /// It refuses: the locks, jobs and decisions of that ledger are not known.
    #[default]
    Refuse,
    /// It begins a new ledger, because an operator said so, and refuses if there is one.
    BeginNew,
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
            look: limits::LEDGER_LOOK,
            snapshot_bytes_max: limits::LEDGER_SNAPSHOT_BYTES_MAX,
            kept: None,
            lost: Lost::Refuse,
        }
    }
}

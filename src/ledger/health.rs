//! The state of the ledger: its health, the end of its writer, and the reasons for which a record is not durable.

use std::sync::Arc;

use crate::limits;

/// The records that the ledger accepts now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The ledger accepts all records.
    Good,
    /// The disk is full. The reserve was given up for endings, and other records are refused.
    EndingsOnly { why: Arc<str> },
    /// Writing fails. Endings are kept in memory, and other records are refused.
    Failing { why: Arc<str> },
    /// The ledger is closed, or its thread ended.
    Stopped,
}

/// The end of the writer thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterEnd {
    /// The writer was asked to end.
    Closed,
    /// The writer panicked, so the daemon must stop.
    Died,
}

/// The reasons for which a record is not durable, or not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger cannot be written now: {why}")]
    Unavailable { why: Arc<str> },
    #[error("too many records wait for the disk: try again in a moment")]
    QueueFull,
    #[error("the record has {bytes} bytes, and {} are allowed", limits::LEDGER_RECORD_BYTES_MAX)]
    TooLarge { bytes: usize },
    #[error("the record cannot be written as JSON")]
    Unwritable,
    #[error("the ledger is closed")]
    Closed,
    #[error(
        "the record was only counted, and a summary has its digest: too many records waited for the disk, or it cannot be written as JSON"
    )]
    Coalesced,
    #[error("no record {index} was accepted in this epoch")]
    NoSuchIndex { index: u64 },
}

/// The reasons for which a close is not clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    #[error("{records} records could not be written before the ledger was closed")]
    Unwritten { records: usize },
    #[error("the disk did not answer within the deadline; {records} records wait")]
    Deadline { records: usize },
    #[error("the ledger's thread ended unexpectedly")]
    Died,
}

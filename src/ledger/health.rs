//! How the ledger is, and how it ended.

use std::sync::Arc;

/// How the ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Takes everything.
    Good,
    /// The disk is full: the reserve was given up for endings, and nothing else is taken.
    EndingsOnly { why: Arc<str> },
    /// Writing fails. Endings are kept in memory, nothing else is taken.
    Failing { why: Arc<str> },
    /// Closed, or its thread died.
    Stopped,
}

/// How the writer thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was asked to.
    Closed,
    /// It panicked: the daemon must go down.
    Died,
}

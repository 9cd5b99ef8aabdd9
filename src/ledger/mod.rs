//! The ledger: the append-only, hash-chained, durable record of every decision and every ending.
//!
//! Owns the records' form, their order, the chain, the files and the thread that writes them. It never decides anything,
//! never reads a clock of its own, never rewrites a record, and never holds a secret.
//!
//! **Two ways in.** What widens access is [`append`](Ledger::append)ed: refused at once while the disk is away, answered
//! when it is durable. What narrows access is [`defer`](Ledger::defer)red: never refused, never waited for, written before
//! anything else once the disk is back.
//!
//! **An index is fixed when a record is accepted**, and an index that was given to a deferred record is never given to
//! another one in this epoch. When writing fails, appended records that were accepted and not yet durable are refused.
//! Their places are given anew where no deferred record was accepted after them; else they stay empty, and the record
//! after the gap says so (`"refused":n`). An index that was answered as not durable means something in its own epoch only:
//! after a restart the place may be another record's. A refused append may still be found on disk, whole, where the daemon
//! dies before it could cut it off: `Unavailable` means not known to be durable.
//!
//! **What the chain shows, and what not.** Each line ends with the hash of itself and begins with the digest of the line
//! before it. A changed, removed, moved or inserted byte or line is found, also in the last line. Whoever can write the
//! files can compute a chain of their own, or cut the tail: that is found only by comparing with a [`Head`] kept elsewhere: a
//! [`SignedHead`] goes out with answers and with each tick of the fence feed, so that many keep one.
//! The `head` file beside the segments, written at each new segment and at a clean stop, finds accidents, not attackers.
//!
//! **A segment begins with a snapshot**, where the ledger was opened [with a fold](Ledger::open_folded): the next start
//! reads the last snapshot and what follows, verifying proves that each one follows from the records before it, and
//! segments before it may be moved away.
//!
//! | File | Holds |
//! |---|---|
//! | `ledger-<first index, 20 digits>.jsonl` | a segment: one record per line |
//! | `state-<index, 20 digits>.snapshot` | what follows from all records before that one, with which a segment begins |
//! | `head` | index and digest of a record that was durable |
//! | `head.key`, `head.pub` | the key that heads are signed with and tickets derived from, and its public half |
//! | `reserve` | room on the disk, given back when it is full, for endings only |
//! | `lock` | the process that has the ledger; an exclusive `flock` |

mod accept;
mod chain;
mod error;
mod event;
mod fault;
mod file;
mod fold;
mod head;
mod health;
mod open;
mod options;
mod queue;
mod record;
mod segment;
mod tail;
mod verify;
mod witness;
mod writer;

#[cfg(test)]
pub(crate) mod forgetful;
#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod verify_tests;

pub use accept::{Appending, Deferred, Ledger};
pub use error::{CloseError, LedgerError};
pub use event::*;
pub use fault::{Fault, ReadError, Tamper};
pub use file::{Dir, Disk, DiskFile, Held, LockError};
pub use fold::Fold;
pub use health::{Health, Stopped};
pub use open::{OpenError, Opened};
pub use options::Options;
pub use record::{Head, Record};
pub use tail::{Tail, TailError, TailLine};
pub use verify::{Report, verify, verify_folded};
pub use witness::{HEAD_PUBLIC_FILE, HeadError, HeadKey, HeadKeyError, HeadPublic, SignedHead};

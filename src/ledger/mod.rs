//! The ledger: the append-only, hash-chained, durable record of every decision and every ending.
//!
//! Owns the records' form, their order, the chain, the files and the thread that writes them. It never decides anything,
//! never reads the clock of the machine, never rewrites a record, and never holds a secret.
//!
//! **Two ways in.** What widens access is [`append`](Ledger::append)ed: refused at once while the disk is away, and
//! answered when it is durable. What narrows access is [`defer`](Ledger::defer)red: never refused, not waited for, and
//! written first once the disk is back.
//!
//! **An index is fixed when a record is accepted**, and the index of a deferred record is never given to another
//! record in this epoch. When writing fails, appended records that were accepted and not yet durable are refused.
//! Their indexes are given again if no deferred record was accepted after them. Otherwise they stay empty, and the record
//! after the gap says so (`"refused":n`). An index that was not reported as durable is valid in its own epoch only: after a
//! restart it may be another record's. If the daemon dies before it can cut off a refused append, that record may still be
//! on disk, whole: `Unavailable` means not known to be durable.
//!
//! **What the chain shows.** Each line ends with the hash of itself and begins with the digest of the line
//! before it. A changed, removed, moved or inserted byte or line is found, also in the last line. Anyone who can write the
//! files can compute another chain, or cut the tail. Only a comparison with a [`Head`] kept elsewhere shows that, so a
//! [`SignedHead`] goes out with answers and with each tick of the fence feed.
//! The `head` file beside the segments, written each second and at a clean stop, finds accidents, not attackers; a
//! [`HeadCopy`] on another disk finds both.
//!
//! **A segment begins with a snapshot** if the ledger was opened [with a fold](Ledger::open_folded): the state of all records
//! before it, in a separate file, whose digest is a record of that segment. The next start reads the last snapshot and the
//! records from its segment on. Verifying proves that each snapshot follows from the records before it. Older segments may be
//! moved away; `verify` refuses what a start would refuse.
//!
//! **A synced file must still have its name.** After each sync, and every [`limits::LEDGER_LOOK`](crate::limits::LEDGER_LOOK)
//! without one, the writer checks that the segment's name still leads to the file that it writes. A directory that shows that
//! it had a ledger (a head, a key, a snapshot) and has none is never treated as a first start.
//!
//! | File | Holds |
//! |---|---|
//! | `ledger-<first index, 20 digits>.jsonl` | a segment: one record per line |
//! | `state-<index, 20 digits>.snapshot` | what follows from all records before that one, the first of a segment |
//! | `head` | index and digest of a record that was durable |
//! | `head.key`, `head.pub` | the key that heads are signed with and tickets derived from, and its public half |
//! | `reserve` | room on the disk, given back when it is full, for endings only |
//! | `lock` | the process that has the ledger; an exclusive `flock` |

mod chain;
mod copy;
mod event;
mod fault;
mod file;
mod file_checks;
mod fold;
mod handle;
mod head;
mod health;
mod job_record;
mod open;
mod queue;
mod record;
mod segment;
mod signed_head;
mod snapshot;
mod tail;
mod verify;
mod writer;

#[cfg(test)]
mod file_checks_tests;
#[cfg(test)]
pub(crate) mod forgetful;
#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod verify_tests;

pub use copy::{CopyError, HeadCopy};
pub use event::*;
pub use fault::ReadError;
pub use file::{Dir, LockError};
pub use fold::Fold;
pub use handle::{Appending, Deferred, Ledger};
pub use health::{Health, LedgerError};
pub use job_record::*;
pub use open::{Lost, OpenError, Opened, Options};
pub use record::{Head, Record};
pub use signed_head::{HEAD_PUBLIC_FILE, HeadError, HeadKey, HeadKeyError, HeadPublic, SignedHead};
pub use tail::{Tail, TailError, TailLine};
pub use verify::{VerifyReport, verify, verify_folded};

#[cfg(test)]
pub use {
    fault::{Fault, Tamper},
    file::Disk,
    health::{CloseError, WriterEnd},
};

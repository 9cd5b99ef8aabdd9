//! The ledger: the append-only, hash-chained, durable record of every decision and every ending.
//!
//! This module defines the form and order of records, the chain, the files and the thread that writes them. It never
//! decides, never reads the clock of the machine, never rewrites a record, and never contains a secret.
//!
//! **Two kinds of records.** A record that widens access is [`append`](Ledger::append)ed. It is refused at once while
//! the disk fails, and the caller waits until it is durable. A record that narrows access is
//! [`defer`](Ledger::defer)red. It is not refused while the disk fails, callers do not wait for it, and it is written
//! first when the disk works again. If too many such records wait, a summary counts the others.
//!
//! **An index is fixed when a record is accepted**, and the index of a deferred record is never given to another record
//! in this epoch. When writing fails, appended records that were accepted but are not durable yet are refused. Their
//! indexes are used again if no deferred record was accepted after them. Otherwise the indexes stay empty, and the
//! record after the gap says so (`"refused":n`). An index that was not reported as durable is valid only in its own
//! epoch, because another record may get it after a restart. A refused append is
//! cut off the file. If the daemon stops before that, the ledger may have the record after the restart. So after
//! `Unavailable`, the record may or may not be there.
//!
//! **What the chain shows.** Each line ends with its own hash and begins with the digest of the previous line. A
//! changed, removed, moved or inserted byte or line is found, also in the last line. A person who can write the files
//! can compute another chain, or cut the tail. Only a comparison with a [`Head`] on another machine shows that. So the
//! daemon sends a [`SignedHead`] with answers and with each tick of the fence feed. The `head` file in the same
//! directory is written each second and at a clean stop. It shows accidents, but not attacks. A [`HeadCopy`] on another
//! disk shows both.
//!
//! **A segment can have a snapshot** if the ledger was opened [with a fold](Ledger::open_folded). The snapshot is a
//! separate file with the state after all records before the segment. A record of that segment contains its digest. When
//! the daemon starts, it reads the last snapshot, and the records from the segment of this snapshot on. Verifying proves
//! that each snapshot follows from the records before it. Older segments may be moved away. `verify` refuses a ledger with
//! which the daemon would not start.
//!
//! **A sealed segment may be compressed or archived.** A segment is sealed when the next segment has a durable record.
//! A separate thread compresses it, or `leasehold ledger archive` moves it to another directory. Every reader reads plain
//! and compressed segments. A segment always has a file: the new file is durable before the old file is removed.
//!
//! **A synced file must still have its name.** After each sync, the writer checks that the segment's name still leads
//! to the written file. Without a sync, it checks this every [`limits::LEDGER_LOOK`](crate::limits::LEDGER_LOOK). If a
//! directory has traces of a ledger (a head, a key, a snapshot) but no segments, the daemon never treats the ledger as new.
//!
//! | File | Contains |
//! |---|---|
//! | `ledger-<first index, 20 digits>.jsonl` | a segment: one record per line |
//! | `ledger-<first index, 20 digits>.jsonl.zst` | a sealed segment, compressed: the same lines |
//! | `state-<index, 20 digits>.snapshot` | the state after all records before a segment |
//! | `head` | index and digest of a durable record |
//! | `head.key`, `head.pub` | the private key that signs heads and from which tickets are derived, and its public half |
//! | `reserve` | reserved disk space for endings; it is freed when the disk is full |
//! | `lock` | the process that has the ledger, with an exclusive `flock` |
//! | `segments.lock` | locked by the thread or process that compresses or archives a segment |
//! | `segment.new`, `snapshot.new`, `head.new` | a file while it is written |

mod archive;
mod chain;
mod compressor;
mod copy;
mod draft;
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
mod segment_reader;
mod signed_head;
mod snapshot;
mod tail;
mod verify;
mod writer;

#[cfg(test)]
mod archive_tests;
#[cfg(test)]
mod compressor_tests;
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

pub use archive::{ArchiveError, ArchiveOptions, ArchiveReport, ArchivedSegment, archive};
pub use copy::{CopyError, HeadCopy};
pub use event::*;
pub use fault::ReadError;
pub use file::{Dir, LockError};
pub use fold::Fold;
pub use handle::{Appending, Deferred, Ledger};
pub use health::{Health, LedgerError};
pub use job_record::*;
pub use open::{Lost, OpenError, Opened, Options};
pub use queue::ExpectedRecord;
pub use record::{Head, Record};
pub use signed_head::{HEAD_PUBLIC_FILE, HeadError, HeadKey, HeadKeyError, HeadPublic, SignedHead};
pub use tail::{Tail, TailError, TailLine};
pub use verify::{VerifyReport, verify, verify_folded, verify_with_archive};

pub use file::Disk;

#[cfg(test)]
pub use {
    fault::{Fault, Tamper},
    health::{CloseError, WriterEnd},
};

//! The state that outlives the process: jobs, attempts, members, locks, idempotency keys.
//!
//! Owns the one copy in memory and the order of its changes. It is rebuilt from the ledger before the daemon is ready.
//! It never decides who may do what. There are exactly two ways to change it:
//!
//! - what **widens** access is recorded first: [`Store::widen`], [`Store::create`], [`Store::unlock`] resolve when the record
//!   is on disk, and only then does the change show;
//! - what **narrows** it takes effect at once: [`Store::narrow`], [`Store::lock`], [`Store::revoke`] change the state, lower
//!   the fences, hand the record over and answer, in that order and under one mutex, so that the ledger, the count of
//!   lowerings and the state agree on what came first.
//!
//! | File | Noun |
//! |---|---|
//! | `store` `store_state` | [`Store`]: reads, and the mutex that orders all changes; what it guards |
//! | `widening` `narrowing` | the two ways to change it |
//! | `refused` | [`Refused`]: why a change was not made |
//! | `recorded` `snapshot` | [`Recorded`]: the state as it follows from the records; its text in a snapshot |
//! | `closed` `size` | closed jobs that are still kept; the size of jobs, and the quotas of open ones |
//! | `locks` `logins` `identities` `keys` | [`Locks`]; [`Logins`] of people; which identity is bound to which job; which job a key made |
//! | `param_sweeps` | the places of jobs in a sweep over free parameters |
//! | `reviews` | [`DueReview`]: an emergency that someone still has to review |
//! | `records` `rebuild` | a change as a record; the state that a daemon starts with |

mod closed;
mod identities;
mod keys;
mod locks;
mod logins;
mod narrowing;
mod param_sweeps;
mod rebuild;
mod recorded;
mod records;
mod refused;
mod reviews;
mod size;
mod snapshot;
mod store;
mod store_state;
mod widening;

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod recorded_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod version_one_tests;

pub use identities::Use;
pub use locks::{Extent, Lock, LockName, Locks};
pub use logins::{Login, Logins};
pub use narrowing::Committed;
pub use rebuild::{KeyedJob, OpenCounts, Rebuilt};
pub use recorded::Recorded;
pub use records::{
    approval_record, emergency_record, gate_record, input_record, request_digest, spec_digest,
};
pub use refused::Refused;
pub use reviews::{DueReview, Reviews};
pub use size::spec_bytes;
pub use store::Store;
pub use widening::{Belongs, Created, NewJob, Widened};

//! The state that outlives the process: jobs, attempts, members, locks, idempotency keys.
//!
//! The store has the only copy in memory, and orders its changes. The state is rebuilt from the ledger before the
//! daemon is ready. This module never decides who may do what. There are exactly two ways to change the state:
//!
//! - A change that **widens** access is recorded first. [`Store::widen`], [`Store::create`] and [`Store::unlock`]
//!   resolve when the record is on disk. Only then is the change visible.
//! - A change that **narrows** access takes effect at once. [`Store::narrow`], [`Store::lock`] and [`Store::revoke`]
//!   change the state, lower the fences, queue the record and answer, in this order. All steps are under one mutex,
//!   so the ledger, the count of lowerings and the state agree on the order of changes.
//!
//! | File | Contains |
//! |---|---|
//! | `store` `store_state` | [`Store`]: reads, and the mutex that orders all changes; the state behind the mutex |
//! | `widening` `narrowing` | changes that give access: recorded before they take effect; changes that take access away: in force at once |
//! | `lowering_run` | whether a task has lowered fences for so long that the feed must get a turn |
//! | `refused` | [`Refused`]: the reasons for which a change was not made |
//! | `recorded` `snapshot` | [`Recorded`]: the state as it follows from the records; its text in a snapshot |
//! | `closed` `size` | closed jobs that are still kept; the size of jobs, and the quotas of open jobs |
//! | `locks` `logins` `identities` `keys` | [`Locks`]; [`Logins`] of people; the identities that are bound to jobs; the jobs that idempotency keys made |
//! | `param_sweeps` | the numbers of jobs in a parameter sweep |
//! | `reviews` | [`DueReview`]: an emergency without a review |
//! | `records` `rebuild` | a change as a record; the state that a daemon starts with |

mod closed;
mod identities;
mod keys;
mod locks;
mod logins;
mod lowering_run;
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

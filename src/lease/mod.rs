//! Leases: bounded rights, and the table of live ones.
//!
//! Owns each lease from its Grant to its end: deadline, generation, quota, and the list of those that ended lately. No
//! clock, no await, no I/O. [`Lease::check`] is the one place that decides whether a lease is good: its deadline is in
//! the future, and none of its fences was lowered since its stand was taken. Safety never depends on the clean-up that
//! follows.
//!
//! | File | Noun |
//! |---|---|
//! | `right` | [`Lease`], its [`Facts`] and [`Terms`] |
//! | `cell` | deadline, generation and end in one atomic word |
//! | `table` `index` | [`Table`]: live leases, by id, job and name |
//! | `deadlines` `quota` | when to check which lease; how many there may be |
//! | `ended` | [`Ended`]: the leases that ended lately |

mod cell;
mod deadlines;
mod ended;
mod index;
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod mutants;
mod quota;
mod right;
mod table;

pub use cell::{Fired, LeaseRefused};
pub use ended::Ended;
pub use quota::{QuotaExceeded, Quotas};
pub use right::{Facts, Lease, Terms};
pub use table::{EXPIRED, Table, Unborn};

#[cfg(test)]
mod law_tests;

//! Leases: bounded rights, and the table of live leases.
//!
//! This module has each lease from its Grant to its end: deadline, generation, quota, and the list of leases that ended
//! recently. It uses no clock, is not async and does no I/O. Only [`Lease::check`] decides whether a lease is valid:
//! its deadline is in the future, and none of its fences was lowered since its stand was taken. Safety never depends on
//! the later clean-up.
//!
//! | File | Contains |
//! |---|---|
//! | `right` | [`Lease`], its [`Facts`] and [`Terms`] |
//! | `cell` | deadline, generation and end in one atomic word |
//! | `newest_token` | the digest of the newest token |
//! | `table` `index` | [`Table`]: live leases, by id, job and name |
//! | `deadlines` `quota` | the times at which leases are checked; the highest numbers of leases |
//! | `ended` | [`Ended`]: the leases that ended recently |

mod cell;
mod deadlines;
mod ended;
mod index;
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod mutants;
mod newest_token;
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

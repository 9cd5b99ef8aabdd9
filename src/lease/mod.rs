//! Leases: bounded rights, and the table of those that live.
//!
//! Owns each lease from its Grant to its end: deadline, generation, quota, the short memory of those that ended. No clock,
//! no await, no I/O. What makes a lease good is asked in one place, [`Lease::check`]: its deadline lies ahead and no fence
//! was lowered since it took its stand. Clean-up comes after and makes nothing safe.
//!
//! | File | Noun |
//! |---|---|
//! | `right` | [`Lease`], its [`Facts`] and [`Terms`] |
//! | `cell` | deadline, generation and own ending in one atomic word |
//! | `table` `index` | [`Table`]: those that live, by id, job and name |
//! | `deadlines` `quota` | what fires when; how many of whom |
//! | `ended` | [`Ended`]: the short memory of those that are over |

mod cell;
mod deadlines;
mod ended;
mod index;
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod mutants;
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod mutants;
mod quota;
mod right;
mod table;

pub use cell::{Fired, LeaseRefused};
pub use ended::Ended;
pub use quota::{QuotaExceeded, Quotas};
pub use right::{Facts, Lease, Terms};
pub use table::{EXPIRED, LeaseEvent, Table, Unborn};

#[cfg(test)]
mod law_tests;

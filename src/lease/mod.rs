//! Leases: bounded rights, and the table of those that live.
//!
//! Owns each lease from its Grant to its end: deadline, generation, quota, the short memory of those that ended. No clock,
//! no await, no I/O. What makes a lease good is asked in one place, [`Lease::check`]: its deadline lies ahead and no fence
//! was lowered since it took its stand. Clean-up comes after and makes nothing safe.

mod cell;
mod deadlines;
mod table;

pub use cell::{Fired, Refused};
pub use table::{EXPIRED, Ended, Facts, Lease, QuotaExceeded, Table, Terms, Unborn};

#[cfg(test)]
mod law_tests;

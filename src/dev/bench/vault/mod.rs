//! Measures tokens of Vault beside credentials of the daemon, on one machine, with equally many requests in flight.
//!
//! Vault runs as a separate process, once with its raft storage on the disk and once with everything in memory. Some of its
//! protections are switched off in its favour: [`SWITCHED_OFF`].
//!
//! | File | Contains |
//! |---|---|
//! | `program` | [`VaultProgram`]: a program that says that it is Vault, and its version |
//! | `server` | `VaultServer`: a process of Vault, ready to create tokens |
//! | `client` | `VaultClient`: one connection to Vault, and prepared requests |
//! | `answers` | the reading of Vault's answers |
//! | `rates` | tokens and credentials a second |
//! | `leases` | the memory of many leases, and how long their revocation takes |
//! | `findings` | [`VaultFigure`] and [`VaultRevocation`]: the results |

mod answers;
mod client;
mod findings;
mod leases;
mod program;
mod rates;
mod server;

pub(super) use client::{VaultClient, VaultRequest};
pub use findings::{ManyLeases, VaultFigure, VaultFinding, VaultRevocation, VaultStorage};
pub use program::{VaultProgram, VaultProgramError};
pub use server::SWITCHED_OFF;

use super::{lab::BenchLab, plan::BenchPlan};
use crate::dev::demo::Stage;

/// What is measured of Vault. The numbers of requests in flight and the times are those of the [`BenchPlan`].
#[derive(Clone, Debug)]
pub struct VaultPlan {
    /// The program.
    pub program: VaultProgram,
    /// How many leases are made and revoked at once. One job of the daemon has all of them.
    pub leases: usize,
}

/// Measures Vault and a daemon, and calls `report` with each result.
///
/// # Errors
///
/// Fails if a process did not start, or a request failed. The text says which.
pub(super) async fn run(
    vault: &VaultPlan,
    plan: &BenchPlan,
    stage: &Stage,
    report: &mut (dyn FnMut(VaultFinding) + Send),
) -> Result<(), String> {
    let mut lab = BenchLab::open(stage, plan).await?;
    // The memory is measured first, because the daemon keeps some memory of the leases that the rates make.
    for revocation in lab.revoke_beside_vault(vault).await? {
        report(VaultFinding::Revocation(revocation));
    }
    for in_flight in &plan.in_flight {
        for figure in lab.measure_vault(vault, plan, *in_flight).await? {
            report(VaultFinding::Rate(figure));
        }
        lab.replace_members().await?;
    }
    lab.close().await
}

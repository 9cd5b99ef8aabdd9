//! Measures how many requests a daemon answers in a second, compared with the limit of this machine for the same messages.
//!
//! The daemon is a separate process with a real ledger on disk. Each rate has a limit. Both are measured in the same run, in
//! turns. The limit is a server without a broker that answers the same messages over the same accept loop.
//! Clients and servers share the cores of this machine, so the ratio says more than the rate.
//!
//! | File | Contains |
//! |---|---|
//! | `plan` | [`BenchPlan`]: what is measured, and for how long |
//! | `lab` | `BenchLab`: the daemon and the echo, each a process, and the members that call both |
//! | `echo` | [`serve_echo`]: the server that is the limit |
//! | `echo_work` | [`EchoWork`]: how much of the daemon's work it does |
//! | `echo_lease` | the decisions and the lease that are a part of this work |
//! | `stages` | [`StageFigure`]: how long each stage of an issue or a renewal takes, measured with servers that each do one stage more than the one before |
//! | `work` | `Work`: one request, repeated |
//! | `allocations` | [`AllocationFigure`]: how many allocations of memory a request takes |
//! | `endings` | [`Delay`]: how long a token is accepted after the event that ends its access |
//! | `crowd` | `Crowd`: a job that has many leases |
//! | `revocations` | [`RevokeFigure`]: the time to revoke a job with many leases |
//! | `storm` | [`StormFigure`]: what happens when the deadlines of many leases pass together |
//! | `load` | `Load`: many requests at once, and how long each took |
//! | `growth/` | [`GrowthPlan`]: what is measured while the numbers of leases and verifiers grow |
//! | `gateway/` | [`GatewayPlan`]: what is measured of an S3 gateway, beside nginx |
//! | `vault/` | [`VaultPlan`]: what is measured of Vault, beside the daemon |
//! | `peers` | how to find the programs of others, and ports for them |
//! | `figure` | [`Figure`]: a measurement and its limit |
//! | `page` | the sections of a page that the bench writes, and the ratios that a page states |
//! | `machine` | [`Machine`]: the machine on which the figures were measured |

mod allocations;
mod crowd;
mod echo;
mod echo_lease;
mod echo_work;
mod endings;
mod figure;
mod gateway;
mod growth;
mod lab;
mod load;
mod machine;
mod page;
mod peers;
mod plan;
mod revocations;
mod stages;
mod storm;
mod vault;
mod work;

pub use allocations::{AllocationFigure, count_allocations};
pub use echo::serve_echo;
pub use echo_work::EchoWork;
pub use endings::{Delay, EndingEvent};
pub use figure::{Figure, Measured};
pub use gateway::{GatewayCuts, GatewayFigure, GatewayFinding, GatewayMemory, GatewayPlan, find_nginx};
pub use growth::{ChartData, GrowthFinding, GrowthPlan, GrowthStep, draw_chart};
pub use machine::Machine;
pub use page::{below, floors, with_section};
pub use plan::{BenchPlan, Workload};
pub use revocations::RevokeFigure;
pub use stages::StageFigure;
pub use storm::StormFigure;
pub use vault::{
    ManyLeases, SWITCHED_OFF, VaultFigure, VaultFinding, VaultPlan, VaultProgram, VaultProgramError,
    VaultRevocation,
};

use lab::BenchLab;
use storm::StormPlan;

use super::demo::Stage;

/// One result of the bench.
#[derive(Clone, Debug)]
pub enum BenchFinding {
    Rate(Figure),
    Delay(Delay),
    Revoke(RevokeFigure),
    Storm(StormFigure),
    Stages(Vec<StageFigure>),
    Gateway(GatewayFinding),
    Growth(GrowthFinding),
    Vault(VaultFinding),
}

/// Measures all workloads of the plan, and calls `report` with each result.
///
/// # Errors
///
/// Fails if a process did not start, or a request failed. The text says which.
pub async fn run(
    plan: &BenchPlan,
    stage: &Stage,
    report: &mut (dyn FnMut(BenchFinding) + Send),
) -> Result<(), String> {
    if plan.workloads.iter().any(|workload| workload.shares_daemon()) {
        run_daemon(plan, stage, report).await?;
    }
    if plan.workloads.contains(&Workload::Gateway) {
        gateway::run(&plan.gateway, stage, &mut |finding| report(BenchFinding::Gateway(finding))).await?;
    }
    if plan.workloads.contains(&Workload::Growth) {
        growth::run(plan, stage, &mut |finding| report(BenchFinding::Growth(finding))).await?;
    }
    if let Some(vault) = &plan.vault {
        vault::run(vault, plan, stage, &mut |finding| report(BenchFinding::Vault(finding))).await?;
    }
    Ok(())
}

/// Measures the workloads that share one daemon.
async fn run_daemon(
    plan: &BenchPlan,
    stage: &Stage,
    report: &mut (dyn FnMut(BenchFinding) + Send),
) -> Result<(), String> {
    let lab = BenchLab::open(stage, plan).await?;
    for workload in plan.workloads.iter().filter(|workload| workload.shares_daemon()) {
        match workload {
            Workload::End => {
                for event in EndingEvent::ALL {
                    report(BenchFinding::Delay(lab.measure_ending(event, plan.endings).await?));
                }
            }
            Workload::Revoke => {
                for leases in &plan.revoke_leases {
                    report(BenchFinding::Revoke(lab.measure_revocations(*leases, plan.endings).await?));
                }
            }
            Workload::Storm => {
                for leases in &plan.storm_leases {
                    let storm = StormPlan { leases: *leases, rate: plan.rate, window: plan.time / 3 };
                    report(BenchFinding::Storm(lab.measure_storm(storm).await?));
                }
            }
            rate_or_stages => {
                for in_flight in plan.in_flight_of(*rate_or_stages) {
                    report(lab.measure_requests(plan, *rate_or_stages, in_flight).await?);
                }
            }
        }
    }
    lab.close().await
}

impl BenchLab<'_> {
    async fn measure_requests(
        &self,
        plan: &BenchPlan,
        workload: Workload,
        in_flight: usize,
    ) -> Result<BenchFinding, String> {
        if workload == Workload::Stages {
            return self.measure_stages(plan, in_flight).await.map(BenchFinding::Stages);
        }
        self.measure(plan, workload, in_flight).await.map(BenchFinding::Rate)
    }
}

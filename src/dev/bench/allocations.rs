//! Counts the allocations of memory for one request.

use std::time::Duration;

use super::{
    lab::{BenchLab, Server},
    load::Load,
    plan::{BenchPlan, Workload},
};
use crate::dev::demo::Stage;

/// How long to load a server for one count.
const TIME: Duration = Duration::from_secs(2);
/// How long a server has for the work that is left after its last answer, such as the write of a record.
const REST: Duration = Duration::from_millis(100);

/// How many requests are in flight at once, as in the table of rates. Requests in flight together share some allocations.
const IN_FLIGHT: usize = 64;
/// The number of connections that these requests share.
const CONNECTIONS: usize = 4;

/// How many allocations one request takes in the process that answers it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllocationFigure {
    /// The workload that was counted.
    pub workload: Workload,
    /// The number of requests over which the count is averaged.
    pub requests: u64,
    /// Allocations of the daemon for each request. A check is made by this process, so its own allocations count.
    pub ours: f64,
    /// Allocations of the limit for each request. [`Workload::limit`] describes the limit.
    pub limit: f64,
}

/// Counts the allocations of issue, renew, introspect and check. `count` returns how many allocations the process with this id has
/// made until now.
///
/// # Errors
///
/// Fails if a process did not start, a request failed, or a process has no count. The text says which.
pub async fn count_allocations(
    stage: &Stage,
    count: &(dyn Fn(u32) -> Option<u64> + Sync),
) -> Result<Vec<AllocationFigure>, String> {
    let plan = BenchPlan {
        workloads: Workload::QUICK.to_vec(),
        in_flight: vec![IN_FLIGHT],
        connections: CONNECTIONS,
        time: TIME,
        rounds: 1,
        ..BenchPlan::default()
    };
    let lab = BenchLab::open(stage, &plan).await?;
    let mut figures = Vec::new();
    for workload in Workload::QUICK {
        let (limit, _) = lab.count_allocations(workload, Server::Echo, count).await?;
        let (ours, requests) = lab.count_allocations(workload, Server::Daemon, count).await?;
        figures.push(AllocationFigure { workload, requests, ours, limit });
    }
    lab.close().await?;
    Ok(figures)
}

impl BenchLab<'_> {
    /// Returns the allocations for each request, and the number of requests.
    async fn count_allocations(
        &self,
        workload: Workload,
        server: Server<'_>,
        count: &(dyn Fn(u32) -> Option<u64> + Sync),
    ) -> Result<(f64, u64), String> {
        let in_flight = if workload == Workload::Check { 1 } else { IN_FLIGHT };
        let load = Load { in_flight, time: TIME, rate: None };
        // The first requests fill caches and pools.
        self.apply(workload, server, Load { time: TIME / 4, ..load }).await?;
        let process = self.process(workload, server).unwrap_or_else(std::process::id);
        let now = async || {
            tokio::time::sleep(REST).await;
            count(process).ok_or_else(|| format!("process {process} does not count its allocations"))
        };
        let before = now().await?;
        let requests = self.apply(workload, server, load).await?.latencies.len();
        let made = now().await?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "an average is shown with four digits")]
        let each = made as f64 / requests.max(1) as f64;
        Ok((each, requests))
    }
}

//! Measures what changes while a daemon has more and more live leases, and while more and more verifiers follow its feed.
//!
//! | File | Contains |
//! |---|---|
//! | `findings` | [`GrowthFinding`]: what the bench finds |
//! | `population` | `Population`: the live leases, and the jobs that have them |
//! | `step` | what is measured at one number of leases |
//! | `feed` | how long it takes until the last verifier hears of a revocation |
//! | `chart` | the findings as a picture |

mod chart;
mod feed;
mod findings;
mod population;
mod step;

use std::time::Duration;

use tokio::time::Instant;

pub use chart::{ChartData, draw_chart};
pub use findings::{FeedFigure, GrowthFinding, GrowthStep, JobRevocation};

use super::{BenchPlan, lab::BenchLab};
use crate::dev::demo::Stage;

/// What to measure of a growing daemon.
#[derive(Clone, Debug, Default)]
pub struct GrowthPlan {
    /// The numbers of live leases, from the smallest to the largest.
    pub leases: Vec<usize>,
    /// The numbers of verifiers on the feed, from the smallest to the largest.
    pub verifiers: Vec<usize>,
    /// How many revocations are measured with each number of verifiers.
    pub revocations: usize,
    /// The time for everything. The feed gets half of it. The last tenth is for measurements: no more leases are made.
    pub time: Duration,
}

/// Measures the feed with one daemon, and then the leases with a new one, whose memory has not grown yet. Both use one ledger.
pub(super) async fn run(
    plan: &BenchPlan,
    stage: &Stage,
    report: &mut (dyn FnMut(GrowthFinding) + Send),
) -> Result<(), String> {
    let begin = Instant::now();
    let lab = BenchLab::open(stage, plan).await?;
    lab.measure_feeds(&plan.growth, begin + plan.growth.time / 2, report).await?;
    lab.close().await?;
    let lab = BenchLab::open(stage, plan).await?;
    lab.measure_growth(plan, begin + plan.growth.time, report).await?;
    lab.close().await
}

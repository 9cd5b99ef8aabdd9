//! What a gateway moves in a second, beside nginx with the same files on the same machine.
//!
//! The gateway is a process with a directory as its store. The client is the same for both servers: it writes prepared requests and
//! counts bytes, in a thread for each stream.
//!
//! | File | Contains |
//! |---|---|
//! | `lab` | `GatewayLab`: the daemon, the gateway, nginx, a member with access, and a wrapper with its endpoint |
//! | `nginx` | `Nginx`: the nginx process. Its rate is the limit of the machine, and is shown beside the gateway's rate |
//! | `light_client` | `LightClient`: counts the bytes of answers |
//! | `request` | `BenchRequest`: the bytes of a request that is made again and again |
//! | `rates` | rates of reading and writing, each beside its limit |
//! | `cuts` | how long a download goes on after its lease is revoked |
//! | `memory` | the memory of the gateway while many streams read |
//! | `findings` | [`GatewayFigure`] and the other results |

mod cuts;
mod findings;
mod lab;
mod light_client;
mod memory;
mod nginx;
mod rates;
mod request;

pub use findings::{GatewayCuts, GatewayFigure, GatewayFinding, GatewayMemory, GatewayWork};
pub use nginx::find_nginx;

use std::{path::PathBuf, time::Duration};

use lab::GatewayLab;

use crate::dev::demo::Stage;

/// How much is measured.
#[derive(Clone, Debug, Default)]
pub struct GatewayPlan {
    /// The nginx program. Without nginx, the rates of reading have no limit beside them.
    pub nginx: Option<PathBuf>,
    /// How many streams are under way at once; several numbers are measured one after the other.
    pub streams: Vec<usize>,
    /// How long the gateway is measured for one figure. nginx is measured equally long. Each measurement is cut into
    /// [`rounds`](Self::rounds) parts, and the parts alternate: nginx, gateway, nginx, gateway.
    pub time: Duration,
    /// The number of these parts.
    pub rounds: u32,
    /// How many downloads are cut.
    pub cuts: usize,
    /// Bytes of an upload.
    pub upload_bytes: u64,
    /// How many streams are under way while the memory is measured.
    pub memory_streams: usize,
}

/// Measures a gateway, and calls `report` with each result.
///
/// # Errors
///
/// A process did not start, or a request failed. The text says which.
pub(super) async fn run(
    plan: &GatewayPlan,
    stage: &Stage,
    report: &mut (dyn FnMut(GatewayFinding) + Send),
) -> Result<(), String> {
    let mut lab = GatewayLab::open(stage, plan).await?;
    for work in
        [GatewayWork::Ranges, GatewayWork::Files, GatewayWork::ForwardedRanges, GatewayWork::ForwardedFiles]
    {
        if work.is_forwarded() {
            lab.open_wrapper().await?;
        }
        for streams in &plan.streams {
            report(GatewayFinding::Rate(lab.measure_reads(plan, work, *streams).await?));
        }
    }
    report(GatewayFinding::Memory(lab.measure_memory(plan).await?));
    report(GatewayFinding::Rate(lab.measure_upload(plan).await?));
    report(GatewayFinding::Cuts(lab.measure_cuts(plan.cuts).await?));
    lab.close().await
}

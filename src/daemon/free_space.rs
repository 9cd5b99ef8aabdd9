//! The check of the free space on the ledger's disk.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{broker::Broker, clock::Clock};

/// Stops the issue of credentials while the disk has fewer free bytes than `stop_bytes`. Logs each change.
pub(super) async fn watch_free_space(
    broker: Arc<Broker>,
    clock: Arc<dyn Clock>,
    state: PathBuf,
    stop_bytes: u64,
    shutdown: CancellationToken,
) {
    const EACH: Duration = Duration::from_secs(5);
    let low = AtomicBool::new(false);
    loop {
        if let Ok(stat) = nix::sys::statvfs::statvfs(&state) {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            metrics::gauge!("leasehold_ledger_free_bytes").set(free as f64);
            let is_low = free < stop_bytes;
            if low.swap(is_low, Ordering::AcqRel) != is_low {
                if is_low {
                    tracing::error!(
                        free,
                        stop_bytes,
                        "the ledger's disk is nearly full: nothing more is issued"
                    );
                } else {
                    tracing::info!(free, "the ledger's disk has free space again: issuing goes on");
                }
            }
            broker.hold(is_low);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = clock.sleep(EACH) => {}
        }
    }
}

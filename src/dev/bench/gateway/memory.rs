//! The resident memory of a gateway while many streams read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::spawn_blocking, time::Instant};

use super::{
    GatewayMemory, GatewayPlan,
    lab::{ENDLESS, GatewayLab},
};
use crate::{dev::bench::machine::resident, proto::v1};

/// The time between two measurements of the memory.
const LOOK: Duration = Duration::from_millis(10);
/// The pause between two reads of a stream. Slow readers keep the buffers of the gateway full. They also leave processor time for
/// the fence feed: if the feed is late, the gateway cuts all streams.
const READ_PAUSE: Duration = Duration::from_millis(5);

impl GatewayLab<'_> {
    /// Reads with many streams, and measures the memory meanwhile.
    pub(super) async fn measure_memory(&mut self, plan: &GatewayPlan) -> Result<GatewayMemory, String> {
        let (_, token) = self.issue(v1::Half::Reading).await?;
        let (target, request) = (self.gateway_target()?, self.read_request(ENDLESS.0, &token).whole());
        let streams = plan.memory_streams;
        let before = resident(self.gateway.id())?;
        let (is_over, reading) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut readers = Vec::with_capacity(streams);
        for _ in 0..streams {
            let (target, request) = (target.clone(), request.clone());
            let (is_over, reading) = (is_over.clone(), reading.clone());
            readers.push(spawn_blocking(move || {
                let mut client = target.connect()?;
                client.begin(&request)?;
                reading.fetch_add(1, Ordering::Relaxed);
                while !is_over.load(Ordering::Relaxed) {
                    client.read_some()?;
                    std::thread::sleep(READ_PAUSE);
                }
                Ok::<_, std::io::Error>(())
            }));
        }
        let (begin, mut peak) = (Instant::now(), before);
        let mut all_since = None;
        let looked = loop {
            match resident(self.gateway.id()) {
                Ok(now) => peak = peak.max(now),
                Err(why) => break Err(why),
            }
            if all_since.is_none() && reading.load(Ordering::Relaxed) == streams {
                all_since = Some(Instant::now());
            }
            if all_since.is_some_and(|since| since.elapsed() >= plan.time) {
                break Ok(());
            }
            if begin.elapsed() > plan.time.saturating_add(Duration::from_secs(60)) {
                break Err("the streams did not begin".to_owned());
            }
            tokio::time::sleep(LOOK).await;
        };
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.map_err(|e| e.to_string())?.map_err(|e| format!("a stream ended: {e}"))?;
        }
        looked?;
        Ok(GatewayMemory { streams, before, peak })
    }
}

//! Rates of reading and writing, each beside its limit, measured in turns.

use std::{fs::File, io::Write, ops::Range, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::Instant};

use super::{
    GatewayFigure, GatewayPlan, GatewayWork,
    lab::{GatewayLab, LARGE, WHOLE},
    light_client::LightTarget,
    request::BenchRequest,
};
use crate::{
    dev::{
        bench::{figure::Sample, machine::processor_time},
        deployment::TENANT,
        s3_client::{EMPTY_SHA256, UNSIGNED_PAYLOAD},
    },
    proto::v1,
};

/// Bytes of a range.
const RANGE: u64 = 64 << 10;
/// Bytes that are given to the system at once when an object is written.
const PIECE: usize = 256 << 10;

/// What each stream of a measurement reads. `processes` are the processes whose processor time is counted.
#[derive(Clone)]
struct StreamReads {
    target: LightTarget,
    request: BenchRequest,
    is_ranges: bool,
    processes: Vec<u32>,
}

impl GatewayLab<'_> {
    /// Measures how fast objects are read.
    pub(super) async fn measure_reads(
        &mut self,
        plan: &GatewayPlan,
        work: GatewayWork,
        streams: usize,
    ) -> Result<GatewayFigure, String> {
        let ours = self.our_reads(work).await?;
        let limit = self.limit_reads(work)?;
        let part = plan.time / plan.rounds.max(1);
        for reads in std::iter::once(&ours).chain(&limit) {
            reads.measure(streams, part / 4).await?;
        }
        let (mut our_sample, mut limit_sample) = (Sample::new()?, Sample::new()?);
        for _ in 0..plan.rounds {
            if let Some(limit) = &limit {
                limit_sample.extend(&limit.measure(streams, part).await?)?;
            }
            our_sample.extend(&ours.measure(streams, part).await?)?;
        }
        let bytes = if work.is_ranges() { RANGE } else { WHOLE.1 };
        let limit = limit.is_some().then(|| limit_sample.measured());
        Ok(GatewayFigure { work, streams, bytes, ours: our_sample.measured(), limit })
    }

    async fn our_reads(&mut self, work: GatewayWork) -> Result<StreamReads, String> {
        let object = object_of(work);
        if !work.is_forwarded() {
            // Each figure has a new token, so that no token expires during a measurement.
            let (_, token) = self.issue(v1::Half::Reading).await?;
            let (target, request) = (self.gateway_target()?, self.read_request(object, &token));
            return Ok(StreamReads {
                target,
                request,
                is_ranges: work.is_ranges(),
                processes: vec![self.gateway.id()],
            });
        }
        let wrapper = self.wrapper.as_ref().ok_or("there is no wrapper")?;
        let (host, path) = (format!("127.0.0.1:{}", wrapper.port), format!("/{TENANT}/data/{object}"));
        let now = self.stage.clock.now().wall;
        let request = BenchRequest::sign("GET", &host, &path, &wrapper.key, EMPTY_SHA256, now);
        let target = LightTarget { port: wrapper.port, tls: None };
        let processes = vec![self.gateway.id(), wrapper.id()];
        Ok(StreamReads { target, request, is_ranges: work.is_ranges(), processes })
    }

    fn limit_reads(&self, work: GatewayWork) -> Result<Option<StreamReads>, String> {
        let Some(nginx) = &self.nginx else { return Ok(None) };
        let (port, tls) = match work.is_forwarded() {
            true => (nginx.plain_port, None),
            false => (nginx.tls_port, Some(self.tls()?)),
        };
        let request = BenchRequest::unsigned("GET", "localhost", &format!("/{}", object_of(work)));
        let (target, processes) = (LightTarget { port, tls }, nginx.processes());
        Ok(Some(StreamReads { target, request, is_ranges: work.is_ranges(), processes }))
    }

    /// Measures how fast an object is written, beside a file of the same bytes.
    pub(super) async fn measure_upload(&mut self, plan: &GatewayPlan) -> Result<GatewayFigure, String> {
        let bytes = plan.upload_bytes;
        let piece: Arc<[u8]> = (0..PIECE).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
        let folder = self.stage.deployment.path("s3/out");
        let (mut ours, mut limit) = (Sample::new()?, Sample::new()?);
        for round in 0..plan.rounds.min(3) {
            let (file, same) = (folder.join("plain.bin"), piece.clone());
            limit
                .time_one(move || {
                    let written = write_file(&file, &same, bytes);
                    let _ = std::fs::remove_file(&file);
                    written
                })
                .await?;
            let (_, token) = self.issue(v1::Half::Writing).await?;
            let name = format!("upload-{round}.bin");
            let request = self.write_request(&name, &token, UNSIGNED_PAYLOAD);
            let request = request.with("content-length", &bytes.to_string()).whole();
            let mut client = self.gateway_target()?.connect().map_err(|e| e.to_string())?;
            let before = processor_time(self.gateway.id()).unwrap_or_default();
            let same = piece.clone();
            ours.time_one(move || client.put(&request, &same, bytes)).await?;
            let after = processor_time(self.gateway.id()).unwrap_or_default();
            ours.processor = ours.processor.saturating_add(after.saturating_sub(before));
            let stored = folder.join(&self.job).join(&name);
            let length = stored.metadata().map_err(|e| format!("the upload is not there: {e}"))?.len();
            if length != bytes {
                return Err(format!("the upload has {length} bytes, and not {bytes}"));
            }
            std::fs::remove_file(stored).map_err(|e| e.to_string())?;
        }
        let (ours, limit) = (ours.measured(), Some(limit.measured()));
        Ok(GatewayFigure { work: GatewayWork::Upload, streams: 1, bytes, ours, limit })
    }
}

fn object_of(work: GatewayWork) -> &'static str {
    if work.is_ranges() { LARGE.0 } else { WHOLE.0 }
}

impl StreamReads {
    /// Reads with this number of streams until the time is over. The handshakes are made before the time begins.
    async fn measure(&self, streams: usize, time: Duration) -> Result<Sample, String> {
        let mut clients = Vec::with_capacity(streams);
        for _ in 0..streams {
            clients.push(self.target.connect().map_err(|e| e.to_string())?);
        }
        let processor = || {
            let taken = self.processes.iter().filter_map(|id| processor_time(*id));
            taken.fold(Duration::ZERO, Duration::saturating_add)
        };
        let (before, begin) = (processor(), Instant::now());
        let mut workers = Vec::with_capacity(streams);
        for (stream, mut client) in clients.into_iter().enumerate() {
            let reads = self.clone();
            workers.push(spawn_blocking(move || {
                let mut sample = Sample::new()?;
                let whole = reads.request.whole();
                for turn in 0.. {
                    let from = Instant::now();
                    if from.duration_since(begin) >= time {
                        break;
                    }
                    let read = match reads.is_ranges {
                        true => client.get(&reads.request.range(&range(stream, turn))),
                        false => client.get(&whole),
                    };
                    let read = read.map_err(|e| e.to_string())?;
                    let wanted = if reads.is_ranges { RANGE } else { WHOLE.1 };
                    if read != wanted {
                        return Err(format!("an answer has {read} bytes, and not {wanted}"));
                    }
                    sample.record(from.elapsed());
                }
                Ok::<_, String>(sample)
            }));
        }
        let mut all = Sample::new()?;
        for worker in workers {
            all.add(&worker.await.map_err(|e| e.to_string())??)?;
        }
        all.time = begin.elapsed();
        all.processor = processor().saturating_sub(before);
        Ok(all)
    }
}

/// The range of a stream's request with the number `turn`. The streams begin at different ranges. Each stream reads every range of
/// the object before it reads one again.
fn range(stream: usize, turn: u64) -> Range<u64> {
    let ranges = LARGE.1 / RANGE;
    // The step 37 has no common divisor with the number of ranges, so a stream reaches every range.
    let at = (stream as u64).wrapping_mul(1_021).wrapping_add(turn.wrapping_mul(37)) % ranges.max(1);
    let start = at.saturating_mul(RANGE);
    start..start.saturating_add(RANGE)
}

impl Sample {
    /// Adds another part of a measurement, with its time.
    fn extend(&mut self, part: &Sample) -> Result<(), String> {
        self.add(part)?;
        self.time = self.time.saturating_add(part.time);
        self.processor = self.processor.saturating_add(part.processor);
        Ok(())
    }

    /// Records how long some blocking work takes.
    async fn time_one(
        &mut self,
        work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let begin = Instant::now();
        spawn_blocking(work).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let taken = begin.elapsed();
        self.record(taken);
        self.time = self.time.saturating_add(taken);
        Ok(())
    }
}

/// Writes a file of these bytes, and waits until it is on disk.
fn write_file(path: &std::path::Path, piece: &[u8], bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        file.write_all(piece.get(..now).unwrap_or_default())?;
        left = left.saturating_sub(now as u64);
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A stream reads every range of the object before it reads one again, so no figure depends on a small part of the file.
    #[test]
    fn every_range_has_its_turn() {
        let ranges = LARGE.1 / RANGE;
        let mut starts: Vec<u64> = (0..ranges).map(|turn| range(3, turn).start).collect();
        starts.sort_unstable();
        assert!(starts.iter().copied().eq((0..ranges).map(|n| n * RANGE)));
        assert!((0..ranges).all(|turn| range(7, turn).end <= LARGE.1));
    }
}

//! A measurement, and its limit: the best that this machine can do with the same messages. The limit is measured too. It is not
//! a bound as in `limits`.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::plan::Workload;

/// The number of answered requests, the time in which they were answered, and their latencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests that were answered.
    pub calls: u64,
    /// The number of requests for each second.
    pub per_second: f64,
    /// The latency that half of the requests did not exceed.
    pub p50: Duration,
    /// The latency that 99 of 100 requests did not exceed.
    pub p99: Duration,
    /// The longest latency.
    pub longest: Duration,
    /// The processor time of the answering process for each request. Zero if it is not a separate process. Other work of the
    /// machine changes it less than it changes the rate.
    pub processor: Duration,
}

/// Latencies in nanoseconds, and the time in which they were measured.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) latencies: Histogram<u64>,
    pub(super) time: Duration,
    /// The processor time of the answering process.
    pub(super) processor: Duration,
}

impl Sample {
    pub(super) fn new() -> Result<Self, String> {
        // The histogram keeps three significant digits, and latencies of up to a minute.
        let latencies =
            Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| format!("no histogram: {e}"))?;
        Ok(Sample { latencies, time: Duration::ZERO, processor: Duration::ZERO })
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.latencies.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn add(&mut self, other: &Sample) -> Result<(), String> {
        self.latencies.add(&other.latencies).map_err(|e| format!("the histograms differ: {e}"))
    }

    pub(super) fn measured(&self) -> Measured {
        let at = |quantile: f64| Duration::from_nanos(self.latencies.value_at_quantile(quantile));
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown with four digits")]
        let per_second = self.latencies.len() as f64 / self.time.as_secs_f64().max(f64::EPSILON);
        Measured {
            calls: self.latencies.len(),
            per_second,
            p50: at(0.5),
            p99: at(0.99),
            longest: Duration::from_nanos(self.latencies.max()),
            processor: self.processor / u32::try_from(self.latencies.len()).unwrap_or(u32::MAX).max(1),
        }
    }
}

/// One workload at one number of requests in flight, and its limit.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The workload that was measured.
    pub workload: Workload,
    /// The number of requests in flight at once.
    pub in_flight: usize,
    /// The measurement of the daemon, or of the verifier.
    pub ours: Measured,
    /// The measurement of the limit: the best that this machine can do with the same messages.
    pub limit: Measured,
}

impl Figure {
    /// Returns our rate divided by the limit's rate.
    pub fn ratio(&self) -> f64 {
        self.ours.per_second / self.limit.per_second.max(f64::EPSILON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The rate counts the answered requests. The quantiles are computed from the latencies of all parts.
    #[test]
    fn parts_add_up_to_one_measurement() {
        let mut whole = Sample::new().unwrap();
        for part in [1u64, 3] {
            let mut sample = Sample::new().unwrap();
            for _ in 0..50 {
                sample.record(Duration::from_micros(part));
            }
            whole.add(&sample).unwrap();
            whole.time += Duration::from_secs(1);
        }
        let measured = whole.measured();
        assert_eq!((measured.calls, measured.per_second), (100, 50.0));
        let near = |a: Duration, us: u64| a.abs_diff(Duration::from_micros(us)) < Duration::from_nanos(10);
        assert!(near(measured.p50, 1) && near(measured.p99, 3) && near(measured.longest, 3), "{measured:?}");
    }
}

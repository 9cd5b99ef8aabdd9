//! The results of a bench of a gateway.

use crate::dev::bench::figure::Measured;

/// The kind of request that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayWork {
    /// Ranges of a large object are read over mutual TLS.
    Ranges,
    /// Whole objects are read over mutual TLS.
    Files,
    /// Ranges are read through the local endpoint of a wrapper.
    ForwardedRanges,
    /// Whole objects are read through the local endpoint of a wrapper.
    ForwardedFiles,
    /// An object is written over mutual TLS.
    Upload,
}

impl GatewayWork {
    /// The name of this work in tables. A later run uses this name to find the earlier figure in the page.
    pub const fn as_str(self) -> &'static str {
        match self {
            GatewayWork::Ranges => "gateway: ranges of 64 KiB, TLS",
            GatewayWork::Files => "gateway: whole files, TLS",
            GatewayWork::ForwardedRanges => "wrapper: ranges of 64 KiB, plain",
            GatewayWork::ForwardedFiles => "wrapper: whole files, plain",
            GatewayWork::Upload => "gateway: upload, TLS",
        }
    }

    /// The measurement that is the limit for this work: nginx, or a plain write.
    pub const fn limit(self) -> &'static str {
        match self {
            GatewayWork::Ranges | GatewayWork::Files => {
                "nginx with the same files, over TLS 1.3 with client certificates"
            }
            GatewayWork::ForwardedRanges | GatewayWork::ForwardedFiles => {
                "nginx with the same files, over plain HTTP, without a second hop"
            }
            GatewayWork::Upload => "a sequential write of the same bytes into the same folder, with fsync",
        }
    }

    pub(super) const fn is_forwarded(self) -> bool {
        matches!(self, GatewayWork::ForwardedRanges | GatewayWork::ForwardedFiles)
    }

    pub(super) const fn is_ranges(self) -> bool {
        matches!(self, GatewayWork::Ranges | GatewayWork::ForwardedRanges)
    }
}

/// The gateway's rate, beside the rate with which it is compared: of nginx, or of a plain write.
#[derive(Clone, Debug)]
pub struct GatewayFigure {
    /// What was measured.
    pub work: GatewayWork,
    /// Streams under way at once.
    pub streams: usize,
    /// Bytes of each request.
    pub bytes: u64,
    /// The measurement of the gateway.
    pub ours: Measured,
    /// The measurement of the limit, which [`GatewayWork::limit`] names. `None` if it could not be measured.
    pub limit: Option<Measured>,
}

impl GatewayFigure {
    /// Returns the gateway's rate, divided by the rate of the limit.
    pub fn ratio(&self) -> Option<f64> {
        self.limit.map(|limit| self.ours.per_second / limit.per_second.max(f64::EPSILON))
    }

    /// Returns the MiB per second of a measurement.
    pub fn rate_of(&self, measured: &Measured) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown with four digits")]
        let bytes = self.bytes as f64;
        measured.per_second * bytes / f64::from(1_u32 << 20)
    }
}

/// The times from the call that revokes a lease. The rates in these values have no meaning.
#[derive(Clone, Debug)]
pub struct GatewayCuts {
    /// The time until the daemon answers the call.
    pub confirmed: Measured,
    /// The time until the download ends at its client.
    pub cut: Measured,
}

/// The resident memory of the process of a gateway.
#[derive(Clone, Copy, Debug)]
pub struct GatewayMemory {
    /// Streams under way at once.
    pub streams: usize,
    /// The bytes of memory before the streams began.
    pub before: u64,
    /// The most bytes of memory while the streams were under way.
    pub peak: u64,
}

/// One result.
#[derive(Clone, Debug)]
pub enum GatewayFinding {
    Rate(GatewayFigure),
    Cuts(GatewayCuts),
    Memory(GatewayMemory),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    // The ratio compares the two rates. Without a limit, there is no ratio.
    #[test]
    fn a_gateway_is_compared_with_its_limit() {
        let of = |per_second| {
            let time = Duration::from_millis(1);
            Measured { calls: 1, per_second, p50: time, p99: time, longest: time, processor: time }
        };
        let figure = |limit| GatewayFigure {
            work: GatewayWork::Ranges,
            streams: 1,
            bytes: 64 << 10,
            ours: of(160.0),
            limit,
        };
        assert_eq!(figure(Some(of(200.0))).ratio(), Some(0.8));
        assert_eq!((figure(None).ratio(), figure(None).rate_of(&of(160.0))), (None, 10.0));
    }
}

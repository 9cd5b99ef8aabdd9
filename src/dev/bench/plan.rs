//! What is measured, and for how long.

use std::time::Duration;

/// A request whose rate and latency are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// A credential is issued: decided, recorded on disk, signed
    Issue,
    /// A lease is prolonged
    Renew,
    /// A server asks whether a token is good
    Introspect,
    /// A server checks a token by itself
    Check,
    /// The time from an event that ends access to the last use that a server accepts
    End,
}

impl Workload {
    /// All workloads, in the order in which they are measured.
    pub const ALL: [Workload; 5] =
        [Workload::Issue, Workload::Renew, Workload::Introspect, Workload::Check, Workload::End];
    /// Those whose rate has a limit beside it.
    pub const RATES: [Workload; 4] =
        [Workload::Issue, Workload::Renew, Workload::Introspect, Workload::Check];

    /// Its name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Workload::Issue => "issue",
            Workload::Renew => "renew",
            Workload::Introspect => "introspect",
            Workload::Check => "check",
            Workload::End => "end",
        }
    }

    /// What its limit is.
    pub const fn limit(self) -> &'static str {
        match self {
            Workload::Issue | Workload::Renew => {
                "an echo of the same messages over the same accept loop, with one ES256 signature"
            }
            Workload::Introspect => "an echo of the same messages over the same accept loop",
            Workload::Check => "the SHA-256 of the token",
            Workload::End => "none",
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchPlan {
    /// What is measured, in this order.
    pub workloads: Vec<Workload>,
    /// How many requests are under way at once. A check has no request, and is measured once.
    pub in_flight: Vec<usize>,
    /// How many connections they share.
    pub connections: usize,
    /// How long each figure and its limit are measured, each in [`rounds`](Self::rounds) parts that take turns.
    pub time: Duration,
    /// The number of these parts.
    pub rounds: u32,
    /// How many jobs each event ends.
    pub endings: usize,
    /// Requests a second of an open loop: each has a time at which it should begin, and its latency counts from then. Without
    /// it, the next request begins when one has ended.
    pub rate: Option<u32>,
}

impl BenchPlan {
    pub(super) fn in_flight_of(&self, workload: Workload) -> Vec<usize> {
        if workload == Workload::Check { vec![1] } else { self.in_flight.clone() }
    }

    /// The most requests that are under way at once.
    pub(super) fn workers(&self) -> usize {
        self.in_flight.iter().copied().max().unwrap_or_default().max(1)
    }

    /// The time of one part.
    pub(super) fn part(&self) -> Duration {
        self.time / self.rounds.max(1)
    }
}

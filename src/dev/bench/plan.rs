//! The plan of a bench: what is measured, and for how long.

use std::time::Duration;

use super::{gateway::GatewayPlan, growth::GrowthPlan, vault::VaultPlan};

/// A request whose rate and latency are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// A credential is issued: decided, recorded on disk, signed
    Issue,
    /// A lease is prolonged
    Renew,
    /// A server asks whether a token is good
    Introspect,
    /// A server asks about a token that the daemon has not checked before
    IntrospectFirst,
    /// A server checks a token by itself
    Check,
    /// A hundred requests at once: of each five, one issue, three renewals and one introspection
    Mixed,
    /// An operator revokes jobs that have many leases
    Revoke,
    /// The deadlines of many leases pass together
    Storm,
    /// The time from an event that ends access to the last use that a server accepts
    End,
    /// How long each stage of an issue and of a renewal takes: each server does one stage more than the one before
    Stages,
    /// A gateway reads and writes, and is cut
    Gateway,
    /// Memory and times of a daemon while the numbers of leases and verifiers grow
    Growth,
    /// Vault creates and revokes tokens, beside the daemon
    Vault,
}

impl Workload {
    /// The workloads of a daemon, in the order in which they are measured.
    pub const ALL: [Workload; 9] = [
        Workload::Issue,
        Workload::Renew,
        Workload::Introspect,
        Workload::IntrospectFirst,
        Workload::Check,
        Workload::Mixed,
        Workload::Revoke,
        Workload::Storm,
        Workload::End,
    ];
    /// The workloads that are measured if there is little time.
    pub const QUICK: [Workload; 4] =
        [Workload::Issue, Workload::Renew, Workload::Introspect, Workload::Check];

    /// Whether the rate of the workload is compared with the best that this machine can do.
    pub const fn is_rate(self) -> bool {
        match self {
            Workload::Issue
            | Workload::Renew
            | Workload::Introspect
            | Workload::IntrospectFirst
            | Workload::Check
            | Workload::Mixed => true,
            Workload::Revoke
            | Workload::Storm
            | Workload::End
            | Workload::Stages
            | Workload::Gateway
            | Workload::Growth
            | Workload::Vault => false,
        }
    }

    /// Returns the name of the workload on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Workload::Issue => "issue",
            Workload::Renew => "renew",
            Workload::Introspect => "introspect",
            Workload::IntrospectFirst => "introspect-first",
            Workload::Check => "check",
            Workload::Mixed => "mixed",
            Workload::Revoke => "revoke",
            Workload::Storm => "storm",
            Workload::End => "end",
            Workload::Stages => "stages",
            Workload::Gateway => "gateway",
            Workload::Growth => "growth",
            Workload::Vault => "vault",
        }
    }

    /// Returns the name of the section of a page that shows the workload.
    pub const fn section(self) -> &'static str {
        match self {
            Workload::Issue
            | Workload::Renew
            | Workload::Introspect
            | Workload::IntrospectFirst
            | Workload::Check
            | Workload::Mixed => "rates",
            Workload::Stages => "stages",
            Workload::Revoke | Workload::Storm | Workload::End => "endings",
            Workload::Growth => "growth",
            Workload::Gateway => "gateway",
            Workload::Vault => "vault",
        }
    }

    /// Describes what the workload is compared with: its limit, which `figure` explains.
    pub const fn limit(self) -> &'static str {
        match self {
            Workload::Issue | Workload::Renew => {
                "an echo of the same messages over the same accept loop, with one ES256 signature"
            }
            Workload::Introspect | Workload::IntrospectFirst => {
                "an echo of the same messages over the same accept loop"
            }
            Workload::Mixed => {
                "an echo of the same messages over the same accept loop, with one ES256 signature for each issue and renewal"
            }
            Workload::Check => "the SHA-256 of the token",
            Workload::Revoke | Workload::Storm | Workload::End | Workload::Stages | Workload::Growth => {
                "none"
            }
            Workload::Gateway => "nginx with the same files",
            Workload::Vault => "Vault",
        }
    }

    /// Whether the workload is measured at the daemon that several workloads share. All others start their own processes.
    pub(super) const fn shares_daemon(self) -> bool {
        !matches!(self, Workload::Gateway | Workload::Growth | Workload::Vault)
    }
}

/// The requests of [`Workload::Mixed`], which each worker repeats in this order. The workers begin at different places.
pub(super) const MIX: [Workload; 5] =
    [Workload::Issue, Workload::Renew, Workload::Renew, Workload::Renew, Workload::Introspect];
/// The number of requests of [`Workload::Mixed`] in flight at once.
const MIXED_IN_FLIGHT: usize = 100;

/// What to measure, and for how long.
#[derive(Clone, Debug, Default)]
pub struct BenchPlan {
    /// The workloads to measure, in this order.
    pub workloads: Vec<Workload>,
    /// The numbers of requests in flight at once. A check sends no request, and is measured once. The mix has a fixed number.
    pub in_flight: Vec<usize>,
    /// The number of connections that the requests share.
    pub connections: usize,
    /// How long each figure and its limit are measured. The time is split into [`rounds`](Self::rounds) parts, which take
    /// turns.
    pub time: Duration,
    /// The number of parts for each figure.
    pub rounds: u32,
    /// How many jobs each event ends, and how many jobs are revoked for each number of leases.
    pub endings: usize,
    /// The numbers of leases of each job that is revoked, measured one after the other.
    pub revoke_leases: Vec<usize>,
    /// The numbers of leases whose deadlines pass together, measured one after the other.
    pub storm_leases: Vec<usize>,
    /// The number of requests for each second, if they begin at fixed times. The latency of each request counts from its time.
    /// If `None`, a request begins when another request has ended.
    pub rate: Option<u32>,
    /// What is measured of a gateway.
    pub gateway: GatewayPlan,
    /// What is measured of a growing daemon.
    pub growth: GrowthPlan,
    /// What is measured of Vault. `None` if it is not measured.
    pub vault: Option<VaultPlan>,
}

impl BenchPlan {
    pub(super) fn in_flight_of(&self, workload: Workload) -> Vec<usize> {
        match workload {
            Workload::Check => vec![1],
            Workload::Mixed => vec![MIXED_IN_FLIGHT],
            _ => self.in_flight.clone(),
        }
    }

    /// The largest number of requests in flight at once.
    pub(super) fn workers(&self) -> usize {
        let all = self.workloads.iter().flat_map(|workload| self.in_flight_of(*workload));
        all.max().unwrap_or_default().max(1)
    }

    /// The time of one part.
    pub(super) fn part(&self) -> Duration {
        self.time / self.rounds.max(1)
    }
}

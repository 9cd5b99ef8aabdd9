//! The configuration, always valid once it exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use tracing::level_filters::LevelFilter;

use crate::{
    gateway::GatewaySettings,
    identity::{BundleEndpoint, Pick, WorkloadEndpoint},
    ledger,
    name::{SpiffeId, TrustDomain},
    notify::Webhook,
    people::{LoginRules, ProviderOptions},
    policy::Explain,
};

/// The daemon's configuration. Paths are absolute, or relative to the working directory of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The section `[server]`.
    pub server: ServerConfig,
    /// The section `[issuer]`.
    pub issuer: IssuerConfig,
    /// The sections `[identity]` and `[[federation]]`.
    pub identity: IdentityConfig,
    /// The section `[policy]`.
    pub policy: PolicyConfig,
    /// The section `[lease]`.
    pub lease: LeaseConfig,
    /// The section `[ledger]`.
    pub ledger: LedgerConfig,
    /// The section `[log]`.
    pub log: LogConfig,
    /// The section `[gateway]`, if the daemon serves S3 too.
    pub gateway: Option<GatewaySettings>,
    /// The section `[people]`. `None`: no one logs in.
    pub people: Option<PeopleConfig>,
    /// The sections `[[notify]]`.
    pub notify: Vec<Webhook>,
}

impl Config {
    /// The addresses that the daemon listens on, each with its key.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let all = [
            ("server.grpc", self.server.grpc),
            ("server.probe", self.server.probe),
            ("issuer.listen", self.issuer.listen.address()),
        ];
        let gateway = self.gateway.as_ref().map(|gateway| ("gateway.listen", gateway.listen));
        let people = self.people.as_ref().map(|people| ("people.listen", people.listen));
        all.into_iter().chain(gateway).chain(people).collect()
    }
}

/// People who log in at an identity provider, and get SVIDs of this daemon's own people trust domain.
#[derive(Clone, Debug)]
pub struct PeopleConfig {
    pub trust_domain: TrustDomain,
    /// The roots of the domain, the signing one first.
    pub ca_cert: PathBuf,
    /// The private key of the first root.
    pub ca_key: PathBuf,
    pub provider: ProviderOptions,
    /// The only roots that vouch for the provider. `None`: those of this machine.
    pub provider_ca: Option<PathBuf>,
    pub rules: LoginRules,
    /// Where people log in: HTTPS with the daemon's SVID.
    pub listen: SocketAddr,
}

/// The addresses that the daemon listens on, and the directory of its state.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// gRPC over mutual TLS.
    pub grpc: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`, without TLS.
    pub probe: SocketAddr,
    /// The ledger's directory. Made if it is missing.
    pub state: PathBuf,
    pub room: RoomConfig,
}

/// The bounds of the gRPC listener. One SPIFFE ID never holds more than is still free, so one takes at most half
/// of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomConfig {
    /// Handshakes under way.
    pub handshakes_max: usize,
    /// Open connections of callers that the catalog knows.
    pub connections_max: usize,
    /// Open connections of one such SPIFFE ID.
    pub connections_per_peer_max: usize,
    /// Open connections of callers that no catalog entry matches.
    pub connections_unknown_max: usize,
    /// Open connections that only operators may take.
    pub connections_operators_max: usize,
    /// Streams of one connection.
    pub streams_per_connection_max: u32,
    /// Requests in work.
    pub requests_max: usize,
    /// Requests of one SPIFFE ID in work.
    pub requests_per_peer_max: usize,
    /// Bytes that are buffered of requests and answers.
    pub buffered_bytes_max: usize,
    /// Bytes that are buffered for one SPIFFE ID.
    pub buffered_bytes_per_peer_max: usize,
}

/// The issuer of tokens, and the address of its discovery.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// The `iss` of every token: an origin, with a path or without, no slash at its end.
    pub url: String,
    pub listen: IssuerListen,
}

/// How discovery and `/keys` are served.
#[derive(Clone, Debug)]
pub enum IssuerListen {
    /// Over TLS, with a server certificate that clients of the web accept.
    Tls { address: SocketAddr, cert: PathBuf, key: PathBuf },
    /// Plain HTTP, only on a loopback address.
    Loopback(SocketAddr),
}

impl IssuerListen {
    pub fn address(&self) -> SocketAddr {
        match self {
            IssuerListen::Tls { address, .. } | IssuerListen::Loopback(address) => *address,
        }
    }
}

/// The daemon's own identity, and the trust domains that it accepts.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    pub from: IdentityFrom,
    /// The roots of each trust domain, from files. Never empty if the daemon's own SVID comes from files too: without roots,
    /// no one could connect.
    pub bundles: BTreeMap<TrustDomain, PathBuf>,
    /// Bundle endpoints of foreign trust domains.
    pub federation: Vec<BundleEndpoint>,
    /// The trust domains that are accepted, even if the agent has bundles of others. `None`: all.
    pub trust_domains: Option<BTreeSet<TrustDomain>>,
    /// The longest life of an SVID that is accepted.
    pub max_svid_ttl: Duration,
    /// How long a start waits for a first SVID.
    pub wait: Duration,
    /// How long the last good SVID and roots are used while their source fails.
    pub outage_max: Duration,
}

/// The source of the daemon's own SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityFrom {
    /// The chain, leaf first, and its key.
    Files { cert: PathBuf, key: PathBuf },
    /// The SPIFFE Workload API, with the bundles of its agent. `None`: at the socket that `SPIFFE_ENDPOINT_SOCKET` names.
    WorkloadApi { endpoint: Option<WorkloadEndpoint>, pick: Pick },
}

/// Where the policy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyFrom {
    /// The files in `policy.dir`.
    Files,
    /// What `leasehold policy apply` applied last. Until then, the files in `policy.dir`.
    Applied,
}

/// What the daemon decides by: policies and the catalog.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    pub source: PolicyFrom,
    /// Cedar policies.
    pub dir: PathBuf,
    pub catalog: PathBuf,
    /// Public keys, one of which must have signed the policy. Empty: no signature is asked for.
    pub trusted_keys: Vec<PathBuf>,
    /// Who sees the rule that refused.
    pub explain: Explain,
    /// Identities that may always lift locks, also a lock that shuts out these identities.
    pub break_glass: Vec<SpiffeId>,
}

/// How long things live.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// The life of a credential if the job asks for no other.
    pub token_ttl: Duration,
    /// The time between two beats of a member.
    pub beat: Duration,
    /// Missed beats after which a member is away.
    pub lost_after: u32,
    /// How long a member that is away may come back to the same attempt.
    pub rejoin: Duration,
    /// After a drain began, how long reading goes on.
    pub drain_read: Duration,
}

/// How the ledger is written.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// Bytes after which a new segment begins.
    pub segment_bytes: u64,
    /// Free bytes on its disk below which nothing is issued.
    pub free_space_stop_bytes: u64,
    /// A file on another disk that holds the last signed head.
    pub head_copy: Option<PathBuf>,
    /// How many records a second one SPIFFE ID may cause, on average.
    pub rate_per_identity: u32,
    /// How many records a second one tenant may cause, on average.
    pub rate_per_tenant: u32,
    /// What a start does if the directory shows that a ledger is missing. The configuration file cannot set it.
    pub lost: ledger::Lost,
}

impl LedgerConfig {
    /// What the ledger is opened with.
    pub fn options(&self) -> ledger::Options {
        ledger::Options { segment_bytes: self.segment_bytes, lost: self.lost, ..ledger::Options::default() }
    }
}

/// What is logged, on stderr.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: LevelFilter,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

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
    /// The section `[people]`. `None` if people cannot log in.
    pub people: Option<PeopleConfig>,
    /// The sections `[[notify]]`.
    pub notify: Vec<Webhook>,
}

impl Config {
    /// Returns the addresses on which the daemon listens, each with its key.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let all = [
            ("server.grpc", self.server.grpc),
            ("server.probe", self.server.probe),
            ("issuer.listen", self.issuer.listen.address()),
        ];
        let gateway = self.gateway.as_ref().map(|gateway| ("gateway.listen", gateway.listen));
        let direct = self.gateway.as_ref().and_then(|gateway| gateway.direct.as_ref());
        let direct = direct.map(|direct| ("gateway.direct", direct.listen));
        let people = self.people.as_ref().map(|people| ("people.listen", people.listen));
        all.into_iter().chain(gateway).chain(direct).chain(people).collect()
    }
}

/// The settings for people who log in at an identity provider and get SVIDs of the daemon's people trust domain.
#[derive(Clone, Debug)]
pub struct PeopleConfig {
    pub trust_domain: TrustDomain,
    /// The roots of the domain. The first root signs.
    pub ca_cert: PathBuf,
    /// The private key of the first root.
    pub ca_key: PathBuf,
    pub provider: ProviderOptions,
    /// The only roots that vouch for the provider. `None` means the roots of this machine.
    pub provider_ca: Option<PathBuf>,
    pub rules: LoginRules,
    /// The address for logins: HTTPS with the daemon's SVID.
    pub listen: SocketAddr,
}

/// The addresses on which the daemon listens, and the directory of its state.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address for gRPC over mutual TLS.
    pub grpc: SocketAddr,
    /// The address for `/livez`, `/readyz` and `/metrics`, without TLS.
    pub probe: SocketAddr,
    /// The ledger's directory. It is made if it is missing.
    pub state: PathBuf,
    pub room: RoomConfig,
}

/// The bounds of the gRPC listener. One SPIFFE ID may use no more of a bound than what it leaves free for all others,
/// so at most half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomConfig {
    /// The highest number of handshakes under way.
    pub handshakes_max: usize,
    /// The highest number of open connections of known callers.
    pub connections_max: usize,
    /// The highest number of open connections of one known SPIFFE ID.
    pub connections_per_peer_max: usize,
    /// The highest number of open connections of unknown callers.
    pub connections_unknown_max: usize,
    /// The number of connections that are reserved for operators.
    pub connections_operators_max: usize,
    /// The highest number of streams of one connection.
    pub streams_per_connection_max: u32,
    /// The highest number of requests in progress.
    pub requests_max: usize,
    /// The highest number of requests of one SPIFFE ID in progress.
    pub requests_per_peer_max: usize,
    /// The highest number of buffered bytes of requests and answers.
    pub buffered_bytes_max: usize,
    /// The highest number of buffered bytes for one SPIFFE ID.
    pub buffered_bytes_per_peer_max: usize,
}

/// The issuer of tokens, and the address of its discovery.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// The `iss` of every token: an origin with or without a path, without a slash at the end.
    pub url: String,
    pub listen: IssuerListen,
}

/// The listener for discovery and `/keys`.
#[derive(Clone, Debug)]
pub enum IssuerListen {
    /// TLS with a server certificate that web clients accept.
    Tls { address: SocketAddr, cert: PathBuf, key: PathBuf },
    /// Plain HTTP on a loopback address.
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
    /// The roots of each trust domain, from files. Never empty if the daemon's own SVID comes from files too, because
    /// clients could not connect without roots.
    pub bundles: BTreeMap<TrustDomain, PathBuf>,
    /// Bundle endpoints of foreign trust domains.
    pub federation: Vec<BundleEndpoint>,
    /// The only trust domains that are accepted, even if the agent has bundles of others. `None` if all are accepted.
    pub trust_domains: Option<BTreeSet<TrustDomain>>,
    /// The longest accepted life of an SVID.
    pub max_svid_ttl: Duration,
    /// The time for which the daemon waits for its first SVID when it starts.
    pub wait: Duration,
    /// The time for which the last good SVID and roots are used while their source fails.
    pub outage_max: Duration,
}

/// The source of the daemon's own SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityFrom {
    /// Files with the chain, leaf first, and its key.
    Files { cert: PathBuf, key: PathBuf },
    /// The SPIFFE Workload API, with the bundles of its agent. If `endpoint` is `None`, the variable
    /// `SPIFFE_ENDPOINT_SOCKET` names the socket.
    WorkloadApi { endpoint: Option<WorkloadEndpoint>, pick: Pick },
}

/// The source of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyFrom {
    /// The files in `policy.dir`.
    Files,
    /// The policy that `leasehold policy apply` applied last. Until then, the files in `policy.dir`.
    Applied,
}

/// The policies and the catalog with which the daemon decides.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    pub source: PolicyFrom,
    /// The directory of Cedar policies.
    pub dir: PathBuf,
    pub catalog: PathBuf,
    /// The trusted public keys. One of them must have signed the policy. If it is empty, a signature is not required.
    pub trusted_keys: Vec<PathBuf>,
    /// The callers to whom a refusal names the rule that refused.
    pub explain: Explain,
    /// Identities that may always lift locks, also a lock that shuts out these identities.
    pub break_glass: Vec<SpiffeId>,
}

/// The lifetimes of credentials, members and drains.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// The life of a credential, if the job sets no other.
    pub token_ttl: Duration,
    /// The time between two heartbeats of a member.
    pub beat: Duration,
    /// The number of missed heartbeats after which a member is away.
    pub lost_after: u32,
    /// The time for which a member that is away may come back to the same attempt.
    pub rejoin: Duration,
    /// The time for which reading goes on after the begin of a drain.
    pub drain_read: Duration,
}

/// The settings of the ledger.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// The number of bytes after which a new segment begins.
    pub segment_bytes: u64,
    /// Whether sealed segments are compressed.
    pub compress: bool,
    /// The number of free bytes on the ledger's disk below which nothing is issued.
    pub free_space_stop_bytes: u64,
    /// A file on another disk with a copy of the last signed head.
    pub head_copy: Option<PathBuf>,
    /// The KiB of records per second that one SPIFFE ID may cause, on average.
    pub rate_per_identity: u32,
    /// The KiB of records per second that one tenant may cause, on average.
    pub rate_per_tenant: u32,
    /// What the daemon does if, at its start, the directory has traces of a missing ledger. The configuration file cannot
    /// set this.
    pub lost: ledger::Lost,
}

impl LedgerConfig {
    /// Returns the options with which the ledger is opened.
    pub fn options(&self) -> ledger::Options {
        ledger::Options {
            segment_bytes: self.segment_bytes,
            compress: self.compress,
            lost: self.lost,
            ..ledger::Options::default()
        }
    }
}

/// The settings of the log on stderr.
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

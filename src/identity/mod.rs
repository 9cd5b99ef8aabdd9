//! Identities: our X.509-SVIDs and the SVIDs of peers, checked by the SPIFFE standards.
//!
//! This module contains the leaf and path rules, the roots of each trust domain, both TLS configurations, and [`Peer`].
//! No other module can make a [`Peer`]. A chain is verified against the roots of its trust domain only: no shared pool,
//! no system store, no host names, no resumed sessions. This module finds who a peer is; catalog and policy decide what
//! the peer may do. Its only sockets are those over which identities arrive. The module `link` serves and calls with
//! these identities.
//!
//! | File | Contains |
//! |---|---|
//! | `svid_error` | [`SvidError`]: one variant for each rule that a peer can break |
//! | `algorithm` | the keys and signatures that can be verified |
//! | `leaf` | [`Leaf`]: the facts of an SVID that kept the rules for leaves |
//! | `signing` | the rules for certificates that sign others |
//! | `load` | [`LoadError`]: reading identity files, and their faults |
//! | `bundle` | [`TrustBundles`]: the roots, by trust domain |
//! | `document` | [`BundleDocument`]: the roots of a trust domain as JSON |
//! | `handshake_cache` | the chains that a handshake has just verified |
//! | `path` | the path from a leaf to a root of its domain |
//! | `peer` | [`Peer`]: the witness |
//! | `svid` | [`X509Svid`]: our own SVID, with its key |
//! | `source` | [`IdentitySource`]: gives our own SVID and the bundles, and reports changes |
//! | `source_state` | [`SourceState`]: whether a source is up to date, and since when it fails |
//! | `file` | [`FileSource`]: from files, PEM or SPIFFE bundle documents, read again when they are rotated |
//! | `workload` | [`WorkloadSource`]: from the SPIFFE Workload API |
//! | `federation` | [`BundleSource`]: the roots of a foreign trust domain, from its bundle endpoint |
//! | `origin_status` | what a source over the network reports while it tries again |
//! | `combined` | [`CombinedSource`]: several sources as one |
//! | `origin` | [`IdentityOptions`]: where an identity comes from, as it is configured |
//! | `web` | the client of servers that are known by their host names |
//! | `verifier`, `tls` | the certificate verifiers and the configurations for rustls |

mod algorithm;
mod bundle;
mod combined;
mod document;
mod federation;
mod file;
mod handshake_cache;
mod leaf;
mod load;
mod origin;
mod origin_status;
mod path;
mod peer;
mod signing;
mod source;
mod source_state;
mod svid;
mod svid_error;
mod tls;
mod verifier;
mod web;
mod workload;

#[cfg(test)]
pub(crate) mod judge;
#[cfg(test)]
mod oracle;
#[cfg(test)]
pub(crate) mod testing;

pub use bundle::TrustBundles;
pub use combined::CombinedSource;
pub use document::BundleDocument;
pub use federation::{BundleEndpoint, BundleSource, EndpointProfile, EndpointUrl, EndpointUrlFault};
pub use file::{FileSource, IdentityFiles};
pub use leaf::Leaf;
pub use load::{LoadError, LoadFault};
pub use origin::{IdentityOptions, Origin};
pub use peer::Peer;
pub use source::{IdentitySource, NoIdentity, ReloadOutcome, StaticSource, Trust, wait_for_identity};
pub use source_state::{SourceState, Unusable};
pub use svid::X509Svid;
pub use svid_error::SvidError;
#[cfg(feature = "server")]
pub(crate) use tls::login_server_config;
pub use tls::{client_config, server_config};
#[cfg(feature = "server")]
pub(crate) use web::web_client;
pub use workload::{
    ENDPOINT_VARIABLE, EndpointFault, Pick, WorkloadEndpoint, WorkloadOptions, WorkloadSource,
};

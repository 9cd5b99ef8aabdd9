//! Who is there: X.509-SVIDs, ours and others', to the letter of the SPIFFE standards.
//!
//! Owns the leaf and path rules, the roots of each trust domain, both TLS configurations, and [`Peer`], which nothing
//! else can make. A chain is verified against the roots of its own trust domain and no others; there is no pool, no
//! system store, no host name, no resumed session. It says who a peer is, never what it may do: that is catalog and
//! policy. Its only sockets are those that identities come over: what is served and asked with them is `link`'s.
//!
//! | File | Noun |
//! |---|---|
//! | `refusal` | [`SvidError`]: one variant for each rule that a peer can break |
//! | `algorithm` | which keys and signatures can be verified |
//! | `leaf` | [`Leaf`]: what an SVID says, once it has kept the rules for leaves |
//! | `signing` | the rules for certificates that sign others |
//! | `bundle` | [`TrustBundles`]: the roots, by trust domain |
//! | `document` | [`BundleDocument`]: the roots of a trust domain as JSON |
//! | `fresh` | what a handshake has just verified |
//! | `path` | the way from a leaf to a root of its domain |
//! | `peer` | [`Peer`]: the witness |
//! | `svid` | [`X509Svid`]: our own, with its key |
//! | `source` | [`IdentitySource`]: where our own SVID and the bundles come from, and when they change |
//! | `standing` | [`Standing`]: how well a source knows what it shows |
//! | `first` | the wait for a first identity |
//! | `file` | [`FileSource`]: from files, PEM or SPIFFE bundle documents, followed as they are rotated |
//! | `workload` | [`WorkloadSource`]: from the SPIFFE Workload API |
//! | `federation` | [`BundleSource`]: the roots of a foreign trust domain, from its bundle endpoint |
//! | `origin` | [`IdentityOptions`]: where an identity comes from, as it is configured |
//! | `combined` | [`CombinedSource`]: several sources as one |
//! | `asked` | what is shown of an origin that has to be asked |
//! | `outage` | how long an origin has failed |
//! | `verifier`, `tls` | what rustls is given |

mod algorithm;
mod asked;
mod bundle;
mod combined;
mod document;
mod federation;
mod file;
mod first;
mod fresh;
mod leaf;
mod load;
mod origin;
mod outage;
mod path;
mod peer;
mod refusal;
mod signing;
mod source;
mod standing;
mod svid;
mod tls;
mod verifier;
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
pub use first::{NoIdentity, first_identity};
pub use leaf::Leaf;
pub use load::{LoadError, LoadFault};
pub use origin::{IdentityOptions, Origin};
pub use peer::Peer;
pub use refusal::SvidError;
pub use source::{IdentitySource, Reloaded, StaticSource, Trust};
pub use standing::{Standing, Unusable};
pub use svid::X509Svid;
pub use tls::{client_config, server_config};
pub use workload::{
    ENDPOINT_VARIABLE, EndpointFault, Pick, WorkloadEndpoint, WorkloadOptions, WorkloadSource,
};

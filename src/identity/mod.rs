//! Who is there: X.509-SVIDs, ours and others', to the letter of the SPIFFE standards.
//!
//! Owns the leaf and path rules, the roots of each trust domain, both TLS configurations, and [`Peer`], which nothing
//! else can make. A chain is verified against the roots of its own trust domain and no others; there is no pool, no
//! system store, no host name, no resumed session. It says who a peer is, never what it may do: that is catalog and
//! policy. No sockets either: `link` has them.
//!
//! | File | Noun |
//! |---|---|
//! | `refusal` | [`SvidError`]: one variant for each rule that a peer can break |
//! | `leaf` | [`Leaf`]: what an SVID says, once it has kept the rules for leaves |
//! | `signing` | the rules for certificates that sign others |
//! | `bundle` | [`TrustBundles`]: the roots, by trust domain |
//! | `path` | the way from a leaf to a root of its domain |
//! | `peer` | [`Peer`]: the witness |
//! | `svid` | [`X509Svid`]: our own, with its key |
//! | `source` | [`IdentitySource`]: where our own SVID and the bundles come from, and when they change |
//! | `file` | [`FileSource`]: from PEM files, followed as they are rotated |
//! | `verifier`, `tls` | what rustls is given |

mod bundle;
mod file;
mod leaf;
mod load;
mod path;
mod peer;
mod refusal;
mod signing;
mod source;
mod svid;
mod tls;
mod verifier;

#[cfg(test)]
pub(crate) mod judge;
#[cfg(test)]
mod oracle;
#[cfg(test)]
pub(crate) mod testing;

pub use bundle::TrustBundles;
pub use file::{FileSource, IdentityFiles, Reloaded};
pub use leaf::Leaf;
pub use load::{LoadError, LoadFault};
pub use peer::Peer;
pub use refusal::SvidError;
pub use source::{IdentitySource, StaticSource, Trust};
pub use svid::X509Svid;
pub use tls::{client_config, server_config};

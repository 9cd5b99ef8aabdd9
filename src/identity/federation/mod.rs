//! Bundle endpoints: the roots of foreign trust domains, fetched over HTTPS (SPIFFE Federation, sections 4, 5 and 7).
//!
//! URL, profile and trust domain are configured, none is guessed from another, and one profile never stands in for the
//! other. No redirect is followed. Only the client's side: an SVID's trust domain publishes its bundle with what makes it,
//! SPIRE or another issuer.
//!
//! | File | Noun |
//! |---|---|
//! | `endpoint` | [`BundleEndpoint`]: where a bundle is, and by what its server is known |
//! | `fetch` | one request for a document |
//! | `source` | [`BundleSource`]: the last good document, asked for anew as its publisher wants |

mod endpoint;
mod fetch;
mod source;

pub use endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl, EndpointUrlFault};
pub use source::BundleSource;

#[cfg(test)]
#[path = "federation_tests.rs"]
mod tests;

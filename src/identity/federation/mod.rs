//! Bundle endpoints: the roots of foreign trust domains, fetched over HTTPS (SPIFFE Federation, sections 4, 5 and 7).
//!
//! URL, profile and trust domain are configured independently. A profile never replaces the other profile, and
//! redirects are not followed. This is only the client side: the issuer of a trust domain, such as SPIRE, publishes its
//! bundle.
//!
//! | File | Contains |
//! |---|---|
//! | `endpoint` | [`BundleEndpoint`]: the URL of a bundle, and the authentication of its server |
//! | `fetch` | one request for a document |
//! | `source` | [`BundleSource`]: the last good document, polled as often as its publisher asks |

mod endpoint;
mod fetch;
mod source;

pub use endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl, EndpointUrlFault};
pub use source::BundleSource;

#[cfg(test)]
#[path = "federation_tests.rs"]
mod tests;

//! Bundle endpoints: the roots of foreign trust domains, fetched over HTTPS (SPIFFE Federation, sections 4, 5 and 7).
//!
//! URL, profile and trust domain are configured; none is derived from another. One profile is never used in place of the
//! other, and no redirect is followed. This is only the client side: the issuer of a trust domain, such as SPIRE, publishes
//! its bundle.
//!
//! | File | Noun |
//! |---|---|
//! | `endpoint` | [`BundleEndpoint`]: where a bundle is, and how its server is authenticated |
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

//! The SPIFFE Workload API as a source: our own SVID and the bundles from the agent of this machine, as they rotate.
//!
//! Speaks the X.509 profile over the socket with a client of its own, generated from the standard's definition. It looks at
//! each message once, with the rules of this module, so that what is refused is refused by the same names; it takes no
//! trust domain that is written in two ways for one, and compares the ID that an entry says with that of its certificate.
//!
//! | File | Noun |
//! |---|---|
//! | `endpoint` | [`WorkloadEndpoint`]: where the agent listens |
//! | `message` | one complete state, read whole or discarded |
//! | `stream` | one life of the stream, and how it ended |
//! | `source` | [`WorkloadSource`]: what is shown, through rotations, outages and refusals |

mod endpoint;
mod message;
mod source;
mod stream;

pub use endpoint::{ENDPOINT_VARIABLE, EndpointFault, WorkloadEndpoint};
pub use message::Pick;
pub use source::{WorkloadOptions, WorkloadSource};

/// The wire types of `proto/spiffe/workload.proto`.
#[allow(clippy::all, clippy::pedantic, clippy::indexing_slicing, missing_docs)]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/workload_client/_.rs"));

    /// Shows no key.
    impl std::fmt::Debug for X509svid {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("X509svid")
                .field("spiffe_id", &self.spiffe_id)
                .field("hint", &self.hint)
                .finish_non_exhaustive()
        }
    }
}

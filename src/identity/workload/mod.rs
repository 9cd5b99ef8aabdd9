//! The SPIFFE Workload API as a source: the agent of this machine gives our own SVID and the bundles, and rotates them.
//!
//! The client is generated from the definition in the standard and supports the X.509 profile. Each message is checked
//! by the rules of `identity`, so that its refusals have the same names. The ID of an entry must be the ID in its
//! certificate.
//!
//! | File | Contains |
//! |---|---|
//! | `endpoint` | [`WorkloadEndpoint`]: the address of the agent |
//! | `message` | a message: a complete state, accepted or discarded as a whole |
//! | `stream` | one stream, and how it ended |
//! | `source` | [`WorkloadSource`]: the source, through rotations, outages and refusals |

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

    /// Shows only the fields that contain no key.
    impl std::fmt::Debug for X509svid {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("X509svid")
                .field("spiffe_id", &self.spiffe_id)
                .field("hint", &self.hint)
                .finish_non_exhaustive()
        }
    }
}

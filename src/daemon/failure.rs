//! The reasons for which a daemon does not start.

use std::net::SocketAddr;

use super::{ConfigFaults, rules};
use crate::{
    gateway::{DirectFault, StoreFault},
    identity::{EndpointFault, LoadError, NoIdentity},
    ledger::{CopyError, HeadKeyError, LedgerError, OpenError},
    reason::Refusal,
    secret::NoRandomness,
    token::KeyError,
};

/// The reason for which the daemon did not start. It served nothing.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file with an SVID, a key or roots is missing or has a fault.
    #[error("the identity files cannot be used")]
    Identity(#[from] LoadError),
    /// `identity.workload_api` is not set, and the environment names no usable socket of a SPIFFE agent.
    #[error(
        "identity.workload_api is not set, and the SPIFFE socket that the environment names cannot be used"
    )]
    WorkloadApi(#[from] EndpointFault),
    /// No SVID arrived within `identity.wait`.
    #[error("the daemon has no SPIFFE identity")]
    NoIdentity(#[from] NoIdentity),
    /// A file or an address in the configuration cannot be used.
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
    /// The ledger is in use, was changed, or cannot be read or written.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The key that signs heads is missing, damaged or cannot be written.
    #[error("heads of the ledger cannot be signed")]
    HeadKey(#[from] HeadKeyError),
    /// The copy of the head cannot be read, or belongs to another ledger.
    #[error(transparent)]
    HeadCopy(#[from] CopyError),
    /// The ledger refused the first record of this run.
    #[error("the record of this start could not be written")]
    Epoch(#[source] LedgerError),
    /// The cryptography library (ring) could not make the key that signs tokens.
    #[error("no signing key could be made")]
    Key(#[from] KeyError),
    /// The operating system gave no random bytes for the nonce of this run or the secrets of the broker.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// An address of the configuration is in use, or does not belong to this machine.
    #[error("{address} cannot be used for the listener of {what}")]
    Listen {
        /// The service at this address.
        what: &'static str,
        /// The address of the configuration.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A store of the gateway cannot be opened, for example because a file with its key is missing.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The gateway's listener for clients without an SVID cannot serve, for example because its certificate is missing.
    #[error(transparent)]
    Direct(#[from] DirectFault),
    /// The gRPC services could not be joined, for example because reflection refused our descriptors.
    #[error("the gRPC services could not be made: {0}")]
    Services(String),
    /// The certificate authorities for a webhook's receiver cannot be used.
    #[error("a webhook cannot be used: {0}")]
    Webhook(String),
    /// A thread that read files for the start panicked.
    #[error("a thread of the start panicked: {0}")]
    BrokenOff(String),
}

/// Returns the refusal's text and each mistake, as one line for the log.
pub(super) fn with_mistakes(refusal: &Refusal) -> String {
    let mistakes = refusal.facts.iter().filter(|(label, _)| label == rules::MISTAKE);
    mistakes.fold(refusal.text.to_string(), |all, (_, mistake)| format!("{all}; {mistake}"))
}

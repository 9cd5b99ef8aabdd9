//! Why a daemon does not start.

use std::net::SocketAddr;

use super::{ConfigFaults, rules};
use crate::{
    identity::{EndpointFault, LoadError, NoIdentity},
    ledger::{CopyError, HeadKeyError, LedgerError, OpenError},
    reason::Refusal,
    secret::NoRandomness,
    token::KeyError,
};

/// Why the daemon did not start. Nothing was served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the identity files cannot be used")]
    Identity(#[from] LoadError),
    #[error("identity.workload_api is not written, so the socket is that of the environment")]
    WorkloadApi(#[from] EndpointFault),
    #[error("the daemon has no SPIFFE identity")]
    NoIdentity(#[from] NoIdentity),
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
    #[error(transparent)]
    Ledger(#[from] OpenError),
    #[error("heads of the ledger cannot be signed")]
    HeadKey(#[from] HeadKeyError),
    #[error(transparent)]
    HeadCopy(#[from] CopyError),
    #[error("the record of this start could not be written")]
    Epoch(#[source] LedgerError),
    #[error("no signing key could be made")]
    Key(#[from] KeyError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("{address} cannot be listened on for {what}")]
    Listen { what: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("the services could not be put together: {0}")]
    Services(String),
    #[error("the start was broken off: {0}")]
    BrokenOff(String),
}

/// The refusal's line and a line for each mistake.
pub(super) fn with_mistakes(refusal: &Refusal) -> String {
    let mistakes = refusal.facts.iter().filter(|(label, _)| label == rules::MISTAKE);
    mistakes.fold(refusal.text.to_string(), |all, (_, mistake)| format!("{all}\n{mistake}"))
}

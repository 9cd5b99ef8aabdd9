//! The wire types of `proto/leasehold/v1`, compiled at build time. Only the gRPC and HTTP servers, clients of the
//! daemon, and `verify` use these types. All other modules have their own.
//!
//! # A client
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use leasehold::{
//!     clock::{Clock, SystemClock},
//!     identity::{FileSource, IdentityFiles},
//!     link::{Connector, Endpoint, RotatingChannel, explain},
//!     proto::{DaemonRefusal, v1::{GetJobRequest, job_service_client::JobServiceClient}},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
//! let files = IdentityFiles {
//!     svid: Some(("svid.pem".into(), "svid.key".into())),
//!     bundles: vec![("leasehold.example".parse()?, "leasehold.pem".into())],
//! };
//! let source = Arc::new(FileSource::open(files, clock.clone())?);
//! let daemon = Endpoint::new("leasehold.example:8443", "spiffe://leasehold.example/daemon".parse()?)?;
//! let daemon = RotatingChannel::new(Connector::new(source, clock, daemon)); // connects at the first call
//!
//! let job = std::env::args().nth(1).unwrap_or_default();
//! match JobServiceClient::new(daemon.channel()).get_job(GetJobRequest { job }).await {
//!     Ok(answer) => println!("{:?}", answer.into_inner().job.map(|job| job.name)),
//!     Err(status) => match (explain(&status), DaemonRefusal::of(&status)) {
//!         (Some(why), _) => eprintln!("not connected: {why}"),
//!         (None, Some(refusal)) => eprintln!("refused: {}: {}", refusal.code, status.message()),
//!         (None, None) => eprintln!("{status}"),
//!     },
//! }
//! # Ok(())
//! # }
//! ```
//!
//! gRPC clients in Python, Node and Java check the host name in the server's certificate. A SPIFFE ID is not a host
//! name. Give the daemon's SVID a DNS name too (SPIRE's `-dns`), and connect by that name. Reflection serves all types,
//! including the types of a refusal's details (`google.rpc`).

pub mod convert;
mod refusal;

pub use refusal::{DaemonRefusal, transport_refusal};

/// The package `leasehold.v1`.
#[allow(clippy::all, clippy::pedantic, clippy::indexing_slicing, missing_docs)]
pub mod v1 {
    tonic::include_proto!("leasehold.v1");
}

/// The compiled descriptors, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

macro_rules! redacted {
    ($($t:ident { $($shown:ident),* })*) => {$(
        /// Shows only the fields that contain no secret.
        impl std::fmt::Debug for v1::$t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($t))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    )*};
}

redacted! {
    Session { job, attempt, instance }
    JoinAttemptRequest { job, attempt, instance }
    BeginAttemptRequest { job, key, supersede, members, joins }
    BeginAttemptResponse { attempt }
    DrainAttemptRequest { job, attempt, instance, grace, reason }
    EndAttemptRequest { job, attempt, instance, outcome, detail }
    IssueCredentialResponse { lease, token_expires }
    RenewLeaseResponse { lease, token_expires }
    IntrospectRequest { presenter }
    ResolveKeyResponse { }
    S3Key { access_key }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn no_message_with_a_secret_shows_it_in_its_debug() {
        let session = v1::Session { secret: b"5ecret".to_vec(), ..Default::default() };
        let shown = format!(
            "{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}",
            v1::KeepAliveRequest { session: Some(session.clone()), ..Default::default() },
            v1::IssueCredentialRequest { session: Some(session), ..Default::default() },
            v1::IssueCredentialResponse { token: "5ecret".into(), ..Default::default() },
            v1::BeginAttemptRequest { ticket: "5ecret".into(), ..Default::default() },
            v1::BeginAttemptResponse { ticket: "5ecret".into(), ..Default::default() },
            v1::JoinAttemptRequest { ticket: "5ecret".into(), ..Default::default() },
            v1::IntrospectRequest { token: "5ecret".into(), ..Default::default() },
            v1::S3Key { secret_key: "5ecret".into(), ..Default::default() },
            v1::ResolveKeyResponse { date_key: b"5ecret".to_vec() },
        );
        assert!(!shown.contains("5ecret") && !shown.contains("53, 101"), "{shown}");
    }
}

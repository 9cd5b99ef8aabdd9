//! Checks tokens without a call to the daemon: the part that a resource server embeds.
//!
//! This module owns the follower of the fence feed, the public keys, and the check of a token. A token passes if it is valid,
//! belongs to the daemon's present epoch, and has no fence that was lowered after the decision on its lease. A [`Verifier`]
//! decides from memory, and refuses everything that it cannot be sure of. An [`Introspector`] asks the daemon each time. This
//! module never issues or renews anything, never keeps a token, and never sees the policy.
//!
//! There is one background task, the follower. It ends when the last clone of its [`Verifier`] is dropped, or at
//! [`Verifier::shutdown`]. After its end, for whatever reason, everything is refused.
//!
//! # A resource server
//!
//! A started verifier answers three questions for each request. Does the token allow this action here, for this peer? Is that
//! still true before each part? Has the access ended meanwhile? A server asks these questions like this, over any transport:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use leasehold::{
//!     clock::{Clock, SystemClock},
//!     identity::{FileSource, IdentityFiles, IdentitySource, Peer},
//!     link::{Connector, Endpoint},
//!     name::{Action, JobId, Object, ResourceName},
//!     reason::Refusal,
//!     token::Presenter,
//!     verify::{VerifierSettings, Verifier},
//! };
//!
//! /// Uses our own SVID, which the catalog names as a verifier of our `[[audience]]`.
//! async fn start() -> Result<Verifier, Box<dyn std::error::Error>> {
//!     let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
//!     let files = IdentityFiles {
//!         svid: Some(("svid.pem".into(), "svid.key".into())),
//!         bundles: vec![("leasehold.example".parse()?, "leasehold.pem".into())],
//!     };
//!     let source = Arc::new(FileSource::open(files, clock.clone())?);
//!     tokio::spawn(source.clone().follow(Default::default())); // rotations need no restart
//!     let daemon = Endpoint::new("leasehold.example:8443", "spiffe://leasehold.example/daemon".parse()?)?;
//!     let connector = Connector::new(source, clock.clone(), daemon);
//!     let audience = "spiffe://acme.example/files".parse()?;
//!     let verifier = Verifier::start(VerifierSettings { connector, audience, clock });
//!     verifier.ready().await;
//!     Ok(verifier)
//! }
//!
//! /// `peer` is the peer of the request's connection, from `Peer::of_client` or `link::serve`.
//! async fn download(verifier: &Verifier, peer: &Peer, token: &str, parts: Vec<Vec<u8>>) -> Result<(), Refusal> {
//!     let presenter = Presenter::Svid { id: peer.spiffe_id(), x5t_s256: Some(peer.x5t_s256()) };
//!     let tickets = "dataset:acme/tickets@v3".parse().expect("it is a name");
//!     let access = verifier.check(token, presenter, &tickets, Action::ReadDataset).await?;
//!     for part in parts {
//!         access.check()?; // cheap: call it before each part
//!         tokio::select! {
//!             () = send(part) => {}
//!             refusal = access.ended() => return Err(refusal), // at once, even if the reader stalls
//!         }
//!     }
//!     Ok(())
//! }
//!
//! /// Several jobs share a checkpoint line. A token opens only the folder of the token's job, so the request names the job.
//! async fn delete(verifier: &Verifier, peer: &Peer, token: &str, line: ResourceName, job: JobId) -> Result<(), Refusal> {
//!     let presenter = Presenter::Svid { id: peer.spiffe_id(), x5t_s256: Some(peer.x5t_s256()) };
//!     verifier.check(token, presenter, &Object::folder(line, job), Action::DeleteCheckpoint).await?;
//!     remove().await;
//!     Ok(())
//! }
//! # async fn send(_: Vec<u8>) {}
//! # async fn remove() {}
//! ```
//!
//! `dev/file_server.rs` is a complete server over HTTP.
//!
//! # Files
//!
//! | File | Contains |
//! |---|---|
//! | `verifier` | [`Verifier`]: tokens in, [`Access`] out |
//! | `access` | [`Access`]: an allowed use, which is checked again while it lasts |
//! | `introspect` | [`Introspector`]: asks the daemon each time |
//! | `feed` | the follower: connects, reads, sends ticks, reconnects |
//! | `subscription` | one subscription, with its connection |
//! | `session` | the state machine of a subscription, without I/O |
//! | `feed_state` | the state of the feed, which the follower writes and checks read |
//! | `fences` | the lowered fences |
//! | `keys` | the public keys |
//! | `use_reporter` | reports what leases were used for |
//! | `key_resolver` | resolves the access keys of S3 clients |

mod access;
mod feed;
mod feed_state;
mod fences;
mod introspect;
#[cfg(feature = "server")]
mod key_resolver;
mod keys;
mod session;
mod subscription;
mod use_reporter;
mod verifier;

#[cfg(test)]
pub(crate) mod testing;

pub use access::Access;
pub use introspect::{Introspection, Introspector};
#[cfg(feature = "server")]
pub(crate) use key_resolver::KeyResolver;
pub use use_reporter::{Report, UseReporter};
pub use verifier::{Verifier, VerifierSettings};

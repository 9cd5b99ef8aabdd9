//! Checking tokens away from the daemon: what a resource server embeds.
//!
//! Owns the follower of the fence feed, the public keys, and the one question that every use of a token comes down to: is
//! it good in itself, of the daemon's present life, and was none of its fences lowered since its lease took its stand?
//! A [`Verifier`] answers from memory; what it does not know for sure it refuses. An [`Introspector`] asks the daemon each
//! time. Never issues or renews anything, never keeps a token, and never sees the policy.
//!
//! One background task, the follower. It ends when the last clone of its [`Verifier`] goes, or at
//! [`Verifier::shutdown`]; whatever ends it, everything is refused from then on.
//!
//! # A resource server
//!
//! Once a Verifier is started each request is three questions: is the token good for this, here, from this peer; is it still,
//! before each part; and has it ended meanwhile. A server of your own transport asks them like this:
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
//! /// With an SVID of our own, as the verifier that the catalog names, of our `[[audience]]`.
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
//! /// `peer` is of the connection that the request came on: `Peer::of_client`, or `link::serve`.
//! async fn download(verifier: &Verifier, peer: &Peer, token: &str, parts: Vec<Vec<u8>>) -> Result<(), Refusal> {
//!     let presenter = Presenter::Svid { id: peer.spiffe_id(), x5t_s256: Some(peer.x5t_s256()) };
//!     let tickets = "dataset:acme/tickets@v3".parse().expect("it is a name");
//!     let access = verifier.check(token, presenter, &tickets, Action::ReadDataset).await?;
//!     for part in parts {
//!         access.check()?; // loads from memory: ask it before each part
//!         tokio::select! {
//!             () = send(part) => {}
//!             refusal = access.ended() => return Err(refusal), // at once, also where the reader stands still
//!         }
//!     }
//!     Ok(())
//! }
//!
//! /// Several jobs share a line of checkpoints. A token opens the folder of its own job: the one that the request names is compared.
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
//! `dev/file_server.rs` is a whole one, over HTTP.
//!
//! # Where what is
//!
//! | File | Noun |
//! |---|---|
//! | `verifier` | [`Verifier`]: tokens in, [`Access`] out |
//! | `access` | [`Access`]: a use that was allowed, to be looked at again while it lasts |
//! | `introspect` | [`Introspector`]: the same question, put to the daemon |
//! | `feed` | the follower: connects, listens, ticks, comes back |
//! | `subscription` | one subscription, over the wire |
//! | `session` | one subscription, message by message |
//! | `feed_state` | what the follower has written and checks read |
//! | `fences` | the lowered fences |
//! | `keys` | the public keys |

mod access;
mod feed;
mod feed_state;
mod fences;
mod introspect;
mod keys;
mod session;
mod subscription;
mod verifier;

#[cfg(test)]
pub(crate) mod testing;

pub use access::Access;
pub use introspect::{Introspection, Introspector};
pub use verifier::{Verifier, VerifierSettings};

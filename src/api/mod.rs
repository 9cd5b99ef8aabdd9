//! The gRPC and HTTP edges: what goes over the wire, and nothing else.
//!
//! Reads requests into the words of the house, hands them to the broker, writes the answers. Decides nothing, keeps nothing.
//! Every refusal becomes a `google.rpc.Status` with an `ErrorInfo` whose reason is the [`Reason`](crate::reason::Reason)'s
//! code.
//!
//! | File | Noun |
//! |---|---|
//! | `service` | all of it as one service, with health and reflection |
//! | `edge` | [`Edge`]: what every call goes through: caller, room, deadline, a task of its own |
//! | `room` | [`EdgeRoom`]: requests, streams and bytes, of each caller and of all |
//! | `page` `outgoing` | a page of a list; the answers of a stream |
//! | `received` `sent` | the bodies of requests and answers, which count against that room |
//! | `job` `member` `operator` `verifier` | the services, one file each |
//! | `spec` | a job's specification, read with every mistake at once |
//! | `field` `times` `convert` | a field read; moments; the house's words as the wire's |
//! | `http` | discovery, keys and probes |

mod edge;
mod fields;
mod http;
mod job;
mod member;
mod messages;
mod operator;
mod request_body;
mod response;
mod room;
mod service;
mod spec;
mod verifier;

pub use edge::{Edge, Reloader};
pub use http::{MetricsText, NotReady, Readiness, issuer_routes, probe_routes};
pub use room::EdgeRoom;
pub use service::Service;

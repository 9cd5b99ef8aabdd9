//! The gRPC and HTTP servers: only the conversion between wire formats and the broker.
//!
//! The servers read requests into the crate's own types, call the broker and write the responses. They decide and store
//! nothing. Every refusal becomes a `google.rpc.Status` with an `ErrorInfo`, whose reason is the code of the
//! [`Reason`](crate::reason::Reason).
//!
//! | File | Contains |
//! |---|---|
//! | `service` | all gRPC services as one, with health and reflection |
//! | `edge` | [`Edge`]: the steps of every call: caller, capacity, deadline, separate task |
//! | `room` | [`EdgeRoom`]: limits on requests, streams and bytes, for each caller and for all together |
//! | `brake` | the wait before a caller that exceeds its share is refused |
//! | `request_body` | the body of a request, which counts against these limits |
//! | `response` | pages, streams and bodies of responses |
//! | `job` `member` `operator` `approval` `verifier` | the services, one file each |
//! | `policy` | the calls of `OperatorService` about policy |
//! | `spec` | a job's specification, read with all mistakes at once |
//! | `fields` `messages` | the fields of requests; the messages of responses |
//! | `http` `login` | discovery, keys and probes; people who log in |

mod approval;
mod brake;
mod edge;
mod fields;
mod http;
mod job;
mod login;
mod member;
mod messages;
mod operator;
mod policy;
mod reach;
mod request_body;
mod response;
mod room;
mod service;
mod spec;
mod verifier;

pub use edge::{Edge, Reloader};
pub use http::{MetricsText, NotReady, Readiness, ReadyNotes, issuer_routes, probe_routes};
pub use login::login_routes;
pub use room::EdgeRoom;

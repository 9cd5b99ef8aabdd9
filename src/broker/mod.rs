//! The use cases: the only floor that joins all floors below it.
//!
//! Each request is written once, in one order. A request for access reads the revision, names the fences, takes its **stand**,
//! reads the state, decides, records, inserts, and **looks again**. An end changes the state, lowers the fence, and answers.
//! This floor owns that order, the signing key of this run of the daemon, and the background work. It speaks no wire format.
//!
//! | File | What it holds |
//! |---|---|
//! | `context` | [`Broker`]: all that one run of the daemon holds |
//! | `caller` `access_request` `names` | [`Caller`]; the order of a request for access; the fences that it stands behind |
//! | `rules` `decide` | [`Rules`] and their reload; the questions to policy |
//! | `create` `launcher` `attempts` `members` `tickets` | a job from its creation over attempts and members to its end |
//! | `presence` `attachment` `reconnect_limiter` | which members are connected, their keep-alive streams, and how many may reconnect at once |
//! | `offer` `issue` `renew` `draft` `wording` | credentials: offered, issued, renewed, what both begin with, and what their tokens say |
//! | `introspect` `feed` | what verifiers ask, and which lowerings they get |
//! | `endings` `revocations` `locks` `lockout` `known` | how access ends; what operators end and lock; mistakes that are caught before |
//! | `queries` `listing` `job_filter` | reading |
//! | `denials` `refusals` `rates` | refused requests in the ledger; shared refusals; how much a caller may have recorded |
//! | `receipt` | what a caller waits with until a record is on disk |
//! | `background` | [`Task`]: the background work |

mod access_request;
mod attachment;
mod attempts;
mod background;
mod caller;
mod context;
mod create;
mod decide;
mod denials;
mod draft;
mod endings;
mod feed;
mod introspect;
mod issue;
mod job_filter;
mod known;
mod launcher;
mod listing;
mod lockout;
mod locks;
mod members;
mod names;
mod offer;
mod presence;
mod queries;
mod rates;
mod receipt;
mod reconnect_limiter;
mod refusals;
mod renew;
mod revocations;
mod rules;
mod tickets;
mod wording;

pub use attachment::{Attachment, Notice, NoticeKind};
pub use attempts::{BeginRequest, Concerned};
pub use background::Task;
pub use caller::Caller;
pub use context::{Broker, BrokerSettings};
pub use draft::Binding;
pub use endings::RecordedEnding;
pub use introspect::TokenVerdict;
pub use issue::IssueRequest;
pub use job_filter::{JobFilter, JobStateFilter};
pub use listing::{LeaseFilter, LeasePlace};
pub use locks::LockOrder;
pub use members::{JoinRequest, MemberSession};
pub use offer::Offer;
pub use queries::LeaseView;
pub use revocations::EndingOptions;
pub use rules::Rules;
pub use tickets::Tickets;

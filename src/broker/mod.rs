//! The use cases: the only floor that joins all below it.
//!
//! Each request is written once, in one order. What asks for access: read the revision, name the fences, **stand**, read the
//! state, decide, record, insert, **look again**. What ends access: change the state, lower, answer. Owns that order, the
//! signing key of this life of the daemon and the background work. Speaks no wire format: the edges do.
//!
//! | File | Noun |
//! |---|---|
//! | `context` | [`Broker`]: one life of the daemon, and what it is made of |
//! | `caller` | [`Caller`]: who asks, and whether they may |
//! | `create` `launched` `attempts` `members` | a job from its creation over attempts and members to its end |
//! | `presence` `attachment` `reconnect_limiter` | which members are there, the stream that says so, whose turn it is to come back |
//! | `issue` `renew` | credentials; `draft` is what both begin with, `wording` what their tokens say |
//! | `introspect` `feed` `reach` | what verifiers ask and are told, and whose lowerings concern them |
//! | `operate` `reload` | what operators do; `known` looks for typing errors, `lockout` for whom a lock shuts out |
//! | `queries` `listing` `job_filter` | looking |
//! | `rules` `names` `decide` `tickets` | [`Rules`], the fences of a lease, the questions to policy, the tickets of attempts |
//! | `denials` `refusals` | refused requests in the ledger; what several use cases refuse with |
//! | `receipt` | what a caller waits with until a record is on disk |
//! | `background` | [`Task`]: the work that nobody asks for |

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
mod launched;
mod listing;
mod lockout;
mod locks;
mod members;
mod names;
mod presence;
mod queries;
mod rates;
mod reach;
mod receipt;
mod reconnect_limiter;
mod refusals;
mod reload;
mod renew;
mod revocations;
mod rules;
mod tickets;
mod wording;

pub use attachment::{Attachment, Notice, NoticeKind};
pub use attempts::{Began, BeginRequest, Concerned, EndAnswer};
pub use background::Task;
pub use caller::Caller;
pub use context::{Broker, BrokerSettings};
pub use create::{CreatedJob, PartDecision};
pub use draft::Binding;
pub use introspect::TokenVerdict;
pub use issue::{Bound, IssueRequest, Issued};
pub use job_filter::{JobFilter, JobStateFilter};
pub use listing::{LeaseFilter, LeasePage, LeasePlace};
pub use locks::{LockOrder, Locked};
pub use members::{JoinRequest, JoinedMember, MemberSession, Offer};
pub use queries::{LeaseView, WhoAmI};
pub use reload::RulesReloaded;
pub use renew::Renewed;
pub use revocations::{EndingOptions, Revoked};
pub use rules::Rules;
pub use tickets::Tickets;

//! The use cases: the only floor that joins all below it.
//!
//! Each request is written once, in one order. What asks for access: read the revision, name the fences, **stand**, read the
//! state, decide, record, insert, **look again**. What ends access: change the state, lower, answer. Owns that order, the
//! signing key of this life of the daemon and the background work. Speaks no wire format: the edges do.

mod attempts;
mod background;
mod caller;
mod context;
mod create;
mod decide;
mod denials;
mod draft;
mod feed;
mod introspect;
mod issue;
mod listing;
mod members;
mod names;
mod operate;
mod queries;
mod reload;
mod renew;
mod tickets;
mod turns;

pub use attempts::{Began, Concerned, Ended};
pub use background::Task;
pub use caller::Caller;
pub use context::{Broker, Rules, Settings};
pub use create::{CreatedJob, PartDecision};
pub use introspect::{Introspected, Verdict};
pub use issue::{Binding, Bound, IssueRequest, Issued, Renewed};
pub use listing::{LeasePage, LeasePlace};
pub use members::{Attachment, JoinedMember, Notice, NoticeKind, Offer, Session};
pub use operate::{Locked, Revoked};
pub use queries::{LeaseView, WhoAmI};
pub use reload::Reloaded;
pub use tickets::Tickets;

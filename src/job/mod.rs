//! Jobs and their attempts: states and legal moves.
//!
//! Owns what a job is and which states it can reach. Pure: no clock, no await, no I/O. The broker decides who may do
//! what. A transition is decided against a [`Job`] and returns the [`Change`]s that make it. The same changes in the
//! same order always give the same job; this is how jobs are rebuilt after a restart.
//!
//! ```text
//! Job      AwaitingApproval → Ready ⇄ Running → Closed
//! Attempt  Running ⇄ Suspended, either → Draining, any → Ended
//! Member   Joined ⇄ Away → Left | Lost
//! ```
//!
//! | File | Noun |
//! |---|---|
//! | `spec` | [`Spec`]: what its launcher asked for |
//! | `state` `roster` | [`Job`], [`Attempt`], [`Member`]; the members of an attempt |
//! | `approval` | [`Gate`] and [`Approval`]: what holds a job back, and who let it pass |
//! | `emergency` | [`Emergency`]: the gates that one person opened without approvals |
//! | `transitions` `illegal` | which transitions are legal, and the changes that each makes; why others are not |
//! | `uses` | [`JobUses`]: what a job did with each resource |
//! | `change` | [`Change`], and applying one |

mod approval;
mod change;
mod emergency;
mod illegal;
mod roster;
mod spec;
mod state;
#[cfg(test)]
pub(crate) mod testing;
mod transitions;
mod uses;

pub use approval::{Approval, Approver, Gate, count_people};
pub use change::Change;
pub use emergency::{Emergency, GlassBreaker};
pub use illegal::Illegal;
pub use roster::{Roster, member_bytes};
pub use spec::{DoneWhen, Members, ParamSweep, Spec, Tuning};
pub use state::{
    Attempt, AttemptState, Drain, EndedMembership, Input, Job, JobState, Member, MemberState, SweepPlace,
};
pub use transitions::{Begin, Close, DrainSpans, End, Join};
pub use uses::{JobUses, ReportedUse, ResourceUse};

//! Jobs and their attempts: states and legal moves.
//!
//! This module defines jobs and their states. It is pure: it uses no clock, is not async and does no I/O. The broker
//! decides who may do what. A transition checks a [`Job`] and returns the [`Change`]s to make. The same changes in the
//! same order always give the same job, so jobs can be rebuilt after a restart.
//!
//! ```text
//! Job      AwaitingApproval → Ready ⇄ Running → Closed
//! Attempt  Running ⇄ Suspended, either → Draining, any → Ended
//! Member   Joined ⇄ Away → Left | Lost
//! ```
//!
//! | File | Contains |
//! |---|---|
//! | `spec` | [`Spec`]: the specification from the launcher |
//! | `state` `roster` | [`Job`], [`Attempt`], [`Member`]; the members of an attempt |
//! | `approval` | [`Gate`] and [`Approval`]: the gates of a job, and the people who approved |
//! | `emergency` | [`Emergency`]: the gates that one person opened without approvals |
//! | `transitions` `illegal` | the legal transitions with their changes; the reasons for which others are illegal |
//! | `lineage` | [`Lineage`]: the origin of the checkpoints that a job reads |
//! | `uses` | [`JobUses`]: the use of each resource by a job |
//! | `change` | [`Change`]: the changes of a job, and their effects |

mod approval;
mod change;
mod emergency;
mod illegal;
mod lineage;
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
pub use lineage::Lineage;
pub use roster::{Roster, member_bytes};
pub use spec::{DoneWhen, Members, ParamSweep, Spec, Tuning};
pub use state::{
    Attempt, AttemptState, Drain, EndedMembership, Input, Job, JobState, Member, MemberState, SweepPlace,
};
pub use transitions::{Begin, Close, DrainSpans, End, Join};
pub use uses::{JobUses, ReportedUse, ResourceUse};

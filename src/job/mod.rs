//! Jobs and their attempts: states and legal moves.
//!
//! Owns what a job is and what may become of it. Pure: no clock, no await, no I/O, and no say in who may: that is the
//! broker's question. A move is decided against a [`Job`] as it stands and answers the [`Change`]s that make it; applying
//! the same changes in the same order always gives the same job, which is how it is rebuilt after a restart.
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
//! | `transitions` | which moves are legal, and the changes that each makes |
//! | `change` | [`Change`], and applying one |

mod change;
mod roster;
mod spec;
mod state;
mod transitions;

pub use change::Change;
pub use roster::{Roster, member_bytes};
pub use spec::{DoneWhen, Members, Spec, Tuning};
pub use state::{Attempt, AttemptState, Drain, Gate, Input, Job, JobState, Member, MemberState};
pub use transitions::{Begin, Close, DrainSpans, End, Illegal, Join};

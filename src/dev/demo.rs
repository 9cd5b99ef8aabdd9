//! Stories, on real connections and processes: each claim with what was observed and how long it took.
//!
//! A daemon and wrappers run as processes of their own; the file server and the one who tells the story run here. Nothing is
//! said that was not seen: a claim whose observation fails makes the whole fail.
//!
//! | File | Noun |
//! |---|---|
//! | `story` | `Story`: a story being told, and the claims that each one has |
//! | `path` | the story of one credential, from its issue on |
//! | `endings` | all the ways in which that one ends |
//! | `jobs` | the story of a job with several members, as jobs really run |
//! | `team` | `Team`: the wrappers of one attempt |
//! | `child` | the child that the wrappers run |
//! | `daemon` | the daemon, as a process |
//! | `calls` | who takes part, over gRPC |
//! | `watch` | what is waited for: tokens refused, processes there and gone |

mod calls;
mod child;
mod daemon;
mod endings;
mod jobs;
mod path;
mod story;
mod team;
mod watch;

use std::{path::PathBuf, sync::Arc};

pub use child::await_word;

use super::DevDeployment;
use crate::clock::Clock;

/// The stories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StoryName {
    /// One credential, from its issue to each way in which it ends
    Path,
    /// A job with four members: one dies, one is preempted, all are requeued, the daemon is killed
    Jobs,
}

/// Tells one. `report` hears each claim as it was observed; the answer is whether all of them hold.
pub async fn tell(
    name: StoryName,
    stage: &Stage,
    report: &mut (dyn FnMut(&Claim) + Send),
) -> Result<bool, String> {
    match name {
        StoryName::Path => path::tell(stage, report).await,
        StoryName::Jobs => jobs::tell(stage, report).await,
    }
}

/// What a story needs.
pub struct Stage {
    pub house: Arc<DevDeployment>,
    pub clock: Arc<dyn Clock>,
    /// This very program: the daemon, the wrapper and the child are run from it.
    pub program: PathBuf,
    /// The contexts file that the wrapper finds its daemon by.
    pub contexts: PathBuf,
}

/// One claim, and what was seen of it.
#[derive(Clone, Debug)]
pub struct Claim {
    pub claim: &'static str,
    pub observed: String,
    pub ms: f64,
    pub holds: bool,
}

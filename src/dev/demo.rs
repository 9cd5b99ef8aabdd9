//! The stories of the demo, with real connections and processes. A claim in a story is a statement about the daemon (not a
//! claim of a token). Each claim is shown with what was observed and how long it took.
//!
//! The daemon and the wrappers are separate processes. The file server and the story run in this process. If a claim is not
//! observed, the demo fails.
//!
//! | File | Contains |
//! |---|---|
//! | `story` | `Story`: a running story, and the claims that every story has |
//! | `path` | the story of one credential, from its issue on |
//! | `bucket` | an S3 download, and how it is cut |
//! | `endings` | all the ways in which the access of a credential ends |
//! | `jobs` | the story of a job with four members |
//! | `governance` | the story of a tune that people must approve, and of a recall |
//! | `people` | `People`: who approves in the story `governance`, and the entries of its catalog |
//! | `team` | `Team`: the wrappers of one attempt |
//! | `child` | the command that the wrappers run |
//! | `daemon` | the process of the daemon |
//! | `calls` | the gRPC calls of a story |
//! | `watch` | waiting until a token is refused, or a process has started or ended |

mod bucket;
mod calls;
mod child;
mod daemon;
mod endings;
mod governance;
mod jobs;
mod path;
mod people;
mod story;
mod team;
mod watch;

use std::{path::PathBuf, sync::Arc};

pub use bucket::download_slowly;
pub(super) use calls::{DemoMember, describe};
pub use child::await_exit_code;

use super::DevDeployment;
use crate::clock::Clock;

/// The stories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StoryName {
    /// One credential, from its issue to each way in which it ends
    Path,
    /// A job with four members: one dies, one is preempted, all are requeued, the daemon is killed
    Jobs,
    /// A tune of a production model: people approve it, it runs, and its dataset is recalled
    Governance,
}

/// Runs a story. Calls `report` with each claim. Returns whether all claims were observed.
pub async fn run(
    name: StoryName,
    stage: &Stage,
    report: &mut (dyn FnMut(&Claim) + Send),
) -> Result<bool, String> {
    match name {
        StoryName::Path => path::run(stage, report).await,
        StoryName::Jobs => jobs::run(stage, report).await,
        StoryName::Governance => governance::run(stage, report).await,
    }
}

/// The things that a story needs.
pub struct Stage {
    /// The identities, configuration and folders of the daemon.
    pub deployment: Arc<DevDeployment>,
    /// The clock of this process.
    pub clock: Arc<dyn Clock>,
    /// The path of this program. The daemon, the wrappers and their children are started from it.
    pub program: PathBuf,
    /// The contexts file that the wrappers use.
    pub contexts: PathBuf,
}

/// A claim, and what was observed for it.
#[derive(Clone, Debug)]
pub struct Claim {
    pub claim: &'static str,
    pub observed: String,
    pub ms: f64,
    pub holds: bool,
}

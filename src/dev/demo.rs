//! The whole story, on real connections and processes: each claim with what was observed and how long it took.
//!
//! A daemon and wrappers run as processes of their own; the file server and the one who tells the story run here. Nothing is
//! said that was not seen: a claim whose observation fails makes the whole fail.

mod calls;
mod endings;
mod story;
mod watch;

use std::{path::PathBuf, sync::Arc};

pub use story::tell;
pub use watch::await_word;

use super::Household;
use crate::clock::Clock;

/// What the story needs.
pub struct Stage {
    pub house: Arc<Household>,
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

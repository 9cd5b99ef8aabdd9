//! How well a source knows what it shows.

use std::time::Duration;

use crate::clock::{BootTime, Wall};

/// How a source stands with its origin: the files, the Workload API, the bundle endpoint. `why` is a line for people; it
/// never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// What is shown is what the origin says.
    Good,
    /// Nothing has come yet, and may still come.
    Awaited { why: String },
    /// The origin cannot be asked, or answers what cannot be used. The last good is shown, until the limit.
    Stale { since: Wall, why: String },
    /// The origin has taken our identity away, or will never give one. Roots are still shown, until the limit.
    Ended { since: Wall, why: String },
    /// It was stale, or ended, for longer than the limit: nothing is shown, and nobody is trusted.
    GivenUp { since: Wall, why: String },
}

impl SourceState {
    /// Why a source that was just made has nothing.
    pub(super) const NOT_ASKED_YET: &str = "it was not asked yet";

    /// The state of a source until its first answer.
    pub(super) fn not_asked_yet() -> Self {
        SourceState::Awaited { why: Self::NOT_ASKED_YET.to_owned() }
    }

    /// The one word for it, as in logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            SourceState::Good => "good",
            SourceState::Awaited { .. } => "awaited",
            SourceState::Stale { .. } => "stale",
            SourceState::Ended { .. } => "ended",
            SourceState::GivenUp { .. } => "given-up",
        }
    }

    /// Why it is not good.
    pub fn why(&self) -> Option<&str> {
        match self {
            SourceState::Good => None,
            SourceState::Awaited { why }
            | SourceState::Stale { why, .. }
            | SourceState::Ended { why, .. }
            | SourceState::GivenUp { why, .. } => Some(why),
        }
    }
}

/// Why no connection can be made or accepted with an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("there is no SVID yet: {why}")]
    Awaited { why: String },
    #[error("our SVID ended at {not_after} and no other came{}", because(.why.as_deref()))]
    Expired { not_after: Wall, why: Option<String> },
    #[error("our SVID is not valid before {not_before}: compare the clocks")]
    NotYetValid { not_before: Wall },
    #[error("our identity was taken away: {why}")]
    Ended { why: String },
    #[error("the source of our identity failed for longer than the limit, so nobody is trusted: {why}")]
    GivenUp { why: String },
    #[error("this process has no SVID of its own")]
    Absent,
}

fn because(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!(": {why}"))
}

/// The time since an origin could last be asked, measured on boottime: no clock that is set makes it longer or shorter.
#[derive(Debug)]
pub(super) struct Outage {
    began: Option<(Wall, BootTime)>,
    longest: Duration,
}

impl Outage {
    pub(super) fn new(longest: Duration) -> Self {
        Outage { began: None, longest }
    }

    /// It fails; answers when that began.
    pub(super) fn since(&mut self, wall: Wall, boot: BootTime) -> Wall {
        self.began.get_or_insert((wall, boot)).0
    }

    pub(super) fn over(&mut self) {
        self.began = None;
    }

    /// When it began, where that is longer ago than the limit.
    pub(super) fn too_long(&self, now: BootTime) -> Option<Wall> {
        self.began.filter(|(_, boot)| now.since(*boot) > self.longest).map(|(wall, _)| wall)
    }
}

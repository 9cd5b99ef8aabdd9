//! Whether a source is up to date.

use std::time::Duration;

use crate::clock::{BootTime, Wall};

/// Whether a source shows the present answer of its origin. The origin is files, the Workload API or a bundle endpoint. `why`
/// is a line for people and never contains a secret. The limit of an outage is the `outage_max` of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// The source shows the present answer of the origin.
    Good,
    /// The origin has not answered yet, but may still answer.
    Awaited {
        /// The reason, for people.
        why: String,
    },
    /// The origin does not answer, or its answer is unusable. The last good answer is shown until the limit.
    Stale {
        /// The begin of the outage.
        since: Wall,
        /// The reason, for people.
        why: String,
    },
    /// The origin has revoked our identity, or will never issue one. Roots are shown until the limit.
    Ended {
        /// The begin of the outage.
        since: Wall,
        /// The reason, for people.
        why: String,
    },
    /// The source was stale or ended for longer than the limit. Nothing is shown, so no peer is trusted.
    GivenUp {
        /// The begin of the outage.
        since: Wall,
        /// The reason, for people.
        why: String,
    },
}

impl SourceState {
    /// The reason before the first answer.
    pub(super) const NOT_ASKED_YET: &str = "it has not been asked yet";

    /// Returns the state of a source until its first answer.
    pub(super) fn not_asked_yet() -> Self {
        SourceState::Awaited { why: Self::NOT_ASKED_YET.to_owned() }
    }

    /// Returns the word for the state in logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            SourceState::Good => "good",
            SourceState::Awaited { .. } => "awaited",
            SourceState::Stale { .. } => "stale",
            SourceState::Ended { .. } => "ended",
            SourceState::GivenUp { .. } => "given-up",
        }
    }

    /// Returns the reason, if the state is not good.
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

/// The reasons for which an identity cannot open or accept connections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The origin has not answered yet: [`SourceState::Awaited`].
    #[error("there is no SVID yet: {why}")]
    Awaited {
        /// The reason, for people.
        why: String,
    },
    /// Our SVID expired before the origin gave a new one.
    #[error("our SVID expired at {not_after} and was not renewed{}", because(.why.as_deref()))]
    Expired {
        /// The NotAfter of our SVID.
        not_after: Wall,
        /// The reason, if the state of the source is not good.
        why: Option<String>,
    },
    /// Our clock is behind the issuer's clock.
    #[error("our SVID is not valid before {not_before}: compare the clocks")]
    NotYetValid {
        /// The NotBefore of our SVID.
        not_before: Wall,
    },
    /// The origin has ended our identity: [`SourceState::Ended`].
    #[error("our identity was revoked: {why}")]
    Ended {
        /// The reason, for people.
        why: String,
    },
    /// The outage of the origin was too long: [`SourceState::GivenUp`].
    #[error("the source of our identity failed for longer than the limit, so no peer is trusted: {why}")]
    GivenUp {
        /// The reason, for people.
        why: String,
    },
    /// The source has no SVID: this process only verifies.
    #[error("this process has no SVID")]
    Absent,
}

fn because(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!(": {why}"))
}

/// The time for which an origin has failed. It is measured on boottime, so a change of the wall clock does not affect
/// it.
#[derive(Debug)]
pub(super) struct Outage {
    began: Option<(Wall, BootTime)>,
    longest: Duration,
}

impl Outage {
    pub(super) fn new(longest: Duration) -> Self {
        Outage { began: None, longest }
    }

    /// Begins the outage, unless it is under way. Returns the time of its begin.
    pub(super) fn begin(&mut self, wall: Wall, boot: BootTime) -> Wall {
        self.began.get_or_insert((wall, boot)).0
    }

    pub(super) fn end(&mut self) {
        self.began = None;
    }

    /// Returns the begin of the outage, if the outage is longer than the limit.
    pub(super) fn overdue_since(&self, now: BootTime) -> Option<Wall> {
        self.began.filter(|(_, boot)| now.since(*boot) > self.longest).map(|(wall, _)| wall)
    }
}

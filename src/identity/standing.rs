//! How well a source knows what it shows.

use crate::clock::Wall;

/// How a source stands with its origin: the files, the Workload API, the bundle endpoint. `why` is a line for people; it
/// never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
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

impl Standing {
    /// The one word for it, as in logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Standing::Good => "good",
            Standing::Awaited { .. } => "awaited",
            Standing::Stale { .. } => "stale",
            Standing::Ended { .. } => "ended",
            Standing::GivenUp { .. } => "given-up",
        }
    }

    /// Why it is not good.
    pub fn why(&self) -> Option<&str> {
        match self {
            Standing::Good => None,
            Standing::Awaited { why }
            | Standing::Stale { why, .. }
            | Standing::Ended { why, .. }
            | Standing::GivenUp { why, .. } => Some(why),
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

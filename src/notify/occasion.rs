//! The occasions of notices.

use std::{fmt, str::FromStr};

/// What happened, in one word. The configuration uses these words, and the type of a notice ends in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Occasion {
    /// A job was created, or a change of the rules proposed, that people must approve.
    Waiting,
    /// A person approved a job or a change.
    Granted,
    /// An approver rejected a job or a change.
    Denied,
    /// An approval no longer counts, a job waited too long and was closed, or a change was withdrawn or is void.
    Voided,
    /// A dataset was recalled, or a recall was cancelled.
    Recalled,
    /// An operator ended access, by a revocation, by a lock or by closing a job. Or an operator lifted a lock.
    Revoked,
    /// A member of a job is lost. Or a job was closed, because its members are gone and no one reported how its work ended.
    Lost,
    /// The daemon refused a request. Further refusals of the same caller, call and reason within a minute share one notice.
    Refused,
}

impl Occasion {
    /// All occasions.
    pub const ALL: [Occasion; 8] = [
        Occasion::Waiting,
        Occasion::Granted,
        Occasion::Denied,
        Occasion::Voided,
        Occasion::Recalled,
        Occasion::Revoked,
        Occasion::Lost,
        Occasion::Refused,
    ];

    /// Returns the word for the occasion.
    pub const fn as_str(self) -> &'static str {
        match self {
            Occasion::Waiting => "waiting",
            Occasion::Granted => "granted",
            Occasion::Denied => "denied",
            Occasion::Voided => "voided",
            Occasion::Recalled => "recalled",
            Occasion::Revoked => "revoked",
            Occasion::Lost => "lost",
            Occasion::Refused => "refused",
        }
    }
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Occasion {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Occasion::ALL.into_iter().find(|o| o.as_str() == text).ok_or_else(|| {
            let words: Vec<&str> = Occasion::ALL.iter().map(|o| o.as_str()).collect();
            format!("`{}` is not known: write one of {}", crate::plain::value(text), words.join(", "))
        })
    }
}

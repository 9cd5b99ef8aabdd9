//! `[run]`: what the wrapper keeps for itself.

use std::{fmt, str::FromStr, time::Duration};

use nix::sys::signal::Signal;

use super::fields::{AtLine, Fields, Noted};
use crate::{
    limits::{
        DRAIN_GRACE_MAX, JOB_DURATION_MAX, REJOIN, SPEC_LIST_MAX, TERM_GRACE_DEFAULT, TERM_GRACE_MAX, TTL_MIN,
    },
    written::shown,
};

/// How the wrapper treats its child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSettings {
    pub on_revoke: OnRevoke,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Time for checkpoint writes after the first SIGTERM. None takes the daemon's.
    pub drain: Option<Duration>,
    /// What asks the child to finish when a drain begins. None is SIGTERM.
    pub drain_signal: Option<Signal>,
    /// How long to go on coming back to the same attempt.
    pub rejoin: Duration,
    /// Standing cloud credentials that the child inherits all the same, by the name of their variable.
    pub keep_env: Vec<String>,
}

impl Default for RunSettings {
    fn default() -> Self {
        RunSettings {
            on_revoke: OnRevoke::Term,
            grace: TERM_GRACE_DEFAULT,
            drain: None,
            drain_signal: None,
            rejoin: REJOIN,
            keep_env: Vec::new(),
        }
    }
}

/// What happens to the child when its access was revoked. The access is gone in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRevoke {
    /// SIGTERM, and SIGKILL after the grace.
    Term,
    /// SIGKILL at once.
    Kill,
    /// Nothing: a notebook.
    Ignore,
}

impl OnRevoke {
    pub const fn as_str(self) -> &'static str {
        match self {
            OnRevoke::Term => "term",
            OnRevoke::Kill => "kill",
            OnRevoke::Ignore => "ignore",
        }
    }
}

impl fmt::Display for OnRevoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OnRevoke {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [OnRevoke::Term, OnRevoke::Kill, OnRevoke::Ignore]
            .into_iter()
            .find(|o| o.as_str() == text)
            .ok_or_else(|| format!("`{}` stands here: write \"term\", \"kill\" or \"ignore\"", shown(text)))
    }
}

/// A signal that a program can catch, by its name with or without `SIG`.
fn drain_signal(text: &str) -> Result<Signal, String> {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    let all = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    all.into_iter().find(|signal| signal.as_str().strip_prefix("SIG") == Some(name)).ok_or_else(|| {
        format!("`{}` stands here: write one of TERM, INT, HUP, QUIT, USR1, USR2", shown(text))
    })
}

/// Reads the settings, and the drain with its line, which the job is told too.
pub(super) fn read(root: &mut Fields, noted: &mut Noted) -> (RunSettings, Option<AtLine<Duration>>) {
    const GATEWAY: &str = "comes with the S3 gateway and is not served yet: remove it";
    let mut run = RunSettings::default();
    let Some(mut fields) = root.table("run", "run.", noted) else { return (run, None) };
    if let Some(on_revoke) = fields.text("on_revoke", noted, str::parse) {
        run.on_revoke = on_revoke.value;
    }
    if let Some(grace) = fields.span("grace", Duration::ZERO..=TERM_GRACE_MAX, noted) {
        run.grace = grace.value;
    }
    let drain = fields.span("drain", TTL_MIN..=DRAIN_GRACE_MAX, noted);
    run.drain = drain.as_ref().map(|d| d.value);
    run.drain_signal = fields.text("drain_signal", noted, drain_signal).map(|signal| signal.value);
    if let Some(rejoin) = fields.span("rejoin", TTL_MIN..=JOB_DURATION_MAX, noted) {
        run.rejoin = rejoin.value;
    }
    run.keep_env = fields.texts("keep_env", SPEC_LIST_MAX, noted, |name| {
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        plain.then(|| name.to_owned()).ok_or_else(|| {
            format!("`{}` is not the name of a variable: write one name, without `*`", shown(name))
        })
    });
    // What the gateway would do anyhow may be said already.
    fields.text("on_away", noted, |t| {
        if t == "hold" { Ok(()) } else { Err(format!("`{}` {GATEWAY}", shown(t))) }
    });
    fields.text("hold_max", noted, |t| match humantime::parse_duration(t) {
        Ok(d) if d == Duration::from_secs(8 * 60) => Ok(()),
        _ => Err(format!("`{}` {GATEWAY}", shown(t))),
    });
    fields.finish(noted);
    (run, drain)
}

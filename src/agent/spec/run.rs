//! `[run]`: the settings for the wrapper. The daemon gets only `drain` of them.

use std::{fmt, str::FromStr, time::Duration};

use nix::sys::signal::Signal;

use super::folder::LocalFolder;
use crate::{
    limits::{
        DRAIN_GRACE_MAX, FORWARD_HOLD, FORWARD_HOLD_MAX, JOB_DURATION_MAX, REJOIN, SPEC_LIST_MAX,
        TERM_GRACE_DEFAULT, TERM_GRACE_MAX, TTL_MIN,
    },
    plain,
    written::{Notes, Section, span},
};

/// How the wrapper treats its child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSettings {
    pub on_revoke: OnRevoke,
    /// The time from SIGTERM to SIGKILL.
    pub grace: Duration,
    /// The time for checkpoint writes after the first signal that asks to finish. `None` uses the time in the job's specification,
    /// or the default.
    pub drain: Option<Duration>,
    /// The signal that asks the child to finish when a drain begins. `None` is SIGTERM.
    pub drain_signal: Option<Signal>,
    /// How long to retry after the connection was lost.
    pub rejoin: Duration,
    /// How long the local S3 endpoint holds a request while the daemon or the gateway cannot be reached.
    pub hold_max: Duration,
    /// The variables with standing credentials that the child inherits.
    pub keep_env: Vec<String>,
    /// The variables that the child does not inherit, besides those that the wrapper removes.
    pub scrub: Vec<String>,
    /// The folders into which resources are copied before the command starts.
    pub stage: Vec<LocalFolder>,
    /// The folders whose files are uploaded while the command runs.
    pub sync: Vec<LocalFolder>,
}

impl Default for RunSettings {
    fn default() -> Self {
        RunSettings {
            on_revoke: OnRevoke::Term,
            grace: TERM_GRACE_DEFAULT,
            drain: None,
            drain_signal: None,
            rejoin: REJOIN,
            hold_max: FORWARD_HOLD,
            keep_env: Vec::new(),
            scrub: Vec::new(),
            stage: Vec::new(),
            sync: Vec::new(),
        }
    }
}

impl RunSettings {
    /// Returns the keys of the job file that the daemon does not get and that differ from the default. The daemon gets `drain` as a
    /// part of the job.
    pub fn keys_of_file(&self) -> Vec<&'static str> {
        let RunSettings {
            on_revoke,
            grace,
            drain: _,
            drain_signal,
            rejoin,
            hold_max,
            keep_env,
            scrub,
            stage,
            sync,
        } = RunSettings::default();
        let keys = [
            ("read.stage", self.stage != stage),
            ("write.sync", self.sync != sync),
            ("run.on_revoke", self.on_revoke != on_revoke),
            ("run.grace", self.grace != grace),
            ("run.drain_signal", self.drain_signal != drain_signal),
            ("run.rejoin", self.rejoin != rejoin),
            ("run.hold_max", self.hold_max != hold_max),
            ("run.keep_env", self.keep_env != keep_env),
            ("run.scrub", self.scrub != scrub),
        ];
        keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// Applies the names of the command line, which take precedence over the names of the job file.
    #[must_use]
    pub fn with_variables(mut self, keep: &[String], scrub: &[String]) -> Self {
        self.keep_env.retain(|name| !scrub.contains(name));
        self.scrub.retain(|name| !keep.contains(name));
        self.keep_env.extend_from_slice(keep);
        self.scrub.extend_from_slice(scrub);
        self
    }

    /// The signal that asks the work to finish when an operator drains the job. `None` sends no signal.
    pub(in crate::agent) fn signal_to_finish(&self) -> Option<Signal> {
        match self.on_revoke {
            OnRevoke::Term | OnRevoke::Kill => Some(self.drain_signal.unwrap_or(Signal::SIGTERM)),
            OnRevoke::Ignore => self.drain_signal,
        }
    }
}

/// What happens to the child after its access was revoked. In each case the access has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRevoke {
    /// The child gets SIGTERM, and SIGKILL after the grace.
    Term,
    /// The child gets SIGKILL at once.
    Kill,
    /// The child goes on, for example a notebook.
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
            .ok_or_else(|| {
                format!("`{}` is not known: write \"term\", \"kill\" or \"ignore\"", plain::value(text))
            })
    }
}

/// Parses the name of a signal that a program can catch, with or without `SIG`.
fn drain_signal(text: &str) -> Result<Signal, String> {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    let all = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    all.into_iter().find(|signal| signal.as_str().strip_prefix("SIG") == Some(name)).ok_or_else(|| {
        format!("`{}` is not known: write one of TERM, INT, HUP, QUIT, USR1, USR2", plain::value(text))
    })
}

/// Reads the name of a variable, as `keep_env` and `scrub` list it.
pub fn variable_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then(|| text.to_owned()).ok_or_else(|| {
        format!("`{}` is not the name of a variable: write one name, without `*`", plain::value(text))
    })
}

pub(super) fn read(root: &mut Section<'_>, notes: &mut Notes) -> RunSettings {
    let mut run = RunSettings::default();
    let Some(mut table) = root.section_if_there("run", notes) else { return run };
    if let Some(on_revoke) = table.text("on_revoke", notes, str::parse) {
        run.on_revoke = on_revoke;
    }
    if let Some(grace) = table.text("grace", notes, |t| span(t, Duration::ZERO..=TERM_GRACE_MAX)) {
        run.grace = grace;
    }
    run.drain = table.text("drain", notes, |t| span(t, TTL_MIN..=DRAIN_GRACE_MAX));
    run.drain_signal = table.text("drain_signal", notes, drain_signal);
    if let Some(rejoin) = table.text("rejoin", notes, |t| span(t, TTL_MIN..=JOB_DURATION_MAX)) {
        run.rejoin = rejoin;
    }
    let keep = table.list("keep_env", SPEC_LIST_MAX, notes, variable_name);
    let scrub = table.list("scrub", SPEC_LIST_MAX, notes, variable_name);
    for name in scrub.iter().filter(|name| keep.iter().any(|kept| kept.value == name.value)) {
        notes.problem(
            name.line,
            format!("run.scrub: `{}` is in keep_env too: remove it from one of them", name.value),
        );
    }
    run.keep_env = keep.into_iter().map(|name| name.value).collect();
    run.scrub = scrub.into_iter().map(|name| name.value).collect();
    table.text("on_away", notes, |t| match t {
        "hold" => Ok(()),
        _ => Err(format!("`{}` is not known: write \"hold\", or leave it out", plain::value(t))),
    });
    if let Some(hold) = table.text("hold_max", notes, |t| span(t, Duration::ZERO..=FORWARD_HOLD_MAX)) {
        run.hold_max = hold;
    }
    table.finish(notes);
    run
}

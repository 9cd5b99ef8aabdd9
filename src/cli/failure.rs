//! The failure of a command, in words for its user.

use std::{borrow::Cow, fmt::Write as _, path::Path};

use serde_json::{Map, Value, json};

use super::{Exit, output::Page};
use crate::{
    plain,
    reason::{Reason, Refusal},
    secret::redacted,
    written::Problems,
};

/// The failure of a command. It is shown on stderr:
///
/// ```text
/// leasehold: denied: this job may not read dataset:acme/tickets@v3
///   code   POLICY_DENIED
///   you    spiffe://k8s.acme.example/ns/ml/sa/tuner
///   rule   tenant-read-own-or-shared-data: this dataset may be used for: support-tuning
///   fix    set purpose = "support-tuning" in the job file if that is true
/// Nothing was changed.
/// ```
#[derive(Clone, Debug)]
pub struct Failure {
    /// The reason that the daemon gave. `None` if the daemon gave no answer.
    pub reason: Option<Reason>,
    pub text: Cow<'static, str>,
    /// Lines with labels, in order. An empty label marks a line of a list.
    pub facts: Vec<(Cow<'static, str>, String)>,
    pub exit: Exit,
    pub effect: Effect,
}

/// What a failed command has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// The answer was lost, so the change may have happened.
    Unknown,
    /// A text that the command has set.
    Said(Cow<'static, str>),
}

impl Effect {
    pub fn text(&self) -> &str {
        match self {
            Effect::Nothing => "Nothing was changed.",
            Effect::Unknown => {
                "The answer was lost, so the change may have been made: check before you try again."
            }
            Effect::Said(text) => text,
        }
    }
}

/// The labels that come first, in this order. Other labels follow in the order in which they were added. `fix` is last.
const FIRST: [&str; 5] = ["", CODE, "you", "asked", "rule"];
/// The label of the code by which documents and runbooks name a refusal.
pub(super) const CODE: &str = "code";

impl Failure {
    /// Makes a failure that did not come from the daemon.
    pub fn new(exit: Exit, text: impl Into<Cow<'static, str>>) -> Self {
        Failure { reason: None, text: text.into(), facts: Vec::new(), exit, effect: Effect::Nothing }
    }

    /// Makes a failure for a mistake on the command line, or in a file that it names.
    pub fn usage(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Exit::Usage, text)
    }

    #[must_use]
    pub fn with(mut self, label: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.facts.push((label.into(), value.into()));
        self
    }

    #[must_use]
    pub fn fix(self, value: impl Into<String>) -> Self {
        self.with("fix", value)
    }

    /// Replaces the fix with a more specific text.
    #[must_use]
    pub fn fix_instead(mut self, value: impl Into<String>) -> Self {
        self.facts.retain(|(label, _)| label != "fix");
        self.fix(value)
    }

    /// Replaces the line that says what was changed.
    #[must_use]
    pub fn saying(mut self, effect: impl Into<Cow<'static, str>>) -> Self {
        self.effect = Effect::Said(effect.into());
        self
    }

    /// Changes the failure into the failure of a `run` that started no command. The exit code is 125, as with `env` and
    /// `docker`.
    #[must_use]
    pub fn before_the_command(self) -> Self {
        Failure { exit: Exit::Child(125), ..self }.saying("Nothing was started, no access was given.")
    }

    /// Whether a retry may succeed, because nothing was decided.
    pub(super) fn is_passing(&self) -> bool {
        self.reason.is_some_and(Reason::is_passing)
    }

    /// Makes a failure for a file with mistakes, one line each.
    pub fn of_problems(what: String, problems: impl Iterator<Item = String>) -> Self {
        problems.fold(Self::usage(what), |failure, line| failure.with("", line))
    }

    /// Makes a failure for a file that cannot be read.
    pub(super) fn of_unreadable(file: &Path, what: &str) -> Self {
        let failure = Self::usage(format!("{} {what}", plain::path(file)));
        if what.starts_with("cannot be read") {
            failure.fix("name a file that exists and that this user may read")
        } else {
            failure
        }
    }

    /// Returns the facts in the order in which they are shown, without the code of the reason.
    fn ordered(&self) -> Vec<(&str, &str)> {
        let place = |label: &str| match label {
            "fix" => FIRST.len() + 1,
            _ => FIRST.iter().position(|l| *l == label).unwrap_or(FIRST.len()),
        };
        let mut facts: Vec<_> = self.facts.iter().map(|(l, v)| (l.as_ref(), v.as_str())).collect();
        facts.sort_by_key(|(label, _)| place(label));
        facts
    }

    /// Returns the text for people, without a newline at its end. Withholds texts that look like secrets, and escapes control
    /// characters.
    pub fn render(&self) -> String {
        // `run` exits with 125 after every refusal, so its exit code does not tell a denial from an error. The reason does.
        let kind = match self.reason.map_or(self.exit, Exit::of) {
            Exit::Denied | Exit::AwaitingApproval => "denied",
            _ => "error",
        };
        let mut facts = self.ordered();
        let at = facts.iter().take_while(|(label, _)| label.is_empty()).count();
        facts.splice(at..at, self.reason.map(|reason| (CODE, reason.code())));
        let width = facts.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0).max(5) + 2;
        let mut out = format!("leasehold: {kind}: {}\n", plain::message(&self.text));
        for (label, value) in facts {
            let (label, value) = (plain::line(label), plain::message(value));
            // Writing to a String never fails.
            let _ = match label.is_empty() {
                true => writeln!(out, "  {value}"),
                false => writeln!(out, "  {label:<width$}{value}"),
            };
        }
        out.push_str(&plain::message(self.effect.text()));
        out
    }

    /// Returns the page to print.
    pub(super) fn page(&self) -> Page {
        Page::verbatim(format!("{}\n", self.render()))
    }

    /// Returns the value for programs. Withholds texts that look like secrets.
    pub fn to_json(&self) -> Value {
        let mut facts = Map::new();
        let mut lines = Vec::new();
        for (label, value) in self.ordered() {
            let value = redacted(value);
            match (label, facts.get_mut(label)) {
                ("", _) => lines.push(Value::from(value)),
                (_, Some(Value::String(before))) => {
                    before.push('\n');
                    before.push_str(&value);
                }
                _ => {
                    facts.insert(label.to_owned(), Value::from(value));
                }
            }
        }
        let mut error = json!({
            "reason": self.reason.map(Reason::code),
            "message": redacted(&self.text),
            "facts": facts,
            "effect": redacted(self.effect.text()),
            "exit": self.exit.code(),
        });
        if let (false, Some(error)) = (lines.is_empty(), error.as_object_mut()) {
            error.insert("problems".to_owned(), Value::Array(lines));
        }
        json!({ "error": error })
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure {
            reason: Some(refusal.reason),
            text: refusal.text,
            facts: refusal.facts,
            exit: Exit::of(refusal.reason),
            effect: Effect::Nothing,
        }
    }
}

impl From<Problems> for Failure {
    fn from(errors: Problems) -> Self {
        let problems = errors.problems();
        if let [only] = problems
            && only.line == 0
        {
            return Failure::of_unreadable(&only.file, &only.what);
        }
        let file = problems.first().map(|p| plain::path(&p.file)).unwrap_or_default();
        Failure::of_problems(mistakes(&file, problems.len()), problems.iter().map(ToString::to_string))
    }
}

/// Returns a text such as `job.toml has 2 mistakes`.
pub(super) fn mistakes(what: &str, count: usize) -> String {
    match count {
        1 => format!("{what} has a mistake"),
        n => format!("{what} has {n} mistakes"),
    }
}

#[cfg(test)]
#[path = "failure_tests.rs"]
mod tests;

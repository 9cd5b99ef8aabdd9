//! The environment of the child: what the wrapper sets, and the standing credentials that the child does not inherit. A
//! standing credential is a key or password that gives access without a lease.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
};

use super::standing::{Inheritance, inheritance};
use crate::{limits::NAMES_SHOWN_MAX, plain};

/// The variables that the wrapper sets or reads for one job. An inherited value belongs to another job, or is only for the
/// wrapper.
const WRAPPER_VARIABLES: &[&str] = &[
    "LEASEHOLD_ATTEMPT",
    "LEASEHOLD_ATTEMPT_KEY",
    "LEASEHOLD_BUNDLE",
    "LEASEHOLD_CREDENTIALS",
    "LEASEHOLD_DRAIN_FILE",
    "LEASEHOLD_JOB",
    "LEASEHOLD_SVID_CERT",
    "LEASEHOLD_SVID_KEY",
    "LEASEHOLD_TOKEN_FILE_READING",
    "LEASEHOLD_TOKEN_FILE_WRITING",
];

/// The beginning of the names of all variables that name token files.
const TOKEN_FILES: &str = "LEASEHOLD_TOKEN_FILE";

/// The variables about which the user has decided.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvChoice<'a> {
    /// The variables of `keep_env`. The child inherits them with any content.
    pub keep: &'a [String],
    /// The variables of `scrub`. They are removed with any content.
    pub scrub: &'a [String],
}

/// The differences between the child's environment and the wrapper's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildEnvironment {
    /// The variables that are set for the child. No value is a secret.
    pub set: Vec<(OsString, OsString)>,
    /// The variables that are removed from the child's environment.
    pub removed: BTreeSet<OsString>,
    /// The removed variables that contain standing credentials.
    credentials: BTreeSet<String>,
    /// Variables with standing credentials that the child inherits, and about which the user has not decided.
    standing: BTreeSet<String>,
}

impl ChildEnvironment {
    /// Decides about each inherited variable. The variables that belong to the wrapper are always removed.
    pub fn new(
        inherited: impl IntoIterator<Item = (OsString, OsString)>,
        choice: EnvChoice<'_>,
        set: Vec<(OsString, OsString)>,
    ) -> Self {
        let mut env = ChildEnvironment { set, ..ChildEnvironment::default() };
        let is_in = |list: &[String], name: &OsStr| list.iter().any(|one| OsStr::new(one) == name);
        for (name, value) in inherited {
            let text = name.to_string_lossy().into_owned();
            if WRAPPER_VARIABLES.contains(&text.as_str()) || text.starts_with(TOKEN_FILES) {
                env.removed.insert(name);
                continue;
            }
            let fate = match () {
                () if is_in(choice.scrub, &name) => Inheritance::Removed,
                () if is_in(choice.keep, &name) => Inheritance::Plain,
                () => inheritance(&text, &value.to_string_lossy()),
            };
            match fate {
                Inheritance::Plain => {}
                Inheritance::Named => drop(env.standing.insert(text)),
                Inheritance::Removed => {
                    env.removed.insert(name);
                    env.credentials.insert(text);
                }
            }
        }
        env
    }

    /// Decides about the environment of this process.
    pub fn of_this_process(choice: EnvChoice<'_>, set: Vec<(OsString, OsString)>) -> Self {
        Self::new(std::env::vars_os(), choice, set)
    }

    /// Removes variables that are no credentials, but would divert programs from what the wrapper sets.
    #[must_use]
    pub fn without(mut self, names: &[&str], choice: EnvChoice<'_>) -> Self {
        let is_kept = |name: &str| choice.keep.iter().any(|kept| kept == name);
        self.removed.extend(names.iter().filter(|name| !is_kept(name)).map(OsString::from));
        self
    }

    /// Makes messages with the names of the standing credentials: those that were removed, and those that the command keeps.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        let removed = (!self.credentials.is_empty()).then(|| {
            format!(
                "standing credentials are not passed on: {}; to pass one: --keep-env NAME, or keep_env in [run]",
                listed(&self.credentials)
            )
        });
        let kept = (!self.standing.is_empty()).then(|| {
            format!(
                "the command keeps standing credentials: {}; to remove one: --scrub NAME, or scrub in [run]",
                listed(&self.standing)
            )
        });
        removed.into_iter().chain(kept)
    }
}

/// Lists a limited number of names, and counts the rest.
fn listed(names: &BTreeSet<String>) -> String {
    let shown: Vec<_> = names.iter().take(NAMES_SHOWN_MAX).map(|name| plain::value(name)).collect();
    match names.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(names: &[&str]) -> Vec<(OsString, OsString)> {
        names.iter().map(|name| (name.into(), "a-long-value".into())).collect()
    }

    fn names(list: &[&str]) -> BTreeSet<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn standing_credentials_are_removed_or_named() {
        let all = inherited(&[
            "PATH",
            "AWS_REGION",
            "aws_secret_access_key",
            "HF_TOKEN",
            "HF_HOME",
            "WANDB_API_KEY",
        ]);
        let env = ChildEnvironment::new(all, EnvChoice::default(), Vec::new());
        assert_eq!(env.removed, names(&["aws_secret_access_key", "HF_TOKEN"]));
        insta::assert_snapshot!(env.notices().collect::<Vec<_>>().join("\n"), @"
        standing credentials are not passed on: HF_TOKEN, aws_secret_access_key; to pass one: --keep-env NAME, or keep_env in [run]
        the command keeps standing credentials: WANDB_API_KEY; to remove one: --scrub NAME, or scrub in [run]
        ");
    }

    #[test]
    fn keep_env_and_scrub_decide_before_the_table() {
        let (keep, scrub) =
            (["AWS_PROFILE".into(), "GH_TOKEN".into()], ["WANDB_API_KEY".into(), "HOME".into()]);
        let all = inherited(&["AWS_PROFILE", "AWS_SESSION_TOKEN", "GH_TOKEN", "WANDB_API_KEY", "HOME"]);
        let env = ChildEnvironment::new(all, EnvChoice { keep: &keep, scrub: &scrub }, Vec::new());
        assert_eq!(env.removed, names(&["AWS_SESSION_TOKEN", "HOME", "WANDB_API_KEY"]));
        assert_eq!(env.standing, BTreeSet::new(), "the user knows of it");
    }

    #[test]
    fn variables_of_an_outer_wrapper_are_removed() {
        let keep = ["LEASEHOLD_JOB".into()];
        let choice = EnvChoice { keep: &keep, scrub: &[] };
        let stale = [WRAPPER_VARIABLES, &["LEASEHOLD_TOKEN_FILE", "LEASEHOLD_TOKEN_FILE_READING_2"]].concat();
        let env = ChildEnvironment::new(inherited(&stale), choice, Vec::new());
        assert_eq!(env.removed, names(&stale));
        assert_eq!(env.notices().next(), None);
    }

    #[test]
    fn a_message_names_a_bounded_number_of_credentials() {
        let many: Vec<_> = (0..1_000).map(|n| format!("A{n:04}_TOKEN")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let env = ChildEnvironment::new(inherited(&many), EnvChoice::default(), Vec::new());
        assert_eq!(env.removed.len(), 1_000);
        let notice = env.notices().next().unwrap();
        assert!(
            notice.contains(&format!("and {} more", 1_000 - NAMES_SHOWN_MAX)) && notice.len() < 1_000,
            "{notice}"
        );
    }
}

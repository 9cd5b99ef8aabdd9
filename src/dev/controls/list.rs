//! The controls, read from their file.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::name::{PrincipalKind, SpiffeId};

/// The file, as it is shipped.
const TEXT: &str = include_str!("../../../docs/controls.toml");

/// All controls, and what their steps use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlList {
    /// Who takes steps: a context for each.
    pub who: Vec<LabIdentity>,
    /// Files that each control finds in its folder. `${n}` stands for its number.
    pub file: BTreeMap<String, String>,
    /// What is added to the shipped catalog file of a tenant.
    #[serde(default)]
    pub catalog: BTreeMap<String, String>,
    pub control: Vec<Control>,
}

/// One identity of the lab.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabIdentity {
    pub name: String,
    pub id: SpiffeId,
    pub kind: String,
}

/// One control.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub number: u32,
    /// What must hold, in one sentence.
    pub name: String,
    /// The feature that makes it hold.
    #[serde(default)]
    pub feature: String,
    /// The tests that prove it, by name.
    #[serde(default)]
    pub tests: Vec<String>,
    #[serde(default)]
    pub step: Vec<Step>,
    /// What is missing, and what would provide it.
    pub lacks: Option<String>,
    /// Why the control is not here at all, and what would provide it.
    pub not_here: Option<String>,
}

/// One step: a command, or a file that is written for one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Who takes it: a name of `who`, or `job`, the workload of this control.
    #[serde(rename = "as")]
    pub by: Option<String>,
    /// The arguments of `leasehold`, as in a shell: words, and `'…'` for a word with blanks.
    pub run: Option<String>,
    /// The exit code that it must have.
    pub exit: i32,
    /// What it must print, on either stream.
    pub says: Option<String>,
    /// What it must not print.
    pub hides: Option<String>,
    /// A name for the first word that it prints. Later steps write it as `${NAME}`.
    pub keep: Option<String>,
    /// A name for a command that runs while later steps are taken. It must print a line when it is ready.
    pub stays: Option<String>,
    /// The name of a command that must end by now, with `exit`.
    pub ends: Option<String>,
    /// A file to write, from another one.
    pub write: Option<String>,
    pub from: Option<String>,
    /// What to replace in it.
    pub swap: BTreeMap<String, String>,
}

/// How much of a control holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All of it.
    Held,
    /// A part of it.
    Part,
    /// Nothing of it.
    NotHere,
}

impl Standing {
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::Held => "held",
            Standing::Part => "in part",
            Standing::NotHere => "not here",
        }
    }
}

impl Control {
    pub fn standing(&self) -> Standing {
        match (&self.not_here, &self.lacks) {
            (Some(_), _) => Standing::NotHere,
            (None, Some(_)) => Standing::Part,
            (None, None) => Standing::Held,
        }
    }
}

impl LabIdentity {
    /// The kind that the catalog gives it.
    ///
    /// # Errors
    /// The file names no kind of principal.
    pub fn kind(&self) -> Result<PrincipalKind, String> {
        self.kind.parse().map_err(|e: crate::name::NameError| e.to_string())
    }
}

impl ControlList {
    /// Reads the file that is shipped in this program.
    ///
    /// # Errors
    /// It has a mistake, which a test finds before a release.
    pub fn shipped() -> Result<Self, String> {
        toml::from_str(TEXT).map_err(|e| format!("docs/controls.toml: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    // Each control up to 50 is in the list once, with a test and a command, or with the reason why it is not here.
    #[test]
    fn each_control_is_there_with_a_test_or_a_reason() {
        let list = ControlList::shipped().unwrap();
        let numbers: Vec<u32> = list.control.iter().map(|c| c.number).collect();
        assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
        for control in &list.control {
            let number = control.number;
            let is_absent = control.standing() == Standing::NotHere;
            assert_eq!(is_absent, control.tests.is_empty(), "{number}: tests");
            assert_eq!(is_absent, control.step.is_empty(), "{number}: steps");
            assert_eq!(is_absent, control.feature.is_empty(), "{number}: feature");
            let reason = control.lacks.as_ref().or(control.not_here.as_ref());
            assert!(reason.is_none_or(|why| why.len() > 20), "{number}: {reason:?}");
        }
    }

    #[test]
    fn each_step_is_one_thing_by_someone_who_exists() {
        let list = ControlList::shipped().unwrap();
        let who: BTreeSet<&str> = list.who.iter().map(|w| w.name.as_str()).chain(["job"]).collect();
        for (control, step) in list.control.iter().flat_map(|c| c.step.iter().map(move |s| (c.number, s))) {
            let kinds = [step.run.is_some(), step.write.is_some(), step.ends.is_some()];
            assert_eq!(kinds.iter().filter(|is| **is).count(), 1, "{control}: {step:?}");
            assert!(step.by.as_deref().is_none_or(|by| who.contains(by)), "{control}: {step:?}");
        }
        assert!(list.who.iter().all(|w| w.kind().is_ok()));
    }
}

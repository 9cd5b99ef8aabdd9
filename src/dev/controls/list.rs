//! The controls, read from their file.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::name::{PrincipalKind, SpiffeId};

/// The text of the shipped file.
const TEXT: &str = include_str!("../../../docs/controls.toml");

/// All controls, and the identities and files that their steps use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlList {
    /// The people and workloads that take steps. Each has a context.
    pub who: Vec<LabIdentity>,
    /// The files that are written into the folder of each control. `${n}` in them means the number of the control.
    pub file: BTreeMap<String, String>,
    /// Text that is added to the shipped catalog file of a tenant.
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
    /// The rule of the control, in one sentence.
    pub name: String,
    /// The feature that enforces the rule.
    #[serde(default)]
    pub feature: String,
    /// The names of the tests that prove the rule.
    #[serde(default)]
    pub tests: Vec<String>,
    #[serde(default)]
    pub step: Vec<Step>,
    /// What is missing, and what would provide it.
    pub lacks: Option<String>,
    /// Why the control does not exist here, and what would provide it.
    pub not_here: Option<String>,
}

/// One step: a command, or a file that is written for a command.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Who takes the step: a name of `who`, or `job` for the workload of this control.
    #[serde(rename = "as")]
    pub by: Option<String>,
    /// The arguments of `leasehold`, as in a shell: words, and `'…'` for a word with blanks.
    pub run: Option<String>,
    /// The exit code that the command must have.
    pub exit: i32,
    /// The text that the command must print, on either stream.
    pub says: Option<String>,
    /// The text that the command must not print.
    pub hides: Option<String>,
    /// A name for the first word that the command prints. Later steps write it as `${NAME}`.
    pub keep: Option<String>,
    /// A name for a command that runs while later steps are taken. The command must print a line when it is ready.
    pub stays: Option<String>,
    /// The name of a command that runs since an earlier step (`stays`). It must end in this step, with the exit code `exit`.
    pub ends: Option<String>,
    /// The file to write, made from another file.
    pub write: Option<String>,
    pub from: Option<String>,
    /// The texts to replace in the file.
    pub swap: BTreeMap<String, String>,
}

/// How much of a control is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All of the control is enforced.
    Held,
    /// A part of the control is enforced.
    Part,
    /// No part of the control is enforced.
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
    /// Returns the role that the catalog gives the identity.
    ///
    /// # Errors
    /// Fails if the file names no known role.
    pub fn kind(&self) -> Result<PrincipalKind, String> {
        self.kind.parse().map_err(|e: crate::name::NameError| e.to_string())
    }
}

impl ControlList {
    /// Reads the file that is shipped in this program.
    ///
    /// # Errors
    /// Fails if the file has a mistake. A test finds such a mistake before a release.
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

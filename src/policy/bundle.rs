//! A policy bundle: the texts of the files of a policy, and of its test cases.

use std::path::Path;

use super::{PolicySource, PolicyText, SIGNATURE_FILE, SignedBundle, cases::case_files, texts_digest};
use crate::{
    limits::{NAME_BYTES_MAX, POLICY_FILES_MAX, POLICY_SIGNATURE_BYTES_MAX},
    plain::value,
    written::read_regular_text,
};

/// The files of a policy directory. Each list is in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyBundle {
    /// The policies: the `.cedar` files.
    pub policies: Vec<PolicyText>,
    /// The test cases: the `.toml` files.
    pub cases: Vec<PolicyText>,
    /// The text of [`SIGNATURE_FILE`], if the bundle is signed.
    pub signatures: Option<String>,
}

impl PolicyBundle {
    /// Reads a directory. Does not check the content of the files.
    ///
    /// # Errors
    /// A line for each file that cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Vec<String>> {
        let policies = PolicySource::Dir(dir.to_owned()).read();
        let policies =
            policies.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let cases = case_files(dir).map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let cases = cases.into_iter().map(|(file, text)| PolicyText { file, text }).collect();
        let file = dir.join(SIGNATURE_FILE);
        let signatures = match file.exists() {
            true => {
                let text = read_regular_text(&file, POLICY_SIGNATURE_BYTES_MAX);
                Some(text.map_err(|why| vec![format!("{SIGNATURE_FILE}: it {why}")])?)
            }
            false => None,
        };
        Ok(PolicyBundle { policies, cases, signatures })
    }

    /// Returns the signatures, with the digest of the test cases. `None` if the bundle is not signed.
    pub fn signed(&self) -> Option<SignedBundle> {
        let signatures = self.signatures.clone()?;
        Some(SignedBundle { cases: texts_digest(&self.cases), signatures })
    }

    /// Makes a bundle of files that a client sent, and sorts them by name.
    ///
    /// # Errors
    /// A line for each file name that a policy directory cannot have, or that occurs twice.
    pub fn of(
        policies: Vec<PolicyText>,
        cases: Vec<PolicyText>,
        signatures: Option<String>,
    ) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut bundle = PolicyBundle { policies, cases, signatures };
        if bundle.signatures.as_ref().is_some_and(|text| text.len() as u64 > POLICY_SIGNATURE_BYTES_MAX) {
            faults.push(format!("{SIGNATURE_FILE} is larger than {POLICY_SIGNATURE_BYTES_MAX} bytes"));
        }
        for (files, ending) in [(&mut bundle.policies, ".cedar"), (&mut bundle.cases, ".toml")] {
            if files.len() > POLICY_FILES_MAX {
                faults.push(format!("{} {ending} files: write at most {POLICY_FILES_MAX}", files.len()));
            }
            files.sort_by(|a, b| a.file.cmp(&b.file));
            for file in files.iter().filter(|file| !is_name(&file.file, ending)) {
                faults.push(format!("`{}` is not a name for a {ending} file", value(&file.file)));
            }
            for two in files.windows(2) {
                if let [one, other] = two
                    && one.file == other.file
                {
                    faults.push(format!("`{}` is listed twice", value(&one.file)));
                }
            }
        }
        if faults.is_empty() { Ok(bundle) } else { Err(faults) }
    }
}

fn is_name(name: &str, ending: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && c != '/' && c != '\\';
    name.len() <= NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.chars().all(is_plain)
        && name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_only_names_of_policy_files() {
        let text = |file: &str| PolicyText { file: file.into(), text: String::new() };
        let bundle =
            PolicyBundle::of(vec![text("b.cedar"), text("a.cedar")], vec![text("t.toml")], None).unwrap();
        assert_eq!(
            bundle.policies.iter().map(|t| t.file.as_str()).collect::<Vec<_>>(),
            ["a.cedar", "b.cedar"]
        );
        for bad in ["../a.cedar", "a/b.cedar", ".a.cedar", ".cedar", "a.txt", "", "a\n.cedar"] {
            assert!(PolicyBundle::of(vec![text(bad)], Vec::new(), None).is_err(), "{bad}");
        }
        let twice = PolicyBundle::of(vec![text("a.cedar"), text("a.cedar")], Vec::new(), None).unwrap_err();
        assert!(twice[0].contains("twice"), "{twice:?}");
    }
}

//! The source of policies: a directory of `.cedar` files, or the built-in set.

use std::{fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{PolicyErrors, SIGNATURE_FILE, fault::PolicyFault};
use crate::{limits::FILE_BYTES_MAX, name::Digest, plain, written::read_regular_text};

/// The schema of all policies.
pub const SCHEMA: &str = include_str!("../../config/policy/leasehold.cedarschema");

const DEFAULT: &str = include_str!("../../config/policy/leasehold.cedar");

/// The source to read policies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicySource {
    /// The set that Leasehold ships in `config/policy`.
    Default,
    /// A directory of `.cedar` files. The schema is built in.
    Dir(PathBuf),
    /// The texts of `.cedar` files, in the order of their names.
    Texts(Vec<PolicyText>),
}

/// The name and the text of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    pub file: String,
    pub text: String,
}

impl PolicySource {
    /// Returns the texts of all files as one text. If there are several files, a comment with its name is before each.
    ///
    /// # Errors
    ///
    /// A file cannot be read.
    pub fn text(&self) -> Result<String, PolicyErrors> {
        let texts = self.read()?;
        let is_one = texts.len() == 1;
        let titled = |t: PolicyText| if is_one { t.text } else { format!("// {}\n{}\n", t.file, t.text) };
        Ok(texts.into_iter().map(titled).collect())
    }

    /// Reads all files, in the order of their names. Does not check their content.
    ///
    /// # Errors
    /// Every file that cannot be read, or that may contain rules but has another extension.
    pub fn read(&self) -> Result<Vec<PolicyText>, PolicyErrors> {
        match self {
            PolicySource::Default => {
                Ok(vec![PolicyText { file: "leasehold.cedar".to_owned(), text: DEFAULT.to_owned() }])
            }
            PolicySource::Dir(dir) => read_dir(dir),
            PolicySource::Texts(texts) => Ok(texts.clone()),
        }
    }
}

/// Returns the digest of a policy. It covers the schema, and the names and texts of the files.
pub fn policy_digest(texts: &[PolicyText]) -> Digest {
    let mut bytes = b"leasehold policy v1\n".to_vec();
    let files = texts.iter().flat_map(|t| [t.file.as_bytes(), t.text.as_bytes()]);
    for part in std::iter::once(SCHEMA.as_bytes()).chain(files) {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    Digest::of(&bytes)
}

/// Returns the digest of the built-in schema. All policies of this version use it.
pub fn schema_digest() -> Digest {
    Digest::of(SCHEMA.as_bytes())
}

fn read_dir(dir: &std::path::Path) -> Result<Vec<PolicyText>, PolicyErrors> {
    let shown = plain::path(dir);
    let entries = fs::read_dir(dir)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| PolicyErrors::one(&shown, format!("the directory cannot be read: {e}")))?;
    let mut names: Vec<_> = entries.into_iter().map(|e| e.file_name()).collect();
    names.sort();
    let mut faults = Vec::new();
    let mut texts = Vec::new();
    for name in names {
        let file = name.to_string_lossy().into_owned();
        // Editors and mounted volumes keep their own data in hidden files.
        let is_beside = file.ends_with(".md") || file.ends_with(".toml") || file == SIGNATURE_FILE;
        if file.starts_with('.') || is_beside {
            continue;
        }
        let wanted = file.ends_with(".cedar");
        if !wanted && !file.ends_with(".cedarschema") {
            // A guard in a file that is not read would not be in force.
            faults.push(fault(&file, "would not be read; name it NAME.cedar, or move it elsewhere"));
            continue;
        }
        match read_regular_text(&dir.join(&name), FILE_BYTES_MAX) {
            Ok(text) if wanted => texts.push(PolicyText { file, text }),
            Ok(text) if text == SCHEMA => {}
            Ok(_) => faults.push(fault(
                &file,
                "differs from the schema that is built in; delete it, or copy the one that this version ships",
            )),
            Err(why) => faults.push(fault(&file, why)),
        }
    }
    PolicyErrors::of(faults).map_or(Ok(texts), Err)
}

fn fault(file: &str, what: impl Into<String>) -> PolicyFault {
    PolicyFault { file: file.to_owned(), line: 0, policy: None, what: what.into() }
}

//! The job specification file: what a run needs, as its author wrote it.
//!
//! Owns the file's form (TOML or JSON) and its strictness: unknown keys are errors, and everything that is wrong is told
//! at once, each with its line and what to write instead. No network: what only the daemon can know is asked there.

mod document;
mod fields;
mod job;
mod run;

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

pub use run::{OnRevoke, RunSettings};

use self::{
    document::{read_json, read_toml},
    fields::{Fields, Noted},
};
use crate::{limits::MESSAGE_BYTES_MAX, proto::v1};

/// A specification that can be sent: the job, and what the wrapper keeps for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    pub job: v1::JobSpec,
    pub run: RunSettings,
}

/// One thing that is wrong with a specification. `Display` is `FILE:LINE: what, and what to write instead`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {what}", file.display(), if *.line == 0 { String::new() } else { format!(":{line}") })]
pub struct SpecProblem {
    pub file: PathBuf,
    /// From 1; 0 where the file could not be read at all, so that `Display` names none.
    pub line: usize,
    pub what: String,
}

/// All that is wrong with a specification, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(Vec<SpecProblem>);

impl SpecErrors {
    pub fn problems(&self) -> &[SpecProblem] {
        &self.0
    }
}

/// One line per problem.
impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

impl RunSpec {
    /// Reads a file: JSON where its name ends in `.json` or its text begins with `{`, else TOML. The parameters file that
    /// it names is read too, for its digest.
    pub fn load(path: &Path) -> Result<Self, SpecErrors> {
        let text = read_text(path)
            .map_err(|what| SpecErrors(vec![SpecProblem { file: path.to_owned(), line: 0, what }]))?;
        let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
            || path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("toml"))
                && text.trim_start().starts_with('{');
        Self::read(path, &text, json)
    }

    fn read(path: &Path, text: &str, json: bool) -> Result<Self, SpecErrors> {
        let mut noted = Noted::new();
        let read = if json { read_json(text) } else { read_toml(text) };
        let spec = read
            .map_err(|faults| noted.extend(faults.into_iter().map(|f| (f.line, f.what))))
            .ok()
            .map(|root| {
                let mut fields = Fields::of("", root, &mut noted);
                fields.refuse("sweep", "is for sweeps, which are not served yet: remove [sweep]", &mut noted);
                let (run, drain) = run::read(&mut fields, &mut noted);
                let folder = path.parent().unwrap_or(Path::new(""));
                let job = job::read(&mut fields, folder, drain, &mut noted);
                fields.finish(&mut noted);
                RunSpec { job, run }
            });
        match spec {
            Some(spec) if noted.is_empty() => Ok(spec),
            _ => {
                noted.sort();
                let file = path.to_owned();
                Err(SpecErrors(
                    noted
                        .into_iter()
                        .map(|(line, what)| SpecProblem { file: file.clone(), line, what })
                        .collect(),
                ))
            }
        }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let most = MESSAGE_BYTES_MAX as u64;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(most + 1).read_to_end(&mut bytes))
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > most {
        return Err(format!("is longer than {most} bytes: name datasets, do not list files"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text: save it as UTF-8".to_owned())
}

#[cfg(test)]
mod tests;

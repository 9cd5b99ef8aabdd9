//! The job specification file: what a run needs, as its author wrote it.
//!
//! Owns the file's form (TOML or JSON) and its strictness: unknown keys are errors, and everything that is wrong is told
//! at once, each with its line and what to write instead. No network: what only the daemon can know is asked there.

mod job;
mod json;
mod run;

use std::path::Path;

pub use run::{OnRevoke, RunSettings};

use self::json::parse_json;
use crate::{
    limits::MESSAGE_BYTES_MAX,
    proto::v1,
    written::{Problems, parse_toml, read_document, read_text},
};

/// A specification that can be sent: the job, and what the wrapper keeps for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    pub job: v1::JobSpec,
    pub run: RunSettings,
}

impl RunSpec {
    /// Reads a file: JSON where its name ends in `.json` or its text begins with `{`, else TOML. The parameters file that
    /// it names is read too, for its digest.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        let text = read_text(path, MESSAGE_BYTES_MAX as u64).map_err(|what| Problems::whole(path, what))?;
        let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
            || path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("toml"))
                && text.trim_start().starts_with('{');
        Self::read(path, &text, json)
    }

    fn read(path: &Path, text: &str, json: bool) -> Result<Self, Problems> {
        let parsed = if json { parse_json(text) } else { parse_toml(text) };
        let read = read_document(path, parsed, |root, notes| {
            root.refuse("sweep", "is for sweeps, which are not served yet: remove [sweep]", notes);
            let run = run::read(root, notes);
            let folder = path.parent().unwrap_or(Path::new(""));
            let job = job::read(root, folder, run.drain, notes);
            Some(RunSpec { job, run })
        });
        read.map(|(spec, _)| spec)
    }
}

#[cfg(test)]
mod tests;

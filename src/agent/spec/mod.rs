//! The job specification file, which describes what a run needs.
//!
//! This module owns the form of the file (TOML or JSON) and its strict rules. Unknown keys are errors. All mistakes are
//! reported at once, each with its line and what to write instead. This module does not check whether a resource exists,
//! because only the daemon can do that.

mod folder;
mod job;
mod json;
mod run;

use std::path::Path;

pub use folder::LocalFolder;
pub use run::{OnRevoke, RunSettings, variable_name};

use self::json::parse_json;
use crate::{
    limits::MESSAGE_BYTES_MAX,
    proto::v1,
    written::{Problems, parse_toml, read_document, read_text},
};

/// A valid specification: the job for the daemon, and the settings for the wrapper.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// The job that the daemon is asked to create.
    pub job: v1::JobSpec,
    /// The `[run]` section and the local folders. The daemon gets only `drain` of them, in the job.
    pub run: RunSettings,
}

impl RunSpec {
    /// Reads a file: JSON if its name ends in `.json` or its text begins with `{`, otherwise TOML. Also reads the parameters
    /// file that the specification names, to compute its digest.
    ///
    /// # Errors
    ///
    /// Every mistake in the file, each with its line.
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
            let mut run = run::read(root, notes);
            let folder = path.parent().unwrap_or(Path::new(""));
            let job = job::read(root, folder, &mut run, notes);
            Some(RunSpec { job, run })
        });
        read.map(|(spec, _)| spec)
    }
}

#[cfg(test)]
mod tests;

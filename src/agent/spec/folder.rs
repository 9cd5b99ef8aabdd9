//! `stage` and `sync`: the local folders that belong to a resource. The daemon does not get them.

use std::path::{Component, Path, PathBuf};

use crate::{
    name::Object,
    plain,
    written::{Notes, Section},
};

/// A resource, and the local folder to or from which its objects are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFolder {
    pub resource: Object,
    /// The path as it is written: absolute, or relative to the folder in which the command runs.
    pub path: PathBuf,
}

/// Parses the path of a folder that the wrapper may fill, empty and remove.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    let shown = || plain::value(text);
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(format!("`{}` is not a folder: write its path, such as \"/scratch/base\"", shown()));
    }
    let path = Path::new(text);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("`{}` contains `..`: write the path without it", shown()));
    }
    if !path.components().any(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("`{}` is no folder for one resource: write a folder below it", shown()));
    }
    Ok(path.to_owned())
}

/// Refuses a folder that is used for two resources, or that is inside another folder of the list.
pub(super) fn check_apart(
    table: &Section<'_>,
    key: &str,
    folder: &LocalFolder,
    known: &[LocalFolder],
    notes: &mut Notes,
) {
    let overlaps =
        |other: &&LocalFolder| folder.path.starts_with(&other.path) || other.path.starts_with(&folder.path);
    if let Some(other) = known.iter().find(overlaps) {
        let (own, taken) = (plain::path(&folder.path), plain::path(&other.path));
        let why =
            format!("`{own}` overlaps `{taken}`, the folder of {}: write another folder", other.resource);
        table.wrong(key, why, notes);
    }
}

//! Errors of copying resources to and from a local folder (`stage` and `sync`).

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    limits::{STAGE_OBJECTS_MAX, SYNC_DEPTH_MAX, SYNC_FILES_MAX},
    name::Object,
    plain::{self, bytes_shown},
};

/// Why a resource could not be copied to or from a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// No S3 gateway serves the resource, so its objects cannot be copied.
    #[error(
        "no S3 gateway serves {0}, so it cannot be copied: remove `stage` or `sync`, or add an s3_endpoint to its audience"
    )]
    NoGateway(Object),
    /// A sidecar does not start the command, so it cannot fill a folder before the command starts.
    #[error(
        "{0} has `stage` or `sync` in the job file. Only `leasehold run` supports them: use `leasehold run`, or remove them"
    )]
    NoCommand(Object),
    /// The folder cannot be used: it contains other files, or another run uses it.
    #[error("{} cannot be used: {why}", plain::path(path))]
    Unfit { path: PathBuf, why: String },
    /// The disk has too little space for the copy.
    #[error(
        "{} has too little space for {resource}: {} are needed, {} are free; free some space, or name a folder on another disk",
        plain::path(path),
        bytes_shown(*needed),
        bytes_shown(*free)
    )]
    NoRoom { path: PathBuf, resource: Object, needed: u64, free: u64 },
    /// The operating system refused something.
    #[error("{} cannot be used: {source}", plain::path(path))]
    Disk { path: PathBuf, source: io::Error },
    /// The gateway refused an object, or could not be reached for a long time.
    #[error("{resource}: `{}`: {why}", plain::value(object))]
    Object { resource: Object, object: String, why: String },
    #[error(
        "{0} has more than {STAGE_OBJECTS_MAX} objects, which is too many to copy: let the program read them through S3"
    )]
    TooManyObjects(Object),
    #[error(
        "{} has more than {SYNC_FILES_MAX} files, or more than {SYNC_DEPTH_MAX} levels of folders: write fewer, larger files in fewer levels",
        plain::path(_0)
    )]
    TooManyFiles(PathBuf),
}

impl FolderError {
    pub(super) fn disk(path: &Path, source: io::Error) -> Self {
        FolderError::Disk { path: path.to_owned(), source }
    }
}

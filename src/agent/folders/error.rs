//! What goes wrong with a folder of this machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    limits::{STAGE_OBJECTS_MAX, SYNC_DEPTH_MAX, SYNC_FILES_MAX},
    name::ResourceName,
    plain::{self, bytes_shown},
};

/// Why a resource could not be copied to or from a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// No S3 gateway serves the resource, so there is no way to its objects.
    #[error(
        "{0} has no S3 gateway, so it has no objects to copy: remove `stage` or `sync`, or give its audience an s3_endpoint"
    )]
    NoGateway(ResourceName),
    /// A sidecar starts no command, so it cannot fill a folder before the start.
    #[error(
        "{0} has `stage` or `sync` in the job file, which only `leasehold run` serves: use that, or remove it"
    )]
    NoCommand(ResourceName),
    /// The folder is not for us: it has files of others, or another run uses it.
    #[error("{} cannot be used: {why}", plain::path(path))]
    Unfit { path: PathBuf, why: String },
    /// The disk has no room for the copy.
    #[error(
        "{} has no room for {resource}: {} are needed, {} are free; make room, or name a folder on another disk",
        plain::path(path),
        bytes_shown(*needed),
        bytes_shown(*free)
    )]
    NoRoom { path: PathBuf, resource: ResourceName, needed: u64, free: u64 },
    /// The operating system refused something.
    #[error("{} cannot be used: {source}", plain::path(path))]
    Disk { path: PathBuf, source: io::Error },
    /// The gateway refused an object, or could not be reached for long.
    #[error("{resource}: `{}`: {why}", plain::value(object))]
    Object { resource: ResourceName, object: String, why: String },
    #[error(
        "{0} has more than {STAGE_OBJECTS_MAX} objects, which is too many to copy: let the program read them through S3"
    )]
    TooManyObjects(ResourceName),
    #[error(
        "{} has more than {SYNC_FILES_MAX} files, or more than {SYNC_DEPTH_MAX} folders inside each other: write fewer, larger files",
        plain::path(_0)
    )]
    TooManyFiles(PathBuf),
}

impl FolderError {
    pub(super) fn disk(path: &Path, source: io::Error) -> Self {
        FolderError::Disk { path: path.to_owned(), source }
    }
}

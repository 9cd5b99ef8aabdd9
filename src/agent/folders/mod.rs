//! Local folders for programs that read and write only files. A resource is copied into a folder before the command starts
//! (`stage`). The files that the command writes into another folder are uploaded (`sync`).
//!
//! This module uses the local S3 endpoint as any program does. So the gateway decides about each object, and a revocation stops
//! a copy in the middle. The module never follows a link, and never removes a folder that it did not make. A copy is removed at
//! the end, but a program may have read it before.
//!
//! | What | File |
//! |---|---|
//! | all folders of one run, from the start to the end | `local_folders` |
//! | a folder of the user, held open | `own_folder` |
//! | a folder with the copy of a resource, and how the copy is removed | `staged` |
//! | copies objects into a folder in parallel, and continues a broken transfer after the last byte that arrived | `copy_in` |
//! | a folder whose files are uploaded | `synced` |
//! | which files of a folder are finished | `changes` |
//! | one upload | `upload` |
//! | the objects of one resource | `objects` |
//! | prints how many bytes there are, and how many were copied | `progress` |
//! | the errors | `error` |

mod changes;
mod copy_in;
mod error;
mod local_folders;
mod objects;
mod own_folder;
mod progress;
mod staged;
mod synced;
#[cfg(test)]
mod testing;
mod upload;

pub use error::FolderError;
pub(super) use local_folders::{FolderContext, LocalFolders};
pub(super) use staged::ForeignCopy;

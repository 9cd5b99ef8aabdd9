//! Folders of this machine: a resource is copied into one before the command starts (`stage`), and what the command writes into
//! another is uploaded (`sync`). For programs that read and write files only.
//!
//! It uses the local S3 endpoint as any program does, so the gateway decides about each object, and a revocation ends a copy in the
//! middle. It never follows a link, and never removes a folder that it did not make. What was copied out cannot be called back:
//! the copy is removed at the end, but a program may have read it before.
//!
//! | What | File |
//! |---|---|
//! | all folders of one run, from the start to the end | `local_folders` |
//! | a folder with the copy of a resource, and its end | `staged` |
//! | copies objects into a folder: in parallel, and on from where a transfer broke | `copy_in` |
//! | a folder whose files are uploaded | `synced` |
//! | which files of a folder are finished | `changes` |
//! | one upload | `upload` |
//! | the objects of one resource | `objects` |
//! | how many bytes there are and were copied, for people | `progress` |
//! | what goes wrong | `error` |

mod changes;
mod copy_in;
mod error;
mod local_folders;
mod objects;
mod progress;
mod staged;
mod synced;
#[cfg(test)]
mod testing;
mod upload;

pub use error::FolderError;
pub(super) use local_folders::{FolderContext, LocalFolders};
pub(super) use staged::remove_left_copy;

//! What runs in one place so that all of it can be seen: for development, demonstration, and as a model.
//!
//! | File | Noun |
//! |---|---|
//! | `file_server` | [`FileServer`]: serves folders behind leases, on `verify` alone; the model for authors of resource servers |
//! | `target` | what a request line asks for |
//! | `folder` | [`Folder`](folder::Folder): a folder that nothing leads out of |
//! | `transfer` | [`Transfer`]: bytes under way, cut when their access ends |

mod file_server;
mod folder;
mod target;
mod transfer;

pub use file_server::FileServer;
pub use transfer::{Direction, Transfer, TransferEnd};

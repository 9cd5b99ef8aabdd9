//! What runs in one place so that all of it can be seen: for development, demonstration, and as a model.
//!
//! Real parts only: the daemon, the identities, the file server and the processes are those of any other day. For one
//! machine: the root's key lies in the folder.
//!
//! | File | Noun |
//! |---|---|
//! | `authority` | [`Authority`]: a trust domain's root, and the SVIDs that it issues |
//! | `household` | [`Household`]: everything that a daemon needs, in one folder |
//! | `starter` | [`Starter`]: the files that a deployment begins with, and SVIDs for trials |
//! | `running` | [`Running`]: a household with its file server, to try |
//! | `file_server` | [`FileServer`]: serves folders behind leases, on `verify` alone; the model for authors of resource servers |
//! | `target` | what a request line asks for |
//! | `folder` | `Folder`: a folder that nothing leads out of |
//! | `transfer` | [`Transfer`]: bytes under way, cut when their access ends |
//! | `client` | [`FileClient`]: what a job's program does with its credentials |
//! | `demo` | [`demo::tell`]: stories, each claim observed |

mod authority;
mod client;
pub mod demo;
mod file_server;
mod folder;
mod household;
mod running;
mod starter;
mod target;
mod transfer;

pub use authority::{Authority, SvidPem};
pub use client::{ClientError, Coming, FileClient, read_token};
pub use file_server::FileServer;
pub use folder::encode_path;
pub use household::{Household, Pace, Ports, Role, SVID_LIFE, SetupError, TENANT, TRUST_DOMAIN};
pub use running::{FreePorts, Running, free_ports};
pub use starter::{Started, Starter, mint, write_svid};
pub use transfer::{Direction, Transfer, TransferEnd};

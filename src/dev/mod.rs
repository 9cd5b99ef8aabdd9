//! What runs in one place so that all of it can be seen: for development, demonstration, and as a model.
//!
//! Real parts only: the daemon, the identities, the file server and the processes are those of any other day. For one
//! machine: the root's key lies in the folder.
//!
//! | File | Noun |
//! |---|---|
//! | `authority` | [`Authority`]: a trust domain's root, and the SVIDs that it issues |
//! | `deployment` | [`DevDeployment`]: everything that a daemon needs, in one folder |
//! | `init` | [`Starter`]: the files that a deployment begins with, and SVIDs for trials |
//! | `sample` | the texts of those files |
//! | `running` | [`Running`]: a deployment with its file server, to try |
//! | `file_server` | [`FileServer`]: serves folders behind leases, on `verify` alone; the model for authors of resource servers |
//! | `target` | what a request line asks for |
//! | `folder` | `ServedFolder`: a folder that nothing leads out of |
//! | `transfer` | [`Transfer`]: bytes under way, cut when their access ends |
//! | `client` | [`FileClient`]: what a job's program does with its credentials |
//! | `demo` | [`demo::tell`]: stories, each claim observed |

mod authority;
mod client;
pub mod demo;
mod deployment;
mod file_server;
mod folder;
mod init;
mod running;
mod sample;
mod target;
mod transfer;

pub use authority::{Authority, SvidPem};
pub use client::{ClientError, Coming, FileClient, read_token};
pub use deployment::{DevDeployment, Pace, Ports, Role, SVID_LIFE, SetupError, TENANT, TRUST_DOMAIN};
pub use file_server::FileServer;
pub use folder::encode_path;
pub use init::{Started, Starter, mint, write_svid};
pub use running::{FreePorts, Running, free_ports};
pub use transfer::{Direction, Transfer, TransferEnd};

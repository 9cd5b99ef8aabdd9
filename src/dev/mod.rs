//! A whole deployment on one machine: for development, for the demo, and as an example for resource servers.
//!
//! The daemon, the file server and the processes are real. Do not use it in production: the key of the root is in the folder.
//!
//! | File | Contains |
//! |---|---|
//! | `authority` | [`Authority`]: a trust domain's root, and the SVIDs that it issues |
//! | `deployment` | [`DevDeployment`]: everything that a daemon needs, in one folder |
//! | `init` | [`Starter`]: the files of a new deployment, and SVIDs to try it |
//! | `sample` | the texts of these files |
//! | `running` | [`Running`]: a deployment with its file server and its S3 gateway, to try |
//! | `file_server` | [`FileServer`]: serves folders to holders of leases; an example for authors of resource servers |
//! | `target` | the resource and path of a request |
//! | `folder` | `ServedFolder`: a folder that no path leads out of |
//! | `transfer` | `FileTransfer`: a transfer, which is cut when its access ends |
//! | `client` | [`FileClient`]: a client of the file server, in the form that the program of a job would use |
//! | `s3_client` | `S3Client`: a small S3 client, like a program that knows nothing of Leasehold |
//! | `controls` | [`controls::Lab`]: the controls of a tuning pipeline (`docs/controls.md`) as data, and a daemon to try them |
//! | `bench` | [`bench::run`]: the request rates of a daemon, compared with the limits of the machine |
//! | `demo` | [`demo::run`]: stories. A story says what the daemon does, and observes that the daemon does it |

mod authority;
pub mod bench;
mod client;
pub mod controls;
pub mod demo;
mod deployment;
mod file_server;
mod folder;
mod init;
mod running;
mod s3_client;
mod sample;
mod target;
mod transfer;

pub use crate::gateway::encode_path;
pub use authority::{Authority, SvidPem};
pub use client::{ClientError, FileClient, read_token};
pub use deployment::{DevDeployment, Pace, Ports, Role, SVID_LIFE, SetupError, TRUST_DOMAIN};
pub use file_server::FileServer;
pub use init::{Starter, mint, write_svid};
pub use running::{FreePorts, Running, free_ports};

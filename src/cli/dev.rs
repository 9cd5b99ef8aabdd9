//! `leasehold dev`.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, Session};

/// Runs a daemon of your own, in one folder.
///
/// Makes a trust domain, identities, catalog, policies and sample data, each where it is absent. Writes the context `dev`,
/// which every other command then finds by itself, and prints commands to try. Stop it with Ctrl-C; jobs and locks are there
/// again at the next start. For this machine alone: its keys lie in the folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold dev
  leasehold dev --data ~/tickets                serve a folder of yours as a dataset
  leasehold dev --dir /tmp/try --port 18443     beside another one")]
pub struct DevArgs {
    /// Where everything lies [default: leasehold-dev in the user's data directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A folder to serve as a dataset, read only. The sample data otherwise.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The port of gRPC on loopback; the ones after it serve the keys, the probes and the files. 0 takes free ones.
    #[arg(long, value_name = "N", default_value_t = 8443)]
    pub port: u16,
}

impl DevArgs {
    pub(super) async fn run(self, _session: &Session) -> Result<Exit, Failure> {
        Err(super::run::not_built("dev"))
    }
}

//! `leasehold serve`.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, Session};

/// Runs the daemon until SIGTERM.
///
/// SIGHUP reads catalog and policies anew; a bad one changes nothing. Logs go to stderr. Check the file first with
/// `leasehold config check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold serve --config /etc/leasehold/leasehold.toml
  leasehold config check /etc/leasehold/leasehold.toml && systemctl reload leasehold")]
pub struct ServeArgs {
    /// The configuration; paths in it are relative to it.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_CONFIG")]
    pub config: PathBuf,
}

impl ServeArgs {
    pub(super) async fn run(self, _session: &Session) -> Result<Exit, Failure> {
        Err(super::run::not_built("serve"))
    }
}

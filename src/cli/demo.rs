//! `leasehold demo`.

use clap::Args;

use super::{Exit, Failure, Session};

/// Tells the whole story in seconds, on real connections and processes.
///
/// Starts a daemon of its own with identities of its own in a folder that it removes, then shows callers refused and
/// accepted, a credential issued, checked and renewed, a download cut half way, and all access ended in each way that there
/// is. Prints one line for each claim with what was observed and how long it took; fails if one was not observed. Needs no
/// network, no root and no other program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold demo
  leasehold demo -o json | jq -r '[.ms, .claim] | @tsv'")]
pub struct DemoArgs {}

impl DemoArgs {
    pub(super) async fn run(self, _session: &Session) -> Result<Exit, Failure> {
        Err(super::run::not_built("demo"))
    }
}

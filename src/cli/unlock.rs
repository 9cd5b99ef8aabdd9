//! `leasehold unlock`.

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::Manner,
    output::{note, print_line},
    view, words,
};
use crate::{name::PrincipalKind, proto::v1};

/// Lifts a lock.
///
/// Nothing that it ended comes back: new access is asked for and decided anew.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold lock list
  leasehold unlock tenant:acme --reason \"incident 7 is over\"")]
pub struct UnlockArgs {
    /// The name as `lock list` shows it.
    #[arg(value_name = "NAME", value_parser = words::lock_name)]
    name: String,
    /// For the auditor.
    #[arg(long, value_name = "TEXT", value_parser = words::reason)]
    reason: String,
}

impl UnlockArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let request = v1::UnlockRequest { name: self.name.clone(), reason: self.reason };
        let answer =
            client.ask(Manner::Changes, request, async |r| client.operator().unlock(r).await).await?;
        let now = session.now().wall;
        if session.for_programs() {
            session.print_value(
                &json!({ "lifted": answer.lifted.as_ref().map(|l| view::lock_value(l, now)) }),
            )?;
        } else {
            print_line(&format!("{} is unlocked", self.name))?;
            note("Nothing that the lock ended comes back by itself.");
        }
        Ok(Exit::Ok)
    }
}

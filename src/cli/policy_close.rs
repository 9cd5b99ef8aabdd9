//! Implements `leasehold policy withdraw` and `reject`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    output::{Page, TableCell, fields, note, print},
    parse,
    policy_apply::{pending_page, pending_value, send},
    timestamp,
};
use crate::{
    name::{Digest, PrincipalKind},
    proto::v1,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Only the person who proposed a change can withdraw it. `policy history` lists what waits, with digests.
A reload of the catalog that waits is withdrawn in this way, too.

Examples:
  leasehold policy history
  leasehold policy withdraw sha256:… --reason \"CHG-1412 has a mistake\"")]
pub(super) struct PolicyWithdrawArgs {
    #[command(flatten)]
    change: ClosedArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Those who may approve a change may reject it, also after they approved it. Its proposer withdraws it
instead. A rejected change can be proposed again.

Examples:
  leasehold policy history
  leasehold policy reject sha256:… --reason \"it opens the tickets of globex\"")]
pub(super) struct PolicyRejectArgs {
    #[command(flatten)]
    change: ClosedArgs,
}

/// The options of `policy withdraw` and `policy reject`.
#[derive(Debug, Args)]
struct ClosedArgs {
    /// The digest of the change that was proposed
    #[arg(value_name = "DIGEST")]
    digest: Digest,
    /// Why, for the proposer and auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    /// Show what would be closed, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl PolicyWithdrawArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        self.change.close(v1::ChangeDecision::Withdraw, "withdrawn", session).await
    }
}

impl PolicyRejectArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        self.change.close(v1::ChangeDecision::Reject, "rejected", session).await
    }
}

impl ClosedArgs {
    async fn close(
        self,
        decision: v1::ChangeDecision,
        outcome: &str,
        session: &Session,
    ) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let request = v1::ApplyPolicyRequest {
            kept: self.digest.to_string(),
            decision: decision.into(),
            reason: self.reason,
            dry_run: self.dry_run,
            ..Default::default()
        };
        let waited = send(&client, request).await?.waits.unwrap_or_default();
        if session.for_programs() {
            let change = if self.dry_run { "would_close" } else { outcome };
            session.print_value(&json!({ change: pending_value(&waited) }))?;
            return Ok(Exit::Ok);
        }
        print(&pending_page(&waited))?;
        note(&match self.dry_run {
            true => format!("Dry run: {} to {} still waits.", waited.call, waited.to),
            false => {
                format!("{} to {} is {outcome}. The rules in force are as before.", waited.call, waited.to)
            }
        });
        Ok(Exit::Ok)
    }
}

/// Shows a change that no longer waits.
pub(super) fn closed_page(closed: &v1::ClosedChange) -> Page {
    let at = closed.at.as_ref().map(timestamp::whole).unwrap_or_default();
    let about = fields([
        ("proposed by", TableCell::from(closed.proposed_by.as_str())),
        ("because", closed.proposed_because.as_str().into()),
        ("closed", at.into()),
        ("by", closed.by.as_str().into()),
        ("reason", closed.reason.as_str().into()),
    ]);
    about.below(&Page::line(&format!("{} to {} was {}", closed.call, closed.to, closed.outcome)))
}

/// Returns a change that no longer waits, for programs.
pub(super) fn closed_value(closed: &v1::ClosedChange) -> Value {
    json!({
        "call": closed.call, "from": closed.from, "to": closed.to, "proposed_by": closed.proposed_by,
        "proposed_because": closed.proposed_because, "outcome": closed.outcome, "by": closed.by,
        "reason": closed.reason, "at": closed.at.as_ref().map(timestamp::whole),
    })
}

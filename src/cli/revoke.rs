//! `leasehold revoke`.

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::Manner,
    output::{Cell, fields, note, print, print_json},
    settle::{Wait, settle},
    view, words,
};
use crate::{name::PrincipalKind, proto::v1};

/// Ends all access behind one name, at once.
///
/// In force when it answers: every credential that depends on the name is refused from then on, running transfers are cut.
/// A revoked job is closed. Nothing that was ended comes back; but new access may be asked for, except where a lock stands.
/// Waits until the record is on disk and exits with 5 where that takes longer than five seconds.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold revoke j-… --reason \"wrong dataset, CHG-1412\"
  leasehold revoke dataset:acme/tickets@v3 --reason \"recalled\" --dry-run
  leasehold revoke identity:spiffe://k8s.acme.example/ns/ml/sa/tuner --reason \"key leaked\"
  leasehold lock identity:spiffe://… --reason …   to keep it out as well")]
pub struct RevokeArgs {
    /// What to end: job:ID, identity:spiffe://…, dataset:…, model:…, checkpoint:…, lease:ID, tenant:NAME, domain:NAME,
    /// human:NAME; or a bare job id, lease id or SPIFFE ID.
    #[arg(value_name = "NAME", value_parser = words::ending_name)]
    name: String,
    /// For the people who are cut off, and for the auditor: a sentence, or a ticket.
    #[arg(long, value_name = "TEXT", value_parser = words::reason)]
    reason: String,
    /// Count what would end, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until it is on disk.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
}

impl RevokeArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let request =
            v1::RevokeRequest { name: self.name.clone(), reason: self.reason, dry_run: self.dry_run };
        let manner = if self.dry_run { Manner::Reads } else { Manner::Changes };
        let answer = client.ask(manner, request, async |r| client.operator().revoke(r).await).await?;
        let mut ending = answer.ending.unwrap_or_default();
        let wait = if self.no_wait || self.dry_run { Wait::No } else { Wait::UntilDurable };
        let settled = settle(&client, &mut ending, wait).await;
        if session.is_json() {
            print_json(&json!({
                "name": self.name, "dry_run": self.dry_run, "ending": view::ending_value(&ending),
                "jobs_closed": answer.jobs_closed, "notes": answer.notes,
            }))?;
        } else {
            let nobody_there = ending.behind == 0 && answer.jobs_closed.is_empty();
            print(&fields(ended(&self.name, self.dry_run, &ending, answer.jobs_closed)))?;
            if nobody_there {
                note(&nobody(&self.name));
            }
            for line in &answer.notes {
                note(line);
            }
        }
        settled.map(|()| Exit::Ok)
    }
}

/// A name that is written wrong ends nothing, and looks like success.
pub(super) fn nobody(name: &str) -> String {
    format!(
        "No lease stood behind {name}. If that surprises you, see how it is written: leasehold lease list, job list."
    )
}

/// What ended, or would.
pub(super) fn ended(
    name: &str,
    dry_run: bool,
    ending: &v1::Ending,
    jobs_closed: Vec<String>,
) -> [(&'static str, Cell); 5] {
    let durable = if ending.durable { "yes" } else { "not yet known" };
    let (what, leases, jobs) = if dry_run {
        ("would end", "leases that would end", "jobs it would close")
    } else {
        ("ended", "leases ended", "jobs closed")
    };
    [
        (what, name.into()),
        (leases, ending.behind.to_string().into()),
        (jobs, Cell::list(jobs_closed)),
        ("seq", if dry_run { Cell::default() } else { ending.seq.to_string().into() }),
        ("on disk", if dry_run { Cell::default() } else { durable.into() }),
    ]
}

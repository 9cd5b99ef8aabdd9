//! `leasehold revoke`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Client, Exit, Failure, Session,
    client::CallKind,
    ids,
    output::{TableCell, fields, note, print},
    parse, render,
    wait_durable::{Wait, wait_durable},
};
use crate::{
    name::{FenceKind, FenceName, PrincipalKind},
    proto::v1,
};

/// Ends all access behind one name, at once.
///
/// In force when it answers: every credential that depends on the name is refused from then on, running transfers are cut.
/// A revoked job is closed. Nothing that was ended comes back; but new access may be asked for, except where a lock stands.
/// Waits until the record is on disk and exits with 5 where that takes longer than five seconds.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold revoke j-… --reason \"wrong dataset, CHG-1412\"
  leasehold revoke $(leasehold job list --open --ids --launcher spiffe://…) --reason \"launcher compromised\"
  leasehold revoke dataset:acme/tickets@v3 --reason \"recalled\" --dry-run
  leasehold revoke identity:spiffe://k8s.acme.example/ns/ml/sa/tuner --reason \"key leaked\"
  leasehold lock identity:spiffe://… --reason …   to keep it out as well")]
pub struct RevokeArgs {
    /// What to end, one or several: job:ID, identity:spiffe://…, dataset:…, model:…, checkpoint:…, lease:ID, tenant:NAME, domain:NAME,
    /// human:NAME; or a bare job id, lease id or SPIFFE ID.
    #[arg(value_name = "NAME", required = true, value_parser = parse::ending_name)]
    names: Vec<String>,
    /// For the people who are cut off, and for the auditor: a sentence, or a ticket.
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    /// Count what would end, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until it is on disk.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    /// Revoke a name that nothing has yet. An unknown name is refused otherwise, as one that was mistyped.
    #[arg(long)]
    ahead: bool,
}

impl RevokeArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        // Nothing ends before each name is known.
        let mut names = Vec::new();
        for name in &self.names {
            names.push(ids::whole_name(&client, name).await?);
        }
        let is_one = names.len() == 1;
        let (mut values, mut failed) = (Vec::new(), Ok(Exit::Ok));
        for name in names {
            match self.revoke(&client, &name, session).await {
                Ok((value, recorded)) => {
                    values.push(value);
                    failed = failed.and(recorded.map(|()| Exit::Ok));
                }
                Err(failure) if is_one => return Err(failure),
                // The others end all the same: who revokes several names wants each of them ended.
                Err(failure) => {
                    let failure = failure.with("asked", name).saying("The other names were revoked.");
                    failed = failed.and(Err(failure));
                }
            }
        }
        if session.for_programs() {
            session.print_value(&match values.pop() {
                Some(value) if is_one => value,
                last => values.into_iter().chain(last).collect(),
            })?;
        }
        failed
    }

    /// Revokes one name. Answers what was done as a value, and whether it is on disk.
    async fn revoke(
        &self,
        client: &Client,
        name: &str,
        session: &Session,
    ) -> Result<(Value, Result<(), Failure>), Failure> {
        if let Some(advice) = asked_again(name) {
            note(&advice);
        }
        let request = v1::RevokeRequest {
            name: name.to_owned(),
            reason: self.reason.clone(),
            dry_run: self.dry_run,
            ahead: self.ahead,
        };
        let kind = if self.dry_run { CallKind::Reads } else { CallKind::Changes };
        let answer = client.ask(kind, request, async |r| client.operator().revoke(r).await).await?;
        let mut ending = answer.ending.unwrap_or_default();
        let wait = if self.no_wait || self.dry_run { Wait::No } else { Wait::UntilDurable };
        let recorded = wait_durable(client, &mut ending, wait).await;
        let value = json!({
            "name": name, "dry_run": self.dry_run, "ending": render::ending_value(&ending),
            "jobs_closed": answer.jobs_closed, "notes": answer.notes,
        });
        if !session.for_programs() {
            let nobody_there = ending.behind == 0 && answer.jobs_closed.is_empty();
            print(&fields(ended(name, self.dry_run, &ending, answer.jobs_closed)))?;
            if nobody_there {
                note(&nobody(name));
            }
            for line in &answer.notes {
                note(line);
            }
        }
        Ok((value, recorded))
    }
}

/// What to know before a name is revoked that jobs which run go on to depend on: its end lasts for a moment.
fn asked_again(name: &str) -> Option<String> {
    let kind = name.parse::<FenceName>().ok()?.kind();
    let asks_again = matches!(
        kind,
        FenceKind::Tenant(_) | FenceKind::Domain(_) | FenceKind::Human(_) | FenceKind::Resource(_)
    );
    asks_again.then(|| {
        format!(
            "Jobs that run ask again at once, and get new access if policy still allows it. To keep them out: leasehold lock {name} --reason …"
        )
    })
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
) -> [(&'static str, TableCell); 5] {
    let durable = if ending.durable { "yes" } else { "not yet known" };
    let (what, leases, jobs) = if dry_run {
        ("would end", "leases that would end", "jobs it would close")
    } else {
        ("ended", "leases ended", "jobs closed")
    };
    [
        (what, name.into()),
        (leases, ending.behind.to_string().into()),
        (jobs, TableCell::list(jobs_closed)),
        ("seq", if dry_run { TableCell::default() } else { ending.seq.to_string().into() }),
        ("on disk", if dry_run { TableCell::default() } else { durable.into() }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jobs_ask_for_again_is_said_with_the_lock() {
        for name in ["tenant:acme", "domain:td.example", "dataset:acme/tickets@v3", "human:ada"] {
            assert!(asked_again(name).unwrap().contains(&format!("leasehold lock {name} ")), "{name}");
        }
        let job = format!("job:{}", crate::name::JobId(7));
        for name in [job.as_str(), "identity:spiffe://td.example/a"] {
            assert_eq!(asked_again(name), None, "{name}");
        }
    }
}

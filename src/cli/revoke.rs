//! Implements `leasehold revoke`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Client, Exit, Failure, Session,
    client::CallKind,
    confirm::{Confirmed, confirm, confirm_if_large, would_end},
    ids,
    output::{TableCell, fields, note, print},
    parse, render,
    wait_durable::{Wait, wait_durable},
};
use crate::{
    name::{FenceKind, FenceName, PrincipalKind},
    proto::v1,
};

/// Ends all access that depends on a name, at once.
#[derive(Debug, Args)]
#[command(after_help = "\
When the command returns, the daemon has ended all access that depends on the name. Servers learn
this at different times. Servers with the fence feed refuse the tokens and cut transfers within
milliseconds. Servers that ask the daemon refuse at their next question. Servers that only read
/keys accept a token until it expires, 5 minutes at most. A revoked job is closed. Other jobs may
ask for new access: `leasehold lock` also refuses that. Exit 5: no record on disk after 5 seconds.

Examples:
  leasehold revoke j-… --reason \"wrong dataset, CHG-1412\"
  leasehold revoke dataset:acme/tickets@v3 --reason \"recalled\" --dry-run
  leasehold revoke j-… --reason \"key seen in a paste\" --cause compromise")]
pub struct RevokeArgs {
    /// job:ID, attempt:ID/2, member:ID/2/NAME, lease:ID, identity:spiffe://…, dataset:…, model:…, checkpoint:…, tenant:NAME,
    /// domain:NAME, human:NAME or image:sha256:…; or only the id of a job or lease
    #[arg(value_name = "NAME", required = true, value_parser = parse::ending_name)]
    names: Vec<String>,
    /// Why, for the people who lose access and for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    /// `compromise` also locks the identities that held the access, and all jobs of their launcher
    #[arg(long, value_name = "CAUSE", value_enum)]
    cause: Option<CauseArg>,
    #[command(flatten)]
    ending: EndingArgs,
}

/// A value of `--cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CauseArg {
    Compromise,
}

/// The options that `revoke` and `lock` share.
#[derive(Debug, Args)]
pub(super) struct EndingArgs {
    /// Count what would end, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask, even if many leases or jobs end
    #[arg(long)]
    pub(super) yes: bool,
    /// Do not wait until the record is on disk
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) no_wait: bool,
    /// Allow a name that does not exist yet. Without this, an unknown name is refused as a mistake
    #[arg(long)]
    pub(super) ahead: bool,
}

impl EndingArgs {
    pub(super) fn confirmed(&self) -> Confirmed {
        Confirmed::of_option(self.yes || self.dry_run)
    }

    pub(super) fn wait(&self) -> Wait {
        if self.no_wait || self.dry_run { Wait::No } else { Wait::UntilDurable }
    }
}

impl RevokeArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        // All names must be known before anything ends.
        let mut names = Vec::new();
        for name in &self.names {
            names.push(ids::resolve_name(&client, name).await?);
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
                // Go on with the other names, because the user wants to revoke each of them.
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

    /// Revokes one name. Returns the result as a value, and whether it is on disk.
    async fn revoke(
        &self,
        client: &Client,
        name: &str,
        session: &Session,
    ) -> Result<(Value, Result<(), Failure>), Failure> {
        let ask = async |dry_run: bool| {
            let request = v1::RevokeRequest {
                name: name.to_owned(),
                reason: self.reason.clone(),
                dry_run,
                ahead: self.ending.ahead,
                cause: self
                    .cause
                    .map_or(v1::RevokeCause::Unspecified, |_| v1::RevokeCause::Compromise)
                    .into(),
            };
            let kind = CallKind::of_dry_run(dry_run);
            client.ask(kind, request, async |r| client.operator().revoke(r).await).await
        };
        let mut answer = None;
        let warning = new_access_warning(name);
        if warning.is_some() || self.cause.is_some() {
            // Count first, because this warning would be wrong if the daemon refuses the revocation.
            let counted = ask(true).await?;
            warning.iter().for_each(|advice| note(advice));
            if self.cause.is_some() && !self.ending.dry_run {
                self.confirm_locks(name, &counted)?;
            }
            answer = Some(counted).filter(|_| self.ending.dry_run);
        }
        if self.cause.is_none() {
            let count = async { ask(true).await.map(|dry| (dry.ending, dry.jobs_closed_total)) };
            confirm_if_large(name, self.ending.confirmed(), count).await?;
        }
        let answer = match answer {
            Some(counted) => counted,
            None => ask(self.ending.dry_run).await?,
        };
        let mut ending = answer.ending.unwrap_or_default();
        let recorded = wait_durable(client, &mut ending, self.ending.wait()).await;
        let value = json!({
            "name": name, "dry_run": self.ending.dry_run, "ending": render::ending_value(&ending),
            "jobs_closed": answer.jobs_closed, "notes": answer.notes,
            "locked": answer.locks.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
        });
        if !session.for_programs() {
            let was_closed = name.starts_with("job:") && answer.jobs_closed.is_empty();
            let ended_nothing = ending.behind == 0 && answer.jobs_closed.is_empty() && !was_closed;
            let mut rows = ending_rows(name, self.ending.dry_run, &ending, answer.jobs_closed);
            if was_closed {
                rows[0] = ("closed before", name.into());
            }
            print(&fields(rows))?;
            if ended_nothing {
                note(&no_lease(name));
            }
            for lock in &answer.locks {
                let done = if self.ending.dry_run { "would be locked" } else { "is locked" };
                note(&format!("{} {done}. To lift it later: leasehold unlock {}", lock.name, lock.name));
            }
            for line in &answer.notes {
                note(line);
            }
        }
        Ok((value, recorded))
    }
}

impl RevokeArgs {
    /// Shows what a revocation for a compromise locks, and asks for confirmation.
    fn confirm_locks(&self, name: &str, counted: &v1::RevokeResponse) -> Result<(), Failure> {
        let locks: Vec<&str> = counted.locks.iter().map(|l| l.name.as_str()).collect();
        let ends = would_end(counted.ending.as_ref(), counted.jobs_closed_total);
        let ends = format!("{ends}, and these are locked: {}", locks.join(", "));
        confirm(name, &ends, self.ending.confirmed())
    }
}

/// Returns a warning if jobs that still run will ask for new access to this name.
fn new_access_warning(name: &str) -> Option<String> {
    let kind = name.parse::<FenceName>().ok()?.kind();
    let asks_again = matches!(
        kind,
        FenceKind::Tenant(_)
            | FenceKind::Domain(_)
            | FenceKind::Human(_)
            | FenceKind::Image(_)
            | FenceKind::Resource(_)
    );
    asks_again.then(|| {
        format!(
            "Running jobs ask for new access at once, and get it if policy still allows it. To refuse it: leasehold lock {name} --reason …"
        )
    })
}

/// Returns a note that no lease was ended. Without this, a mistyped name would look like success.
pub(super) fn no_lease(name: &str) -> String {
    format!("No lease depended on {name}. If you expected one, compare the name with `leasehold lease list`.")
}

/// Returns the rows about what was ended, or would be ended.
pub(super) fn ending_rows(
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
    fn a_name_that_jobs_ask_for_again_gets_a_warning() {
        for name in ["tenant:acme", "domain:td.example", "dataset:acme/tickets@v3", "human:ada"] {
            assert!(new_access_warning(name).unwrap().contains(&format!("leasehold lock {name} ")), "{name}");
        }
        let job = format!("job:{}", crate::name::JobId(7));
        for name in [job.as_str(), "identity:spiffe://td.example/a"] {
            assert_eq!(new_access_warning(name), None, "{name}");
        }
    }
}

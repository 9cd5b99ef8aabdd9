//! Implements `leasehold lock` and `leasehold unlock`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    confirm::{NOTHING_CHANGED, confirm_if_large},
    ids,
    output::{fields, note, print, print_line},
    parse, render,
    revoke::{EndingArgs, ending_rows, no_lease},
    timestamp,
    wait_durable::wait_durable,
};
use crate::{
    clock::Wall,
    name::PrincipalKind,
    proto::{convert::duration, v1},
};

/// Ends all access that depends on a name, and keeps new access out. `freeze` is the same command.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
A lock survives a restart. A lock on a launcher also closes the jobs that it launched. A lock on a
person also refuses the calls of all their SPIFFE IDs. Only operators of the platform can remove a
lock that the platform set.

Examples:
  leasehold freeze model:acme/base-7b --reason \"INC-7\" --dry-run
  leasehold lock launcher:spiffe://k8s.acme.example/ns/ci/sa/ci --reason \"key leaked\" --ttl 8h
  leasehold lock identity-prefix:spiffe://hpc.acme.example/slurm/ --reason \"cluster compromised\""
)]
pub struct LockArgs {
    #[command(subcommand)]
    command: Option<LockCommand>,
    /// A name as for `revoke`; identity-prefix:spiffe://…/ for all identities below a path; launcher:spiffe://… for what an
    /// identity launches
    #[arg(value_name = "NAME", required = true, value_parser = parse::lock_name)]
    name: Option<String>,
    /// Why, for the people who are refused and for auditors
    #[arg(long, value_name = "TEXT", required = true, value_parser = parse::reason)]
    reason: Option<String>,
    /// Unlock automatically after this time [default: never]
    #[arg(long, value_name = "SPAN", value_parser = parse::span)]
    ttl: Option<Duration>,
    #[command(flatten)]
    ending: EndingArgs,
    /// Confirm that this locks out these operators, as the refusal names them. Those in policy.break_glass can still unlock
    #[arg(long, value_name = "OPERATORS", value_parser = parse::pattern)]
    locks_out: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum LockCommand {
    /// Lists the locks.
    #[command(after_help = "\
Examples:
  leasehold lock list
  leasehold lock list -o json | jq -r '.[].name'")]
    List,
}

impl LockArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match (self.command, self.name, self.reason) {
            (None, Some(name), Some(reason)) => {
                let request = v1::LockRequest {
                    name,
                    reason,
                    ttl: self.ttl.map(duration),
                    dry_run: self.ending.dry_run,
                    ahead: self.ending.ahead,
                    locks_out: self.locks_out,
                };
                lock(request, &self.ending, session).await
            }
            _ => list(session).await,
        }
    }
}

async fn lock(mut request: v1::LockRequest, args: &EndingArgs, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator])?;
    request.name = ids::resolve_name(&client, &request.name).await?;
    let (name, dry_run) = (request.name.clone(), request.dry_run);
    let dry = v1::LockRequest { dry_run: true, ..request.clone() };
    let count = async {
        let dry = client.ask(CallKind::Reads, dry, async |r| client.operator().lock(r).await).await?;
        Ok((dry.ending, dry.jobs_closed_total))
    };
    confirm_if_large(&name, args.confirmed(), count).await?;
    let kind = CallKind::of_dry_run(dry_run);
    let answer = client.ask(kind, request, async |r| client.operator().lock(r).await).await?;
    let mut ending = answer.ending.unwrap_or_default();
    let recorded = wait_durable(&client, &mut ending, args.wait()).await;
    let now = session.now().wall;
    if session.for_programs() {
        session.print_value(&json!({
            "lock": answer.lock.as_ref().map(|l| render::lock_value(l, now)), "dry_run": dry_run,
            "ending": render::ending_value(&ending), "jobs_closed": answer.jobs_closed,
        }))?;
    } else {
        let closes = !answer.jobs_closed.is_empty();
        let [_, rest @ ..] = ending_rows(&name, dry_run, &ending, answer.jobs_closed);
        let what = if dry_run { "would lock" } else { "locked" };
        print(&fields([(what, name.clone().into())].into_iter().chain(rest)))?;
        if ending.behind == 0 && !closes {
            note(&no_lease(&name));
        }
        if dry_run {
            note(NOTHING_CHANGED);
        } else {
            note(&refused_until(&name, answer.lock.as_ref(), now));
        }
    }
    recorded.map(|()| Exit::Ok)
}

/// Explains until when new access is refused, and how to allow it earlier.
fn refused_until(name: &str, lock: Option<&v1::Lock>, now: Wall) -> String {
    let unlock = format!("leasehold unlock {name} --reason …");
    match timestamp::both(lock.and_then(|l| l.until.as_ref()), now) {
        until if until.is_empty() => format!("New access to {name} is refused until you run: {unlock}"),
        until => {
            format!("New access to {name} is refused until {until}. To allow it before then: {unlock}")
        }
    }
}

async fn list(session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
    let (locks, _) = fetch_pages(usize::MAX, async |page_size, page_token| {
        let request = v1::ListLocksRequest { page_size, page_token };
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.operator().list_locks(r).await).await?;
        Ok((answer.locks, answer.next_page_token))
    })
    .await?;
    let now = session.now().wall;
    if session.for_programs() {
        session.print_value(&locks.iter().map(|l| render::lock_value(l, now)).collect())?;
    } else {
        print(&render::lock_table(&locks, now, session.table_size()))?;
        if locks.is_empty() {
            note("There is no lock.");
        }
    }
    Ok(Exit::Ok)
}

/// Removes a lock. `unfreeze` is the same command.
#[derive(Debug, Args)]
#[command(after_help = "\
Access that the lock ended does not come back. Jobs may ask for new access, and policy decides.

Examples:
  leasehold lock list
  leasehold unlock tenant:acme --reason \"incident 7 is over\"")]
pub struct UnlockArgs {
    /// The name, as `lock list` shows it
    #[arg(value_name = "NAME", value_parser = parse::lock_name)]
    name: String,
    /// Why, for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
}

impl UnlockArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator])?;
        let name = ids::resolve_name(&client, &self.name).await?;
        let request = v1::UnlockRequest { name: name.clone(), reason: self.reason };
        let answer =
            client.ask(CallKind::Changes, request, async |r| client.operator().unlock(r).await).await?;
        let now = session.now().wall;
        if session.for_programs() {
            session.print_value(
                &json!({ "lifted": answer.lifted.as_ref().map(|l| render::lock_value(l, now)) }),
            )?;
        } else {
            print_line(&format!("{name} is unlocked"))?;
            note("Access that the lock ended does not come back by itself.");
        }
        Ok(Exit::Ok)
    }
}

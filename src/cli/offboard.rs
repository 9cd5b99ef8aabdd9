//! Implements the offboarding commands of `leasehold identity` and `leasehold tenant`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::CallKind,
    confirm::{NOTHING_CHANGED, confirm, would_end},
    output::{Page, TableCell, columns, fields, note, print},
    parse, render,
    revoke::EndingArgs,
    wait_durable::wait_durable,
};
use crate::{
    name::{FenceName, PrincipalKind, SpiffeId, TenantName},
    proto::v1,
};

/// Offboards identities: ends all their access permanently.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold identity offboard spiffe://k8s.acme.example/ns/ml/sa/tuner --reason \"team dissolved\"")]
pub struct IdentityArgs {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Debug, Subcommand)]
enum IdentityCommand {
    /// Locks an identity, closes the jobs that it launched, and lists what you must remove yourself.
    #[command(after_help = "\
The lock stays until `leasehold unlock`. People must work through the list: a command cannot remove
an entry of the catalog, or an SVID that SPIRE has issued.

Examples:
  leasehold identity offboard --dry-run --reason \"team dissolved\" \\
    spiffe://k8s.acme.example/ns/ml/sa/tuner
  leasehold verify-clean identity:spiffe://k8s.acme.example/ns/ml/sa/tuner")]
    Offboard {
        /// The SPIFFE ID of the identity
        #[arg(value_name = "ID")]
        id: SpiffeId,
        #[command(flatten)]
        args: OffboardArgs,
    },
}

/// Offboards tenants: ends all their access permanently.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold tenant offboard globex --reason \"contract ended\"")]
pub struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Locks a tenant, closes its jobs, and lists what you must remove. For operators of the platform.
    #[command(after_help = "\
Examples:
  leasehold tenant offboard globex --dry-run --reason \"contract ended\"
  leasehold verify-clean tenant:globex")]
    Offboard {
        /// The tenant
        #[arg(value_name = "NAME")]
        name: TenantName,
        #[command(flatten)]
        args: OffboardArgs,
    },
}

#[derive(Debug, Args)]
struct OffboardArgs {
    /// Why, for the people who lose access and for auditors
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    #[command(flatten)]
    large: EndingArgs,
    /// Confirm that this locks out these operators, which the refusal names
    #[arg(long, value_name = "OPERATORS", value_parser = parse::pattern)]
    locks_out: Vec<String>,
}

impl IdentityArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let IdentityCommand::Offboard { id, args } = self.command;
        offboard(&FenceName::identity(id), args, session).await
    }
}

impl TenantArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let TenantCommand::Offboard { name, args } = self.command;
        offboard(&FenceName::tenant(name), args, session).await
    }
}

async fn offboard(name: &FenceName, args: OffboardArgs, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator])?;
    let ask = async |dry_run: bool| {
        let request = v1::OffboardRequest {
            name: name.to_string(),
            reason: args.reason.clone(),
            dry_run,
            ahead: args.large.ahead,
            locks_out: args.locks_out.clone(),
        };
        let kind = CallKind::of_dry_run(dry_run);
        client.ask(kind, request, async |r| client.operator().offboard(r).await).await
    };
    let mut answer = ask(true).await?;
    if !args.large.dry_run {
        let ends = would_end(answer.ending.as_ref(), answer.jobs_closed_total);
        confirm(name.as_str(), &ends, args.large.confirmed())?;
        answer = ask(false).await?;
    }
    let mut ending = answer.ending.clone().unwrap_or_default();
    let recorded = wait_durable(&client, &mut ending, args.large.wait()).await;
    if session.for_programs() {
        session.print_value(&json!({
            "name": name.to_string(), "dry_run": args.large.dry_run, "ending": render::ending_value(&ending),
            "jobs_closed": answer.jobs_closed, "jobs_closed_total": answer.jobs_closed_total,
            "stays": remnant_values(&answer.stays), "stays_total": answer.stays_total,
        }))?;
    } else {
        let (what, leases, jobs) = match args.large.dry_run {
            true => ("would offboard", "leases that would end", "jobs it would close"),
            false => ("offboarded", "leases ended", "jobs closed"),
        };
        print(&fields([
            (what, TableCell::from(name.as_str())),
            (leases, ending.behind.to_string().into()),
            (jobs, answer.jobs_closed_total.to_string().into()),
            ("", TableCell::list(&answer.jobs_closed)),
            ("stays", answer.stays_total.to_string().into()),
        ]))?;
        if !answer.stays.is_empty() {
            print(&Page::default().below(&remnant_table(&answer.stays)))?;
        }
        if args.large.dry_run {
            note(NOTHING_CHANGED);
        } else {
            note(&format!("To check that no access is left: leasehold verify-clean {name}"));
        }
    }
    recorded.map(|()| Exit::Ok)
}

pub(super) fn remnant_table(all: &[v1::Remnant]) -> Page {
    columns(
        &["WHAT", "NAME", "DETAIL"],
        all.iter().map(|r| vec![r.kind.clone(), r.name.clone(), r.detail.clone()]),
    )
}

pub(super) fn remnant_values(all: &[v1::Remnant]) -> Vec<Value> {
    all.iter().map(|r| json!({ "kind": r.kind, "name": r.name, "detail": r.detail })).collect()
}

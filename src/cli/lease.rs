//! Implements `leasehold lease`.

use clap::{Args, Subcommand};

use super::{
    Client, Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    ids::{self, LeaseRef},
    job::incomplete,
    output::{note, print},
    parse, render,
    watch::watch,
};
use crate::{limits::PAGE_DEFAULT, name::PrincipalKind, proto::v1, reason::Reason};

/// Lists and shows leases: who has access to what at this moment.
#[derive(Debug, Args)]
#[command(after_help = "\
A lease is the access of one process to some data, until it expires or is ended. Launchers see the
leases of their own jobs.

Examples:
  leasehold lease list --behind dataset:acme/tickets@v3
  leasehold lease list --watch
  leasehold lease show l-…")]
pub struct LeaseArgs {
    #[command(subcommand)]
    command: LeaseCommand,
}

#[derive(Debug, Subcommand)]
enum LeaseCommand {
    /// Lists live leases.
    #[command(after_help = "\
Examples:
  leasehold lease list
  leasehold lease list --behind identity:spiffe://k8s.acme.example/ns/ml/job/7f3a --all
  leasehold lease list -o json | jq -r '.[].id'")]
    List(ListArgs),
    /// Shows one lease.
    #[command(after_help = "\
Examples:
  leasehold lease show l-…
  leasehold lease show \"$(leasehold token inspect leaked.jwt -o json | jq -r .claims.lh.lease)\"")]
    Show {
        /// The id of the lease, or its beginning, as `lease list` shows it
        #[arg(value_name = "ID")]
        lease: LeaseRef,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only leases that end if this name is revoked: a job, an identity, a dataset, a tenant…
    #[arg(long, value_name = "NAME", value_parser = parse::ending_name)]
    behind: Option<String>,
    /// Also leases that ended a short time ago
    #[arg(long)]
    all: bool,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = PAGE_DEFAULT)]
    limit: usize,
    /// Refresh every two seconds
    #[arg(long, short)]
    watch: bool,
}

const READERS: [PrincipalKind; 4] =
    [PrincipalKind::Operator, PrincipalKind::Auditor, PrincipalKind::Launcher, PrincipalKind::Workload];

impl LeaseArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            LeaseCommand::Show { lease } => {
                let client = session.client(&READERS)?;
                let id = lease.resolve(&client).await?;
                let request = v1::GetLeaseRequest { lease: id.to_string() };
                let answer = client
                    .ask(CallKind::Reads, request, async |r| client.operator().get_lease(r).await)
                    .await
                    .map_err(|failure| match failure.reason {
                        Some(Reason::LeaseNotFound) => failure.with("asked", lease.as_str()).fix(
                            "see `leasehold lease list --all`, and `leasehold audit tail --about` for older leases",
                        ),
                        _ => failure,
                    })?;
                let lease = answer.lease.ok_or_else(incomplete)?;
                let now = session.now().wall;
                if session.for_programs() {
                    session.print_value(&render::lease_value(&lease, now))?;
                } else {
                    print(&render::lease_page(&lease, now))?;
                }
                Ok(Exit::Ok)
            }
            LeaseCommand::List(args) if args.watch => {
                watch(session, async || {
                    let (leases, _) = fetch(&session.client(&READERS)?, &args).await?;
                    let now = session.now().wall;
                    let value = leases.iter().map(|l| render::lease_value(l, now)).collect();
                    Ok((value, render::lease_table(&leases, now, session.table_size())))
                })
                .await
            }
            LeaseCommand::List(args) => {
                let client = session.client(&READERS)?;
                let (leases, more) = fetch(&client, &args).await?;
                let now = session.now().wall;
                if session.for_programs() {
                    session.print_value(&leases.iter().map(|l| render::lease_value(l, now)).collect())?;
                } else {
                    print(&render::lease_table(&leases, now, session.table_size()))?;
                    if leases.is_empty() {
                        note(&match &args.behind {
                            Some(name) => format!("No lease depends on {name}."),
                            None => "There is no live lease that you may see.".to_owned(),
                        });
                    }
                }
                if more {
                    note("There are more: add --limit N.");
                }
                Ok(Exit::Ok)
            }
        }
    }
}

async fn fetch(client: &Client, args: &ListArgs) -> Result<(Vec<v1::Lease>, bool), Failure> {
    let behind = match &args.behind {
        Some(name) => ids::resolve_name(client, name).await?,
        None => String::new(),
    };
    fetch_pages(args.limit, async |page_size, page_token| {
        let behind = behind.clone();
        let request = v1::ListLeasesRequest {
            behind,
            live_only: !args.all,
            page_size,
            page_token,
            ..Default::default()
        };
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.operator().list_leases(r).await).await?;
        Ok((answer.leases, answer.next_page_token))
    })
    .await
}

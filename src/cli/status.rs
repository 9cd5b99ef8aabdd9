//! Implements `leasehold status` and `leasehold whoami`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Client, Exit, Failure, Session,
    client::CallKind,
    output::{TableCell, fields, note, print},
    render, timestamp,
};
use crate::{limits::PAGE_MAX, name::PrincipalKind, proto::v1, reason::Reason};

/// Shows the state of the daemon: its version, and the jobs, live leases and locks that you may see.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold status
  leasehold status --context prod -o json | jq .jobs")]
pub struct StatusArgs {}

/// A number, if it is known.
enum Count {
    Exactly(usize),
    /// The first page was full, and there are more pages.
    AtLeast(usize),
    /// The caller may not see the number.
    Hidden,
}

impl Count {
    fn of(shown: usize, next_page_token: &str) -> Self {
        if next_page_token.is_empty() { Count::Exactly(shown) } else { Count::AtLeast(shown) }
    }

    fn shown(&self) -> String {
        match self {
            Count::Exactly(n) => n.to_string(),
            Count::AtLeast(n) => format!("{n} or more"),
            Count::Hidden => "you may not see them".to_owned(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Count::Exactly(n) => json!({ "count": n, "more": false }),
            Count::AtLeast(n) => json!({ "count": n, "more": true }),
            Count::Hidden => Value::Null,
        }
    }
}

/// Turns a denial into a hidden count. Any other failure ends the command, and so does a lock on the caller.
fn or_hidden(counted: Result<Count, Failure>) -> Result<Count, Failure> {
    match counted {
        Err(failure) if failure.exit == Exit::Denied && failure.reason != Some(Reason::Locked) => {
            Ok(Count::Hidden)
        }
        other => other,
    }
}

impl StatusArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[
            PrincipalKind::Operator,
            PrincipalKind::Auditor,
            PrincipalKind::Launcher,
            PrincipalKind::Workload,
        ])?;
        let who = client.who_am_i().await?;
        let ready = or_hidden(jobs(&client, v1::JobState::Ready).await)?;
        let running = or_hidden(jobs(&client, v1::JobState::Running).await)?;
        let waiting = or_hidden(jobs(&client, v1::JobState::AwaitingApproval).await)?;
        let leases = or_hidden(leases(&client).await)?;
        let locks = or_hidden(locks(&client).await)?;
        let now = session.now().wall;
        if session.for_programs() {
            session.print_value(&json!({
                "version": who.server_version, "epoch": who.epoch, "you": who.spiffe_id,
                "jobs": { "ready": ready.value(), "running": running.value(), "awaiting_approval": waiting.value() },
                "live_leases": leases.value(), "locks": locks.value(),
                "server_time": timestamp::value(who.server_time.as_ref(), now),
                "svid_expires": timestamp::value(who.svid_expires.as_ref(), now),
                "catalog_mistakes": who.catalog_mistakes, "observed": who.observed,
            }))?;
        } else {
            print(&fields([
                ("daemon", TableCell::from(format!("leasehold {}, epoch {}", who.server_version, who.epoch))),
                ("you", who.spiffe_id.into()),
                ("your SVID expires", timestamp::both(who.svid_expires.as_ref(), now).into()),
                ("jobs running", running.shown().into()),
                ("jobs ready", ready.shown().into()),
                ("jobs awaiting approval", waiting.shown().into()),
                ("live leases", leases.shown().into()),
                ("locks", locks.shown().into()),
            ]))?;
            for observed in &who.observed {
                note(&format!(
                    "leasehold: warning: OBSERVE: policy refuses nothing to the jobs of these tenants: {observed}"
                ));
            }
            for mistake in &who.catalog_mistakes {
                note(&format!("leasehold: warning: not in force: catalog file {mistake}"));
            }
        }
        Ok(Exit::Ok)
    }
}

fn page_size() -> u32 {
    u32::try_from(PAGE_MAX).unwrap_or(u32::MAX)
}

async fn jobs(client: &Client, state: v1::JobState) -> Result<Count, Failure> {
    let request =
        v1::ListJobsRequest { states: vec![state.into()], page_size: page_size(), ..Default::default() };
    let answer = client.ask(CallKind::Reads, request, async |r| client.jobs().list_jobs(r).await).await?;
    Ok(Count::of(answer.jobs.len(), &answer.next_page_token))
}

async fn leases(client: &Client) -> Result<Count, Failure> {
    let request = v1::ListLeasesRequest { live_only: true, page_size: page_size(), ..Default::default() };
    let answer =
        client.ask(CallKind::Reads, request, async |r| client.operator().list_leases(r).await).await?;
    Ok(Count::of(answer.leases.len(), &answer.next_page_token))
}

async fn locks(client: &Client) -> Result<Count, Failure> {
    let request = v1::ListLocksRequest { page_size: page_size(), ..Default::default() };
    let answer =
        client.ask(CallKind::Reads, request, async |r| client.operator().list_locks(r).await).await?;
    Ok(Count::of(answer.locks.len(), &answer.next_page_token))
}

/// Shows who you are to the daemon: your identity (SPIFFE ID), kind, tenant and groups.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold whoami
  leasehold whoami --as operator")]
pub struct WhoamiArgs {}

impl WhoamiArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(PrincipalKind::ALL)?;
        let answer = client.who_am_i().await?;
        let now = session.now().wall;
        if session.for_programs() {
            session.print_value(&json!({
                "spiffe_id": answer.spiffe_id, "kind": render::none_if_empty(answer.kind), "tenant": render::none_if_empty(answer.tenant),
                "locked": render::none_if_empty(answer.locked),
                "roles": answer.roles, "groups": answer.groups, "matched": render::none_if_empty(answer.matched),
                "svid_expires": timestamp::value(answer.svid_expires.as_ref(), now),
                "login": answer.login.as_ref().map(|login| json!({
                    "human": login.human, "issuer": login.issuer, "sub": login.sub, "groups": login.groups, "amr": login.amr,
                    "since": timestamp::value(login.since.as_ref(), now), "until": timestamp::value(login.until.as_ref(), now),
                })),
                "server_version": answer.server_version, "epoch": answer.epoch, "observed": answer.observed,
                "server_time": timestamp::value(answer.server_time.as_ref(), now),
            }))?;
        } else {
            let login = answer.login.unwrap_or_default();
            let kind = if answer.kind.is_empty() {
                "none: the catalog has no entry for you".to_owned()
            } else {
                answer.kind
            };
            print(&fields([
                ("you", answer.spiffe_id),
                ("kind", kind),
                ("tenant", answer.tenant),
                ("roles", answer.roles.join(", ")),
                ("groups", answer.groups.join(", ")),
                ("matched by", answer.matched),
                ("person", login.human),
                ("logged in at", login.issuer),
                ("your groups there", login.groups.join(", ")),
                ("sign-in methods", login.amr.join(", ")),
                (
                    "logged in until",
                    login.until.as_ref().map(|at| timestamp::both(Some(at), now)).unwrap_or_default(),
                ),
                ("LOCKED", answer.locked),
                ("observed", answer.observed.join(", ")),
                ("SVID expires", timestamp::both(answer.svid_expires.as_ref(), now)),
                ("daemon", format!("leasehold {}, epoch {}", answer.server_version, answer.epoch)),
            ]))?;
        }
        Ok(Exit::Ok)
    }
}

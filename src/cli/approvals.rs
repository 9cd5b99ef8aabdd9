//! Implements `leasehold approvals`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    ids,
    output::{Page, columns, note, print},
    render,
    timestamp::short,
};
use crate::{clock::Wall, name::PrincipalKind, proto::v1};

/// Lists the jobs that wait for people, newest first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold approvals
  leasehold approvals --needs-me
  leasehold approvals --needs-me -o json | jq -r '.[].job.id'")]
pub struct ApprovalsArgs {
    /// Only the jobs that you can approve and have not approved
    #[arg(long)]
    needs_me: bool,
}

impl ApprovalsArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
        let (waiting, _) = fetch_pages(usize::MAX, async |page_size, page_token| {
            let request = v1::ListApprovalsRequest { needs_me: self.needs_me, page_size, page_token };
            let answer = client
                .ask(CallKind::Reads, request, async |r| client.approvals().list_approvals(r).await)
                .await?;
            Ok((answer.waiting, answer.next_page_token))
        })
        .await?;
        let now = session.now().wall;
        if session.for_programs() {
            session.print_value(&waiting.iter().map(|w| waiting_value(w, now)).collect())?;
        } else {
            print(&waiting_table(&waiting, now))?;
            match (waiting.is_empty(), self.needs_me) {
                (true, true) => note("No job waits for you."),
                (true, false) => note("No job waits for approval."),
                (false, _) if waiting.iter().flat_map(|job| &job.gates).any(|gate| gate.needs_me) => {
                    note("To look and approve: leasehold approve JOB --reason TEXT");
                }
                (false, _) => {}
            }
        }
        Ok(Exit::Ok)
    }
}

fn waiting_table(waiting: &[v1::WaitingJob], now: Wall) -> Page {
    let jobs = || waiting.iter().filter_map(|w| w.job.as_ref());
    let short_ids = ids::shortened(jobs().map(|job| job.id.as_str()));
    let rows = waiting.iter().flat_map(|w| w.gates.iter().filter_map(|gate| Some((w.job.as_ref()?, gate))));
    let rows = rows.map(|(job, gate)| {
        let whole = job.gates.iter().find(|g| g.id == gate.gate);
        let given = whole.map(|g| g.approvals.iter().filter(|a| a.void_because.is_empty()).map(approver));
        vec![
            short_ids.get(job.id.as_str()).copied().unwrap_or(&job.id).to_owned(),
            job.name.clone(),
            job.tenant.clone(),
            gate.gate.clone(),
            gate.group.clone(),
            gate.missing.to_string(),
            given.map(|by| by.collect::<Vec<_>>().join(", ")).unwrap_or_default(),
            short(job.created.as_ref(), now),
            short(job.ends_at_latest.as_ref(), now),
            if gate.needs_me { "yes" } else { "" }.to_owned(),
        ]
    });
    columns(
        &[
            "JOB",
            "NAME",
            "TENANT",
            "GATE",
            "GROUP",
            "MISSING",
            "APPROVED BY",
            "CREATED",
            "WAITS UNTIL",
            "YOU",
        ],
        rows,
    )
}

/// Returns the person who approved, or the identity if the catalog does not say who it is.
fn approver(approval: &v1::Approval) -> String {
    approval.human.strip_prefix("human:").unwrap_or(&approval.by).to_owned()
}

fn waiting_value(waiting: &v1::WaitingJob, now: Wall) -> Value {
    let gates = waiting.gates.iter().map(|g| {
        json!({
            "gate": g.gate, "group": g.group, "missing": g.missing, "operators": g.operators,
            "needs_me": g.needs_me,
        })
    });
    json!({
        "job": waiting.job.as_ref().map(|job| render::job_value(job, now)),
        "gates": gates.collect::<Vec<_>>(),
    })
}

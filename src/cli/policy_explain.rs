//! Implements `leasehold policy explain`: shows the recorded decisions about a job or a lease, and how policy decides
//! each of them again.

use std::str::FromStr;

use clap::Args;
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::CallKind,
    ids::{JobRef, LeaseRef},
    output::{Page, TableCell, fields, note, print},
    render, timestamp,
};
use crate::{clock::Wall, name::PrincipalKind, proto::v1};

#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 0 if each decision would be the same again, and with 1 if one differs or cannot be
made again.

Examples:
  leasehold policy explain j-…            by what is in force now
  leasehold policy explain l-… --replay   by what was in force then
  leasehold policy explain j-… -o json | jq '.decisions[].again'")]
pub(super) struct PolicyExplainArgs {
    /// The id of a job or of a lease, or its beginning
    #[arg(value_name = "JOB|LEASE")]
    about: ExplainedRef,
    /// Decide again with the policy, the catalog and the time of the first decision
    #[arg(long)]
    replay: bool,
}

/// A job or a lease, by the id that people type.
#[derive(Clone, Debug)]
enum ExplainedRef {
    Job(JobRef),
    Lease(LeaseRef),
}

impl FromStr for ExplainedRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("job:").or_else(|| text.strip_prefix("lease:")).unwrap_or(text);
        match text.starts_with("l-") {
            true => text.parse().map(ExplainedRef::Lease),
            false => text.parse().map(ExplainedRef::Job),
        }
    }
}

const READERS: [PrincipalKind; 4] =
    [PrincipalKind::Operator, PrincipalKind::Auditor, PrincipalKind::Launcher, PrincipalKind::Workload];

impl PolicyExplainArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&READERS)?;
        let mut request = v1::ExplainJobRequest { replay: self.replay, ..Default::default() };
        match &self.about {
            ExplainedRef::Job(job) => request.job = job.resolve(&client).await?.to_string(),
            ExplainedRef::Lease(lease) => request.lease = lease.resolve(&client).await?.to_string(),
        }
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.operator().explain_job(r).await).await?;
        let now = session.now().wall;
        if session.for_programs() {
            let decisions: Vec<_> = answer.decisions.iter().map(|d| value(d, now)).collect();
            session.print_value(&json!({
                "job": answer.job, "policy": answer.policy, "catalog": answer.catalog, "replay": self.replay,
                "whole": answer.whole, "from_record": answer.from_index, "decisions": decisions,
            }))?;
        } else {
            let pages = answer.decisions.iter().map(|d| page(d, now));
            let about = fields([
                ("job", answer.job.as_str()),
                ("policy in force", answer.policy.as_str()),
                ("catalog in force", answer.catalog.as_str()),
            ]);
            print(&pages.fold(about, |all, page| all.below(&page)))?;
        }
        if !answer.whole {
            note(&format!(
                "Records before {} were not read. Earlier decisions are in the ledger: leasehold audit tail --from 1 --about job:{}",
                answer.from_index, answer.job
            ));
        }
        let is_same = |d: &v1::RecordedDecision| d.again() == v1::DecidedAgain::Same;
        Ok(if answer.decisions.iter().all(is_same) { Exit::Ok } else { Exit::Failure })
    }
}

/// Describes the result of a second decision.
fn again(d: &v1::RecordedDecision) -> String {
    match d.again() {
        v1::DecidedAgain::Same => format!("the same: {}", d.result_again),
        v1::DecidedAgain::Differs if d.result_again == d.result => {
            format!("{}, but by other rules", d.result_again)
        }
        v1::DecidedAgain::Differs => format!("differs: {}", d.result_again),
        v1::DecidedAgain::NotPossible | v1::DecidedAgain::Unspecified => "cannot be decided again".to_owned(),
    }
}

fn page(d: &v1::RecordedDecision, now: Wall) -> Page {
    let times = match d.times {
        0 | 1 => String::new(),
        n => format!("{n}, the last one at record {}", d.index),
    };
    let rules_again: &[String] = match d.again() {
        v1::DecidedAgain::Differs => &d.rules_again,
        _ => &[],
    };
    let attempt = if d.attempt == 0 { String::new() } else { d.attempt.to_string() };
    let risk_again = match &d.risk_again {
        again if *again == d.risk => String::new(),
        again => render::risk_text(again.as_ref()),
    };
    Page::line(&format!("{} (record {})", d.record, d.index)).then(&fields([
        ("  time", TableCell::from(timestamp::both(d.time.as_ref(), now))),
        ("  times", times.into()),
        ("  attempt", attempt.into()),
        ("  lease", d.lease.as_str().into()),
        ("  member", d.member.as_str().into()),
        ("  decided", d.result.as_str().into()),
        ("  rules", TableCell::list(&d.rules)),
        ("  policy", d.policy.as_str().into()),
        ("  catalog", d.catalog.as_str().into()),
        ("  again", again(d).into()),
        ("  why", d.why.as_str().into()),
        ("  rules again", TableCell::list(rules_again)),
        ("  approved", d.approved.join(", ").into()),
        ("  risk", render::risk_text(d.risk.as_ref()).into()),
        ("  risk again", risk_again.into()),
    ]))
}

fn value(d: &v1::RecordedDecision, now: Wall) -> Value {
    let outcome = match d.again() {
        v1::DecidedAgain::Same => "same",
        v1::DecidedAgain::Differs => "differs",
        v1::DecidedAgain::NotPossible | v1::DecidedAgain::Unspecified => "not-possible",
    };
    json!({
        "record": d.record, "index": d.index, "time": timestamp::value(d.time.as_ref(), now), "times": d.times,
        "attempt": d.attempt, "lease": d.lease, "member": d.member, "result": d.result, "rules": d.rules,
        "policy": d.policy, "catalog": d.catalog, "risk": d.risk.as_ref().map(render::risk_value),
        "again": {
            "outcome": outcome, "result": d.result_again, "rules": d.rules_again, "why": d.why,
            "approved": d.approved, "risk": d.risk_again.as_ref().map(render::risk_value),
        },
    })
}

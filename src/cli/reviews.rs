//! Implements `leasehold break-glass` and `leasehold reviews`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Client, Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    ids::JobRef,
    job::{get, incomplete},
    output::{Page, columns, note, print, print_line},
    parse, render,
    timestamp::{self, short},
};
use crate::{
    clock::Wall,
    name::PrincipalKind,
    proto::{convert::duration, v1},
};

/// Opens the gates of a job in an emergency, without approvals. The emergency must be reviewed.
#[derive(Debug, Args)]
#[command(after_help = "\
The job runs only for a short time: one hour, or what --lasting says, at most 4h. The daemon raises
an alarm, and someone else must review the emergency afterwards (leasehold reviews due).

Examples:
  leasehold break-glass j-0abc --reason \"INC-7: the filter lets abuse through\"
  leasehold break-glass j-0abc --lasting 30m --reason \"INC-7\"
  leasehold job create --spec job.toml --break-glass --reason \"INC-7\"")]
pub struct BreakGlassArgs {
    /// The id of the job, or its beginning, as `job list` shows it
    #[arg(value_name = "JOB")]
    job: JobRef,
    /// Why the job cannot wait for approval
    #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
    reason: String,
    /// How long the job may have access, at most 4h [default: 1h]
    #[arg(long, value_name = "SPAN", value_parser = parse::span)]
    lasting: Option<Duration>,
}

impl BreakGlassArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Launcher])?;
        let job = get(&client, self.job.resolve(&client).await?).await?;
        let job = break_glass(&client, &job, self.reason, self.lasting).await?;
        if session.for_programs() {
            session.print_value(&json!({ "job": render::job_value(&job, session.now().wall) }))?;
        } else {
            print_line(&format!("{} {}", job.id, render::job_state_or_outcome(&job)))?;
            say_what_follows(&job, session);
        }
        Ok(Exit::Ok)
    }
}

/// Opens the gates of a job, if the job is unchanged since it was fetched.
pub(super) async fn break_glass(
    client: &Client,
    job: &v1::Job,
    reason: String,
    lasting: Option<Duration>,
) -> Result<v1::Job, Failure> {
    let request = v1::BreakGlassRequest {
        job: job.id.clone(),
        request_digest: job.request_digest.clone(),
        reason,
        lasting: lasting.map(duration),
    };
    let answer =
        client.ask(CallKind::Changes, request, async |r| client.approvals().break_glass(r).await).await?;
    answer.job.ok_or_else(incomplete)
}

/// Prints until when the job has access, and that its review is due.
pub(super) fn say_what_follows(job: &v1::Job, session: &Session) {
    let until = job.emergency.as_ref().and_then(|e| e.until.as_ref());
    note(&format!(
        "The gates are open until {}, and all access ends then. A review is due: leasehold reviews due",
        timestamp::both(until, session.now().wall)
    ));
}

/// Lists emergencies that must be reviewed, and records a review.
#[derive(Debug, Args)]
#[command(after_help = "\
A review is due for each job whose gates were opened in an emergency, until someone who had no part
in the emergency has reviewed it.

Examples:
  leasehold reviews due
  leasehold reviews done j-0abc --reason \"INC-7 reviewed with security, no data left\"")]
pub struct ReviewsArgs {
    #[command(subcommand)]
    command: ReviewsCommand,
}

#[derive(Debug, Subcommand)]
enum ReviewsCommand {
    /// Lists the emergencies that no one has reviewed. Exits with 6 if there is one.
    #[command(after_help = "\
Examples:
  leasehold reviews due
  leasehold reviews due -o json | jq -r '.[].job'")]
    Due,
    /// Records that you have reviewed an emergency.
    #[command(after_help = "\
Examples:
  leasehold reviews done j-0abc --reason \"INC-7 reviewed with security\"")]
    Done {
        /// The id of the job, or its beginning, as `reviews due` shows it
        #[arg(value_name = "JOB")]
        job: JobRef,
        /// What you found
        #[arg(long, value_name = "TEXT", value_parser = parse::reason)]
        reason: String,
    },
}

impl ReviewsArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            ReviewsCommand::Due => list(session).await,
            ReviewsCommand::Done { job, reason } => {
                let client = session.client(&[PrincipalKind::Operator])?;
                let job = job.of_review(async || Ok(due(&client).await?.into_iter().map(|r| r.job))).await?;
                let request = v1::FinishReviewRequest { job: job.to_string(), reason };
                let answer = client
                    .ask(CallKind::Changes, request, async |r| client.approvals().finish_review(r).await)
                    .await?;
                let review = answer.review.ok_or_else(incomplete)?;
                if session.for_programs() {
                    session.print_value(&review_value(&review, session.now().wall))?;
                } else {
                    print_line(&format!("{} is reviewed", review.job))?;
                }
                Ok(Exit::Ok)
            }
        }
    }
}

/// Returns the reviews that are due.
async fn due(client: &Client) -> Result<Vec<v1::Review>, Failure> {
    let (reviews, _) = fetch_pages(usize::MAX, async |page_size, page_token| {
        let request = v1::ListReviewsRequest { page_size, page_token };
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.approvals().list_reviews(r).await).await?;
        Ok((answer.reviews, answer.next_page_token))
    })
    .await?;
    Ok(reviews)
}

async fn list(session: &Session) -> Result<Exit, Failure> {
    let reviews = due(&session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?).await?;
    let now = session.now().wall;
    if session.for_programs() {
        session.print_value(&reviews.iter().map(|review| review_value(review, now)).collect())?;
    } else {
        print(&review_table(&reviews, now))?;
        note(if reviews.is_empty() {
            "No review is due."
        } else {
            "To record one: leasehold reviews done JOB --reason TEXT"
        });
    }
    Ok(if reviews.is_empty() { Exit::Ok } else { Exit::NotClean })
}

fn review_table(reviews: &[v1::Review], now: Wall) -> Page {
    let rows = reviews.iter().map(|review| {
        vec![
            review.job.clone(),
            review.name.clone(),
            review.tenant.clone(),
            review.by.clone(),
            review.gates.join(", "),
            short(review.at.as_ref(), now),
            review.reason.clone(),
        ]
    });
    columns(&["JOB", "NAME", "TENANT", "OPENED BY", "GATES", "AT", "REASON"], rows)
}

fn review_value(review: &v1::Review, now: Wall) -> Value {
    json!({
        "job": review.job, "name": review.name, "tenant": review.tenant, "by": review.by,
        "human": review.human, "gates": review.gates, "reason": review.reason, "launcher": review.launcher,
        "at": timestamp::value(review.at.as_ref(), now), "until": timestamp::value(review.until.as_ref(), now),
    })
}

//! Implements `leasehold job list`.

use clap::Args;

use super::{
    Client, Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    job::READERS,
    output::{Page, note, print},
    parse, render,
    watch::watch,
};
use crate::{
    limits::PAGE_DEFAULT,
    name::{ResourceName, SpiffeId, TenantName},
    proto::v1,
};

/// The options that select the jobs to list.
#[derive(Debug, Args)]
pub(super) struct JobListArgs {
    /// Only jobs that are not closed
    #[arg(long)]
    open: bool,
    /// Only these states: awaiting-approval, ready, running, closed, or an outcome such as failed or revoked
    #[arg(long, value_name = "STATE", value_parser = parse::job_state, value_delimiter = ',')]
    state: Vec<parse::StateFilter>,
    /// Only jobs of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<TenantName>,
    /// Only jobs that this identity created
    #[arg(long, value_name = "SPIFFE ID")]
    launcher: Option<SpiffeId>,
    /// Only jobs that read this dataset: TENANT/NAME or TENANT/NAME@VERSION
    #[arg(long, value_name = "NAME", value_parser = parse::dataset)]
    dataset: Option<ResourceName>,
    /// Only jobs that read this model: TENANT/NAME or TENANT/NAME@VERSION
    #[arg(long, value_name = "NAME", value_parser = parse::model)]
    model: Option<ResourceName>,
    /// Only jobs created after this time (2026-11-29T08:00:00Z), or in this last period (2h)
    #[arg(long, value_name = "WHEN", value_parser = parse::since)]
    since: Option<parse::Since>,
    /// At most this many [default: 100; all with --ids]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print only whole ids, one a line, for scripts
    #[arg(long, short = 'q')]
    ids: bool,
    /// Refresh every two seconds
    #[arg(long, short, conflicts_with = "ids")]
    watch: bool,
}

impl JobListArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        if self.watch {
            return watch(session, async || {
                let (jobs, _) = self.fetch(&session.client(&READERS)?, session).await?;
                let now = session.now().wall;
                let value = jobs.iter().map(|j| render::job_value(j, now)).collect();
                Ok((value, render::job_table(&jobs, now, session.table_size())))
            })
            .await;
        }
        let client = session.client(&READERS)?;
        let (jobs, more) = self.fetch(&client, session).await?;
        let now = session.now().wall;
        if self.ids {
            print(&Page::lines(jobs.iter().map(|j| &j.id)))?;
        } else if session.for_programs() {
            session.print_value(&jobs.iter().map(|j| render::job_value(j, now)).collect())?;
        } else {
            print(&render::job_table(&jobs, now, session.table_size()))?;
            if jobs.is_empty() {
                note(match self.has_filter() {
                    true => "No job that is visible to you matches these options.",
                    false => "There is no job that you may see.",
                });
            }
        }
        if more {
            note("There are more: add --limit N.");
        }
        Ok(Exit::Ok)
    }

    fn has_filter(&self) -> bool {
        self.open
            || !self.state.is_empty()
            || self.tenant.is_some()
            || self.launcher.is_some()
            || self.dataset.is_some()
            || self.model.is_some()
            || self.since.is_some()
    }

    fn request(&self, session: &Session) -> v1::ListJobsRequest {
        let mut request = v1::ListJobsRequest {
            open_only: self.open,
            tenant: self.tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
            launcher: self.launcher.as_ref().map(ToString::to_string).unwrap_or_default(),
            resources: self.dataset.iter().chain(&self.model).map(ToString::to_string).collect(),
            created_from: self.since.map(|since| since.timestamp(session.now().wall)),
            ..Default::default()
        };
        for wanted in &self.state {
            match wanted {
                parse::StateFilter::State(state) => request.states.push((*state).into()),
                parse::StateFilter::ClosedAs(outcome) => request.outcomes.push((*outcome).into()),
            }
        }
        request
    }

    /// Fetches the jobs. Also returns whether there are more jobs than the limit.
    async fn fetch(&self, client: &Client, session: &Session) -> Result<(Vec<v1::Job>, bool), Failure> {
        let limit = self.limit.unwrap_or(if self.ids { usize::MAX } else { PAGE_DEFAULT });
        let request = self.request(session);
        fetch_pages(limit, async |page_size, page_token| {
            let request = v1::ListJobsRequest { page_size, page_token, ..request.clone() };
            let answer =
                client.ask(CallKind::Reads, request, async |r| client.jobs().list_jobs(r).await).await?;
            Ok((answer.jobs, answer.next_page_token))
        })
        .await
    }
}

//! The gRPC service `JobService`.

use std::{pin::Pin, sync::Arc};

use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{
    edge::Edge,
    fields::{
        check_count, page_size, read_attempt_number, read_duration, read_job_page, read_key, read_name,
        read_optional_name, read_reason, read_text,
    },
    messages::{self, ending, read_outcome},
    response::{ResponseStream, fit_page},
    spec,
};
use crate::{
    broker::{BeginRequest, Broker, Caller, Concerned, JobFilter, JobStateFilter},
    job::Job,
    limits::{self, JOB_FILTER_ITEMS_MAX},
    link::Connection,
    name::{JobId, Outcome, SpiffePattern},
    policy::Rpc,
    proto::{
        convert::{nearest_wall, timestamp},
        v1::{self, job_service_server::JobService},
    },
    reason::{Reason, Refusal},
    secret::Secret,
};

pub(super) struct Jobs(pub Edge);

#[tonic::async_trait]
impl JobService for Jobs {
    async fn create_job(
        &self,
        request: Request<v1::CreateJobRequest>,
    ) -> Result<Response<v1::CreateJobResponse>, Status> {
        self.0
            .call(Rpc::CreateJob, request, |broker, caller, q| async move {
                let wire = q.spec.ok_or_else(|| {
                    Refusal::new(Reason::FieldMissing, "`spec` is required").with("field", "spec")
                })?;
                let key = if q.dry_run {
                    read_text("idempotency_key", &q.idempotency_key, limits::KEY_BYTES_MAX)?
                } else {
                    read_key("idempotency_key", &q.idempotency_key)?
                };
                let spec = spec::from_wire(&wire, caller.tenant(), caller.id())?;
                let done = broker.jobs.create_job(&caller, spec, &key, q.dry_run).await?;
                Ok(v1::CreateJobResponse {
                    job: Some(messages::job(&broker, &done.job)),
                    created: done.created,
                    decisions: done
                        .decisions
                        .into_iter()
                        .map(|d| v1::Decision {
                            principal: d.principal,
                            action: d.action,
                            resource: d.resource,
                            result: d.result.to_owned(),
                            rules: d.rules,
                        })
                        .collect(),
                })
            })
            .await
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        self.0
            .call(Rpc::GetJob, request, |broker, caller, q| async move {
                let job = broker.jobs.get_job(&caller, read_name("job", &q.job)?)?;
                Ok(v1::GetJobResponse { job: Some(messages::job(&broker, &job)) })
            })
            .await
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        self.0
            .call(Rpc::ListJobs, request, |broker, caller, q| async move {
                let max = page_size(q.page_size);
                let below = read_job_page(&q.page_token)?;
                let found =
                    broker.jobs.list_jobs(&caller, &read_job_filter(q)?, below, max.saturating_add(1));
                let jobs = fit_page(found.iter().take(max).map(|j| messages::job_summary(&broker, j)));
                let next_page_token = match found.get(..jobs.len()).and_then(<[_]>::last) {
                    Some(last) if found.len() > jobs.len() => format!("{}.{}", last.created.0, last.id),
                    _ => String::new(),
                };
                Ok(v1::ListJobsResponse { jobs, next_page_token })
            })
            .await
    }

    async fn list_resources(
        &self,
        request: Request<v1::ListResourcesRequest>,
    ) -> Result<Response<v1::ListResourcesResponse>, Status> {
        self.0
            .call(Rpc::ListResources, request, |broker, caller, q| async move {
                let max = page_size(q.page_size);
                let only = read_optional_name("name", &q.name)?;
                let after = read_optional_name("page_token", &q.page_token)?;
                let mut found = broker.rules.list_resources(
                    &caller,
                    only.as_ref(),
                    after.as_ref(),
                    max.saturating_add(1),
                )?;
                let has_more = found.len() > max;
                found.truncate(max);
                let last = found.last().filter(|_| has_more).map(|r| r.name.to_string());
                let resources = found.iter().map(|r| messages::resource(&broker, r)).collect();
                Ok(v1::ListResourcesResponse { resources, next_page_token: last.unwrap_or_default() })
            })
            .await
    }

    async fn close_job(
        &self,
        request: Request<v1::CloseJobRequest>,
    ) -> Result<Response<v1::CloseJobResponse>, Status> {
        self.0
            .call(Rpc::CloseJob, request, |broker, caller, q| async move {
                let job: JobId = read_name("job", &q.job)?;
                let reason = read_reason("reason", &q.reason)?;
                let outcome = match q.outcome {
                    0 => Outcome::Cancelled,
                    o => read_outcome(
                        o,
                        &[
                            Outcome::Completed,
                            Outcome::Failed,
                            Outcome::Interrupted,
                            Outcome::Cancelled,
                            Outcome::Unknown,
                        ],
                    )?,
                };
                let done = broker.jobs.close_job(&caller, job, outcome, &reason)?;
                Ok(v1::CloseJobResponse {
                    job: Some(messages::job(&broker, &done.job)),
                    ending: Some(ending(&broker, done.ending)),
                })
            })
            .await
    }

    async fn begin_attempt(
        &self,
        request: Request<v1::BeginAttemptRequest>,
    ) -> Result<Response<v1::BeginAttemptResponse>, Status> {
        self.0
            .call(Rpc::BeginAttempt, request, |broker, caller, q| async move {
                let job: JobId = read_name("job", &q.job)?;
                let key = read_key("key", &q.key)?;
                let vouched = read_patterns("members", &q.members)?;
                let joins_with = q.joins.then_some(q.ticket.as_str());
                let begin =
                    BeginRequest { job, key: &key, supersede: q.supersede, vouched: &vouched, joins_with };
                let began = broker.jobs.begin_attempt(&caller, &begin).await?;
                let now = broker.clock().now();
                Ok(v1::BeginAttemptResponse {
                    attempt: began.job.attempt(began.attempt).map(|a| messages::attempt(now, a)),
                    ticket: began.ticket.map(|t| t.expose().to_owned()).unwrap_or_default(),
                })
            })
            .await
    }

    async fn drain_attempt(
        &self,
        request: Request<v1::DrainAttemptRequest>,
    ) -> Result<Response<v1::DrainAttemptResponse>, Status> {
        self.0
            .call(Rpc::DrainAttempt, request, |broker, caller, q| async move {
                let job: JobId = read_name("job", &q.job)?;
                let attempt = read_attempt_number(q.attempt)?;
                let grace = read_duration("grace", q.grace.as_ref(), limits::DRAIN_GRACE_MAX)?;
                let reason = read_reason("reason", &q.reason)?;
                let concerned = read_concerned(&q.instance, &q.session_secret)?;
                let drained = broker.jobs.drain_attempt(&caller, job, attempt, &concerned, grace, &reason)?;
                let now = broker.clock().now();
                Ok(v1::DrainAttemptResponse {
                    reading_ends: Some(timestamp(now.wall_at(drained.reading_ends))),
                    writing_ends: Some(timestamp(now.wall_at(drained.writing_ends))),
                })
            })
            .await
    }

    async fn end_attempt(
        &self,
        request: Request<v1::EndAttemptRequest>,
    ) -> Result<Response<v1::EndAttemptResponse>, Status> {
        self.0
            .call(Rpc::EndAttempt, request, |broker, caller, q| async move {
                let job: JobId = read_name("job", &q.job)?;
                let attempt = read_attempt_number(q.attempt)?;
                let outcome = read_outcome(
                    q.outcome,
                    &[Outcome::Completed, Outcome::Failed, Outcome::Interrupted, Outcome::Lost],
                )?;
                let concerned = read_concerned(&q.instance, &q.session_secret)?;
                let detail = read_text("detail", &q.detail, limits::TEXT_BYTES_MAX)?;
                let done = broker.jobs.end_attempt(&caller, job, attempt, &concerned, outcome, &detail)?;
                Ok(v1::EndAttemptResponse {
                    job: Some(messages::job(&broker, &done.job)),
                    ending: Some(ending(&broker, done.ending)),
                    conflict: done.conflict,
                })
            })
            .await
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<v1::WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let connection = self.0.connection(&request)?;
        let caller = self.0.caller(Rpc::WatchJob, &connection)?;
        let id: JobId = read_name("job", &request.get_ref().job)
            .map_err(|r| self.0.refuse(Rpc::WatchJob, &connection, &r))?;
        let watch = self.0.broker.jobs.watch_job(&caller, id);
        let watch = watch.map_err(|r| self.0.refuse(Rpc::WatchJob, &connection, &r))?;
        let held = self.0.room(&request)?;
        let (out, answers) = ResponseStream::new(held, self.0.broker.clock().clone());
        tokio::spawn(watch_job(self.0.clone(), connection, id, watch, out));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Sends a job now and after each change, until the job is closed or the stream must end.
async fn watch_job(
    edge: Edge,
    connection: Connection,
    id: JobId,
    mut watch: watch::Receiver<Arc<Job>>,
    mut out: ResponseStream<v1::WatchJobResponse>,
) {
    let may = |broker: &Broker, caller: &Caller| broker.jobs.watch_job(caller, id).map(drop);
    let over = edge.stream_over(Rpc::WatchJob, &connection, may);
    let changes = async {
        loop {
            let job = watch.borrow_and_update().clone();
            let is_closed = job.is_closed();
            out.send(v1::WatchJobResponse { job: Some(messages::job(&edge.broker, &job)) })?;
            drop(job);
            if is_closed {
                return Ok(());
            }
            out.wait_until_taken().await?;
            tokio::select! {
                // An error means that the closed job was dropped from memory.
                changed = watch.changed() => if changed.is_err() { return Ok(()) },
                () = out.gone() => return Ok(()),
            }
        }
    };
    let ended = tokio::select! {
        biased;
        refusal = over => Err(refusal),
        ended = changes => ended,
    };
    out.end(ended);
}

/// Reads the subject of a call about an attempt: the whole attempt, or the member with this instance name.
fn read_concerned(instance: &str, secret: &[u8]) -> Result<Concerned, Refusal> {
    let Some(instance) = read_optional_name("instance", instance)? else { return Ok(Concerned::Attempt) };
    let bad = || {
        Refusal::new(Reason::FieldInvalid, "`session_secret` is not 32 bytes").with("field", "session_secret")
    };
    let proof = match secret {
        [] => None,
        bytes => Some(Secret::from_bytes(bytes).ok_or_else(bad)?.digest()),
    };
    Ok(Concerned::Member { instance, proof })
}

/// Reads the filter of a list of jobs.
fn read_job_filter(q: v1::ListJobsRequest) -> Result<JobFilter, Refusal> {
    let bad =
        |field: &'static str, what: String| Refusal::new(Reason::FieldInvalid, what).with("field", field);
    if q.states.len() > JOB_FILTER_ITEMS_MAX
        || q.outcomes.len() > JOB_FILTER_ITEMS_MAX
        || q.resources.len() > JOB_FILTER_ITEMS_MAX
    {
        return Err(bad("states", format!("a filter has more than {JOB_FILTER_ITEMS_MAX} items in a list")));
    }
    let mut states = Vec::new();
    for state in &q.states {
        states.push(match v1::JobState::try_from(*state) {
            Ok(v1::JobState::AwaitingApproval) => JobStateFilter::AwaitingApproval,
            Ok(v1::JobState::Ready) => JobStateFilter::Ready,
            Ok(v1::JobState::Running) => JobStateFilter::Running,
            Ok(v1::JobState::Closed) => JobStateFilter::Closed,
            _ => {
                return Err(bad(
                    "states",
                    format!("`states` contains {state}, which is not a state of a job"),
                ));
            }
        });
    }
    for outcome in &q.outcomes {
        states.push(JobStateFilter::ClosedAs(read_outcome(*outcome, Outcome::ALL)?));
    }
    let resources = q.resources.iter().map(|r| read_name("resources", r)).collect::<Result<_, _>>()?;
    let created_from = q.created_from.as_ref().map(nearest_wall);
    Ok(JobFilter {
        open_only: q.open_only,
        states,
        tenant: read_optional_name("tenant", &q.tenant)?,
        launcher: read_optional_name("launcher", &q.launcher)?,
        resources,
        created_from,
        id_prefix: q.id_prefix,
    })
}

/// Reads a list of SPIFFE ID patterns.
fn read_patterns(field: &'static str, list: &[String]) -> Result<Vec<SpiffePattern>, Refusal> {
    check_count(field, list.len(), limits::SPEC_LIST_MAX)?;
    list.iter().map(|text| read_name(field, text)).collect()
}

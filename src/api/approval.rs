//! The gRPC service `ApprovalService`.

use tonic::{Request, Response, Status};

use super::{
    edge::Edge,
    fields::{
        page_size, read_duration, read_job_page, read_name, read_optional_name, read_required_reason,
        read_text, read_texts,
    },
    messages::{self, ending},
    response::fit_page,
};
use crate::{
    broker::{ApproveOrder, EmergencyOrder, WaitingGate, WaitingJob},
    limits,
    name::Digest,
    policy::Rpc,
    proto::v1::{self, approval_service_server::ApprovalService},
};

pub(super) struct Approvals(pub Edge);

#[tonic::async_trait]
impl ApprovalService for Approvals {
    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        self.0
            .call(Rpc::ListApprovals, request, |broker, caller, q| async move {
                let max = page_size(q.page_size);
                let below = read_job_page(&q.page_token)?;
                let found =
                    broker.approvals.list_approvals(&caller, q.needs_me, below, max.saturating_add(1))?;
                let shown = found.iter().take(max).map(|WaitingJob { job, gates }| v1::WaitingJob {
                    job: Some(messages::job_with_gates(&broker, job)),
                    gates: gates.iter().map(waiting_gate).collect(),
                });
                let waiting = fit_page(shown);
                let next_page_token = match found.get(..waiting.len()).and_then(<[_]>::last) {
                    Some(WaitingJob { job, .. }) if found.len() > waiting.len() => {
                        format!("{}.{}", job.created.0, job.id)
                    }
                    _ => String::new(),
                };
                Ok(v1::ListApprovalsResponse { waiting, next_page_token })
            })
            .await
    }

    async fn approve(
        &self,
        request: Request<v1::ApproveRequest>,
    ) -> Result<Response<v1::ApproveResponse>, Status> {
        self.0
            .call(Rpc::Approve, request, |broker, caller, q| async move {
                let reason = read_required_reason("reason", &q.reason)?;
                let request: Digest = read_name("request_digest", &q.request_digest)?;
                let gates =
                    read_texts("gates", &q.gates, limits::APPROVALS_PER_JOB_MAX, limits::NAME_BYTES_MAX)?;
                let job = read_name("job", &q.job)?;
                let order = ApproveOrder { job, request, gates: &gates, reason: &reason };
                let done = broker.approvals.approve(&caller, &order).await?;
                Ok(v1::ApproveResponse {
                    job: Some(messages::job(&broker, &done.job)),
                    gates: done.gates,
                    changed: done.changed,
                })
            })
            .await
    }

    async fn reject(
        &self,
        request: Request<v1::RejectRequest>,
    ) -> Result<Response<v1::RejectResponse>, Status> {
        self.0
            .call(Rpc::Reject, request, |broker, caller, q| async move {
                let reason = read_required_reason("reason", &q.reason)?;
                let done = broker.approvals.reject(&caller, read_name("job", &q.job)?, &reason)?;
                Ok(v1::RejectResponse {
                    job: Some(messages::job(&broker, &done.job)),
                    ending: Some(ending(&broker, done.ending)),
                })
            })
            .await
    }

    async fn withdraw_approval(
        &self,
        request: Request<v1::WithdrawApprovalRequest>,
    ) -> Result<Response<v1::WithdrawApprovalResponse>, Status> {
        self.0
            .call(Rpc::WithdrawApproval, request, |broker, caller, q| async move {
                let reason = read_required_reason("reason", &q.reason)?;
                let gate = read_text("gate", &q.gate, limits::NAME_BYTES_MAX)?;
                let gate = Some(gate.as_str()).filter(|gate| !gate.is_empty());
                let done =
                    broker.approvals.withdraw_approval(&caller, read_name("job", &q.job)?, gate, &reason)?;
                Ok(v1::WithdrawApprovalResponse {
                    job: Some(messages::job(&broker, &done.end.job)),
                    ending: Some(ending(&broker, done.end.ending)),
                    gates: done.gates,
                })
            })
            .await
    }

    async fn break_glass(
        &self,
        request: Request<v1::BreakGlassRequest>,
    ) -> Result<Response<v1::BreakGlassResponse>, Status> {
        self.0
            .call(Rpc::BreakGlass, request, |broker, caller, q| async move {
                let reason = read_required_reason("reason", &q.reason)?;
                let order = EmergencyOrder {
                    job: read_name("job", &q.job)?,
                    request: read_name("request_digest", &q.request_digest)?,
                    reason: &reason,
                    lasting: read_duration("lasting", q.lasting.as_ref(), limits::EMERGENCY_MAX)?,
                };
                let job = broker.approvals.break_glass(&caller, &order).await?;
                Ok(v1::BreakGlassResponse { job: Some(messages::job(&broker, &job)) })
            })
            .await
    }

    async fn list_reviews(
        &self,
        request: Request<v1::ListReviewsRequest>,
    ) -> Result<Response<v1::ListReviewsResponse>, Status> {
        self.0
            .call(Rpc::ListReviews, request, |broker, caller, q| async move {
                let max = page_size(q.page_size);
                let after = read_optional_name("page_token", &q.page_token)?;
                let found = broker.approvals.list_reviews(&caller, after, max.saturating_add(1))?;
                let now = broker.clock().now();
                let reviews = fit_page(found.iter().take(max).map(|r| messages::review(now, r)));
                let next_page_token = match reviews.last() {
                    Some(last) if found.len() > reviews.len() => last.job.clone(),
                    _ => String::new(),
                };
                Ok(v1::ListReviewsResponse { reviews, next_page_token })
            })
            .await
    }

    async fn finish_review(
        &self,
        request: Request<v1::FinishReviewRequest>,
    ) -> Result<Response<v1::FinishReviewResponse>, Status> {
        self.0
            .call(Rpc::FinishReview, request, |broker, caller, q| async move {
                let reason = read_required_reason("reason", &q.reason)?;
                let done =
                    broker.approvals.finish_review(&caller, read_name("job", &q.job)?, &reason).await?;
                Ok(v1::FinishReviewResponse { review: Some(messages::review(broker.clock().now(), &done)) })
            })
            .await
    }
}

fn waiting_gate(gate: &WaitingGate) -> v1::GateApprovers {
    v1::GateApprovers {
        gate: gate.gate.id.clone(),
        group: gate.gate.approver_group.clone(),
        missing: gate.missing,
        operators: gate.operators.clone(),
        needs_me: gate.needs_me,
    }
}

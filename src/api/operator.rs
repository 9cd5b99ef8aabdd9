//! The gRPC service `OperatorService`.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{
    edge::Edge,
    fields::{check_count, page_size, read_duration, read_name, read_optional_name, read_required_reason},
    messages::{self, catalog_mistakes, ending, ledger_head},
    policy, reach,
    response::{ResponseStream, fit_page},
};
use crate::{
    broker::{
        Broker, Caller, EndingOptions, LeaseCursor, LeaseFilter, LedgerView, LockOrder, RecordStart,
        RecordStream, ReloadAnswer, RevokedAndLocked,
    },
    limits,
    link::Connection,
    name::{Digest, FenceName},
    policy::Rpc,
    proto::{
        convert::timestamp,
        v1::{self, operator_service_server::OperatorService},
    },
    reason::{Reason, Refusal},
    state::LockName,
};

pub(super) struct Operators(pub Edge);

#[tonic::async_trait]
impl OperatorService for Operators {
    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        self.0
            .call(Rpc::ListLeases, request, |broker, caller, q| async move {
                let behind: Option<FenceName> = read_optional_name("behind", &q.behind)?;
                let filter = LeaseFilter { behind, live_only: q.live_only, id_prefix: q.id_prefix };
                let after = read_lease_page(&q.page_token)?;
                let max = page_size(q.page_size);
                let page = broker.leases.list_leases(&caller, &filter, after, max)?;
                let now = broker.clock().now();
                let leases = fit_page(
                    page.leases.iter().map(|v| messages::lease_of_owner(now, v, page.owner.as_ref())),
                );
                let next = page.next_after(leases.len());
                Ok(v1::ListLeasesResponse {
                    leases,
                    next_page_token: next.map(|p| p.to_string()).unwrap_or_default(),
                })
            })
            .await
    }

    async fn get_lease(
        &self,
        request: Request<v1::GetLeaseRequest>,
    ) -> Result<Response<v1::GetLeaseResponse>, Status> {
        self.0
            .call(Rpc::GetLease, request, |broker, caller, q| async move {
                let view = broker.leases.get_lease(&caller, read_name("lease", &q.lease)?)?;
                Ok(v1::GetLeaseResponse { lease: Some(messages::lease_view(broker.clock().now(), &view)) })
            })
            .await
    }

    async fn revoke(
        &self,
        request: Request<v1::RevokeRequest>,
    ) -> Result<Response<v1::RevokeResponse>, Status> {
        self.0
            .call(Rpc::Revoke, request, |broker, caller, q| async move {
                let name: FenceName = read_name("name", &q.name)?;
                let reason = read_required_reason("reason", &q.reason)?;
                let options = EndingOptions { reason: &reason, dry_run: q.dry_run, ahead: q.ahead };
                let done = match v1::RevokeCause::try_from(q.cause) {
                    Ok(v1::RevokeCause::Unspecified) => {
                        let revoked = broker.operators.revoke(&caller, &name, &options)?;
                        RevokedAndLocked { revoked, locks: Vec::new() }
                    }
                    Ok(v1::RevokeCause::Compromise) => {
                        broker.operators.revoke_compromised(&caller, &name, &options)?
                    }
                    Err(_) => {
                        let text = "`cause` must be one of the values of RevokeCause";
                        return Err(Refusal::new(Reason::FieldInvalid, text).with("field", "cause"));
                    }
                };
                Ok(reach::revoked(&broker, done))
            })
            .await
    }

    async fn lock(&self, request: Request<v1::LockRequest>) -> Result<Response<v1::LockResponse>, Status> {
        self.0
            .call(Rpc::Lock, request, |broker, caller, q| async move {
                let name: LockName = read_name("name", &q.name)?;
                let reason = read_required_reason("reason", &q.reason)?;
                let ttl = read_duration("ttl", q.ttl.as_ref(), limits::JOB_DURATION_MAX.saturating_mul(12))?;
                let options = EndingOptions { reason: &reason, dry_run: q.dry_run, ahead: q.ahead };
                check_count("locks_out", q.locks_out.len(), limits::LOCKS_OUT_MAX)?;
                let order = LockOrder { name, options, ttl, locks_out: &q.locks_out };
                let done = broker.operators.lock(&caller, order)?;
                Ok(v1::LockResponse {
                    lock: Some(messages::lock(broker.clock().now(), &done.lock)),
                    ending: Some(ending(&broker, done.ending)),
                    jobs_closed: reach::shown_jobs(&done.jobs_closed),
                    jobs_closed_total: done.jobs_closed.len() as u64,
                })
            })
            .await
    }

    async fn recall_dataset(
        &self,
        request: Request<v1::RecallDatasetRequest>,
    ) -> Result<Response<v1::RecallDatasetResponse>, Status> {
        self.0
            .call(Rpc::RecallDataset, request, |broker, caller, q| async move {
                let name = read_name("name", &q.name)?;
                let reason = read_required_reason("reason", &q.reason)?;
                let options = EndingOptions { reason: &reason, dry_run: q.dry_run, ahead: q.ahead };
                Ok(reach::recalled(&broker, broker.operators.recall_dataset(&caller, &name, &options)?))
            })
            .await
    }

    async fn unrecall_dataset(
        &self,
        request: Request<v1::UnrecallDatasetRequest>,
    ) -> Result<Response<v1::UnrecallDatasetResponse>, Status> {
        self.0
            .call(Rpc::UnrecallDataset, request, |broker, caller, q| async move {
                let name = read_name("name", &q.name)?;
                let reason = read_required_reason("reason", &q.reason)?;
                let lifted = broker.operators.unrecall_dataset(&caller, &name, &reason).await?;
                let lifted = Some(messages::lock(broker.clock().now(), &lifted));
                Ok(v1::UnrecallDatasetResponse { lifted })
            })
            .await
    }

    async fn offboard(
        &self,
        request: Request<v1::OffboardRequest>,
    ) -> Result<Response<v1::OffboardResponse>, Status> {
        self.0
            .call(Rpc::Offboard, request, |broker, caller, q| async move {
                let name = read_name("name", &q.name)?;
                let reason = read_required_reason("reason", &q.reason)?;
                let options = EndingOptions { reason: &reason, dry_run: q.dry_run, ahead: q.ahead };
                check_count("locks_out", q.locks_out.len(), limits::LOCKS_OUT_MAX)?;
                let done = broker.operators.offboard(&caller, &name, &options, &q.locks_out)?;
                Ok(reach::offboarded(&broker, done))
            })
            .await
    }

    async fn verify_clean(
        &self,
        request: Request<v1::VerifyCleanRequest>,
    ) -> Result<Response<v1::VerifyCleanResponse>, Status> {
        self.0
            .call(Rpc::VerifyClean, request, |broker, caller, q| async move {
                let name = read_name("name", &q.name)?;
                broker.operators.verify_clean(&caller, &name).map(reach::remnants)
            })
            .await
    }

    async fn unlock(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::UnlockResponse>, Status> {
        self.0
            .call(Rpc::Unlock, request, |broker, caller, q| async move {
                let name: LockName = read_name("name", &q.name)?;
                let reason = read_required_reason("reason", &q.reason)?;
                let lifted = broker.operators.unlock(&caller, &name, &reason).await?;
                Ok(v1::UnlockResponse { lifted: Some(messages::lock(broker.clock().now(), &lifted)) })
            })
            .await
    }

    async fn list_locks(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        self.0
            .call(Rpc::ListLocks, request, |broker, caller, q| async move {
                let after: Option<LockName> = read_optional_name("page_token", &q.page_token)?;
                let max = page_size(q.page_size);
                let found = broker.operators.list_locks(&caller, after, max.saturating_add(1))?;
                let now = broker.clock().now();
                let locks = fit_page(found.iter().take(max).map(|l| messages::lock(now, l)));
                let next_page_token = match locks.last() {
                    Some(last) if found.len() > locks.len() => last.name.clone(),
                    _ => String::new(),
                };
                Ok(v1::ListLocksResponse { locks, next_page_token })
            })
            .await
    }

    async fn wait_durable(
        &self,
        request: Request<v1::WaitDurableRequest>,
    ) -> Result<Response<v1::WaitDurableResponse>, Status> {
        self.0
            .call(Rpc::WaitDurable, request, |broker, caller, q| async move {
                tokio::select! {
                    durable = broker.records.wait_durable(&caller, &q.receipt) => durable?,
                    refusal = broker.access.until_refused(&caller.peer, Rpc::WaitDurable, |_| Ok(())) => return Err(refusal),
                };
                Ok(v1::WaitDurableResponse { ledger_head: ledger_head(&broker, &caller) })
            })
            .await
    }

    async fn reload_catalog(
        &self,
        request: Request<v1::ReloadCatalogRequest>,
    ) -> Result<Response<v1::ReloadCatalogResponse>, Status> {
        let reloader = self.0.reloader.clone();
        self.0
            .call(Rpc::ReloadCatalog, request, |broker, caller, q| async move {
                let reloading = broker.clone();
                let reload =
                    move || reloading.rules.reload_for(&caller, |before| reloader(before), q.dry_run);
                let done = tokio::task::spawn_blocking(reload).await;
                let done =
                    done.map_err(|_| Refusal::new(Reason::Internal, "the catalog could not be read"))??;
                let ReloadAnswer { rules, reloaded: done, waits, approves } = done;
                let counts = rules.catalog().counts();
                Ok(v1::ReloadCatalogResponse {
                    digest: done.catalog.to_string(),
                    principals: u32::try_from(counts.principals).unwrap_or(u32::MAX),
                    resources: u32::try_from(counts.resources()).unwrap_or(u32::MAX),
                    ended: done.ended,
                    not_taken: catalog_mistakes(rules.catalog(), limits::CATALOG_MISTAKES_SHOWN_MAX),
                    policy: done.policy.to_string(),
                    waits: waits.map(|waiting| policy::pending(&broker, waiting)),
                    approves: approves.map(|id| id.to_string()).unwrap_or_default(),
                })
            })
            .await
    }

    async fn evaluate_policy(
        &self,
        request: Request<v1::EvaluatePolicyRequest>,
    ) -> Result<Response<v1::EvaluatePolicyResponse>, Status> {
        self.0
            .call(Rpc::EvaluatePolicy, request, |broker, caller, q| async move {
                policy::evaluate(&broker, &caller, &q)
            })
            .await
    }

    async fn who_can(
        &self,
        request: Request<v1::WhoCanRequest>,
    ) -> Result<Response<v1::WhoCanResponse>, Status> {
        self.0
            .call(
                Rpc::WhoCan,
                request,
                |broker, caller, q| async move { policy::who_can(&broker, &caller, &q) },
            )
            .await
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        self.0.call(Rpc::ExplainJob, request, policy::explain_job).await
    }

    async fn apply_policy(
        &self,
        request: Request<v1::ApplyPolicyRequest>,
    ) -> Result<Response<v1::ApplyPolicyResponse>, Status> {
        self.0.call(Rpc::ApplyPolicy, request, policy::apply).await
    }

    async fn list_waivers(
        &self,
        request: Request<v1::ListWaiversRequest>,
    ) -> Result<Response<v1::ListWaiversResponse>, Status> {
        self.0
            .call(Rpc::ListWaivers, request, |broker, caller, _| async move {
                let now = broker.clock().now().wall;
                let waivers = broker.policies.list_waivers(&caller)?;
                let waiver = |w: &crate::catalog::Waiver| v1::Waiver {
                    rule: w.rule.clone(),
                    tenant: w.tenant.to_string(),
                    resource: w.resource.as_ref().map(ToString::to_string).unwrap_or_default(),
                    owner: w.owner.clone(),
                    reason: w.reason.clone(),
                    until: Some(timestamp(w.until)),
                    in_force: now < w.until,
                };
                Ok(v1::ListWaiversResponse { waivers: fit_page(waivers.iter().map(waiver)) })
            })
            .await
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        self.0.call(Rpc::ListPolicies, request, |broker, caller, _| policy::list(broker, caller)).await
    }

    type TailLedgerStream = Pin<Box<dyn Stream<Item = Result<v1::TailLedgerResponse, Status>> + Send>>;

    async fn tail_ledger(
        &self,
        request: Request<v1::TailLedgerRequest>,
    ) -> Result<Response<Self::TailLedgerStream>, Status> {
        let connection = self.0.connection(&request)?;
        let caller = self.0.caller(Rpc::TailLedger, &connection)?;
        let room = self.0.room(&request)?;
        let records = &self.0.broker.records;
        let opened = || -> Result<_, Refusal> {
            let q = request.get_ref();
            let view = records.ledger_view(&caller)?;
            let stream = records.tail_ledger(&view, read_record_start(q)?, q.no_follow)?;
            Ok((view, stream))
        };
        let (view, stream) = opened().map_err(|r| self.0.refuse(Rpc::TailLedger, &connection, &r))?;
        let (out, answers) = ResponseStream::new(room, self.0.broker.clock().clone());
        tokio::spawn(tail_ledger(self.0.clone(), connection, view, stream, out));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn log_out(
        &self,
        request: Request<v1::LogOutRequest>,
    ) -> Result<Response<v1::LogOutResponse>, Status> {
        self.0.call(Rpc::LogOut, request, async |broker, caller, _| log_out(&broker, &caller)).await
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let connection = self.0.connection(&request)?;
        let broker = &self.0.broker;
        let seen = broker.access.caller(&connection.peer).ok();
        let p = seen.as_ref().map(|c| &c.principal);
        let rules = broker.rules.in_force();
        let sees_mistakes = !rules.catalog().not_taken().is_empty()
            && seen.as_ref().is_some_and(|caller| broker.rules.may_reload(caller).is_ok());
        Ok(Response::new(v1::WhoAmIResponse {
            spiffe_id: connection.peer.spiffe_id().to_string(),
            kind: p.map(|p| p.kind.to_string()).unwrap_or_default(),
            tenant: p.map(|p| p.tenant.to_string()).unwrap_or_default(),
            roles: p.map(|p| p.roles.iter().cloned().collect()).unwrap_or_default(),
            groups: p.map(|p| p.groups.iter().cloned().collect()).unwrap_or_default(),
            svid_expires: Some(timestamp(connection.peer.not_after())),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: broker.epoch(),
            matched: p.map(|p| p.declared_at.clone()).unwrap_or_default(),
            server_time: Some(timestamp(broker.clock().now().wall)),
            ledger_head: seen.as_ref().map(|c| ledger_head(broker, c)).unwrap_or_default(),
            ledger_key: p
                .and_then(|_| broker.ledger().head_public())
                .map(|key| key.to_pem())
                .unwrap_or_default(),
            login: seen.as_ref().and_then(|caller| caller.login.as_ref()).map(|login| {
                let now = broker.clock().now();
                v1::Login {
                    human: login.human.to_string(),
                    issuer: login.issuer.clone(),
                    sub: login.sub.clone(),
                    groups: login.groups.clone(),
                    amr: login.amr.clone(),
                    since: Some(timestamp(now.wall_at(login.at))),
                    until: Some(timestamp(now.wall_at(login.until))),
                }
            }),
            catalog_mistakes: match sees_mistakes {
                true => catalog_mistakes(rules.catalog(), limits::CATALOG_MISTAKES_SHOWN_BRIEFLY_MAX),
                false => Vec::new(),
            },
            observed: seen.as_ref().map(|caller| observed_tenants(broker, caller)).unwrap_or_default(),
            locked: broker.access.locked_because(connection.peer.spiffe_id()).unwrap_or_default(),
        }))
    }
}

/// Ends the caller's own login.
fn log_out(broker: &Broker, caller: &Caller) -> Result<v1::LogOutResponse, Refusal> {
    let (ended, recorded) = broker.logins.log_out(caller)?;
    Ok(v1::LogOutResponse { ended, durable: recorded.durable })
}

/// Returns the observed tenants, each with the end of the observation. If policy denies a job of such a tenant the tenant's own
/// resources, the denial is only recorded. If the caller may not reload the catalog, returns only its own tenant, if that tenant is
/// observed.
fn observed_tenants(broker: &Broker, caller: &Caller) -> Vec<String> {
    let rules = broker.rules.in_force();
    let now = broker.clock().now().wall;
    let sees_all = broker.rules.may_reload(caller).is_ok();
    let observed = rules.catalog().exceptions().observed.iter().filter(|o| now < o.until);
    let seen = observed.filter(|o| sees_all || o.tenant == *caller.tenant());
    seen.map(|o| format!("{} until {}", o.tenant, o.until)).collect()
}

/// Sends the records that a caller may see, until the last record or until the stream must end.
async fn tail_ledger(
    edge: Edge,
    connection: Connection,
    view: LedgerView,
    mut stream: RecordStream,
    mut out: ResponseStream<v1::TailLedgerResponse>,
) {
    let may = |broker: &Broker, caller: &Caller| broker.records.may_go_on(caller, &view);
    let over = edge.stream_over(Rpc::TailLedger, &connection, may);
    let tenant = match &view {
        LedgerView::All => String::new(),
        LedgerView::OfTenant(tenant) => tenant.to_string(),
    };
    let records = async {
        loop {
            let shown = tokio::select! {
                shown = stream.next() => shown,
                () = out.gone() => return Ok(()),
            };
            let Some(shown) = shown else { return Ok(()) };
            let shown = shown?;
            let tenant = tenant.clone();
            out.send(v1::TailLedgerResponse { index: shown.index, record: shown.line, tenant })?;
            out.wait_until_taken().await?;
        }
    };
    let ended = tokio::select! {
        biased;
        refusal = over => Err(refusal),
        ended = records => ended,
    };
    out.end(ended);
}

fn read_record_start(q: &v1::TailLedgerRequest) -> Result<RecordStart, Refusal> {
    let after: Option<Digest> = read_optional_name("after", &q.after)?;
    match (q.from_index, after) {
        (0, None) => Ok(RecordStart::Next),
        (from, None) => Ok(RecordStart::At(from)),
        (0, Some(after)) => Ok(RecordStart::After(after)),
        (_, Some(_)) => Err(Refusal::new(Reason::FieldInvalid, "set `from_index` or `after`, not both")
            .with("field", "after")),
    }
}

fn read_lease_page(token: &str) -> Result<Option<LeaseCursor>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    token.parse().map(Some).map_err(|()| {
        Refusal::new(Reason::FieldInvalid, "`page_token` is not from a response of this daemon")
            .with("field", "page_token")
    })
}

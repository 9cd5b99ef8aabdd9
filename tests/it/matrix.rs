//! Law 42: who may call what, for every call of the proto, on live, ended and absent targets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use leasehold::{
    internals::policy::Rpc,
    name::{JobId, LeaseId},
    proto::{self, v1},
    secret::Secret,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::{
    foreign::{ASKS_BY_NAME, NAMES_NOTHING},
    harness::*,
};

/// The columns of the matrix.
const CALLERS: [(&str, &str); 11] = [
    ("launcher", LAUNCHER),
    ("member", WORKER),
    ("nightly", NIGHTLY),
    ("other", OTHER_WORKER),
    ("operator", OPERATOR),
    ("auditor", AUDITOR),
    ("platform", PLATFORM),
    ("verifier", GATEWAY),
    ("globex", GLOBEX_LAUNCHER),
    ("globex-op", GLOBEX_OPERATOR),
    ("unknown", NOBODY),
];

/// A row for each call. The head of the file explains the words.
const MATRIX: &str = include_str!("matrix.txt");

/// What a call is made on.
#[derive(Clone)]
struct Target {
    job: String,
    lease: String,
    session: v1::Session,
    token: String,
    /// The receipt of a record that is on disk.
    receipt: Vec<u8>,
}

/// Makes one call, by its name in the proto. A call that ends or holds something does so only for the target.
async fn call(client: &Client, rpc: &str, t: &Target, turn: usize) -> Result<(), Status> {
    fn done<T>(answer: Result<Response<T>, Status>) -> Result<(), Status> {
        answer.map(|_| ())
    }
    let (mut jobs, mut members) = (client.jobs(), client.members());
    let (mut operators, mut verifiers) = (client.operators(), client.verifiers());
    let (job, reason) = (t.job.clone(), "the matrix".to_owned());
    let session = Some(t.session.clone());
    match rpc {
        "CreateJob" => {
            let spec = v1::JobSpec { acting_for: String::new(), ..spec() };
            let request =
                v1::CreateJobRequest { spec: Some(spec), idempotency_key: format!("{turn}"), dry_run: true };
            done(jobs.create_job(request).await)
        }
        "GetJob" => done(jobs.get_job(v1::GetJobRequest { job }).await),
        "ListResources" => done(jobs.list_resources(v1::ListResourcesRequest::default()).await),
        "ListJobs" => {
            // By now there are more jobs than a page has.
            let request = v1::ListJobsRequest { id_prefix: t.job.clone(), ..Default::default() };
            let listed = jobs.list_jobs(request).await?.into_inner().jobs;
            // Success means that the job is in the list.
            match listed.iter().any(|j| j.id == t.job) {
                true => Ok(()),
                false => Err(Status::ok("unseen")),
            }
        }
        "CloseJob" => done(jobs.close_job(v1::CloseJobRequest { job, outcome: 0, reason }).await),
        "BeginAttempt" => done(
            jobs.begin_attempt(v1::BeginAttemptRequest {
                job,
                key: "run-1".into(),
                supersede: false,
                ..Default::default()
            })
            .await,
        ),
        "DrainAttempt" => {
            let request = v1::DrainAttemptRequest {
                job,
                attempt: 1,
                grace: None,
                reason,
                instance: "rank-0".into(),
                session_secret: t.session.secret.clone(),
            };
            done(jobs.drain_attempt(request).await)
        }
        "EndAttempt" => {
            let request = v1::EndAttemptRequest {
                job,
                attempt: 1,
                outcome: 2,
                instance: "rank-0".into(),
                detail: reason,
                session_secret: t.session.secret.clone(),
            };
            done(jobs.end_attempt(request).await)
        }
        "WatchJob" => {
            let mut stream = jobs.watch_job(v1::WatchJobRequest { job }).await?.into_inner();
            stream.message().await.map(|_| ())
        }
        "JoinAttempt" => {
            let request = v1::JoinAttemptRequest {
                job,
                attempt: 1,
                instance: t.session.instance.clone(),
                session_digest: Secret::from_bytes(&t.session.secret).unwrap().digest().0.to_vec(),
                ticket: String::new(),
            };
            done(members.join_attempt(request).await)
        }
        "KeepAlive" => {
            let (tx, rx) = mpsc::channel(1);
            tx.send(v1::KeepAliveRequest { session, beat: 1, goodbye: false }).await.unwrap();
            let mut stream = members.keep_alive(ReceiverStream::new(rx)).await?.into_inner();
            stream.message().await.map(|_| ())
        }
        "IssueCredential" => done(
            members
                .issue_credential(v1::IssueCredentialRequest { session, half: 1, ..Default::default() })
                .await,
        ),
        "RenewLease" => done(
            members.renew_lease(v1::RenewLeaseRequest { session, lease: t.lease.clone(), ttl: None }).await,
        ),
        "ReleaseLease" => {
            done(members.release_lease(v1::ReleaseLeaseRequest { session, lease: t.lease.clone() }).await)
        }
        "ListLeases" => {
            let behind = format!("job:{job}");
            done(operators.list_leases(v1::ListLeasesRequest { behind, ..Default::default() }).await)
        }
        "GetLease" => done(operators.get_lease(v1::GetLeaseRequest { lease: t.lease.clone() }).await),
        "Revoke" => done(
            operators
                .revoke(v1::RevokeRequest { name: format!("job:{job}"), reason, ..Default::default() })
                .await,
        ),
        "Lock" => {
            let request = v1::LockRequest { name: format!("job:{job}"), reason, ..Default::default() };
            done(operators.lock(request).await)
        }
        "Unlock" => done(operators.unlock(v1::UnlockRequest { name: format!("job:{job}"), reason }).await),
        "RecallDataset" => {
            let request = v1::RecallDatasetRequest {
                name: TICKETS.into(),
                reason,
                dry_run: true,
                ..Default::default()
            };
            done(operators.recall_dataset(request).await)
        }
        "UnrecallDataset" => {
            let name = TICKETS.to_owned();
            match operators.unrecall_dataset(v1::UnrecallDatasetRequest { name, reason }).await {
                // Success means that the caller may, and that nothing is recalled.
                Err(s) if Refused::of(&s).reason == "LOCK_NOT_FOUND" => Ok(()),
                answer => done(answer),
            }
        }
        "Offboard" => {
            let name = format!("identity:{NIGHTLY}");
            let request = v1::OffboardRequest { name, reason, dry_run: true, ..Default::default() };
            done(operators.offboard(request).await)
        }
        "VerifyClean" => {
            done(operators.verify_clean(v1::VerifyCleanRequest { name: format!("job:{job}") }).await)
        }
        "ListLocks" => done(operators.list_locks(v1::ListLocksRequest::default()).await),
        "WaitDurable" => {
            let receipt = t.receipt.clone();
            done(operators.wait_durable(v1::WaitDurableRequest { receipt }).await)
        }
        "ReloadCatalog" => done(operators.reload_catalog(v1::ReloadCatalogRequest { dry_run: true }).await),
        "TailLedger" => {
            let request = v1::TailLedgerRequest { from_index: 1, no_follow: true, after: String::new() };
            let mut stream = operators.tail_ledger(request).await?.into_inner();
            stream.message().await.map(|_| ())
        }
        "EvaluatePolicy" => {
            // About another identity of acme: for itself any caller may ask.
            let request = v1::EvaluatePolicyRequest {
                action: "read_dataset".into(),
                resource: TICKETS.into(),
                identity: format!("{WORKER}-of-no-one"),
                ..Default::default()
            };
            done(operators.evaluate_policy(request).await)
        }
        "WhoCan" => {
            let request = v1::WhoCanRequest {
                action: "read_dataset".into(),
                resource: TICKETS.into(),
                ..Default::default()
            };
            done(operators.who_can(request).await)
        }
        "ExplainJob" => {
            done(operators.explain_job(v1::ExplainJobRequest { job, ..Default::default() }).await)
        }
        "ApplyPolicy" => {
            let file = v1::PolicyFile { file: "a.cedar".into(), text: String::new() };
            let request =
                v1::ApplyPolicyRequest { policies: vec![file], reason, dry_run: true, ..Default::default() };
            done(operators.apply_policy(request).await)
        }
        "ListPolicies" => done(operators.list_policies(v1::ListPoliciesRequest {}).await),
        "LogOut" => done(operators.log_out(v1::LogOutRequest {}).await),
        "ListWaivers" => done(operators.list_waivers(v1::ListWaiversRequest {}).await),
        "WhoAmI" => done(operators.who_am_i(v1::WhoAmIRequest {}).await),
        "ListApprovals" => done(client.approvals().list_approvals(v1::ListApprovalsRequest::default()).await),
        // The target has no gate: STATE_CONFLICT is the answer to those who may approve.
        "Approve" => {
            let request_digest = format!("sha256:{}", "00".repeat(32));
            let request = v1::ApproveRequest { job, request_digest, gates: Vec::new(), reason };
            done(client.approvals().approve(request).await)
        }
        "Reject" => done(client.approvals().reject(v1::RejectRequest { job, reason }).await),
        "WithdrawApproval" => {
            let request = v1::WithdrawApprovalRequest { job, gate: String::new(), reason };
            done(client.approvals().withdraw_approval(request).await)
        }
        "BreakGlass" => {
            let request_digest = format!("sha256:{}", "00".repeat(32));
            let request = v1::BreakGlassRequest { job, request_digest, reason, lasting: None };
            done(client.approvals().break_glass(request).await)
        }
        "ListReviews" => done(client.approvals().list_reviews(v1::ListReviewsRequest::default()).await),
        // The target had no emergency, so no review of it is due.
        "FinishReview" => {
            done(client.approvals().finish_review(v1::FinishReviewRequest { job, reason }).await)
        }
        "Introspect" => {
            let request = v1::IntrospectRequest {
                token: t.token.clone(),
                presenter: WORKER.into(),
                ..Default::default()
            };
            done(verifiers.introspect(request).await)
        }
        "WatchFences" => {
            let (tx, rx) = mpsc::channel(1);
            tx.send(v1::WatchFencesRequest { audience: GATEWAY.into(), tick: 1 }).await.unwrap();
            let mut stream = verifiers.watch_fences(ReceiverStream::new(rx)).await?.into_inner();
            stream.message().await.map(|_| ())
        }
        "ReportUse" => {
            let request = v1::ReportUseRequest { audience: GATEWAY.into(), ..Default::default() };
            done(verifiers.report_use(request).await)
        }
        "ResolveKey" => {
            // The lease of the target has no key: the matrix is about who may ask.
            let access_key = format!("LHK{}", t.lease[2..].to_ascii_uppercase());
            let request =
                v1::ResolveKeyRequest { audience: GATEWAY.into(), access_key, date: "20261120".into() };
            done(verifiers.resolve_key(request).await)
        }
        "GetKeys" => done(verifiers.get_keys(v1::GetKeysRequest {}).await),
        other => panic!("{other} is in the proto and not in the matrix: say here who may call it"),
    }
}

fn rpcs() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(proto::DESCRIPTOR).unwrap();
    let ours = files.file.iter().filter(|f| f.package() == "leasehold.v1");
    ours.flat_map(|f| f.service.iter().flat_map(|s| s.method.iter().map(|m| m.name().to_owned()))).collect()
}

/// A job with its own member and a lease. The worker is kept so that it stays joined.
async fn target(world: &World, launcher: &Client, turn: usize) -> (Target, Worker) {
    let key = format!("target-{turn}");
    let own = format!("{WORKER}-{turn}");
    let members = v1::Members { join: vec![own.clone()], ..Default::default() };
    let wanted = v1::JobSpec { name: key.clone(), members: Some(members), ..spec() };
    let job = launcher.create(wanted, &key).await.unwrap();
    let job = job.into_inner().job.unwrap().id;
    launcher.begin(&job, "run-1").await.unwrap();
    let worker = Worker::join(world.client(&own).await, &job, 1, "rank-0", "").await.unwrap();
    let token = worker.issue(v1::Half::Reading).await;
    let target = Target {
        job,
        lease: token.lease.id.clone(),
        session: worker.session().unwrap(),
        token: token.text,
        receipt: world.daemon().broker.records.receipt(1),
    };
    (target, worker)
}

fn word(answer: &Result<(), Status>) -> String {
    match answer {
        Ok(()) => ".".into(),
        Err(s) if s.code() == tonic::Code::Ok => s.message().to_owned(),
        Err(s) => {
            let no = Refused::of(s);
            match no.reason.as_str() {
                "JOB_NOT_FOUND" => "job?".into(),
                "LEASE_NOT_FOUND" => "lease?".into(),
                "RESOURCE_NOT_FOUND" => "resource?".into(),
                "AUDIENCE_UNKNOWN" => "audience?".into(),
                "POLICY_DENIED" => "denied".into(),
                "PRINCIPAL_UNKNOWN" => "who?".into(),
                "KIND_NOT_ALLOWED" => "kind".into(),
                "SESSION_MISMATCH" => "session".into(),
                "NOT_A_MEMBER" => "member".into(),
                "STATE_CONFLICT" => "state".into(),
                other => other.to_owned(),
            }
        }
    }
}

#[test]
fn the_actions_of_policy_are_the_calls_of_the_proto() {
    let known: BTreeSet<String> = Rpc::ALL.iter().map(ToString::to_string).collect();
    assert!(known.len() > 20);
    assert_eq!(rpcs().into_iter().collect::<BTreeSet<_>>(), known);
}

// Proves law 42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_succeeds_only_for_callers_in_the_matrix() {
    let world = World::start().await;
    let mut callers = Vec::new();
    for (column, id) in CALLERS {
        callers.push((column, world.client(id).await));
    }
    let launcher = callers[0].1.clone();
    let mut seen = String::new();
    let mut turn = 0;
    for rpc in rpcs() {
        write!(seen, "{rpc:<17}").unwrap();
        for (column, client) in &callers {
            turn += 1;
            let (t, kept) = target(&world, &launcher, turn).await;
            // An identity of one job is a member of only one.
            let client = if *column == "member" { &kept.client } else { client };
            if rpc == "Unlock" {
                world.client(OPERATOR).await.lock(&format!("job:{}", t.job)).await.unwrap();
            }
            let answer = soon(&rpc, call(client, &rpc, &t, turn)).await;
            write!(seen, "{:<10}", word(&answer)).unwrap();
            drop(kept);
        }
        seen.truncate(seen.trim_end().len());
        seen.push('\n');
    }
    let mut head = format!("{:<17}", "");
    for (column, _) in CALLERS {
        write!(head, "{column:<10}").unwrap();
    }
    let seen = format!("{}\n{seen}", head.trim_end());
    let (mut expected, mut found) = (BTreeMap::new(), BTreeMap::new());
    for (rows, text) in [(&mut expected, MATRIX), (&mut found, seen.as_str())] {
        rows.extend(text.lines().filter(|l| !l.starts_with('#')).map(|l| {
            let mut words = l.split_whitespace();
            (words.next().unwrap_or_default().to_owned(), words.map(str::to_owned).collect::<Vec<_>>())
        }));
    }
    let known: BTreeSet<_> = expected.keys().cloned().collect();
    for rpc in rpcs() {
        assert!(known.contains(&rpc), "{rpc} has no row in matrix.txt; the matrix as it is now:\n{seen}");
    }
    assert_eq!(expected, found, "the matrix as it is now:\n{seen}");
}

/// A caller that may not see a job gets the same answer whether the job lives, has ended or never was: code, reason, text and
/// facts.
// Proves law 42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_and_a_foreign_thing_get_the_same_answer() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let (live, kept) = target(&world, &launcher, 1).await;
    let (ended, _gone) = target(&world, &launcher, 2).await;
    launcher.end(&ended.job, 1, v1::Outcome::Completed).await.unwrap();
    let absent = Target {
        job: JobId(7).to_string(),
        lease: LeaseId(7).to_string(),
        session: v1::Session { job: JobId(7).to_string(), ..live.session.clone() },
        token: live.token.clone(),
        receipt: live.receipt.clone(),
    };
    let of_one_thing = [
        "GetJob",
        "CloseJob",
        "BeginAttempt",
        "DrainAttempt",
        "EndAttempt",
        "WatchJob",
        "JoinAttempt",
        "KeepAlive",
        "IssueCredential",
        "RenewLease",
        "ReleaseLease",
        "GetLease",
        "ExplainJob",
        "Revoke",
        "Lock",
        "Unlock",
        "VerifyClean",
        "Approve",
        "Reject",
        "WithdrawApproval",
        "BreakGlass",
        "FinishReview",
    ];
    // Each call is in one list: about one thing, by a name, or about nothing that a tenant has. A new call must be added to one.
    let named: BTreeSet<String> =
        of_one_thing.iter().chain(&ASKS_BY_NAME).chain(&NAMES_NOTHING).map(ToString::to_string).collect();
    assert_eq!(named, rpcs().into_iter().collect());
    for id in [NIGHTLY, OTHER_WORKER, GATEWAY, GLOBEX_LAUNCHER, GLOBEX_WORKER, GLOBEX_OPERATOR] {
        let stranger = world.client(id).await;
        for rpc in of_one_thing {
            let mut answers = Vec::new();
            for t in [&live, &ended, &absent] {
                let no = soon(rpc, call(&stranger, rpc, t, 3)).await.expect_err(rpc);
                let mut no = Refused::of(&no);
                for name in [&t.job, &t.lease] {
                    no.text = no.text.replace(name.as_str(), "NAME");
                    no.facts.values_mut().for_each(|v| *v = v.replace(name.as_str(), "NAME"));
                }
                answers.push(no);
            }
            assert_eq!(answers[0], answers[2], "{id} {rpc}: one that lives");
            assert_eq!(answers[1], answers[2], "{id} {rpc}: one that has ended");
        }
    }
    drop(kept);
}

//! Law 42 for the calls that search or ask by a name: a name of another tenant and a name that does not exist get the same
//! answer. `matrix.rs` has the calls about one job, member or lease, and checks that each call of the proto is in one of
//! the lists.

use leasehold::{
    name::{Digest, JobId, LeaseId},
    proto::v1::{self, Half},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::*;

/// Calls that take a name and are not about one job, member or lease.
pub const ASKS_BY_NAME: [&str; 15] = [
    "CreateJob",
    "EvaluatePolicy",
    "Introspect",
    "ListJobs",
    "ListLeases",
    "ListLocks",
    "ListResources",
    "Offboard",
    "RecallDataset",
    "ReportUse",
    "ResolveKey",
    "TailLedger",
    "UnrecallDataset",
    "WatchFences",
    "WhoCan",
];

/// Calls that take no name of anything that belongs to a tenant. A receipt is a sealed index, which a caller cannot make.
pub const NAMES_NOTHING: [&str; 10] = [
    "ApplyPolicy",
    "GetKeys",
    "ListApprovals",
    "ListPolicies",
    "ListReviews",
    "ListWaivers",
    "LogOut",
    "ReloadCatalog",
    "WaitDurable",
    "WhoAmI",
];

const GLOBEX_GATEWAY: &str = "spiffe://k8s.globex.example/ns/data/sa/gateway";

/// A name of globex, one of acme, and one that does not exist. For a call that takes several, all of them in turn.
fn names(call: &str, worker: &Worker, token: &Token, gone: &Token, hashes: &[String; 2]) -> Vec<[String; 3]> {
    let own = |name: &str| name.to_owned();
    let reviews = own("dataset:globex/reviews@v1");
    let dataset = [reviews.clone(), own(TICKETS), own("dataset:acme/nothing@v3")];
    let identity = [own(GLOBEX_LAUNCHER), own(LAUNCHER), own("spiffe://k8s.acme.example/ns/none/sa/none")];
    let tenant = [own("globex"), own("acme"), own("nosuch")];
    let prefixed = |kind: &str, names: [String; 3]| names.map(|n| format!("{kind}:{n}"));
    match call {
        "CreateJob" => {
            let model = ["model:globex/none@1", MODEL, "model:acme/nothing@1"].map(own);
            vec![dataset, model]
        }
        "ListResources" | "WhoCan" | "RecallDataset" | "UnrecallDataset" => vec![dataset],
        "Offboard" => vec![prefixed("identity", identity), prefixed("tenant", tenant)],
        "EvaluatePolicy" => {
            vec![dataset, identity, [JobId(8).to_string(), worker.job.clone(), JobId(7).to_string()]]
        }
        "ListJobs" => vec![dataset, identity, tenant, [own("j-"), worker.job.clone(), JobId(7).to_string()]],
        "ListLeases" => vec![
            dataset,
            prefixed("identity", identity),
            prefixed("tenant", tenant),
            prefixed("job", [JobId(8).to_string(), worker.job.clone(), JobId(7).to_string()]),
            prefixed("lease", [LeaseId(8).to_string(), token.lease.id.clone(), LeaseId(7).to_string()]),
        ],
        "ListLocks" => vec![dataset],
        "Introspect" => {
            // No token for globex exists. The token of a live lease of acme's, and that of one that is gone.
            vec![[format!("{}x", token.text), token.text.clone(), gone.text.clone()]]
        }
        "TailLedger" => {
            vec![[hashes[0].clone(), hashes[1].clone(), Digest::of(b"none").to_string()]]
        }
        "WatchFences" | "ReportUse" | "ResolveKey" => {
            vec![[own(GLOBEX_GATEWAY), own(GATEWAY), own("spiffe://k8s.acme.example/none")]]
        }
        other => panic!("{other} takes a name: say here which ones to try"),
    }
}

/// Makes one call with one name. Returns the answer as text, without the name.
async fn ask(client: &Client, call: &str, turn: usize, name: &str) -> String {
    fn text<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, tonic::Status>, name: &str) -> String {
        let shown = match answer {
            Ok(answer) => format!("{:?}", answer.into_inner()),
            Err(status) => format!("{:?}", Refused::of(&status)),
        };
        shown.replace(name, "NAME").replace(name.split_once(':').map_or(name, |(_, rest)| rest), "NAME")
    }
    let (mut jobs, mut operators, mut verifiers) = (client.jobs(), client.operators(), client.verifiers());
    let owned = name.to_owned();
    match call {
        "CreateJob" => {
            let members = v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() };
            let (read, rollback_to) = match turn {
                0 => (owned, String::new()),
                _ => ("dataset:globex/reviews@v1".to_owned(), owned),
            };
            let spec = v1::JobSpec {
                read: vec![read],
                rollback_to,
                write: vec![],
                tune: None,
                acting_for: String::new(),
                members: Some(members),
                ..spec()
            };
            let request =
                v1::CreateJobRequest { spec: Some(spec), idempotency_key: "k".into(), dry_run: true };
            text(jobs.create_job(request).await, name)
        }
        "ListJobs" => {
            let mut request = v1::ListJobsRequest::default();
            match turn {
                0 => request.resources = vec![owned],
                1 => request.launcher = owned,
                2 => request.tenant = owned,
                _ => request.id_prefix = owned,
            }
            text(jobs.list_jobs(request).await, name)
        }
        "ListResources" => {
            let request = v1::ListResourcesRequest { name: owned, ..Default::default() };
            text(jobs.list_resources(request).await, name)
        }
        "ListLeases" => {
            let request = v1::ListLeasesRequest { behind: owned, ..Default::default() };
            text(operators.list_leases(request).await, name)
        }
        "ListLocks" => {
            let request = v1::ListLocksRequest { page_token: owned, ..Default::default() };
            text(operators.list_locks(request).await, name)
        }
        "RecallDataset" => {
            let reason = "looking".to_owned();
            let request =
                v1::RecallDatasetRequest { name: owned, reason, dry_run: true, ..Default::default() };
            text(operators.recall_dataset(request).await, name)
        }
        "UnrecallDataset" => {
            let request = v1::UnrecallDatasetRequest { name: owned, reason: "looking".into() };
            text(operators.unrecall_dataset(request).await, name)
        }
        "Offboard" => {
            let reason = "looking".to_owned();
            let request = v1::OffboardRequest { name: owned, reason, dry_run: true, ..Default::default() };
            text(operators.offboard(request).await, name)
        }
        "EvaluatePolicy" => {
            let action = "read_dataset".to_owned();
            let reviews = "dataset:globex/reviews@v1".to_owned();
            let (resource, identity, job) = match turn {
                0 => (owned, String::new(), String::new()),
                1 => (reviews, owned, String::new()),
                _ => (reviews, String::new(), owned),
            };
            let request = v1::EvaluatePolicyRequest { action, resource, identity, job, ..Default::default() };
            text(operators.evaluate_policy(request).await, name)
        }
        "WhoCan" => {
            let action = "read_dataset".to_owned();
            let request = v1::WhoCanRequest { action, resource: owned, ..Default::default() };
            text(operators.who_can(request).await, name)
        }
        "TailLedger" => {
            let request = v1::TailLedgerRequest { from_index: 0, no_follow: true, after: owned };
            let mut stream = match operators.tail_ledger(request).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return text::<()>(Err(status), name),
            };
            text(stream.message().await.map(tonic::Response::new), name)
        }
        "Introspect" => {
            let request =
                v1::IntrospectRequest { token: owned, presenter: WORKER.into(), ..Default::default() };
            text(verifiers.introspect(request).await, name)
        }
        "WatchFences" => {
            let (tx, rx) = mpsc::channel(1);
            tx.send(v1::WatchFencesRequest { audience: owned, tick: 1 }).await.unwrap();
            let mut stream = match verifiers.watch_fences(ReceiverStream::new(rx)).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return text::<()>(Err(status), name),
            };
            text(stream.message().await.map(tonic::Response::new), name)
        }
        "ResolveKey" => {
            let request = v1::ResolveKeyRequest { audience: owned, ..Default::default() };
            text(verifiers.resolve_key(request).await, name)
        }
        "ReportUse" => {
            let request = v1::ReportUseRequest { audience: owned, ..Default::default() };
            text(verifiers.report_use(request).await, name)
        }
        other => panic!("{other} takes a name: make the call here"),
    }
}

// Proves law 42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_by_a_foreign_or_an_absent_name_has_one_answer() {
    let world = World::start().await;
    let worker = world.working().await;
    let gone = worker.issue(Half::Reading).await;
    worker.release(&gone.lease.id).await.unwrap();
    let token = worker.issue(Half::Reading).await;
    // A lock of each tenant.
    let platform = world.client(PLATFORM).await;
    for name in ["identity:spiffe://k8s.acme.example/ns/ml/job/locked", "dataset:globex/reviews"] {
        let (name, reason) = (name.to_owned(), "the matrix".to_owned());
        let request = v1::LockRequest { name, reason, ahead: true, ..Default::default() };
        platform.operators().lock(request).await.unwrap();
    }
    let records = world.records().await;
    let hash = |kind: &str| records.of(kind).last().unwrap()["hash"].as_str().unwrap().to_owned();
    let hashes = [hash("epoch.began"), hash("job.created")];
    for id in [GLOBEX_LAUNCHER, GLOBEX_WORKER, GLOBEX_OPERATOR, GLOBEX_GATEWAY] {
        let stranger = world.client(id).await;
        for call in ASKS_BY_NAME {
            for (turn, [own, foreign, absent]) in
                names(call, &worker, &token, &gone, &hashes).into_iter().enumerate()
            {
                let of_foreign = soon(call, ask(&stranger, call, turn, &foreign)).await;
                let of_absent = soon(call, ask(&stranger, call, turn, &absent)).await;
                assert_eq!(of_foreign, of_absent, "{id} {call} {foreign}");
                for name in [&worker.job, &token.lease.id] {
                    assert!(!of_foreign.contains(name.as_str()), "{id} {call} {foreign}: {of_foreign}");
                }
                soon(call, ask(&stranger, call, turn, &own)).await;
            }
        }
    }
    // The comparison means something: for its own names a tenant gets another answer.
    let own = [
        (GLOBEX_LAUNCHER, "CreateJob", "dataset:globex/reviews@v1", "dataset:acme/nothing@v3"),
        (GLOBEX_OPERATOR, "ListResources", "dataset:globex/reviews@v1", "dataset:acme/nothing@v3"),
        (GLOBEX_OPERATOR, "WhoCan", "dataset:globex/reviews@v1", "dataset:acme/nothing@v3"),
        (GLOBEX_OPERATOR, "TailLedger", hashes[0].as_str(), hashes[1].as_str()),
    ];
    for (id, call, own, absent) in own {
        let client = world.client(id).await;
        assert_ne!(ask(&client, call, 0, own).await, ask(&client, call, 0, absent).await, "{id} {call}");
    }
}

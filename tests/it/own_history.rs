//! The ledger as the operators and auditors of one tenant read it.

use std::collections::BTreeSet;

use leasehold::{
    limits,
    name::Digest,
    proto::v1::{self, Half, Outcome},
};
use serde_json::Value;
use tonic::{Code, Response};

use crate::{
    decided::{globex_worker, sharing_world},
    harness::*,
};

const REVIEWS: &str = "dataset:globex/reviews@v1";

/// What a reader gets, from the first record to the last.
async fn history(reader: &Client) -> Vec<v1::TailLedgerResponse> {
    let request = v1::TailLedgerRequest { from_index: 1, no_follow: true, ..Default::default() };
    let mut stream = reader.operators().tail_ledger(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        all.push(answer);
    }
    all
}

fn read(answers: &[v1::TailLedgerResponse]) -> Vec<Value> {
    answers.iter().map(|a| serde_json::from_str(&a.record).unwrap()).collect()
}

fn of<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|r| r["type"] == kind).collect()
}

/// Whether a value contains a key at any depth.
fn has_key(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map.contains_key(key) || map.values().any(|v| has_key(v, key)),
        Value::Array(items) => items.iter().any(|v| has_key(v, key)),
        _ => false,
    }
}

/// A history of two tenants: a job of acme, one of globex on acme's data, one on its own, endings, locks and refusals.
struct History {
    world: World,
    acme: Worker,
    shared: Worker,
    foreign: Worker,
    leases: [String; 3],
}

impl History {
    async fn made() -> Self {
        let world = sharing_world().await;
        let platform = world.client(PLATFORM).await;
        let acme = world.working().await;
        let shared = globex_worker(&world, vec![TICKETS.into(), REVIEWS.into()], "shared").await;
        let foreign = globex_worker(&world, vec![REVIEWS.into()], "foreign").await;
        let mut leases = Vec::new();
        for worker in [&acme, &shared, &foreign] {
            leases.push(worker.issue(Half::Reading).await.lease.id);
        }
        let launcher = world.client(LAUNCHER).await;
        refused(launcher.create(v1::JobSpec { purpose: "demo-bot".into(), ..spec() }, "no").await);
        let theirs = world.client(GLOBEX_LAUNCHER).await;
        let unread = v1::JobSpec { read: vec![REVIEWS.into()], write: vec![], tune: None, ..spec() };
        let members = Some(v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() });
        let unread = v1::JobSpec { purpose: "demo-bot".into(), acting_for: String::new(), members, ..unread };
        refused(theirs.create(unread, "no").await).is(Code::PermissionDenied, "POLICY_DENIED");
        for name in [REVIEWS, "tenant:globex", "dataset:acme/tickets"] {
            platform.lock(name).await.unwrap();
            platform.unlock(name).await.unwrap();
        }
        platform.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await.unwrap();
        for (launcher, worker) in [(&launcher, &acme), (&theirs, &shared), (&theirs, &foreign)] {
            launcher.end(&worker.job, 1, Outcome::Completed).await.unwrap();
        }
        let leases: [String; 3] = leases.try_into().unwrap();
        world
            .recorded("the ends of all leases", |records| {
                let ended: String = records.of("leases.ended").into_iter().map(Value::to_string).collect();
                leases.iter().all(|lease| ended.contains(lease))
            })
            .await;
        History { world, acme, shared, foreign, leases }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_auditor_reads_its_own_history() {
    let history = History::made().await;
    let all = history.world.records().await;
    for (id, tenant) in [(AUDITOR, "acme"), (OPERATOR, "acme"), (GLOBEX_OPERATOR, "globex")] {
        let answers = history_of(&history.world, id).await;
        assert!(answers.iter().all(|a| a.index == 0 && a.tenant == tenant), "{id}");
        for record in read(&answers) {
            for hidden in ["index", "prev", "refused", "seq", "stood_at", "catalog"] {
                assert!(!has_key(&record, hidden), "{id}: {hidden} in {record}");
            }
            // The hash is that of the record in the ledger, by which a reader of the whole ledger finds it.
            let whole = all.all.iter().find(|r| r["hash"] == record["hash"]).expect("it is in the ledger");
            assert_eq!((&whole["type"], &whole["time"]), (&record["type"], &record["time"]));
        }
    }
    let answers = history_of(&history.world, AUDITOR).await;
    let records = read(&answers);
    let own = |r: &&Value| r["job"] == history.acme.job.as_str();
    for kind in ["job.created", "attempt.began", "member.joined", "credential.issued", "job.closed"] {
        let seen: Vec<_> = of(&records, kind).into_iter().filter(own).collect();
        let whole: Vec<_> = all.of(kind).into_iter().filter(own).collect();
        assert!(!seen.is_empty() && seen.len() == whole.len(), "{kind}: {records:?}");
    }
    let issued = of(&records, "credential.issued").into_iter().find(own).unwrap();
    assert_eq!((&issued["launcher"], &issued["acting_for"]), (&LAUNCHER.into(), &"ada".into()));
    assert!(issued["decision"]["rules"].is_array() && issued["credential"]["jti"].is_string());
    assert_eq!(of(&records, "denied").len(), 1, "{records:?}");
    assert_eq!(of(&records, "denied")[0]["by"], LAUNCHER);
    for kind in ["lock.set", "lock.lifted"] {
        let names: Vec<_> = of(&records, kind).iter().map(|r| r["name"].clone()).collect();
        assert_eq!(names, ["dataset:acme/tickets"], "{kind}");
    }
    // A record about all tenants is listed without its content.
    let began = of(&records, "epoch.began")[0].as_object().unwrap();
    let fields: BTreeSet<_> = began.keys().map(String::as_str).collect();
    assert_eq!(fields, BTreeSet::from(["epoch", "hash", "time", "type", "v"]));
    let loaded = of(&records, "catalog.loaded")[0];
    assert!(loaded["policy"].is_string() && !has_key(loaded, "by") && !has_key(loaded, "ended"));
    assert_eq!(of(&records, "snapshot").len(), 0);
}

async fn history_of(world: &World, id: &str) -> Vec<v1::TailLedgerResponse> {
    history(&world.client(id).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_reads_what_others_do_with_its_data_and_no_more() {
    let history = History::made().await;
    let History { world, acme, shared, foreign, leases } = &history;
    let records = read(&history_of(world, AUDITOR).await);
    let seen = |kind: &str| -> Vec<&Value> {
        of(&records, kind).into_iter().filter(|r| r["job"] == shared.job.as_str()).collect()
    };
    let issued = seen("credential.issued")[0];
    assert_eq!((&issued["tenant"], &issued["lease"]), (&"globex".into(), &leases[1].as_str().into()));
    assert_eq!(
        (&issued["member"], &issued["purpose"]),
        (&shared.client.id.as_str().into(), &"support-tuning".into())
    );
    assert!(issued["expires"].is_u64() && issued["issued"].is_u64());
    assert_eq!(
        (&issued["scopes"][0]["resource"], issued["scopes"].as_array().unwrap().len()),
        (&TICKETS.into(), 1)
    );
    for hidden in ["launcher", "acting_for", "why", "svid_sha256", "decision", "credential", "outputs"] {
        assert!(issued.get(hidden).is_none(), "{hidden}: {issued}");
    }
    let created = seen("job.created")[0];
    assert_eq!(
        (&created["spec"]["tenant"], &created["spec"]["read"]),
        (&"globex".into(), &vec![TICKETS].into())
    );
    assert!(created.get("launcher").is_none() && created["spec"].get("why").is_none(), "{created}");
    assert_eq!(seen("job.closed")[0]["outcome"], "completed");
    assert!(seen("attempt.began").is_empty() && seen("member.joined").is_empty());
    let ended: String = of(&records, "leases.ended").into_iter().map(Value::to_string).collect();
    assert!(ended.contains(&leases[0]) && ended.contains(&leases[1]));

    let text = format!("{records:?}");
    for hidden in [REVIEWS, GLOBEX_LAUNCHER, "tenant:globex", &foreign.job, &foreign.client.id, &leases[2]] {
        assert!(!text.contains(hidden), "{hidden}");
    }
    // Globex sees its jobs, and of acme only the name of the data that is shared with it.
    let records = read(&history_of(world, GLOBEX_OPERATOR).await);
    let text = format!("{records:?}");
    for own in [&shared.job, &foreign.job, &leases[1], &leases[2], &GLOBEX_LAUNCHER.to_owned()] {
        assert!(text.contains(own.as_str()), "{own}");
    }
    for hidden in [LAUNCHER, WORKER, &acme.job, &leases[0], MODEL, "\"ada\""] {
        assert!(!text.contains(hidden), "{hidden}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_one_tenant_continues_after_a_hash() {
    let history = History::made().await;
    let world = &history.world;
    let eve = world.client(AUDITOR).await;
    let all = history_of(world, AUDITOR).await;
    let ask = async |from_index: u64, after: &str| {
        let request = v1::TailLedgerRequest { from_index, no_follow: true, after: after.into() };
        let mut stream = eve.operators().tail_ledger(request).await?.into_inner();
        let mut found = Vec::new();
        while let Some(answer) = stream.message().await? {
            found.push(answer);
        }
        Ok::<_, tonic::Status>(found)
    };
    let hashes: Vec<String> = read(&all).iter().map(|r| r["hash"].as_str().unwrap().to_owned()).collect();
    for at in [0, hashes.len() / 2, hashes.len() - 1] {
        assert_eq!(ask(0, &hashes[at]).await.unwrap(), all[at + 1..], "after record {at}");
    }
    // The hash of a foreign record and one of no record get one answer. An index is refused: it would count the others' records.
    let records = world.records().await;
    let foreign =
        records.all.iter().map(|r| r["hash"].as_str().unwrap()).find(|h| !hashes.iter().any(|own| own == h));
    let no = async |from: u64, after: &str| Refused::of(&ask(from, after).await.unwrap_err());
    let absent = no(0, &Digest::of(b"nothing").to_string()).await;
    absent.is(Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(no(0, foreign.unwrap()).await, absent);
    let (near, far) = (no(2, "").await, no(1_000_000, "").await);
    near.is(Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(near, far);
    // The whole ledger has indexes.
    let platform = world.client(PLATFORM).await;
    let whole = history_of(world, PLATFORM).await;
    assert_eq!(
        whole.iter().map(|a| a.index).collect::<Vec<_>>(),
        (1..=whole.len() as u64).collect::<Vec<_>>()
    );
    assert!(whole.iter().all(|a| a.tenant.is_empty()));
    let request = v1::TailLedgerRequest { after: hashes[0].clone(), ..Default::default() };
    refused(platform.operators().tail_ledger(request).await).is(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_one_tenant_follows_what_lives_already() {
    let world = sharing_world().await;
    let acme = world.working().await;
    let shared = globex_worker(&world, vec![TICKETS.into()], "shared").await;
    let foreign = globex_worker(&world, vec![REVIEWS.into()], "foreign").await;
    let lease = acme.issue(Half::Reading).await.lease.id;
    for worker in [&shared, &foreign] {
        worker.issue(Half::Reading).await;
    }
    let eve = world.client(AUDITOR).await;
    let mut stream =
        eve.operators().tail_ledger(v1::TailLedgerRequest::default()).await.unwrap().into_inner();
    let theirs = world.client(GLOBEX_LAUNCHER).await;
    for worker in [&foreign, &shared] {
        theirs.end(&worker.job, 1, Outcome::Completed).await.unwrap();
    }
    world.client(LAUNCHER).await.end(&acme.job, 1, Outcome::Completed).await.unwrap();
    let mut text = String::new();
    soon("the end of the lease", async {
        while !(text.contains(&lease) && text.contains("job.closed") && text.contains(&shared.job)) {
            text.push_str(&stream.message().await.unwrap().expect("it follows").record);
        }
    })
    .await;
    assert!(!text.contains(&foreign.job), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_a_few_readers_of_its_history_at_once() {
    let world = World::start().await;
    let eve = world.client(AUDITOR).await;
    let open = async |client: &Client| {
        client.operators().tail_ledger(v1::TailLedgerRequest::default()).await.map(Response::into_inner)
    };
    let mut readers = Vec::new();
    for _ in 0..limits::READERS_PER_TENANT_MAX {
        readers.push(open(&eve).await.unwrap());
    }
    Refused::of(&open(&eve).await.unwrap_err()).is(Code::ResourceExhausted, "OVERLOADED");
    open(&world.client(GLOBEX_OPERATOR).await).await.unwrap();
    open(&world.client(PLATFORM).await).await.unwrap();
    readers.pop();
    eventually("a place", async || open(&eve).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_a_tenant_its_history() {
    let world = sharing_world_on_this_clock().await;
    let worker = world.working().await;
    worker.issue(Half::Reading).await;
    let mut command =
        world.leasehold(AUDITOR, &[], &["audit", "tail", "--from", "1", "--no-follow", "--as", "workload"]);
    assert_eq!(command.exit().await, Some(0), "{}", command.stderr());
    let out = command.stdout();
    let row = out.lines().find(|l| l.contains("credential.issued")).expect("a row");
    assert!(row.trim_start().starts_with("-  ") && row.contains(WORKER), "{out}");
    assert!(command.stderr().contains("the tenant acme"), "{}", command.stderr());
    let args = [
        "audit",
        "tail",
        "--since",
        "1h",
        "--no-follow",
        "-o",
        "json",
        "--type",
        "job.created",
        "--as",
        "workload",
    ];
    let mut command = world.leasehold(AUDITOR, &[], &args);
    assert_eq!(command.exit().await, Some(0), "{}", command.stderr());
    let item: Value = serde_json::from_str(command.stdout().lines().next().unwrap()).unwrap();
    assert_eq!((&item["index"], &item["record"]["job"]), (&Value::Null, &worker.job.as_str().into()));
    let follower = world.leasehold(AUDITOR, &[], &["audit", "tail", "--as", "workload"]);
    let ada = world.client(OPERATOR).await;
    eventually("the new record", async || {
        // The first records may come before the follower starts, and the last ones may exceed the operator's rate.
        let _ = ada.lock(TICKETS).await;
        let _ = ada.unlock(TICKETS).await;
        follower.stdout().contains("lock.lifted")
    })
    .await;
    assert!(!follower.stdout().contains("job.created"), "{}", follower.stdout());
}

async fn sharing_world_on_this_clock() -> World {
    World::with(|setup| setup.real_clock = true).await
}

/// Metrics are for the platform: they cover all tenants, and name none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_name_no_tenant_and_no_identity() {
    let history = History::made().await;
    let world = &history.world;
    let (code, text) = world.http(world.daemon().probe, "/metrics").await;
    assert!(code == 200 && text.contains("leasehold_"), "{code}");
    for name in ["acme", "globex", "spiffe:", "tenant=", &history.acme.job, "support-tuning", "ada"] {
        let found = text.lines().find(|l| !l.starts_with('#') && l.contains(name));
        assert_eq!(found, None, "{name}");
    }
    // The listener that tenants reach has none.
    assert_ne!(world.http(world.daemon().issuer, "/metrics").await.0, 200);
}

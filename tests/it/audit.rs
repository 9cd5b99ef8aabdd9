//! What an auditor finds, and the secrets that are found nowhere.

use std::{fs, path::Path};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use leasehold::{
    name::Digest,
    proto::v1::{self, Half, Outcome},
};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_a_credential_answers_an_auditor() {
    let world = World::start().await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let records = world.records().await;
    let (created, issued) = (records.one("job.created"), records.one("credential.issued"));
    for (field, is) in [
        ("launcher", LAUNCHER),
        ("acting_for", "ada"),
        ("purpose", "support-tuning"),
        ("why", "CHG-1412 weekly refresh"),
        ("member", WORKER),
        ("tenant", "acme"),
        ("instance", "rank-0"),
        ("half", "reading"),
        ("audience", GATEWAY),
        ("method", "lora"),
        ("lease", &token.lease.id),
        ("job", &worker.job),
    ] {
        assert_eq!(issued[field].as_str(), Some(is), "{field}: {issued}");
    }
    assert_eq!(issued["attempt"], 1);
    assert_eq!(issued["params_digest"], format!("sha256:{}", "ab".repeat(32)));
    assert_eq!(issued["prompt_lineage"][0], "prompts:/support-sys/12");
    let inputs = issued["inputs"].as_array().unwrap();
    assert_eq!((&inputs[0]["resource"], &inputs[1]["resource"]), (&TICKETS.into(), &MODEL.into()));
    assert!(
        inputs[0]["pin"].to_string().contains("4be1c0de") && inputs[1]["pin"].to_string().contains("77aa")
    );
    assert_eq!((&inputs[0]["classification"], &inputs[1]["tier"]), (&"internal".into(), &"lab".into()));
    assert_eq!(issued["outputs"][0], LINE);
    let rules = issued["decision"]["rules"].to_string();
    for rule in [
        "trainer-reads-own-or-shared-data",
        "trainer-reads-own-or-shared-models",
        "trainer-tunes-own-or-shared-models",
    ] {
        assert!(rules.contains(rule), "{rule}: {rules}");
    }
    let epoch = records.one("epoch.began");
    assert_eq!(issued["decision"]["policy"], epoch["policy"]);
    assert_eq!(issued["decision"]["catalog"], epoch["catalog"]);
    assert_eq!(created["spec_digest"], world.client(LAUNCHER).await.job(&worker.job).await.spec_digest);

    // The record names this very token: its jti, its key, and the digest of its claims.
    let mut parts = token.text.split('.');
    let header: serde_json::Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts.next().unwrap()).unwrap()).unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(parts.next().unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let credential = &issued["credential"];
    assert_eq!(credential["jti"], claims["jti"]);
    assert_eq!(credential["kid"], header["kid"]);
    assert_eq!(credential["expires"], claims["exp"]);
    assert_eq!(credential["claims_sha256"], Digest::of(&bytes).to_string());
    assert_eq!(issued["stood_at"], claims["lh"]["stood_at"]);
    let svid = Digest(worker.client.credentials.sha256());
    assert_eq!(issued["svid_sha256"], svid.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_denied_is_recorded_once_a_minute_and_counted() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let bad = v1::JobSpec { purpose: "demo-bot".into(), ..spec() };
    for _ in 0..5 {
        refused(launcher.create(bad.clone(), "k").await);
    }
    let records = world.records().await;
    let denied = records.one("denied");
    assert_eq!(
        (&denied["by"], &denied["reason"], &denied["count"]),
        (&LAUNCHER.into(), &"POLICY_DENIED".into(), &1.into())
    );
    assert!(denied["rules"].to_string().contains("trainer-reads-own-or-shared-data"), "{denied}");
    world.time().pass(std::time::Duration::from_secs(75)).await;
    eventually("the count", async || world.records().await.of("denied").len() == 2).await;
    assert_eq!(world.records().await.of("denied")[1]["count"], 4);
}

/// Tokens, tickets and session secrets are in no file of the state, in no Debug, and in no line of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_byte_is_kept_shown_or_logged() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let (operator, gateway) = (world.client(OPERATOR).await, world.client(GATEWAY).await);
    let members = v1::Members { join: vec![SHARED.into()], ..Default::default() };
    let job =
        launcher.create(v1::JobSpec { members: Some(members), ..spec() }, "k").await.unwrap().into_inner();
    let job = job.job.unwrap().id;
    let mut shown = String::new();
    let mut show = |what: &dyn std::fmt::Debug| shown.push_str(&format!("{what:?}\n{what:#?}\n"));
    let began = launcher.begin(&job, "run-1").await.unwrap();
    show(&began);
    let ticket = began.into_inner().ticket;
    let mut worker = Worker::join(world.client(SHARED).await, &job, 1, "rank-0", &ticket).await.unwrap();
    worker.keep_alive().await;
    show(&worker.joined);
    let issued = worker.try_issue(Half::Reading).await.unwrap();
    show(&issued);
    let token = issued.into_inner();
    let lease = token.lease.clone().unwrap();
    let renewed = worker.renew(&lease.id).await.unwrap();
    show(&renewed);
    let renewed = renewed.into_inner().token;
    let session = worker.session().unwrap();
    let presenter_sha256 = worker.client.credentials.sha256().to_vec();
    let ask =
        v1::IntrospectRequest { token: token.token.clone(), presenter: SHARED.into(), presenter_sha256 };
    show(&ask);
    let seen = gateway.verifiers().introspect(ask).await.unwrap();
    assert!(seen.get_ref().active);
    show(&seen);
    show(&session);
    show(&v1::KeepAliveRequest { session: Some(session.clone()), ..Default::default() });
    // Refusals too: with a wrong ticket, a wrong secret, a token where a name should be.
    let wrong = Worker::join(world.client(SHARED).await, &job, 1, "rank-1", &format!("{ticket}x"))
        .await
        .err()
        .unwrap();
    show(&wrong);
    show(&refused(operator.revoke(&format!("lease:{}", token.token)).await).code);
    let listed = operator.operators().list_leases(v1::ListLeasesRequest::default()).await.unwrap();
    show(&listed);
    show(&launcher.job(&job).await);
    launcher.end(&job, 1, Outcome::Completed).await.unwrap();
    let records = world.records().await;

    let secret = worker.secret.clone();
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let debug = format!("{secret:?}");
    let signature = |t: &str| t.rsplit('.').next().unwrap().to_owned();
    let needles = [
        ("a ticket", ticket),
        ("a token", signature(&token.token)),
        ("a renewed token", signature(&renewed)),
        ("a secret in base64url", URL_SAFE_NO_PAD.encode(&secret)),
        ("a secret in base64", STANDARD.encode(&secret)),
        ("a secret in hex", hex),
        ("a secret's bytes in Debug", debug.trim_matches(['[', ']']).to_owned()),
    ];
    let log = logged();
    assert!(log.contains(&job) || log.contains("refused"), "nothing was captured");
    for (what, needle) in &needles {
        assert!(needle.len() > 20);
        assert!(!records.text.contains(needle), "{what} is in the ledger");
        assert!(!shown.contains(needle), "{what} is in a Debug");
        assert!(!log.contains(needle), "{what} is in the log");
    }
    let raw = secret;
    for file in files(&world.file("state")) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(raw.len()).any(|w| w == raw), "a secret is in {}", file.display());
    }
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_copy_of_the_ledger_is_found() {
    let mut world = World::start().await;
    let worker = world.working().await;
    worker.issue(Half::Reading).await;
    drop(worker);
    world.stop().await;
    let copy = tempfile::tempdir().unwrap();
    for file in files(&world.file("state")) {
        fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let segment =
        files(copy.path()).into_iter().find(|f| f.extension().is_some_and(|e| e == "jsonl")).unwrap();
    let good = fs::read(&segment).unwrap();
    let disk = leasehold::internals::ledger::Dir::at(copy.path());
    assert!(leasehold::internals::ledger::verify(&disk, None).is_ok());
    for at in [0, good.len() / 3, good.len() / 2, good.len() - 2] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&segment, &bad).unwrap();
        assert!(leasehold::internals::ledger::verify(&disk, None).is_err(), "the byte at {at} was flipped");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_tailed_by_those_who_may_see_all() {
    let world = World::start().await;
    let platform = world.client(PLATFORM).await;
    let ask = v1::TailLedgerRequest { from_index: 1, no_follow: false, after: String::new() };
    let mut tail = platform.operators().tail_ledger(ask).await.unwrap().into_inner();
    let worker = world.working().await;
    worker.issue(Half::Reading).await;
    let mut kinds = Vec::new();
    soon("the record of the credential", async {
        loop {
            let line = tail.message().await.unwrap().expect("it follows");
            assert_eq!(line.index, kinds.len() as u64 + 1);
            let record: serde_json::Value = serde_json::from_str(&line.record).unwrap();
            kinds.push(record["type"].as_str().unwrap().to_owned());
            if record["type"] == "credential.issued" {
                return;
            }
        }
    })
    .await;
    assert_eq!(kinds, ["epoch.began", "job.created", "attempt.began", "member.joined", "credential.issued"]);
}

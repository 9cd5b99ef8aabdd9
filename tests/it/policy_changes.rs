//! Changes of the rules that need a second person, or a signature.

use std::{fs, time::Duration};

use leasehold::proto::v1;
use serde_json::Value;
use tonic::Code;

use crate::{harness::*, policy_code::*};

const GATE: &str = r#"
@id("gate-policy-change")
@gate("approval") @approver_group("platform-operators") @approvals("1") @approval_ttl("8h")
@explain("a change of the rules needs a second operator of the platform")
forbid (
  principal is Leasehold::Operator,
  action in [Leasehold::Action::"ApplyPolicy", Leasehold::Action::"ReloadCatalog"],
  resource is Leasehold::Tenant
)
unless { context.approved.contains("gate-policy-change") };
"#;

const SECOND: &str = "spiffe://people.platform.example/ops/second";
const THIRD: &str = "spiffe://people.platform.example/ops/third";
/// The person of `PLATFORM`, by another identity.
const ROOT_AT_NIGHT: &str = "spiffe://people.platform.example/night/root";
/// An operator of acme, in whose file the group is written too.
const INTRUDER: &str = "spiffe://people.acme.example/intruder/ida";

const MORE_PEOPLE: [(&str, &str); 2] = [
    (
        "platform.toml",
        "\n[[principal]]\nmatch = \"spiffe://people.platform.example/night/*\"\nkind = \"operator\"\nhuman = \"segment:2\"\n\
         groups = [\"platform-operators\"]\n",
    ),
    (
        "acme.toml",
        "\n[[principal]]\nmatch = \"spiffe://people.acme.example/intruder/*\"\nkind = \"operator\"\nhuman = \"segment:2\"\n\
         groups = [\"platform-operators\", \"operators\"]\n",
    ),
];

/// A daemon whose policy asks for a second person.
async fn gated(source: &str, gate: &str, real_clock: bool) -> World {
    let mut world = World::prepared(|setup| {
        setup.real_clock = real_clock;
        setup.policy = format!("source = \"{source}\"");
        for (file, more) in MORE_PEOPLE {
            setup.catalog.get_mut(file).unwrap().push_str(more);
        }
    });
    world.write("policy/changes.cedar", gate);
    world.restart().await;
    world
}

fn in_force(world: &World) -> String {
    world.daemon().broker.rules.in_force().engine.digest().to_string()
}

/// A policy directory with the gate and one more rule.
fn next(world: &World, name: &str, rule: &str) -> String {
    let dir = policy_dir(world, name, rule, "deny");
    fs::copy(world.file("policy/changes.cedar"), world.file(name).join("changes.cedar")).unwrap();
    dir
}

async fn apply(world: &World, id: &str, dir: &str) -> (Option<i32>, String, String) {
    policy(world, id, &["apply", dir, "--reason", "CHG-1412", "--yes"]).await
}

async fn proposed(world: &World) -> Vec<Value> {
    let (code, out, err) = policy(world, PLATFORM, &["history", "-o", "json"]).await;
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str::<Value>(&out).unwrap()["proposed"].as_array().unwrap().clone()
}

/// Control 27: the one who proposes a policy does not approve it, by no identity; another person does.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_policy_needs_a_second_person() {
    let world = gated("applied", GATE, true).await;
    let first = in_force(&world);
    let dir = next(&world, "next", NO_TICKETS);
    let (code, out, err) =
        policy(&world, PLATFORM, &["apply", &dir, "--reason", "a look", "--dry-run"]).await;
    assert!(code == Some(0) && out.contains("gate-policy-change"), "{out}{err}");
    assert_eq!(proposed(&world).await.len(), 0, "a dry run proposes nothing");
    let (code, out, err) = apply(&world, PLATFORM, &dir).await;
    assert_eq!(code, Some(3), "{out}{err}");
    for said in ["gate-policy-change", "spiffe://people.platform.example/ops/*", PLATFORM, "void from"] {
        assert!(out.contains(said), "{said}: {out}");
    }
    assert!(err.contains("leasehold policy approve sha256:"), "{err}");
    let waiting = proposed(&world).await;
    let digest = waiting[0]["to"].as_str().unwrap().to_owned();
    assert_eq!((waiting.len(), waiting[0]["gates"][0]["approvals_missing"].as_u64()), (1, Some(1)));
    // Neither the same person again, by any identity, …
    for id in [PLATFORM, ROOT_AT_NIGHT] {
        let (code, out, err) = policy(&world, id, &["approve", &digest, "--reason", "mine", "--yes"]).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{id}: {err}");
        for said in ["your approval of it does not count", "spiffe://people.platform.example/ops/*"] {
            assert!(err.contains(said), "{said}: {err}");
        }
        assert_eq!(apply(&world, id, &dir).await.0, Some(3), "{id}");
    }
    // … nor people of a tenant who wrote the group into their own file.
    for id in [INTRUDER, OPERATOR] {
        assert_eq!(apply(&world, id, &dir).await.0, Some(2), "{id}");
    }
    assert_eq!((in_force(&world), proposed(&world).await.len()), (first.clone(), 1));
    // Without a terminal and without --yes nothing is approved.
    let (code, _, err) = policy(&world, SECOND, &["approve", &digest, "--reason", "reviewed"]).await;
    assert!(code == Some(64) && err.contains("you approve this change"), "{err}");
    let (code, out, err) =
        policy(&world, SECOND, &["approve", &digest, "--reason", "reviewed", "--yes"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!((in_force(&world), proposed(&world).await.len()), (digest.clone(), 0));
    let records = world.records().await;
    let applied = records.one("policy.applied");
    assert_eq!(applied["by"]["spiffe_id"], SECOND);
    assert_eq!(
        (&applied["consent"]["proposed_by"], &applied["consent"]["reason"]),
        (&PLATFORM.into(), &"CHG-1412".into())
    );
    assert_eq!(applied["consent"]["approvals"][0]["by"], SECOND);
    let (_, out, _) = policy(&world, PLATFORM, &["history"]).await;
    let people = format!("CHG-1412 (proposed by {PLATFORM}; approved by {SECOND}: reviewed)");
    assert!(out.contains(&people), "{out}");
    assert_eq!((records.of("change.proposed").len(), records.of("change.approved").len()), (1, 1));
    // The way back is a change too.
    let (code, _, err) = policy(&world, SECOND, &["rollback", "--reason", "too strict", "--yes"]).await;
    assert_eq!(code, Some(3), "{err}");
    let (code, _, err) = policy(&world, PLATFORM, &["rollback", "--reason", "too strict", "--yes"]).await;
    assert_eq!((code, in_force(&world)), (Some(0), first), "{err}");
    let (code, _, err) = policy(&world, THIRD, &["approve", &digest, "--reason", "late", "--yes"]).await;
    assert!(code == Some(1) && err.contains("no one has proposed"), "{err}");
}

fn order(world: &World, name: &str) -> v1::ApplyPolicyRequest {
    let file = |file: &str, text: String| v1::PolicyFile { file: file.into(), text };
    v1::ApplyPolicyRequest {
        policies: vec![
            file("leasehold.cedar", world.read("policy/leasehold.cedar")),
            file("changes.cedar", world.read("policy/changes.cedar")),
            file("more.cedar", NO_TICKETS.replace("no-tickets", name)),
        ],
        reason: "CHG-1".into(),
        ..Default::default()
    }
}

impl Client {
    async fn apply(&self, order: &v1::ApplyPolicyRequest) -> v1::ApplyPolicyResponse {
        let done = self.operators().apply_policy(order.clone()).await;
        done.unwrap_or_else(|no| panic!("{:?}", Refused::of(&no))).into_inner()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_is_void_when_something_else_comes_into_force() {
    let mut world = gated("applied", GATE, false).await;
    let (root, second) = (world.client(PLATFORM).await, world.client(SECOND).await);
    let (one, other) = (order(&world, "one"), order(&world, "other"));
    let first = root.apply(&one).await.waits.unwrap();
    assert!(root.apply(&other).await.waits.is_some());
    assert!(second.apply(&other).await.applied);
    // It was proposed in place of the policy that is gone.
    let kept = v1::ApplyPolicyRequest { kept: first.to.clone(), reason: "x".into(), ..Default::default() };
    refused(second.operators().apply_policy(kept.clone()).await)
        .is(Code::FailedPrecondition, "STATE_CONFLICT");
    let again = second.apply(&one).await.waits.unwrap();
    assert_eq!(again.proposed_by, SECOND, "the same files are another change now");

    // Its time is over.
    world.time().advance(Duration::from_secs(8 * 3_600));
    let (root, second) = (world.client(PLATFORM).await, world.client(SECOND).await);
    let late = root.apply(&one).await.waits.unwrap();
    assert_eq!(late.proposed_by, PLATFORM);

    // A lock on the proposer voids it.
    world.client(THIRD).await.lock(&format!("identity:{PLATFORM}")).await.unwrap();
    assert_eq!(second.apply(&one).await.waits.unwrap().proposed_by, SECOND);

    // A restart does.
    drop((root, second));
    world.restart().await;
    let third = world.client(THIRD).await;
    assert_eq!(third.apply(&one).await.waits.unwrap().proposed_by, THIRD);
    // What is proposed is bounded for each person.
    for n in 0..8 {
        let answer = third.operators().apply_policy(order(&world, &format!("many-{n}"))).await;
        if let Err(no) = answer {
            assert_eq!((n, Refused::of(&no).reason.as_str()), (3, "QUOTA_EXCEEDED"));
            return;
        }
    }
    panic!("a person may propose any number of changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_person_counts_once_and_only_while_in_the_group() {
    let world = gated("applied", &GATE.replace("@approvals(\"1\")", "@approvals(\"2\")"), false).await;
    let change = order(&world, "one");
    let clients = [PLATFORM, SECOND, THIRD, ROOT_AT_NIGHT];
    let mut people = Vec::new();
    for id in clients {
        people.push(world.client(id).await);
    }
    let missing = |answer: v1::ApplyPolicyResponse| answer.waits.map(|w| w.gates[0].approvals_missing);
    assert_eq!(missing(people[0].apply(&change).await), Some(2));
    assert_eq!(missing(people[1].apply(&change).await), Some(1));
    assert_eq!(missing(people[1].apply(&change).await), Some(1), "again");
    assert_eq!(missing(people[3].apply(&change).await), Some(1), "the proposer by another identity");
    world.client(PLATFORM).await.lock(&format!("identity:{SECOND}")).await.unwrap();
    assert_eq!(missing(people[2].apply(&change).await), Some(1), "one of the two is locked");
    world.client(PLATFORM).await.unlock(&format!("identity:{SECOND}")).await.unwrap();
    assert!(people[2].apply(&change).await.applied);
}

/// Control 27: a reload by an operator is a change, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_the_catalog_needs_a_second_person() {
    let world = gated("files", GATE, false).await;
    let (root, second) = (world.client(PLATFORM).await, world.client(SECOND).await);
    let reload = async |client: &Client, dry_run| {
        client.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run }).await.unwrap().into_inner()
    };
    assert!(reload(&root, false).await.waits.is_none(), "nothing changes");
    let acme = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &format!("{acme}\n# another\n"));
    let before = world.daemon().broker.rules.in_force().catalog().digest().to_string();
    let waits = reload(&root, true).await.waits.unwrap();
    assert_eq!(waits.proposed_by, "", "a dry run proposes nothing");
    assert!(reload(&root, false).await.waits.is_some() && reload(&root, false).await.waits.is_some());
    // The files changed since: that is another change.
    world.write("catalog.d/acme.toml", &format!("{acme}\n# yet another\n"));
    assert_eq!(reload(&second, false).await.waits.unwrap().proposed_by, SECOND);
    assert_eq!(world.daemon().broker.rules.in_force().catalog().digest().to_string(), before);
    let done = reload(&root, false).await;
    assert!(done.waits.is_none());
    assert_eq!(world.daemon().broker.rules.in_force().catalog().digest().to_string(), done.digest);
    assert_ne!(done.digest, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_says_whose_proposal_it_approves() {
    let world = gated("files", GATE, true).await;
    let acme = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &format!("{acme}\n# another\n"));
    let reload = async |id: &str, more: &[&str]| {
        let args = [&["catalog", "reload", "--as", "workload"], more].concat();
        let mut command = world.leasehold(id, &[], &args);
        (command.exit().await, command.stderr())
    };
    let (code, said) = reload(SECOND, &[]).await;
    assert!(code == Some(3) && !said.contains("You approve"), "{said}");
    let (code, said) = reload(PLATFORM, &["--dry-run"]).await;
    let would = format!("A reload by you approves the proposal of {SECOND}.");
    assert!(code == Some(0) && said.contains(&would), "{said}");
    let (code, said) = reload(PLATFORM, &[]).await;
    assert!(code == Some(0) && said.contains(&format!("You approved the proposal of {SECOND}.")), "{said}");
}

// ---------- withdrawn, rejected, void ----------

fn decide(to: &str, decision: v1::ChangeDecision) -> v1::ApplyPolicyRequest {
    let (kept, reason) = (to.to_owned(), "CHG-1 is wrong".to_owned());
    v1::ApplyPolicyRequest { kept, reason, decision: decision.into(), ..Default::default() }
}

impl Client {
    async fn history(&self) -> v1::ListPoliciesResponse {
        self.operators().list_policies(v1::ListPoliciesRequest {}).await.unwrap().into_inner()
    }

    /// The outcome, the one who closed it and the reason of each closed change, the newest first.
    async fn closed(&self) -> Vec<(String, String, String)> {
        let closed = self.history().await.closed.into_iter();
        closed.map(|change| (change.outcome, change.by, change.reason)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proposer_withdraws_and_an_approver_rejects() {
    let world = gated("applied", GATE, true).await;
    let dir = next(&world, "next", NO_TICKETS);
    let propose = async || {
        assert_eq!(apply(&world, PLATFORM, &dir).await.0, Some(3));
        proposed(&world).await[0]["to"].as_str().unwrap().to_owned()
    };
    let digest = propose().await;
    let close = async |id: &str, how: &str, more: &[&str]| {
        let args = [&[how, digest.as_str(), "--reason", "it opens too much"], more].concat();
        policy(&world, id, &args).await
    };
    // Not the other way round, and not by people of another group or tenant.
    for (id, how) in
        [(SECOND, "withdraw"), (PLATFORM, "reject"), (INTRUDER, "reject"), (OPERATOR, "withdraw")]
    {
        let (code, out, err) = close(id, how, &[]).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{id} {how}: {err}");
    }
    let (code, out, err) = close(PLATFORM, "withdraw", &["--dry-run"]).await;
    assert!(code == Some(0) && out.contains("gate-policy-change"), "{out}{err}");
    assert_eq!(proposed(&world).await.len(), 1, "a dry run withdraws nothing");
    let (code, _, err) = close(ROOT_AT_NIGHT, "withdraw", &[]).await;
    assert!(code == Some(0) && err.contains("is withdrawn"), "{err}");
    assert_eq!(proposed(&world).await.len(), 0);
    let (code, _, err) = close(PLATFORM, "withdraw", &[]).await;
    assert!(code == Some(1) && err.contains("no one has proposed"), "{err}");
    // It can be proposed again. No approval is left of the first time.
    assert_eq!(propose().await, digest);
    let (code, out, err) = close(SECOND, "reject", &["-o", "json"]).await;
    assert_eq!(code, Some(0), "{err}");
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(said["rejected"]["proposed_by"], PLATFORM);
    let (code, out, _) = policy(&world, PLATFORM, &["history"]).await;
    assert!(code == Some(0) && out.contains("was rejected") && out.contains("it opens too much"), "{out}");
    let closed: Vec<_> = world.client(PLATFORM).await.closed().await;
    assert_eq!(
        closed.iter().map(|(outcome, by, _)| (outcome.as_str(), by.as_str())).collect::<Vec<_>>(),
        [("rejected", SECOND), ("withdrawn", ROOT_AT_NIGHT)]
    );
    let records = world.records().await;
    let closed = records.of("change.closed");
    let about = |record: &Value| (record["outcome"].clone(), record["by"]["spiffe_id"].clone());
    assert_eq!(
        closed.iter().map(|record| about(record)).collect::<Vec<_>>(),
        [("withdrawn".into(), ROOT_AT_NIGHT.into()), ("rejected".into(), SECOND.into())]
    );
    assert!(closed.iter().all(|r| r["proposed_by"] == PLATFORM && r["reason"] == "it opens too much"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_proposal_makes_room_for_another() {
    let world = gated("applied", GATE, false).await;
    let (root, second) = (world.client(PLATFORM).await, world.client(SECOND).await);
    let mut waiting = Vec::new();
    for n in 0..4 {
        waiting.push(root.apply(&order(&world, &format!("many-{n}"))).await.waits.unwrap().to);
    }
    let more = order(&world, "one-more");
    let night = world.client(ROOT_AT_NIGHT).await;
    for same in [&root, &night] {
        let no = refused(same.operators().apply_policy(more.clone()).await);
        no.is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert!(format!("{no:?}").contains("policy withdraw"), "{no:?}");
    }
    root.apply(&decide(&waiting[0], v1::ChangeDecision::Withdraw)).await;
    assert!(root.apply(&more).await.waits.is_some());
    // A reload that waits is closed in the same way.
    let acme = world.read("catalog.d/acme.toml");
    world.write("catalog.d/acme.toml", &format!("{acme}\n# another\n"));
    let reload = v1::ReloadCatalogRequest { dry_run: false };
    let waits = second.operators().reload_catalog(reload).await.unwrap().into_inner().waits.unwrap();
    let closed = root.apply(&decide(&waits.to, v1::ChangeDecision::Reject)).await.waits.unwrap();
    assert_eq!((closed.call.as_str(), closed.proposed_by.as_str()), ("ReloadCatalog", SECOND));
    root.apply(&decide(&waiting[1], v1::ChangeDecision::Withdraw)).await;
    let again = root.operators().reload_catalog(reload).await.unwrap().into_inner().waits.unwrap();
    assert_eq!(again.proposed_by, PLATFORM, "the rejected proposal is gone");
    for bad in [decide("", v1::ChangeDecision::Reject), decide("previous", v1::ChangeDecision::Approve)] {
        refused(root.operators().apply_policy(bad).await).is(Code::InvalidArgument, "FIELD_MISSING");
    }
}

/// What someone proposed does not become effective on their word after a lock, also when the lock is lifted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_or_an_offboarding_voids_what_someone_proposed() {
    let mut world = gated("applied", GATE, false).await;
    let change = order(&world, "one");
    for turn in 0..4 {
        let (root, second, third) =
            (world.client(PLATFORM).await, world.client(SECOND).await, world.client(THIRD).await);
        let to = second.apply(&change).await.waits.unwrap().to;
        let (name, id) = ("human:second", format!("identity:{SECOND}"));
        // Only this proposal makes the person known: the catalog matches people of this group by a pattern.
        match turn {
            0 => {
                let request = v1::LockRequest { name: name.into(), reason: "x".into(), ..Default::default() };
                root.operators().lock(request).await.map(drop).unwrap();
            }
            1 => root.lock(&id).await.map(drop).unwrap(),
            2 => {
                let request =
                    v1::OffboardRequest { name: id.clone(), reason: "left".into(), ..Default::default() };
                root.operators().offboard(request).await.map(drop).unwrap();
            }
            _ => {
                // The pattern is replaced by the identities of the others.
                let platform = world.read("catalog.d/platform.toml");
                let (head, entry) = platform.split_once("[[principal]]").unwrap();
                let (entry, rest) = entry.split_once("[[principal]]").unwrap();
                let of = |id: &str| {
                    format!("[[principal]]{}", entry.replace("spiffe://people.platform.example/ops/*", id))
                };
                let without = format!("{head}{}{}[[principal]]{rest}", of(PLATFORM), of(THIRD));
                world.write("catalog.d/platform.toml", &without);
                world.daemon().reload();
            }
        }
        assert_eq!(root.history().await.proposed.len(), 0, "{turn}");
        let (outcome, by, _) = root.closed().await.swap_remove(0);
        assert!(outcome == "voided" && by.contains("locked, disabled or no longer an operator"), "{by}");
        if turn < 3 {
            root.unlock(if turn == 0 { name } else { &id }).await.unwrap();
        }
        let approve = decide(&to, v1::ChangeDecision::Approve);
        refused(third.operators().apply_policy(approve).await).is(Code::FailedPrecondition, "STATE_CONFLICT");
        assert_eq!(root.history().await.proposed.len(), 0, "the lifted lock brings nothing back");
        drop((root, second, third));
    }
    let voided = world.records().await.of("change.closed").len();
    assert_eq!(voided, 4);
    world.restart().await;
}

// ---------- signatures ----------

async fn leasehold(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let mut command = plain(env!("CARGO_BIN_EXE_leasehold"));
    let run = command.args(args).current_dir(world.dir.path()).stdin(std::process::Stdio::null()).output();
    let done = soon("a command", run).await.unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8(said).unwrap())
}

async fn sign(world: &World, dir: &str) {
    let (code, said) = leasehold(world, &["policy", "sign", "--key", "signer.key", dir]).await;
    assert_eq!(code, Some(0), "{said}");
}

/// A daemon that is not started, with one trusted key.
async fn with_key(source: &str) -> World {
    let world = World::prepared(|setup| {
        setup.real_clock = true;
        setup.policy = format!("source = \"{source}\"\ntrusted_keys = [\"signer.pub\"]");
    });
    let (code, said) = leasehold(&world, &["policy", "keygen", "signer"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(leasehold(&world, &["policy", "keygen", "signer"]).await.0, Some(1), "it overwrites no key");
    world
}

/// Control 33: an unsigned policy refuses the start, and changes nothing at a reload.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_signed_policy_comes_into_force() {
    let mut world = with_key("files").await;
    let why = world.try_start().await.expect_err("it starts with an unsigned policy");
    let refused = format!("{why} {why:?}");
    assert!(refused.contains("is not signed") && refused.contains("policy sign"), "{refused}");
    let (code, said) = leasehold(&world, &["policy", "check", "policy"]).await;
    assert!(code == Some(0) && !said.contains("policy.sig"), "{said}");
    sign(&world, "policy").await;
    let (code, said) = leasehold(&world, &["policy", "check", "policy"]).await;
    assert!(code == Some(0) && said.contains("policy.sig is for these files"), "{said}");
    world.restart().await;
    let first = in_force(&world);
    let reload = async || {
        let request = v1::ReloadCatalogRequest { dry_run: false };
        world.client(PLATFORM).await.operators().reload_catalog(request).await
    };
    world.write("policy/more.cedar", NO_TICKETS);
    let no = refused_as(reload().await);
    assert!(no.contains("is the signature of other files"), "{no}");
    // Another key signs it.
    let (code, said) = leasehold(&world, &["policy", "keygen", "stranger"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = leasehold(&world, &["policy", "sign", "--key", "stranger.key", "policy"]).await;
    assert_eq!(code, Some(0), "{said}");
    let no = refused_as(reload().await);
    assert!(no.contains("has no signature of a key in policy.trusted_keys"), "{no}");
    world.daemon().reload();
    assert_eq!(in_force(&world), first);
    sign(&world, "policy").await;
    reload().await.unwrap();
    assert_ne!(in_force(&world), first);
    // The cases are covered too.
    world.write("policy/tests.toml", "[defaults]\npurpose = \"x\"\n");
    assert!(refused_as(reload().await).contains("other files"));
    let (code, said) = leasehold(&world, &["config", "check", "leasehold.toml"]).await;
    assert!(code == Some(1) && said.contains("other files"), "{said}");
}

fn refused_as<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> String {
    let no = refused(answer);
    assert_eq!(no.reason, "CATALOG_INVALID");
    format!("{no:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_policy_is_signed_also_after_a_restart() {
    let mut world = with_key("applied").await;
    sign(&world, "policy").await;
    world.restart().await;
    let first = in_force(&world);
    let dir = policy_dir(&world, "next", NO_TICKETS, "deny");
    let (code, out, err) = policy(&world, PLATFORM, &["diff", &dir]).await;
    assert!(code == Some(1) && err.contains("is not signed"), "{out}{err}");
    let (code, _, err) = apply(&world, PLATFORM, &dir).await;
    assert!(code == Some(1) && err.contains("is not signed"), "{err}");
    assert_eq!(in_force(&world), first);
    sign(&world, "next").await;
    let (code, _, err) = apply(&world, PLATFORM, &dir).await;
    assert_eq!(code, Some(0), "{err}");
    let second = in_force(&world);
    world.restart().await;
    assert_eq!(in_force(&world), second);
    let (code, _, err) = policy(&world, PLATFORM, &["rollback", "--reason", "back", "--yes"]).await;
    assert_eq!((code, in_force(&world)), (Some(0), first.clone()), "{err}");
    // A kept policy whose signature was lost refuses the start.
    world.stop().await;
    let kept = format!("state/policies/policy-{}.json", first.trim_start_matches("sha256:"));
    let mut file: Value = serde_json::from_str(&world.read(&kept)).unwrap();
    file.as_object_mut().unwrap().remove("signed").unwrap();
    world.write(&kept, &file.to_string());
    let why = world.try_start().await.expect_err("it starts with an unsigned policy");
    let refused = format!("{why} {why:?}");
    assert!(refused.contains("is not signed"), "{refused}");
}

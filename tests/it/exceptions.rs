//! Exceptions that the platform makes for a time: rules that are waived, and tenants that are only observed.

use std::time::Duration;

use leasehold::proto::v1::{self, Half, JobState};
use tonic::Code;

use crate::{approvals::*, harness::*};

const HPC: &str = "spiffe://hpc.acme.example/slurm/ml-support/node7";

/// The clock of the tests begins at 2026-11-20T04:13:20Z.
async fn world_with(platform: &str, acme: impl Fn(&str) -> String) -> World {
    World::with(|setup| {
        setup.catalog.get_mut("platform.toml").unwrap().push_str(platform);
        let text = acme(&setup.catalog["acme.toml"]);
        *setup.catalog.get_mut("acme.toml").unwrap() = text;
    })
    .await
}

fn restricted(acme: &str) -> String {
    acme.replacen("classification = \"internal\"", "classification = \"restricted\"", 1)
}

fn on_the_cluster() -> v1::JobSpec {
    let members = v1::Members { join: vec![HPC.into()], ..Default::default() };
    v1::JobSpec { name: "cluster".into(), members: Some(members), ..spec() }
}

const WAIVER: &str = "\n[[waiver]]\nrule = \"guard-shared-identity\"\ntenant = \"acme\"\nresource = \"dataset:acme/tickets\"\n\
     owner = \"security@acme.example\"\nreason = \"RISK-12\"\nuntil = 2026-11-20T04:13:30Z\n";

/// Control 38: a waiver has an owner, a scope and an end; when it is over, what ran on it ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiver_holds_within_its_scope_and_ends_by_itself() {
    let world = world_with(WAIVER, restricted).await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working_on(on_the_cluster(), HPC).await;
    let token = worker.issue(Half::Reading).await;
    // Several jobs share the identity, so the token is bound to its certificate.
    let is_live = async || {
        let request = v1::IntrospectRequest {
            token: token.text.clone(),
            presenter: HPC.into(),
            presenter_sha256: worker.client.credentials.sha256().to_vec(),
        };
        gateway.verifiers().introspect(request).await.unwrap().into_inner().active
    };
    assert!(is_live().await);
    let issued = world.records().await.one("credential.issued").clone();
    assert!(issued["decision"]["rules"].to_string().contains("(waived: guard-shared-identity)"), "{issued}");
    let listed = world.client(OPERATOR).await.operators().list_waivers(v1::ListWaiversRequest {}).await;
    let listed = listed.unwrap().into_inner().waivers;
    assert_eq!(
        (listed.len(), listed[0].owner.as_str(), listed[0].in_force),
        (1, "security@acme.example", true)
    );
    let globex = world.client(GLOBEX_OPERATOR).await;
    let foreign = globex.operators().list_waivers(v1::ListWaiversRequest {}).await.unwrap().into_inner();
    assert_eq!(foreign.waivers, []);
    // Its beats are not late yet, and its lease has minutes left: only the waiver is over.
    world.time().advance(Duration::from_secs(11));
    eventually("the end of the lease", async || !is_live().await).await;
    let is_over =
        |r: &serde_json::Value| r["because"].as_str().is_some_and(|b| b.starts_with("an exception is over"));
    assert!(world.records().await.of("lowered").into_iter().any(is_over));
    let no = refused(world.client(LAUNCHER).await.create(on_the_cluster(), "again").await);
    assert!(no.facts["rule"].contains("guard-shared-identity"), "{no:?}");
    let listed = world.client(OPERATOR).await.operators().list_waivers(v1::ListWaiversRequest {}).await;
    assert!(!listed.unwrap().into_inner().waivers[0].in_force);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiver_of_another_tenant_rule_or_resource_is_none() {
    for (from, to) in [
        ("tenant = \"acme\"", "tenant = \"globex\""),
        ("rule = \"guard-shared-identity\"", "rule = \"guard-ttl\""),
        ("resource = \"dataset:acme/tickets\"", "resource = \"dataset:acme/patients\""),
        ("until = 2026-11-20T04:13:30Z", "until = 2026-11-20T04:13:20Z"),
    ] {
        let world = world_with(&WAIVER.replacen(from, to, 1), restricted).await;
        let no = refused(world.client(LAUNCHER).await.create(on_the_cluster(), "k").await);
        no.is(Code::PermissionDenied, "POLICY_DENIED");
    }
}

/// A tenant makes no exception for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_platform_makes_exceptions() {
    let observe = "\n[[observe]]\ntenant = \"acme\"\nowner = \"ops\"\nuntil = 2027-01-01\n";
    for entry in [WAIVER, observe] {
        let world = world_with("", |acme| format!("{acme}{entry}")).await;
        let mistakes = world.client(PLATFORM).await.operators().who_am_i(v1::WhoAmIRequest {}).await;
        let mistakes = mistakes.unwrap().into_inner().catalog_mistakes;
        assert!(mistakes.iter().any(|m| m.contains("only platform.toml makes exceptions")), "{mistakes:?}");
    }
}

/// An observed tenant is decided, recorded and refused nothing, except by rules that always hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observed_tenant_is_recorded_and_not_refused() {
    let observe =
        "\n[[observe]]\ntenant = \"acme\"\nowner = \"platform@acme.example\"\nuntil = 2026-11-20T04:13:30Z\n";
    let world = world_with(observe, restricted).await;
    let gateway = world.client(GATEWAY).await;
    let launcher = world.client(LAUNCHER).await;
    // A gate, missing fields and a wrong purpose hold nothing back.
    let bare = v1::JobSpec { ticket: String::new(), ..production() };
    let job = launcher.create(bare, "bare").await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.state(), JobState::Ready);
    let other = v1::JobSpec { purpose: "demo-bot".into(), ..spec() };
    let worker = world.working_on(other, WORKER).await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    let records = world.records().await;
    let rules = |record: &serde_json::Value| record["decision"]["rules"].to_string();
    let created = records.of("job.created");
    assert!(rules(created[0]).contains("guard-change-ticket (observed: deny)"), "{}", created[0]);
    assert!(rules(records.one("credential.issued")).contains("(observed: deny)"));
    // Identity, tenants and rules that always hold are enforced.
    let members =
        v1::Members { join: vec!["spiffe://k8s.acme.example/ns/old/job/x".into()], ..Default::default() };
    let disabled = v1::JobSpec { name: "old".into(), members: Some(members), ..spec() };
    assert!(launcher.create(disabled, "old").await.is_err());
    let foreign = v1::JobSpec { read: vec!["dataset:globex/reviews@v1".into()], ..spec() };
    refused(launcher.create(foreign, "foreign").await).is(Code::NotFound, "RESOURCE_NOT_FOUND");
    refused(world.client(NOBODY).await.create(spec(), "n").await)
        .is(Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
    let globex = world.client(GLOBEX_LAUNCHER).await;
    let elsewhere = v1::JobSpec {
        purpose: "demo-bot".into(),
        read: vec!["dataset:globex/reviews@v1".into()],
        write: Vec::new(),
        tune: None,
        acting_for: String::new(),
        members: Some(v1::Members { join: vec![GLOBEX_WORKER.into()], ..Default::default() }),
        ..spec()
    };
    refused(globex.create(elsewhere, "g").await).is(Code::PermissionDenied, "POLICY_DENIED");
    // It is said aloud, to those whom it concerns.
    let who = async |id: &str| {
        let client = world.client(id).await;
        client.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner().observed
    };
    assert_eq!(who(OPERATOR).await, ["acme until 2026-11-20T04:13:30.000Z"]);
    assert_eq!(who(PLATFORM).await.len(), 1);
    assert_eq!(who(GLOBEX_OPERATOR).await, Vec::<String>::new());
    assert!(world.counted("leasehold_tenants_observed", "").await >= 1.0);
    // When its time is over, what policy forbids ends.
    world.time().advance(Duration::from_secs(11));
    eventually("the end of the lease", async || !token.seen_by(&gateway).await.active).await;
}

/// A start warns of a tenant that is observed now, and not of one whose time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observation_that_is_over_is_not_announced() {
    for (owner, until, is_now) in [
        ("past@acme.example", "2026-11-20T04:13:19Z", false),
        ("now@acme.example", "2026-11-20T04:13:30Z", true),
    ] {
        let observe = format!("\n[[observe]]\ntenant = \"acme\"\nowner = \"{owner}\"\nuntil = {until}\n");
        let _world = world_with(&observe, str::to_owned).await;
        let log = logged();
        let mut lines = log.lines().filter(|line| line.contains(owner) && line.contains("OBSERVE"));
        assert_eq!(lines.next().is_some(), is_now, "{owner}");
    }
}

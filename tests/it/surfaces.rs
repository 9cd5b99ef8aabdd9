//! Health, reflection, probes, discovery, keys, reload.

use std::time::Duration;

use leasehold::{
    identity::BundleDocument,
    name::Action,
    proto::v1::{self, Half},
    token::Presenter,
    verify::{Verifier, VerifierSettings},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::*;

const SERVICES: [&str; 4] = [
    "leasehold.v1.JobService",
    "leasehold.v1.MemberService",
    "leasehold.v1.OperatorService",
    "leasehold.v1.VerifierService",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_answers_for_the_daemon_and_each_service() {
    let world = World::start().await;
    let mut health = HealthClient::new(world.client(NOBODY).await.channel);
    for service in SERVICES.into_iter().chain([""]) {
        let ask = HealthCheckRequest { service: service.into() };
        let status = health.check(ask).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "nope".into() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
}

macro_rules! reflects {
    ($name:ident, $version:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let world = World::start().await;
            let mut client = ServerReflectionClient::new(world.client(LAUNCHER).await.channel);
            let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let asks = tokio_stream::iter([
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol("leasehold.v1.JobService.CreateJob".into())),
                // A foreign client needs these to show a refusal's details.
                ask(MessageRequest::FileContainingSymbol("google.rpc.Status".into())),
                ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into())),
            ]);
            let mut answers = client.server_reflection_info(asks).await.unwrap().into_inner();
            let first = answers.message().await.unwrap().unwrap().message_response;
            let Some(MessageResponse::ListServicesResponse(listed)) = first else { panic!("{first:?}") };
            let names: Vec<String> = listed.service.into_iter().map(|s| s.name).collect();
            for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
                assert!(names.iter().any(|n| n == service), "{service}: {names:?}");
            }
            for _ in 0..3 {
                let file = answers.message().await.unwrap().unwrap().message_response;
                assert!(
                    matches!(&file, Some(MessageResponse::FileDescriptorResponse(f)) if !f.file_descriptor_proto.is_empty()),
                    "{file:?}"
                );
            }
        }
    };
}
reflects!(reflection_v1_tells_every_service, v1);
reflects!(reflection_v1alpha_tells_every_service, v1alpha);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_there_is_not_is_refused_with_its_reason() {
    let world = World::start().await;
    let mut grpc = tonic::client::Grpc::new(world.client(LAUNCHER).await.channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetJobRequest, v1::GetJobResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/leasehold.v1.JobService/Sweep");
    let answer = grpc.unary(tonic::Request::new(v1::GetJobRequest::default()), path, codec).await;
    refused(answer).is(tonic::Code::Unimplemented, "NOT_SUPPORTED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probes_answer_and_the_metrics_name_no_tenant_and_no_job() {
    let world = World::start().await;
    let worker = world.working().await;
    worker.issue(Half::Reading).await;
    let probe = world.daemon().probe;
    assert_eq!(world.http(probe, "/livez").await, (200, "ok\n".into()));
    assert_eq!(world.http(probe, "/readyz").await, (200, "ok\n".into()));
    let (status, metrics) = world.http(probe, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("leasehold_credentials_issued_total"), "{metrics}");
    // The answer is from this moment, not from the last run of the housekeeping.
    assert!(metrics.contains("\nleasehold_leases_live 1\n"), "{metrics}");
    assert!(
        !metrics.contains("acme") && !metrics.contains(&worker.job),
        "a tenant or a job is in the metrics"
    );
    assert_eq!(world.http(probe, "/debug").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_names_each_created_job_and_issued_credential() {
    let world = World::start().await;
    let worker = world.working().await;
    let lease = worker.issue(Half::Reading).await.lease.id;
    let log = logged();
    let says = |what: &str, id: &str| {
        log.lines().any(|line| line.contains("INFO") && line.contains(what) && line.contains(id))
    };
    assert!(says("job created", &worker.job), "no line names {}", worker.job);
    assert!(says("credential issued", &lease), "no line names {lease}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_nearly_full_is_in_the_metrics() {
    let mut world = World::start().await;
    let disk = nix::sys::statvfs::statvfs(world.dir.path()).unwrap();
    let free = disk.blocks_available() * disk.fragment_size();
    let measured = async |world: &World, name: &str| -> f64 {
        let (_, metrics) = world.http(world.daemon().probe, "/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    };
    // Other daemons of this process write the same gauge, about the same disk.
    let shown = measured(&world, "leasehold_ledger_free_bytes").await;
    assert!(shown > free as f64 / 2.0 && shown < free as f64 * 2.0, "{shown} of {free}");
    assert_eq!(measured(&world, "leasehold_issuing_held").await, 0.0);
    if free >= 1 << 40 {
        return println!("not run: this disk has more free space than the limit can be");
    }
    let text = world.read("leasehold.toml");
    world.write("leasehold.toml", &text.replace("free_space_stop = \"1MiB\"", "free_space_stop = \"1TiB\""));
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    eventually("nothing is given", async || launcher.create(spec(), "k").await.is_err()).await;
    let no = refused(launcher.create(spec(), "k").await);
    assert_eq!(no.reason, "LEDGER_UNAVAILABLE");
    eventually("it is shown", async || measured(&world, "leasehold_issuing_held").await == 1.0).await;
    world.client(OPERATOR).await.revoke(TICKETS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_keys_are_enough_to_verify_a_token() {
    let world = World::start().await;
    let handbook =
        v1::JobSpec { read: vec!["dataset:acme/handbook@v1".into()], write: vec![], tune: None, ..spec() };
    let worker = world.working_on(handbook, WORKER).await;
    let token = worker.issue(Half::Reading).await;
    assert_eq!(token.answer.binding(), v1::Binding::Bearer);
    let bound = token.answer.revocation_bound.unwrap();
    assert_eq!((bound.by.as_str(), bound.at_most.unwrap().seconds), ("expiry", 300));

    let issuer = world.daemon().issuer;
    let (status, discovery) = world.http(issuer, "/.well-known/openid-configuration").await;
    let discovery: serde_json::Value = serde_json::from_str(&discovery).unwrap();
    assert_eq!((status, &discovery["issuer"]), (200, &"https://leasehold.example".into()));
    assert_eq!(discovery["jwks_uri"], "https://leasehold.example/keys");
    let (_, keys) = world.http(issuer, "/keys").await;
    assert!(!keys.contains("\"d\""), "a private key is published");
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&keys).unwrap();
    let kid = jsonwebtoken::decode_header(&token.text).unwrap().kid.unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    rules.set_audience(&[WEB]);
    rules.set_issuer(&["https://leasehold.example"]);
    rules.validate_exp = false; // its clock is not this test's
    let seen = jsonwebtoken::decode::<serde_json::Value>(&token.text, &key, &rules).unwrap();
    assert_eq!(seen.claims["sub"], WORKER);
    let grpc = world.client(GATEWAY).await.verifiers().get_keys(v1::GetKeysRequest {}).await.unwrap();
    assert_eq!(grpc.into_inner().jwks, keys);
    // It cannot be opened by another audience.
    rules.set_audience(&[GATEWAY]);
    assert!(jsonwebtoken::decode::<serde_json::Value>(&token.text, &key, &rules).is_err());
}

// Proves case F09.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bundle_endpoint_is_served() {
    let world = World::start().await;
    let (issuer, probe) = (world.daemon().issuer, world.daemon().probe);
    // The issuer of SVIDs publishes the bundle. Nothing here can be mistaken for one.
    for path in ["/", "/bundle", "/bundle.json", "/.well-known/spiffe-bundle", "/keys/bundle"] {
        assert_eq!(world.http(issuer, path).await.0, 404, "{path}");
        assert_eq!(world.http(probe, path).await.0, 404, "{path}");
    }
    let (status, keys) = world.http(issuer, "/keys").await;
    assert_eq!(status, 200);
    let document =
        BundleDocument::parse("/keys", keys.as_bytes(), &"leasehold.example".parse().unwrap()).unwrap();
    assert!(document.roots().is_empty(), "a key of tokens is taken for a root");
}

// ---------- reload ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mistakes_of_a_bad_catalog_are_reported() {
    let world = World::start().await;
    let (gateway, operator) = (world.client(GATEWAY).await, world.client(PLATFORM).await);
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let good = world.read("catalog.d/acme.toml");
    world.write(
        "catalog.d/acme.toml",
        &good
            .replace("roles    = [\"trainer\"]", "rolls = [\"trainer\"]")
            .replace("tier        = \"lab\"", "tier = \"nope\""),
    );
    let digest = world.daemon().broker.rules.in_force().catalog().digest();
    world.daemon().reload();
    let reload = v1::ReloadCatalogRequest { dry_run: false };
    let answer = operator.operators().reload_catalog(reload).await.unwrap().into_inner();
    assert_eq!(answer.ended, 0);
    let told = answer.not_taken.join("\n");
    assert!(told.contains("rolls") && told.contains("nope") && told.contains("acme.toml:"), "{told}");
    assert_eq!(world.daemon().broker.rules.in_force().catalog().digest(), digest);
    token.is_live(&gateway).await;
    worker.issue(Half::Writing).await.is_live(&gateway).await;
    let loaded = world.records().await.of("catalog.loaded").into_iter().cloned().collect::<Vec<_>>();
    assert!(loaded.iter().all(|r| r["catalog"] == digest.to_string()), "{loaded:?}");
}

// Proves law 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_catalog_ends_at_once_what_it_no_longer_allows() {
    let changes: [(&str, &str, &str); 4] = [
        (
            "a role taken away",
            "identity = \"job\"\nroles    = [\"trainer\"]\n[[principal]]\nmatch = \"spiffe://hpc",
            "identity = \"job\"\nroles    = []\n[[principal]]\nmatch = \"spiffe://hpc",
        ),
        (
            "a purpose taken away",
            "purposes       = [\"support-tuning\", \"support-eval\"]",
            "purposes = [\"support-eval\"]",
        ),
        (
            "an identity disabled",
            "identity = \"job\"\nroles    = [\"trainer\"]\n[[principal]]\nmatch = \"spiffe://hpc",
            "identity = \"job\"\nroles    = [\"trainer\"]\ndisabled = true\n[[principal]]\nmatch = \"spiffe://hpc",
        ),
        (
            "a dataset made sensitive",
            "classification = \"internal\"\ndata_classes   = []",
            "classification = \"internal\"\ndata_classes   = [\"pii\"]",
        ),
    ];
    for (what, from, to) in changes {
        let world = World::start().await;
        let (gateway, operator) = (world.client(GATEWAY).await, world.client(PLATFORM).await);
        let mut worker = world.working().await;
        let token = worker.issue(Half::Reading).await;
        let good = world.read("catalog.d/acme.toml");
        assert!(good.contains(from), "{what}");
        world.write("catalog.d/acme.toml", &good.replacen(from, to, 1));
        let ask = v1::ReloadCatalogRequest { dry_run: true };
        operator.operators().reload_catalog(ask).await.unwrap();
        token.is_live(&gateway).await;
        let ask = v1::ReloadCatalogRequest { dry_run: false };
        let answer = operator.operators().reload_catalog(ask).await.unwrap().into_inner();
        assert_eq!(answer.ended, 1, "{what}");
        assert!(!token.seen_by(&gateway).await.active, "{what}");
        assert_eq!(
            worker.stream.as_mut().unwrap().notice().await.kind(),
            v1::notice::Kind::Reissue,
            "{what}"
        );
        assert!(worker.try_issue(Half::Reading).await.is_err(), "{what}");
        assert!(worker.renew(&token.lease.id).await.is_err(), "{what}");
        // When that is undone, it may ask again, and the old token stays invalid.
        world.write("catalog.d/acme.toml", &good);
        world.daemon().reload();
        // The stream of an identity that was disabled has ended, and the member is away.
        worker.rejoin().await.unwrap();
        worker.issue(Half::Reading).await.is_live(&gateway).await;
        assert!(!token.seen_by(&gateway).await.active, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_changes_nothing_ends_nothing() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    world.daemon().reload();
    token.is_live(&gateway).await;
    assert_eq!(world.records().await.one("catalog.loaded")["ended"], 0);
}

// ---------- verifiers ----------

/// A verifier follows the feed across a restart: old tokens are refused, and it reconnects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_refuses_what_is_not_for_it_and_what_is_not_fresh() {
    let mut world = World::start().await;
    let verifier = Verifier::start(VerifierSettings {
        connector: world.connector(&world.svid(GATEWAY)),
        audience: GATEWAY.parse().unwrap(),
        clock: world.clock.clone(),
    });
    soon("a verifier", verifier.ready()).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let (holder, thief) = (WORKER.parse().unwrap(), OTHER_WORKER.parse().unwrap());
    let tickets = TICKETS.parse().unwrap();
    let by = |id| Presenter::Svid { id, x5t_s256: None };
    verifier.check(&token.text, by(&holder), &tickets, Action::ReadDataset).await.unwrap();
    let cases = [
        ("TOKEN_PRESENTER", verifier.check(&token.text, by(&thief), &tickets, Action::ReadDataset).await),
        (
            "TOKEN_SCOPE",
            verifier
                .check(
                    &token.text,
                    by(&holder),
                    &"dataset:acme/patients@v1".parse().unwrap(),
                    Action::ReadDataset,
                )
                .await,
        ),
        ("TOKEN_MALFORMED", verifier.check("x", by(&holder), &tickets, Action::ReadDataset).await),
        (
            "TOKEN_SIGNATURE",
            verifier.check(&tampered(&token.text), by(&holder), &tickets, Action::ReadDataset).await,
        ),
    ];
    for (reason, answer) in cases {
        assert_eq!(answer.unwrap_err().reason.code(), reason);
    }
    drop(worker);
    world.stop().await;
    eventually("staleness", async || {
        world.time().advance(Duration::from_millis(500));
        verifier.check(&token.text, by(&holder), &tickets, Action::ReadDataset).await.is_err()
    })
    .await;
    verifier.shutdown().await;
}

/// The token with another signature of the right form.
fn tampered(token: &str) -> String {
    let (rest, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{rest}.{first}{}", &signature[1..])
}

// Proves law 13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn introspection_says_only_what_is_wrong_with_a_token() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let cases = [
        (token.text.clone(), OTHER_WORKER, "TOKEN_PRESENTER"),
        (tampered(&token.text), WORKER, "TOKEN_SIGNATURE"),
        ("not a token".into(), WORKER, "TOKEN_MALFORMED"),
        (String::new(), WORKER, "TOKEN_MALFORMED"),
        (token.text.clone(), "", "TOKEN_PRESENTER"),
        // A missing presenter is reported only if the token itself is genuine.
        (tampered(&token.text), "", "TOKEN_SIGNATURE"),
        ("not a token".into(), "", "TOKEN_MALFORMED"),
    ];
    for (text, presenter, reason) in cases {
        let seen = gateway.introspect(&text, presenter).await;
        assert_eq!((seen.active, seen.reason.as_str()), (false, reason), "{presenter}");
        assert_eq!(seen, v1::IntrospectResponse { reason: seen.reason.clone(), ..Default::default() });
    }
    // A token of another daemon's key, of the same form.
    let other = World::start().await;
    let foreign = other.working().await.issue(Half::Reading).await;
    assert_eq!(gateway.introspect(&foreign.text, WORKER).await.reason, "TOKEN_KEY_UNKNOWN");
    // A token for an audience that the caller does not check.
    let theirs = "spiffe://k8s.globex.example/ns/data/sa/gateway";
    let stranger = world.client(theirs).await;
    let seen = stranger.introspect(&token.text, WORKER).await;
    assert_eq!((seen.active, seen.reason.as_str()), (false, "TOKEN_AUDIENCE"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_do_not_block_probes_and_keys() {
    use tokio::{io::AsyncWriteExt, net::TcpStream};
    let world = World::start().await;
    for (address, path) in [(world.daemon().probe, "/livez"), (world.daemon().issuer, "/keys")] {
        let mut silent = Vec::new();
        for n in 0..leasehold::limits::WEB_CONNECTIONS_MAX {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            // Nothing at all; the beginning of a request; the beginning of HTTP/2.
            let said: &[u8] =
                [&b""[..], b"GET /livez HTTP/1.1\r\nhost:", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"][n % 3];
            tcp.write_all(said).await.unwrap();
            silent.push(tcp);
        }
        // The clock stands still: the connection that has been silent for longest is closed at once.
        let (status, _) = world.http(address, path).await;
        assert_eq!(status, 200, "{path}");
        drop(silent);
    }
}

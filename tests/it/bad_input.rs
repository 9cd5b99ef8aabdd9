//! Bad input: each gets a clear error with its code and its Reason, and changes nothing.

use std::{sync::Arc, time::Duration};

use leasehold::{
    name::JobId,
    proto::v1::{self, Half, Outcome},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::{Code, Response, Status};

use crate::harness::*;

/// Asserts that a request is refused with this code and reason, and that it changed nothing.
macro_rules! refused_so {
    ($world:expr, $code:ident, $reason:literal, $ask:expr) => {{
        let before = $world.snapshot().await;
        let no = refused($ask);
        assert_eq!((no.code, no.reason.as_str()), (Code::$code, $reason), "{}", no.text);
        assert!(!no.text.is_empty() && !no.text.contains('\n'), "{:?}", no.text);
        assert!(no.text.starts_with(|c: char| !c.is_uppercase()), "{:?}", no.text);
        assert_eq!($world.snapshot().await, before, "it changed something: {}", no.text);
        no
    }};
}

// ---------- who is calling ----------

/// A client that trusts every server, to see what the daemon does with it.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

/// Connects with any certificate, and returns the response: application bytes, or the error.
async fn first_bytes(world: &World, who: Option<&Credentials>) -> Result<usize, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match who {
        None => builder.with_no_client_auth(),
        Some(c) => {
            let chain = CertificateDer::pem_slice_iter(c.cert.as_bytes()).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(c.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(world.daemon().grpc).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = match tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(tls) => tls,
        Err(e) => return Err(e.to_string()),
    };
    let mut bytes = [0u8; 64];
    soon("an answer", tls.read(&mut bytes)).await.map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_good_svid_a_client_reads_only_an_alert() {
    let world = World::start().await;
    let now = world.clock.now().wall;
    let acme = world.authority(WORKER);
    let stranger = Authority::new("elsewhere.example", now);
    let expired = acme.issue(WORKER, now, |p| {
        p.not_before = at(leasehold::clock::Wall(now.0 - 3_600_000));
        p.not_after = at(leasehold::clock::Wall(now.0 - 1_000));
    });
    let early = acme.issue(WORKER, now, |p| p.not_before = at(now.plus(Duration::from_secs(600))));
    let two = acme.issue(WORKER, now, |p| p.subject_alt_names.push(uri(OTHER_WORKER)));
    let none = acme.issue(WORKER, now, |p| p.subject_alt_names.clear());
    let long = acme.issue(WORKER, now, |p| p.not_after = at(now.plus(Duration::from_secs(20 * 24 * 3_600))));
    let cases: [(&str, Option<Credentials>, &str); 8] = [
        ("no certificate", None, "NO_CLIENT_CERTIFICATE"),
        (
            "an unknown trust domain",
            Some(stranger.svid("spiffe://elsewhere.example/a", now)),
            "TRUST_DOMAIN_UNKNOWN",
        ),
        ("an expired SVID", Some(expired), "SVID_EXPIRED"),
        ("an SVID that has not begun", Some(early), "SVID_EXPIRED"),
        ("two URIs", Some(two), "SVID_INVALID"),
        ("no URI", Some(none), "SVID_INVALID"),
        (
            "another domain's authority",
            Some(world.authority(GLOBEX_WORKER).svid(WORKER, now)),
            "SVID_UNTRUSTED",
        ),
        ("a life of twenty days", Some(long), "SVID_INVALID"),
    ];
    let before = world.snapshot().await;
    for (what, who, reason) in cases {
        let label = format!("reason=\"{reason}\"");
        let counted = world.counted("leasehold_handshakes_failed_total", &label).await;
        let error = first_bytes(&world, who.as_ref()).await.expect_err(what);
        assert!(error.contains("alert"), "{what}: {error}");
        eventually("the count", async || {
            world.counted("leasehold_handshakes_failed_total", &label).await > counted
        })
        .await;
    }
    assert!(first_bytes(&world, Some(&world.svid(WORKER))).await.unwrap() > 0, "a good SVID is let in");
    assert_eq!(world.snapshot().await, before);
}

// Proves case D10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_stranger_may_only_ask_who_it_is() {
    let world = World::start().await;
    let nobody = world.client(NOBODY).await;
    let seen = nobody.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((seen.spiffe_id.as_str(), seen.kind.as_str(), seen.tenant.as_str()), (NOBODY, "", ""));
    let no = refused_so!(world, PermissionDenied, "PRINCIPAL_UNKNOWN", nobody.create(spec(), "k").await);
    assert_eq!(no.facts["you"], NOBODY);
    assert!(no.facts["fix"].contains("[[principal]]"), "{no:?}");
    let disabled = world.client(DISABLED).await;
    let no = refused_so!(world, PermissionDenied, "POLICY_DENIED", disabled.create(spec(), "k").await);
    assert!(no.facts["rule"].contains("guard-disabled"), "{no:?}");
}

// ---------- what was asked ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_dataset_and_someone_elses_get_the_same_answer() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let mut answers = Vec::new();
    for name in [
        "dataset:acme/nothing@v1",
        "dataset:globex/reviews@v1",
        "dataset:nowhere/reviews@v1",
        "dataset:acme/tickets@v4",
    ] {
        let asked = v1::JobSpec { read: vec![name.into(), MODEL.into()], ..spec() };
        let mut no = refused_so!(world, NotFound, "RESOURCE_NOT_FOUND", launcher.create(asked, name).await);
        no.text = no.text.replace(name, "NAME");
        // The nearest name is one that the caller may see, and differs with what it wrote.
        let nearest = no.facts.remove("nearest");
        assert!(nearest.is_none_or(|n| n.starts_with("dataset:acme/")), "{name}");
        answers.push(no);
    }
    assert!(answers.windows(2).all(|w| w[0] == w[1]), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_differs_is_refused_with_both_pins() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let pinned = |pin: &str| v1::JobSpec { pins: [(TICKETS.to_owned(), pin.to_owned())].into(), ..spec() };
    let other = format!("manifest:{}", "00".repeat(32));
    let no =
        refused_so!(world, FailedPrecondition, "PIN_MISMATCH", launcher.create(pinned(&other), "k").await);
    assert!(no.facts["yours"].contains("0000") && no.facts["catalog"].contains("4be1c0de"), "{no:?}");
    refused_so!(world, InvalidArgument, "FIELD_INVALID", launcher.create(pinned("manifest:xyz"), "k").await);
    let same = format!("manifest:{}", "4be1c0de".repeat(8));
    assert!(launcher.create(pinned(&same), "k").await.is_ok());
}

// Proves law 03.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_lives_are_refused_everywhere() {
    let world = World::start().await;
    let (launcher, operator) = (world.client(LAUNCHER).await, world.client(OPERATOR).await);
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let year = 365 * 24 * 3_600;
    let lives = [
        (0, 0),
        (-1, 0),
        (0, -1),
        (100 * year, 0),
        (i64::MAX, 999_999_999),
        (i64::MIN, 0),
        (1, i32::MAX),
        (0, 1),
    ];
    for (seconds, nanos) in lives {
        let life = Some(prost_types::Duration { seconds, nanos });
        let asked = v1::JobSpec { max_duration: life, ..spec() };
        refused_so!(world, InvalidArgument, "TTL_INVALID", launcher.create(asked, "k").await);
        let asked = v1::JobSpec { credential_ttl: life, ..spec() };
        refused_so!(world, InvalidArgument, "TTL_INVALID", launcher.create(asked, "k").await);
        let asked = v1::JobSpec { drain: life, ..spec() };
        refused_so!(world, InvalidArgument, "TTL_INVALID", launcher.create(asked, "k").await);
        let asked = v1::IssueCredentialRequest {
            session: worker.session(),
            half: Half::Reading as i32,
            ttl: life,
            ..Default::default()
        };
        refused_so!(
            world,
            InvalidArgument,
            "TTL_INVALID",
            worker.client.members().issue_credential(asked).await
        );
        let asked =
            v1::RenewLeaseRequest { session: worker.session(), lease: token.lease.id.clone(), ttl: life };
        refused_so!(world, InvalidArgument, "TTL_INVALID", worker.client.members().renew_lease(asked).await);
        let asked =
            v1::LockRequest { name: TICKETS.into(), reason: "r".into(), ttl: life, ..Default::default() };
        refused_so!(world, InvalidArgument, "TTL_INVALID", operator.operators().lock(asked).await);
        let asked = v1::DrainAttemptRequest {
            job: worker.job.clone(),
            attempt: 1,
            grace: life,
            ..Default::default()
        };
        refused_so!(world, InvalidArgument, "TTL_INVALID", launcher.jobs().drain_attempt(asked).await);
    }
    let forever = v1::JobSpec { max_duration: None, ..spec() };
    refused_so!(world, InvalidArgument, "FIELD_MISSING", launcher.create(forever, "k").await);
    // A duration that is too long, but within the limit of the field, is shortened, and the answer says so.
    let asked = v1::IssueCredentialRequest {
        session: worker.session(),
        half: Half::Reading as i32,
        ttl: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
        ..Default::default()
    };
    let long = worker.client.members().issue_credential(asked).await.unwrap().into_inner();
    assert!(long.shortened_by.iter().any(|w| w.contains("900 s")), "{:?}", long.shortened_by);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_in_a_request_has_a_bound() {
    let world = World::start().await;
    let (worker, ada) = (world.working().await, world.client(OPERATOR).await);
    let scope = v1::Scope { resource: TICKETS.into(), ..Default::default() };
    for scopes in [vec![scope.clone(); 2], vec![scope; 65]] {
        let asked = v1::IssueCredentialRequest {
            session: worker.session(),
            half: Half::Reading as i32,
            scopes,
            ..Default::default()
        };
        let asked = worker.client.members().issue_credential(asked).await;
        refused(asked).is(Code::InvalidArgument, "FIELD_INVALID");
    }
    let many = vec!["x".to_owned(); 1_001];
    let lock = v1::LockRequest {
        name: TICKETS.into(),
        reason: "r".into(),
        locks_out: many.clone(),
        ..Default::default()
    };
    refused(ada.operators().lock(lock).await).is(Code::InvalidArgument, "FIELD_INVALID");
    let offboard = v1::OffboardRequest {
        name: format!("identity:{WORKER}"),
        reason: "r".into(),
        locks_out: many.clone(),
        ..Default::default()
    };
    refused(ada.operators().offboard(offboard).await).is(Code::InvalidArgument, "FIELD_INVALID");
    let approve = v1::ApproveRequest {
        job: worker.job.clone(),
        request_digest: format!("sha256:{}", "0".repeat(64)),
        gates: many,
        reason: "r".into(),
    };
    refused(ada.approvals().approve(approve).await).is(Code::InvalidArgument, "FIELD_INVALID");
}

// Proves law 08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_could_be_read_two_ways_are_refused_at_the_edge() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let mut bad: Vec<v1::JobSpec> = Vec::new();
    for name in ["../x", "a/b", "..", "", "a b", "a\nb", "a\u{0}", "ä", &"x".repeat(129)] {
        bad.push(v1::JobSpec { name: name.into(), ..spec() });
    }
    for resource in [
        "dataset:acme/../tickets@v3",
        "dataset:acme/..@v3",
        "dataset:acme//tickets@v3",
        "dataset:Acme/tickets@v3",
        "dataset:acme/tickets@../v3",
        "dataset:acme/tickets@",
        "dataset:acme/tickets\u{202e}@v3",
        "tickets@v3",
        "checkpoint:acme/support-lora",
        "dataset:acme/tickets",
    ] {
        bad.push(v1::JobSpec { read: vec![resource.into()], ..spec() });
    }
    for join in [
        "spiffe://k8s.acme.example/../x",
        "https://k8s.acme.example/x",
        "*",
        "spiffe://*/x",
        "spiffe://k8s.acme.example/a/**/b",
    ] {
        let members = v1::Members { join: vec![join.into()], ..Default::default() };
        bad.push(v1::JobSpec { members: Some(members), ..spec() });
    }
    bad.push(v1::JobSpec { acting_for: "human:../ada".into(), ..spec() });
    bad.push(v1::JobSpec { tenant: "../acme".into(), ..spec() });
    bad.push(v1::JobSpec { why: "x".repeat(513), ..spec() });
    bad.push(v1::JobSpec { why: "bell \u{7}".into(), ..spec() });
    bad.push(v1::JobSpec { read: vec![TICKETS.into(); 2], ..spec() });
    bad.push(v1::JobSpec { read: (0..65).map(|n| format!("dataset:acme/d{n}@v1")).collect(), ..spec() });
    for spec in bad {
        let shown = format!("{spec:?}");
        let before = world.snapshot().await;
        let no = refused(launcher.create(spec, "k").await);
        assert_eq!(no.code, Code::InvalidArgument, "{shown}: {no:?}");
        assert!(["FIELD_INVALID", "FIELD_MISSING"].contains(&no.reason.as_str()), "{shown}: {no:?}");
        assert!(!no.text.contains(['\n', '\u{7}', '\u{202e}', '\u{0}']), "{:?}", no.text);
        assert_eq!(world.snapshot().await, before, "{shown}");
    }
    let worker = world.working().await;
    for instance in ["../rank-0", "", "a/b", &"x".repeat(129)] {
        let no = Worker::join(worker.client.clone(), &worker.job, 1, instance, "").await.err().unwrap();
        assert_eq!(no.code(), Code::InvalidArgument, "{instance}");
    }
    let operator = world.client(OPERATOR).await;
    for name in [
        "job:../x",
        "dataset:acme/../x",
        "epoch:",
        "identity-prefix:spiffe://k8s.acme.example/ns/ml",
        "lease:",
        "x",
    ] {
        refused_so!(world, InvalidArgument, "FIELD_INVALID", operator.lock(name).await);
    }
    refused_so!(world, InvalidArgument, "FIELD_MISSING", operator.lock("").await);
    let silent = v1::RevokeRequest { name: TICKETS.into(), reason: " ".into(), ..Default::default() };
    refused_so!(world, InvalidArgument, "FIELD_MISSING", operator.operators().revoke(silent).await);
    for job in ["", "../x", "j-", &"x".repeat(10_000)] {
        let no = refused(launcher.begin(job, "k").await);
        assert_eq!(no.code, Code::InvalidArgument);
        assert!(no.text.len() < 400, "an error echoes ten thousand bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_5_mib_is_refused_with_its_reason() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let huge = v1::JobSpec { why: "x".repeat(5 << 20), ..spec() };
    refused_so!(world, InvalidArgument, "MESSAGE_TOO_LARGE", launcher.create(huge, "k").await);
    let worker = world.working().await;
    let gateway = world.client(GATEWAY).await;
    let ask = v1::IntrospectRequest { token: "x".repeat(5 << 20), ..Default::default() };
    refused_so!(world, InvalidArgument, "MESSAGE_TOO_LARGE", gateway.verifiers().introspect(ask).await);
    assert!(launcher.create(v1::JobSpec { name: "next".into(), ..spec() }, "next").await.is_ok());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_required_is_said_to_be_missing() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let worker = world.working().await;
    let empty = v1::CreateJobRequest { spec: None, idempotency_key: "k".into(), dry_run: false };
    let no = refused_so!(world, InvalidArgument, "FIELD_MISSING", launcher.jobs().create_job(empty).await);
    assert_eq!(no.facts["field"], "spec");
    refused_so!(world, InvalidArgument, "FIELD_MISSING", launcher.create(spec(), "").await);
    refused_so!(world, InvalidArgument, "FIELD_MISSING", launcher.begin(&worker.job, "").await);
    refused_so!(world, InvalidArgument, "FIELD_INVALID", launcher.create(spec(), &"k".repeat(257)).await);
    refused_so!(world, InvalidArgument, "FIELD_MISSING", launcher.end(&worker.job, 0, Outcome::Failed).await);
    for outcome in [Outcome::Unspecified, Outcome::Superseded, Outcome::Revoked, Outcome::Expired] {
        refused_so!(world, InvalidArgument, "FIELD_INVALID", launcher.end(&worker.job, 1, outcome).await);
    }
    let mut members = worker.client.members();
    let ask = v1::IssueCredentialRequest { session: None, half: 1, ..Default::default() };
    refused_so!(world, InvalidArgument, "FIELD_MISSING", members.issue_credential(ask).await);
    let ask = v1::IssueCredentialRequest { session: worker.session(), half: 0, ..Default::default() };
    refused_so!(world, InvalidArgument, "FIELD_MISSING", members.issue_credential(ask).await);
    let short = worker.session().map(|s| v1::Session { secret: vec![1; 31], ..s });
    let ask = v1::IssueCredentialRequest { session: short, half: 1, ..Default::default() };
    refused_so!(world, InvalidArgument, "FIELD_INVALID", members.issue_credential(ask).await);
    // Several mistakes are reported at once.
    let many = v1::JobSpec { name: String::new(), purpose: String::new(), ..spec() };
    let no = refused_so!(world, InvalidArgument, "FIELD_INVALID", launcher.create(many, "k").await);
    assert!(no.facts["field"].contains("name") && no.facts["field"].contains("purpose"), "{no:?}");
}

// ---------- sessions ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_one_identity_instance_and_secret() {
    let world = World::start().await;
    let worker = world.working().await;
    let own = worker.session().unwrap();
    let other = world.client(OTHER_WORKER).await;
    let ask = |session: v1::Session| v1::IssueCredentialRequest {
        session: Some(session),
        half: Half::Reading as i32,
        ..Default::default()
    };
    let wrong = v1::Session { secret: vec![7; 32], ..own.clone() };
    refused_so!(
        world,
        PermissionDenied,
        "SESSION_MISMATCH",
        worker.client.members().issue_credential(ask(wrong)).await
    );
    let wrong = v1::Session { instance: "rank-9".into(), ..own.clone() };
    refused_so!(
        world,
        PermissionDenied,
        "SESSION_MISMATCH",
        worker.client.members().issue_credential(ask(wrong)).await
    );
    let wrong = v1::Session { attempt: 2, ..own.clone() };
    refused_so!(
        world,
        NotFound,
        "ATTEMPT_NOT_FOUND",
        worker.client.members().issue_credential(ask(wrong)).await
    );
    // With the secret, but another SVID: the job is not found.
    let stolen = refused_so!(
        world,
        NotFound,
        "JOB_NOT_FOUND",
        other.members().issue_credential(ask(own.clone())).await
    );
    let absent = v1::Session { job: JobId(7).to_string(), ..own };
    let nowhere =
        refused_so!(world, NotFound, "JOB_NOT_FOUND", other.members().issue_credential(ask(absent)).await);
    assert_eq!(stolen, nowhere);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_jobs_share_joins_only_with_the_ticket() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let members = v1::Members { join: vec![SHARED.into()], ..Default::default() };
    let job = launcher.create(v1::JobSpec { members: Some(members), ..spec() }, "k").await.unwrap();
    let job = job.into_inner().job.unwrap().id;
    let ticket = launcher.begin(&job, "run-1").await.unwrap().into_inner().ticket;
    let again = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    assert_eq!(again.ticket, ticket, "the launcher whose first answer was lost gets it again");
    let node = world.client(SHARED).await;
    for wrong in ["", "x", &ticket.chars().rev().collect::<String>()] {
        let no = Worker::join(node.clone(), &job, 1, "rank-0", wrong).await.err().unwrap();
        Refused::of(&no).is(Code::PermissionDenied, "TICKET_REQUIRED");
    }
    let worker = Worker::join(node, &job, 1, "rank-0", &ticket).await.unwrap();
    let token = worker.issue(Half::Reading).await;
    assert_eq!(token.answer.binding(), v1::Binding::Certificate);
    // It is valid only with the certificate with which it was requested.
    let gateway = world.client(GATEWAY).await;
    let own = worker.client.credentials.sha256().to_vec();
    for (sha256, active, reason) in
        [(own, true, ""), (vec![7; 32], false, "TOKEN_CERTIFICATE"), (vec![], false, "TOKEN_CERTIFICATE")]
    {
        let ask = v1::IntrospectRequest {
            token: token.text.clone(),
            presenter: SHARED.into(),
            presenter_sha256: sha256,
        };
        let seen = gateway.verifiers().introspect(ask).await.unwrap().into_inner();
        assert_eq!((seen.active, seen.reason.as_str()), (active, reason));
    }
}

// ---------- policy ----------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_with_a_typo_is_not_taken_and_changes_nothing() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let operator = world.client(PLATFORM).await;
    let good = world.read("policy/leasehold.cedar");
    let reload =
        async || operator.operators().reload_catalog(v1::ReloadCatalogRequest { dry_run: false }).await;
    for typo in [
        "permit (principal, action, resource) when { principal.rolez.contains(\"x\") };",
        "permti (principal, action, resource);",
        "@id(\"guard-disabled\") forbid (principal, action, resource);",
    ] {
        world.write("policy/leasehold.cedar", &format!("{good}\n{typo}\n"));
        let no = refused_so!(world, InvalidArgument, "CATALOG_INVALID", reload().await);
        assert!(no.facts.get("mistake").unwrap_or(&no.text).contains("leasehold.cedar"), "{no:?}");
        let mut second = World::prepared(|_| {});
        second.write("policy/leasehold.cedar", &format!("{good}\n{typo}\n"));
        let why = second.try_start().await.expect_err("it does not start either");
        assert!(why.to_string().contains("leasehold.cedar"), "{why}");
    }
    token.is_live(&gateway).await;
    worker.issue(Half::Writing).await.is_live(&gateway).await;
    world.write("policy/leasehold.cedar", &good);
    reload().await.unwrap();
    token.is_live(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_cannot_be_evaluated_denies() {
    let mut world = World::prepared(|_| {});
    let good = world.read("policy/leasehold.cedar");
    // It is well typed, and overflows at each evaluation.
    let rule = "@id(\"guard-broken\") @explain(\"x\")\nforbid (principal is Leasehold::Workload, action == \
                Leasehold::Action::\"read_dataset\", resource is Leasehold::Dataset)\n\
                when { context.ttl_seconds * 9223372036854775807 < 0 };";
    world.write("policy/leasehold.cedar", &format!("{good}\n{rule}\n"));
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    refused_so!(world, PermissionDenied, "POLICY_ERROR", launcher.create(spec(), "k").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gated_job_waits_and_can_be_cancelled() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let gated = [
        v1::JobSpec {
            name: "a".into(),
            read: vec!["dataset:acme/patients@v1".into(), MODEL.into()],
            ..spec()
        },
        // A job that does not ask for the base model does not avoid the gate on tuning it.
        v1::JobSpec {
            name: "b".into(),
            read: vec![TICKETS.into()],
            write: vec!["checkpoint:acme/live-lora".into()],
            ticket: "CHG-1".into(),
            rollback_to: "model:acme/live-7b@2026.10".into(),
            prompt_alternative: "a prompt was tried".into(),
            ..spec()
        },
    ];
    for (spec, gate) in gated.into_iter().zip(["gate-sensitive-data", "gate-production-finetune"]) {
        let key = spec.name.clone();
        let job = launcher.create(spec, &key).await.unwrap().into_inner().job.unwrap();
        assert_eq!(job.state(), v1::JobState::AwaitingApproval);
        assert_eq!(job.waiting_for[0].id, gate);
        refused_so!(world, FailedPrecondition, "APPROVAL_REQUIRED", launcher.begin(&job.id, "run-1").await);
        let close = v1::CloseJobRequest { job: job.id.clone(), outcome: 0, reason: "never mind".into() };
        let closed = launcher.jobs().close_job(close).await.unwrap().into_inner().job.unwrap();
        assert_eq!(closed.outcome(), Outcome::Cancelled);
        refused_so!(world, FailedPrecondition, "JOB_CLOSED", launcher.begin(&job.id, "run-1").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_purpose_is_refused_with_rule_and_owner() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let asked = v1::JobSpec { purpose: "demo-bot".into(), ..spec() };
    let no = refused_so!(world, PermissionDenied, "POLICY_DENIED", launcher.create(asked, "k").await);
    assert!(no.text.contains(TICKETS), "{}", no.text);
    assert!(no.facts["rule"].contains("trainer-reads-own-or-shared-data"), "{no:?}");
    assert!(no.facts["fix"].contains("data-tickets@acme.example"), "{no:?}");
    let human = v1::JobSpec { name: "x".into(), ..spec() };
    let nightly = world.client(NIGHTLY).await;
    let no = refused_so!(world, PermissionDenied, "POLICY_DENIED", nightly.create(human, "k").await);
    assert!(no.text.contains("ada"), "{}", no.text);
}

// ---------- a client that goes ----------

/// A client that vanishes leaves a consistent state behind: every lease has its record, and every record has its lease or
/// its cancellation.
// Proves law 05.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vanished_client_leaves_no_unrecorded_lease() {
    let world = World::start().await;
    let worker = world.working().await;
    let mut answered = 0;
    for turn in 0..60u64 {
        let channel = world.client(WORKER).await;
        let ask = v1::IssueCredentialRequest {
            session: worker.session(),
            half: Half::Reading as i32,
            ..Default::default()
        };
        let mut members = channel.members();
        let patience = Duration::from_micros(turn * 200);
        let answer: Result<Result<Response<_>, Status>, _> =
            tokio::time::timeout(patience, members.issue_credential(ask)).await;
        if let Ok(answer) = answer {
            answer.unwrap();
            answered += 1;
        }
        drop((members, channel));
    }
    assert!(answered < 60, "no client vanished");
    let job: JobId = worker.job.parse().unwrap();
    let broker = world.daemon().broker.clone();
    let operator = world.client(OPERATOR).await;
    let recorded = async || {
        let records = world.records().await;
        let ids = |kind: &str| -> std::collections::BTreeSet<String> {
            records.of(kind).iter().map(|r| r["lease"].as_str().unwrap().to_owned()).collect()
        };
        let mut kept = ids("credential.issued");
        for cancelled in ids("credential.cancelled") {
            assert!(kept.remove(&cancelled));
        }
        kept
    };
    // Requests that began run to their end, although no client waits for them. When all have ended, leases and records
    // match and stay so.
    let mut live = std::collections::BTreeSet::new();
    eventually("each lease to be recorded, and each record to have its lease", async || {
        let ask = v1::ListLeasesRequest { live_only: true, page_size: 1_000, ..Default::default() };
        let leases = operator.operators().list_leases(ask).await.unwrap().into_inner().leases;
        live = leases.into_iter().map(|l| l.id).collect();
        live.len() >= answered && live == recorded().await && live.len() == broker.jobs.live_leases_of(job)
    })
    .await;
    // The member that vanished on other connections is still the member it was.
    worker.issue(Half::Reading).await;
}

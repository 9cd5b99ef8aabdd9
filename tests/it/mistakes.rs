//! Mistakes that others made in attestation, if they would be mistakes of the daemon. The other mistakes have tests with the
//! same titles beside the code.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use leasehold::{
    name::{Action, JobId},
    proto::v1::{self, Half, Outcome},
    token::Presenter,
    verify::{Verifier, VerifierSettings},
};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::harness::*;

// Proves case 6.4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_not_normalised_and_not_matched_by_prefix() {
    let world = World::start().await;
    let kind = async |id: &str| {
        let seen = world.client(id).await.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
        seen.into_inner().kind
    };
    // `…/ns/ml/job/*` is one segment below this path, and the launcher is one whole ID.
    assert_eq!((kind(WORKER).await.as_str(), kind(LAUNCHER).await.as_str()), ("workload", "launcher"));
    for nobody in [
        "spiffe://k8s.acme.example/ns/ml/jobs/tuner",
        "spiffe://k8s.acme.example/ns/ml/job",
        "spiffe://k8s.acme.example/ns/ml/job/tuner/deeper",
        "spiffe://k8s.acme.example/ns/ml/JOB/tuner",
        "spiffe://k8s.acme.example/ns/ci/sa/launcher2",
        "spiffe://k8s.acme.example/ns/ci/sa/Launcher",
        "spiffe://k8s.acme.example/ns/ci/sa/launcher/x",
        "spiffe://k8s.acme.example/x/ns/ci/sa/launcher",
        "spiffe://hpc.acme.example/ns/ci/sa/launcher",
        "spiffe://k8s.acme.example/spire/agent/join_token/1",
    ] {
        assert_eq!(kind(nobody).await, "", "{nobody}");
    }
    // The SVID of one job with the request of another: a job names exactly the identities that may join it.
    let worker = world.working().await;
    let other = world.client(OTHER_WORKER).await;
    let no = Worker::join(other, &worker.job, 1, "rank-1", "").await.err().map(|status| Refused::of(&status));
    let reason = no.expect("another job's identity may not join").reason;
    assert!(["JOB_NOT_FOUND", "NOT_A_MEMBER"].contains(&reason.as_str()), "{reason}");
}

// Proves case 6.7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_trust_of_files_ends_with_the_root_that_is_taken_out() {
    let world = World::start().await;
    let (globex, acme) = (world.client(GLOBEX_LAUNCHER).await, world.client(LAUNCHER).await);
    let asks = async |client: &Client| client.operators().who_am_i(v1::WhoAmIRequest {}).await.is_ok();
    assert!(asks(&globex).await && asks(&acme).await);
    // A file that cannot be used changes nothing.
    let file = "k8s.globex.example.pem";
    let good = world.read(file);
    world.write(file, "half of a bun");
    world.daemon().reload();
    assert!(asks(&globex).await && asks(&world.client(GLOBEX_LAUNCHER).await).await);
    // Another root replaces the old one: peers with an SVID of the old root lose their connections, and cannot connect
    // again.
    world.write(file, &Authority::new("k8s.globex.example", NOW).pem);
    world.daemon().reload();
    eventually("the live connection ends", async || !asks(&globex).await).await;
    let svid = world.svid(GLOBEX_LAUNCHER);
    assert!(world.connector(&svid).connected_channel().await.is_err());
    assert!(asks(&acme).await && asks(&world.client(LAUNCHER).await).await);
    // With both roots, as in a rotation, they can connect again.
    let next = Authority::new("k8s.globex.example", NOW).pem;
    world.write(file, &format!("{good}{next}"));
    world.daemon().reload();
    assert!(asks(&world.client(GLOBEX_LAUNCHER).await).await);
}

/// A token with a changed header or changed claims, which was not signed again.
fn forged(token: &str, header: impl FnOnce(&mut Value), claims: impl FnOnce(&mut Value)) -> String {
    let mut parts = token.split('.');
    let mut read =
        || -> Value { serde_json::from_slice(&BASE64.decode(parts.next().unwrap()).unwrap()).unwrap() };
    let (mut head, mut body) = (read(), read());
    header(&mut head);
    claims(&mut body);
    let signature = parts.next().unwrap();
    format!("{}.{}.{signature}", BASE64.encode(head.to_string()), BASE64.encode(body.to_string()))
}

// Proves case 6.8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_bound_to_its_holder_at_the_resource() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    let verifier = Verifier::start(VerifierSettings {
        connector: world.connector(&world.svid(GATEWAY)),
        audience: GATEWAY.parse().unwrap(),
        clock: world.clock.clone(),
    });
    soon("a verifier", verifier.ready()).await;
    let tickets = TICKETS.parse().unwrap();
    let (holder, other) = (WORKER.parse().unwrap(), OTHER_WORKER.parse().unwrap());
    let by = |id| Presenter::Svid { id, x5t_s256: None };
    assert!(verifier.check(&token.text, by(&holder), &tickets, Action::ReadDataset).await.is_ok());
    // With the SVID of another job, without an SVID, and with a subject that was not signed.
    let refusal = verifier.check(&token.text, by(&other), &tickets, Action::ReadDataset).await.unwrap_err();
    assert_eq!(refusal.reason.code(), "TOKEN_PRESENTER");
    for nobody in ["", OTHER_WORKER] {
        assert_eq!(gateway.introspect(&token.text, nobody).await.reason, "TOKEN_PRESENTER");
    }
    let theirs = forged(&token.text, |_| {}, |claims| claims["sub"] = OTHER_WORKER.into());
    let refusal = verifier.check(&theirs, by(&other), &tickets, Action::ReadDataset).await.unwrap_err();
    assert_eq!(refusal.reason.code(), "TOKEN_SIGNATURE");
    assert_eq!(gateway.introspect(&theirs, OTHER_WORKER).await.reason, "TOKEN_SIGNATURE");
    // A header does not authenticate a caller.
    let mut request = Request::new(v1::WhoAmIRequest {});
    for name in ["x-forwarded-client-cert", "x-spiffe-id", "x-client-id"] {
        request.metadata_mut().insert(name, format!("URI={OPERATOR}").parse().unwrap());
    }
    let seen = worker.client.operators().who_am_i(request).await.unwrap().into_inner();
    assert_eq!((seen.spiffe_id.as_str(), seen.kind.as_str()), (WORKER, "workload"));
    verifier.shutdown().await;
}

// Proves case 6.9.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_types_and_keys_are_not_confused() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    let text = &token.text;
    let mut header = Value::Null;
    assert_eq!(&forged(text, |h| header = h.clone(), |_| {}), text, "unchanged, it is the same token");
    // A verifier of JWT-SVIDs refuses any `typ` but JWT and JOSE (JWT-SVID section 2.3): ours is neither.
    assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("ES256")));
    assert_eq!(header.as_object().unwrap().len(), 3);
    // Conversely, a token is refused if it says that it is a JWT-SVID, or if it chooses its own key or algorithm.
    type Change = fn(&mut Value);
    let changes: [Change; 9] = [
        |h| h["typ"] = "JWT".into(),
        |h| h["typ"] = "JOSE".into(),
        |h| h["typ"] = "txntoken+jwt".into(),
        |h| drop(h.as_object_mut().unwrap().remove("typ")),
        |h| h["alg"] = "none".into(),
        |h| h["alg"] = "ES384".into(),
        |h| h["jwk"] = json!({"kty": "EC", "crv": "P-256"}),
        |h| h["jku"] = "https://evil.example/keys".into(),
        |h| h["crit"] = json!(["exp"]),
    ];
    for change in changes {
        let forgery = forged(text, change, |_| {});
        assert_eq!(gateway.introspect(&forgery, WORKER).await.reason, "TOKEN_MALFORMED", "{forgery}");
    }
    // The public key as the secret of an HMAC.
    let keys = gateway.verifiers().get_keys(v1::GetKeysRequest {}).await.unwrap().into_inner();
    let mut hmac = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    hmac.typ = Some("at+jwt".into());
    hmac.kid = header["kid"].as_str().map(str::to_owned);
    let secret = jsonwebtoken::EncodingKey::from_secret(keys.jwks.as_bytes());
    let claims: Value =
        serde_json::from_slice(&BASE64.decode(text.split('.').nth(1).unwrap()).unwrap()).unwrap();
    let forgery = jsonwebtoken::encode(&hmac, &claims, &secret).unwrap();
    assert_eq!(gateway.introspect(&forgery, WORKER).await.reason, "TOKEN_MALFORMED");
    // A signature of zeros, which some libraries accepted for any message (CVE-2022-21449); the id of another key.
    let (signed, _) = text.rsplit_once('.').unwrap();
    let zeros = format!("{signed}.{}", BASE64.encode([0u8; 64]));
    assert_eq!(gateway.introspect(&zeros, WORKER).await.reason, "TOKEN_SIGNATURE");
    let other_key = forged(text, |h| h["kid"] = "1.1.AAAA".into(), |_| {});
    assert_eq!(gateway.introspect(&other_key, WORKER).await.reason, "TOKEN_KEY_UNKNOWN");
    token.is_live(&gateway).await;
}

// Proves case 6.10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_revokes_everything_whatever_the_svid() {
    let mut world = World::start().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let worker = world.working().await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    let client = worker.client.clone();
    let join = async |job: &str, attempt: u64| {
        let joined = Worker::join(client.clone(), job, attempt, "rank-9", "").await;
        Refused::of(&joined.err().expect("an SVID alone is no membership")).reason
    };
    // The right SVID, but a job that does not exist, an attempt that never began, or one that is over.
    assert_eq!(join(&JobId(7).to_string(), 1).await, "JOB_NOT_FOUND");
    let never = join(&worker.job, 2).await;
    assert!(["ATTEMPT_NOT_FOUND", "STATE_CONFLICT"].contains(&never.as_str()), "{never}");
    launcher.end(&worker.job, 1, Outcome::Completed).await.unwrap();
    token.is_dead(&gateway, "LEASE_ENDED").await;
    assert_eq!(join(&worker.job, 1).await, "JOB_CLOSED");
    let no = refused(worker.renew(&token.lease.id).await);
    assert_eq!((no.code, no.reason.as_str()), (Code::FailedPrecondition, "JOB_CLOSED"));
    assert_eq!(refused(worker.try_issue(Half::Reading).await).reason, "JOB_CLOSED");
    // The next run of the daemon accepts no token of this run, not even if the job goes on.
    let members = v1::Members { join: vec![OTHER_WORKER.into()], ..Default::default() };
    let lives = v1::JobSpec { name: "another".into(), members: Some(members), ..spec() };
    let (of_it, holder) = {
        let other = world.working_on(lives, OTHER_WORKER).await;
        (other.issue(Half::Reading).await, other.client.id.clone())
    };
    world.restart().await;
    let gateway = world.client(GATEWAY).await;
    for (old, holder) in [(&token, WORKER), (&of_it, &holder)] {
        assert!(!gateway.introspect(&old.text, holder).await.active, "a token of the life before");
    }
}

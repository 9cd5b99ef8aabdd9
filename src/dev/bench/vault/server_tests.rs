use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::HeaderMap,
    routing::{get, post, put},
};
use tokio::net::TcpListener;

use super::*;

const KEY: &str = "a2V5IG9mIHRoZSB0ZXN0";
const ROOT: &str = "hvs.root-of-the-test";
const TOKEN: &str = "hvs.token-of-the-test";

/// What a small server that answers like Vault has seen.
#[derive(Default)]
struct Seen {
    health: AtomicUsize,
    created: AtomicUsize,
    revoked: AtomicUsize,
}

type Answer = (StatusCode, String);

fn ok(body: &Value) -> Answer {
    (StatusCode::OK, body.to_string())
}

fn denied() -> Answer {
    (StatusCode::FORBIDDEN, json!({ "errors": ["permission denied"] }).to_string())
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    headers.get("x-vault-token").is_some_and(|value| value == token)
}

/// Starts the server. Its tokens last `seconds`.
async fn start(seconds: u64) -> (u16, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let init = async |body: String| {
        assert_eq!(body, r#"{"secret_shares":1,"secret_threshold":1}"#);
        ok(&json!({ "keys": ["6b6579"], "keys_base64": [KEY], "root_token": ROOT }))
    };
    let unseal = async |body: String| ok(&json!({ "sealed": !body.contains(KEY), "t": 1, "n": 1 }));
    // Vault leads its cluster only after some time.
    let health = async |State(seen): State<Arc<Seen>>| match seen.health.fetch_add(1, Ordering::Relaxed) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, json!({ "sealed": true }).to_string()),
        1 => (StatusCode::TOO_MANY_REQUESTS, json!({ "standby": true }).to_string()),
        _ => ok(&json!({ "sealed": false, "standby": false })),
    };
    let role = async |headers: HeaderMap| match has_token(&headers, ROOT) {
        true => (StatusCode::NO_CONTENT, String::new()),
        false => denied(),
    };
    let create = async move |State(seen): State<Arc<Seen>>, headers: HeaderMap, body: String| {
        if !has_token(&headers, ROOT) {
            return denied();
        }
        assert_eq!(body, r#"{"ttl":"3600s"}"#);
        seen.created.fetch_add(1, Ordering::Relaxed);
        ok(&json!({ "auth": { "client_token": TOKEN, "accessor": "a", "lease_duration": seconds } }))
    };
    let revoke = async |State(seen): State<Arc<Seen>>, headers: HeaderMap, body: String| {
        if !has_token(&headers, ROOT) {
            return denied();
        }
        assert_eq!(body, r#"{"sync":true}"#);
        seen.revoked.store(seen.created.load(Ordering::Relaxed), Ordering::Relaxed);
        (StatusCode::NO_CONTENT, String::new())
    };
    let look_up = async |State(seen): State<Arc<Seen>>, headers: HeaderMap| {
        let is_live = seen.created.load(Ordering::Relaxed) > seen.revoked.load(Ordering::Relaxed);
        if is_live && has_token(&headers, TOKEN) { ok(&json!({ "data": {} })) } else { denied() }
    };
    let router = Router::new()
        .route("/v1/sys/init", put(init))
        .route("/v1/sys/unseal", put(unseal))
        .route("/v1/sys/health", get(health))
        .route("/v1/auth/token/roles/bench", put(role))
        .route("/v1/auth/token/create/bench", post(create))
        .route("/v1/sys/leases/revoke-prefix/auth/token/create/bench", put(revoke))
        .route("/v1/auth/token/lookup-self", get(look_up))
        .with_state(seen.clone());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, seen)
}

// A new Vault is initialized, unsealed and given a role. Its tokens are accepted until they are revoked.
#[tokio::test]
async fn a_new_vault_is_prepared_for_tokens() {
    let (port, seen) = start(3_600).await;
    let tokens = VaultTokens::set_up(port).await.unwrap();
    assert!(seen.health.load(Ordering::Relaxed) > 2, "it waits until Vault is active");
    let mut client = tokens.connect().await.unwrap();
    let created = tokens.create(&mut client).await.unwrap();
    assert_eq!((created.token.expose(), created.seconds), (TOKEN, 3_600));
    assert!(tokens.accepts(&mut client, &created.token).await.unwrap());
    tokens.revoke_all(&mut client).await.unwrap();
    assert!(!tokens.accepts(&mut client, &created.token).await.unwrap());
}

// A role that shortens its tokens would change what is measured.
#[tokio::test]
async fn a_vault_with_other_tokens_is_not_measured() {
    let (port, _) = start(60).await;
    let why = VaultTokens::set_up(port).await.err().unwrap();
    assert_eq!(why, "a token of Vault lasts 60 s instead of 3600 s");
}

// A failure says what Vault said, and shows no secret.
#[tokio::test]
async fn a_refusal_of_vault_is_shown_without_secrets() {
    let (port, _) = start(3_600).await;
    let tokens = VaultTokens { port, root: SecretText::new("hvs.wrong".to_owned()) };
    let mut client = tokens.connect().await.unwrap();
    let why = tokens.create(&mut client).await.err().unwrap();
    assert_eq!(
        why,
        "/v1/auth/token/create/bench failed: Vault answered with 403 Forbidden: permission denied"
    );
    let unknown = VaultRequest::new(Method::GET, port, "sys/unknown", None, None).unwrap();
    let why = client.send(&unknown).await.unwrap_err();
    assert_eq!(why, "/v1/sys/unknown failed: Vault answered with 404 Not Found");
}

#[test]
fn an_answer_without_its_fields_is_refused() {
    let secret = "hvs.secret";
    for body in [
        String::new(),
        "{".to_owned(),
        format!(r#"{{"auth":{{"client_token":"{secret}"}}}}"#),
        format!(r#"{{"keys_base64":["a"],"root_token":"{secret}""#),
        format!(r#"{{"keys_base64":["a","b"],"root_token":"{secret}"}}"#),
        format!(r#"{{"sealed":"{secret}"}}"#),
    ] {
        let bytes = body.as_bytes();
        let said = [read_init(bytes).err(), read_unseal(bytes).err(), read_token(bytes).err()];
        let said: Vec<String> = said.into_iter().flatten().collect();
        assert!(said.len() == 3 && said.iter().all(|why| !why.contains(secret)), "{body}: {said:?}");
    }
    assert!(read_unseal(br#"{"sealed":true}"#).is_err());
}

#[test]
fn a_long_error_of_vault_is_cut() {
    let body = json!({ "errors": ["x".repeat(10_000), "\n"] }).to_string();
    let shown = describe_error(StatusCode::BAD_REQUEST, body.as_bytes());
    assert!(shown.starts_with("Vault answered with 400 Bad Request: xxx") && shown.len() < 400, "{shown}");
}

//! `leasehold login` and `logout` as a person runs them, against a provider of the test: the browser flow with PKCE.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use url::Url;

use crate::{
    harness::*,
    login::{CLIENT, Code, DOMAIN, Issuer, started},
};

/// Prepares a command of a person whose home is a folder of the world.
fn command(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command
        .args(args)
        .env("HOME", world.file("home"))
        .env("XDG_DATA_HOME", world.file("home"))
        .env("LEASEHOLD_CONTEXTS", world.file("home/contexts.toml"))
        .env_remove("LEASEHOLD_CONTEXT")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(world: &World, args: &[&str]) -> Output {
    soon("a command", command(world, args).output()).await.unwrap()
}

/// A daemon, and a context of it without an identity.
async fn prepared(issuer: &Issuer) -> World {
    let world = started(issuer, "", true).await;
    fs::create_dir(world.file("home")).unwrap();
    let daemon = world.daemon();
    let bundle = format!("leasehold.example={}", world.file("leasehold.example.pem").display());
    let (grpc, login) = (daemon.grpc.to_string(), daemon.login.unwrap().to_string());
    let added = [
        "context",
        "add",
        "site",
        "--server",
        &grpc,
        "--server-id",
        DAEMON,
        "--bundle",
        &bundle,
        "--login",
        &login,
    ];
    let added = run(&world, &added).await;
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    world
}

/// A login that has printed its address.
struct Waiting {
    child: Child,
    lines: BufReader<tokio::process::ChildStderr>,
    asked: BTreeMap<String, String>,
}

impl Waiting {
    async fn begin(world: &World, issuer: &Issuer) -> Self {
        let mut child = command(world, &["login"]).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let read = soon("the address", lines.read_line(&mut line)).await.unwrap();
            assert!(read > 0, "it ended: {said}");
            said.push_str(&line);
            if let Ok(url) = Url::parse(line.trim()) {
                break url;
            }
        };
        assert!(address.as_str().starts_with(&format!("{}/auth?", issuer.url())), "{address}");
        let asked: BTreeMap<String, String> = address.query_pairs().into_owned().collect();
        assert_eq!(
            (asked["response_type"].as_str(), asked["code_challenge_method"].as_str()),
            ("code", "S256")
        );
        assert_eq!(asked["client_id"], CLIENT);
        Waiting { child, lines, asked }
    }

    /// Has the provider give a code for a person. Claims can be changed.
    fn code(&self, issuer: &Issuer, world: &World, name: &str, change: impl FnOnce(&mut Value)) {
        let now = world.clock.now().wall.seconds();
        let mut claims = json!({
            "iss": issuer.url(), "aud": CLIENT, "sub": "ada", "iat": now, "exp": now + 600, "nonce": self.asked["nonce"],
            "groups": ["/ML/Owners", "ops"], "amr": ["mfa"],
        });
        change(&mut claims);
        let code = Code {
            id_token: issuer.sign("k1", &claims),
            challenge: self.asked["code_challenge"].clone(),
            redirect: self.asked["redirect_uri"].clone(),
        };
        issuer.codes.lock().unwrap().insert(name.to_owned(), code);
    }

    /// Goes to the callback as the browser does. Returns the status, or 0 if no one listens.
    async fn call_back(&self, state: &str, code: &str) -> u16 {
        let mut url = Url::parse(&self.asked["redirect_uri"]).unwrap();
        url.query_pairs_mut().append_pair("code", code).append_pair("state", state);
        let Ok(mut tcp) = TcpStream::connect(("127.0.0.1", url.port().unwrap())).await else { return 0 };
        let target = &url[url::Position::BeforePath..];
        let ask = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        if tcp.write_all(ask.as_bytes()).await.is_err() {
            return 0;
        }
        let mut answer = String::new();
        let _ = soon("the callback", tcp.read_to_string(&mut answer)).await;
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    async fn end(mut self) -> (bool, String) {
        let mut said = String::new();
        soon("the end of its words", self.lines.read_to_string(&mut said)).await.unwrap();
        (soon("its end", self.child.wait()).await.unwrap().success(), said)
    }
}

fn files(world: &World) -> Vec<(String, u32)> {
    let folder = world.file("home/leasehold/logins/site");
    let found = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
    let mut all: Vec<_> = found
        .map(|file| {
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            (file.file_name().into_string().unwrap(), mode)
        })
        .collect();
    all.sort();
    all
}

// The command takes only the answer to its own question, and leaves nothing behind after a logout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_by_a_browser_and_out_again() {
    let issuer = Issuer::start().await;
    let world = prepared(&issuer).await;
    let waiting = Waiting::begin(&world, &issuer).await;
    waiting.code(&issuer, &world, "good", |_| {});
    assert_eq!(waiting.call_back("another", "good").await, 400, "another state is not ours");
    assert_eq!(waiting.call_back(&waiting.asked["state"], "good").await, 200);
    let (done, said) = waiting.end().await;
    assert!(done && said.contains("operator of the group model-owners"), "{said}");
    assert!(said.contains("leasehold login --group ops"), "{said}");
    assert_eq!(files(&world), [("operator.key".to_owned(), 0o600), ("operator.pem".to_owned(), 0o600)]);
    let who = run(&world, &["whoami", "-o", "json"]).await;
    let who: Value = serde_json::from_slice(&who.stdout).unwrap();
    assert_eq!(who["spiffe_id"], format!("spiffe://{DOMAIN}/human/ada/model-owners"));
    assert_eq!((&who["login"]["human"], &who["login"]["amr"]), (&json!("ada"), &json!(["mfa"])));
    let out = run(&world, &["logout"]).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(files(&world), []);
    let again = run(&world, &["logout"]).await;
    assert_eq!(again.status.code(), Some(1), "there is nothing to end");
    let who = run(&world, &["whoami"]).await;
    let said = String::from_utf8_lossy(&who.stderr).into_owned();
    assert!(!who.status.success() && said.contains("leasehold login --context site"), "{said}");
}

// A new login ends the one whose key it replaces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_login_ends_the_one_that_it_replaces() {
    let issuer = Issuer::start().await;
    let world = prepared(&issuer).await;
    for name in ["first", "second"] {
        let waiting = Waiting::begin(&world, &issuer).await;
        waiting.code(&issuer, &world, name, |_| {});
        assert_eq!(waiting.call_back(&waiting.asked["state"], name).await, 200);
        let (done, said) = waiting.end().await;
        assert!(done, "{said}");
    }
    let records = world.records().await;
    let logins = records.of("person.logged_in");
    assert_eq!(logins.len(), 2);
    assert_eq!(records.one("person.logged_out")["serial"], logins[0]["serial"]);
    let who = run(&world, &["whoami"]).await;
    assert!(who.status.success(), "{}", String::from_utf8_lossy(&who.stderr));
}

// A code that was used, and an ID token that is for another login, give no key and no certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_code_or_foreign_token_leaves_nothing() {
    let issuer = Issuer::start().await;
    let world = prepared(&issuer).await;
    for (what, change) in [
        ("a replayed code", None),
        ("another nonce", Some(("nonce", json!("another")))),
        ("no nonce", Some(("nonce", Value::Null))),
        ("another issuer", Some(("iss", json!("http://127.0.0.1:1")))),
        ("another audience", Some(("aud", json!("another")))),
        ("an expired token", Some(("exp", json!(1_700_000_000)))),
    ] {
        let waiting = Waiting::begin(&world, &issuer).await;
        if let Some((claim, value)) = change {
            waiting.code(&issuer, &world, "c", |claims| match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
                value => claims[claim] = value,
            });
        }
        assert_eq!(waiting.call_back(&waiting.asked["state"], "c").await, 200, "{what}");
        let (done, said) = waiting.end().await;
        assert!(!done, "{what}: {said}");
        assert!(files(&world).is_empty(), "{what}");
    }
    assert!(world.records().await.of("person.logged_in").is_empty());
}

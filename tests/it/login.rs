//! People who log in: from an ID token to an SVID, what ends it, and each ID token that is not accepted.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use leasehold::{
    identity::{StaticSource, TrustBundles, X509Svid, client_config},
    link::{Connector, Endpoint},
    name::Digest,
    proto::v1,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::*;

pub(crate) const DOMAIN: &str = "login.acme.example";
pub(crate) const CLIENT: &str = "leasehold-cli";

/// An identity provider with one key: discovery and keys over HTTP, and ID tokens as the test wants them.
pub(crate) struct Issuer {
    address: SocketAddr,
    keys: Arc<Mutex<Vec<(String, KeyPair)>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// The answer of the token endpoint to each code, which is good once.
    pub(crate) codes: Arc<Mutex<BTreeMap<String, Code>>>,
}

/// What a code of the provider is good for.
pub(crate) struct Code {
    pub(crate) id_token: String,
    pub(crate) challenge: String,
    pub(crate) redirect: String,
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keys = Arc::new(Mutex::new(vec![("k1".to_owned(), KeyPair::generate().unwrap())]));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let codes = Arc::new(Mutex::new(BTreeMap::new()));
        let (served, noted, redeemed) = (keys.clone(), asked.clone(), codes.clone());
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let head = request(&mut tcp).await;
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let is_down = served.lock().unwrap().is_empty();
                let (status, body) = match path.as_str() {
                    _ if is_down => (503, Value::Null),
                    "/.well-known/openid-configuration" => (200, discovery(address)),
                    "/token" => redeem(&mut redeemed.lock().unwrap(), &head),
                    _ => (200, json!({ "keys": served.lock().unwrap().iter().map(jwk).collect::<Vec<_>>() })),
                };
                let body = body.to_string();
                noted.lock().unwrap().push(path);
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = tcp.write_all(answer.as_bytes()).await;
            }
        });
        Issuer { address, keys, asked, codes }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A token with these claims, signed by the key with this id.
    pub(crate) fn sign(&self, kid: &str, claims: &Value) -> String {
        let keys = self.keys.lock().unwrap();
        let (_, key) = keys.iter().find(|(known, _)| known == kid).unwrap();
        signed(key, &json!({ "alg": "ES256", "kid": kid }), claims)
    }
}

/// Reads a request with its body.
async fn request(tcp: &mut TcpStream) -> String {
    let (mut text, mut chunk) = (String::new(), vec![0; 8_192]);
    loop {
        let read = tcp.read(&mut chunk).await.unwrap_or(0);
        text.push_str(&String::from_utf8_lossy(&chunk[..read]));
        let length =
            text.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.trim().parse().ok());
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
        if read == 0 || body.is_some_and(|body| body >= length.unwrap_or(0)) {
            return text;
        }
    }
}

/// Answers the token endpoint as a provider does: each code once, for its redirect address and the verifier of its challenge.
fn redeem(codes: &mut BTreeMap<String, Code>, request: &str) -> (u16, Value) {
    let body = request.split("\r\n\r\n").nth(1).unwrap_or_default();
    let fields: BTreeMap<String, String> =
        url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let challenge =
        BASE64_URL_SAFE_NO_PAD.encode(leasehold::secret::sha256(field("code_verifier").as_bytes()));
    match codes.remove(field("code")) {
        Some(code) if code.challenge == challenge && code.redirect == field("redirect_uri") => {
            (200, json!({ "access_token": "a", "token_type": "Bearer", "id_token": code.id_token }))
        }
        _ => (400, json!({ "error": "invalid_grant" })),
    }
}

fn discovery(address: SocketAddr) -> Value {
    let url = format!("http://{address}");
    json!({
        "issuer": url, "authorization_endpoint": format!("{url}/auth"), "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}/keys"), "response_types_supported": ["code"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn jwk((kid, key): &(String, KeyPair)) -> Value {
    let point = key.der_bytes();
    let part = |range| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
    json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": part(1..33), "y": part(33..65) })
}

fn part(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

fn signed(key: &KeyPair, header: &Value, claims: &Value) -> String {
    let random = ring::rand::SystemRandom::new();
    let signer =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &random).unwrap();
    let text = format!("{}.{}", part(header), part(claims));
    let signature = signer.sign(&random, text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// A person at a machine, with a key that never leaves it.
struct Person {
    key: KeyPair,
}

impl Person {
    fn new() -> Self {
        Person { key: KeyPair::generate().unwrap() }
    }

    fn nonce(&self) -> String {
        Digest::of(&self.key.subject_public_key_info()).to_string()
    }

    fn request(&self) -> String {
        CertificateParams::default().serialize_request(&self.key).unwrap().pem().unwrap()
    }

    /// The claims of a good token for this key.
    fn claims(&self, world: &World, issuer: &Issuer, sub: &str, groups: &[&str]) -> Value {
        let now = world.clock.now().wall.seconds();
        json!({
            "iss": issuer.url(), "aud": CLIENT, "sub": sub, "iat": now, "exp": now + 600, "nonce": self.nonce(),
            "groups": groups, "amr": ["pwd", "mfa"],
        })
    }
}

/// A daemon at which people log in.
async fn world(issuer: &Issuer, more: &str) -> World {
    started(issuer, more, false).await
}

/// Such a daemon, on the clocks of this machine if a program without a test's clock calls it.
pub(crate) async fn started(issuer: &Issuer, more: &str, real_clock: bool) -> World {
    let mut world = World::prepared(|setup| {
        setup.real_clock = real_clock;
        setup
            .catalog
            .get_mut("platform.toml")
            .unwrap()
            .push_str(&format!("\n[[claim]]\ntenant = \"acme\"\nmatch = [\"spiffe://{DOMAIN}/**\"]\n"));
        setup.catalog.get_mut("acme.toml").unwrap().push_str(&format!(
            "\n[[principal]]\nmatch = \"spiffe://{DOMAIN}/human/*/model-owners\"\nkind = \"operator\"\nhuman = \"segment:2\"\n\
             groups = [\"model-owners\"]\n\
             [[principal]]\nmatch = \"spiffe://{DOMAIN}/human/*/ops\"\nkind = \"operator\"\nhuman = \"segment:2\"\n\
             groups = [\"operators\"]\n"
        ));
    });
    let root = Authority::new(DOMAIN, world.clock.now().wall);
    world.write("people.pem", &root.pem);
    world.write("people.key", &root.key_pem());
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(world.file("people.key"), private).unwrap();
    let text = world.read("leasehold.toml");
    world.write(
        "leasehold.toml",
        &format!(
            "{text}\n[people]\ntrust_domain = \"{DOMAIN}\"\nca_cert = \"people.pem\"\nca_key = \"people.key\"\n\
             issuer = \"{}\"\nclient_id = \"{CLIENT}\"\nlisten = \"127.0.0.1:0\"\n{more}\n\
             [people.groups]\nmodel-owners = \"/ML/Owners\"\nops = \"ops\"\n",
            issuer.url()
        ),
    );
    world.restart().await;
    world
}

/// One request to the daemon's listener for logins, over TLS and without a client certificate.
async fn asked(world: &World, head: &str, body: &str) -> (u16, Value) {
    let now = world.clock.now().wall;
    let authority = world.authority(DAEMON);
    let bundles = TrustBundles::empty()
        .with_pem(authority.domain.parse().unwrap(), "bundle", authority.pem.as_bytes(), now)
        .unwrap();
    let source = Arc::new(StaticSource::new(None, bundles));
    let tls = client_config(source, world.clock.clone(), DAEMON.parse().unwrap(), &[b"http/1.1"]);
    let tcp = TcpStream::connect(world.daemon().login.unwrap()).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let mut stream = soon("tls", tokio_rustls::TlsConnector::from(tls).connect(name, tcp)).await.unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("an answer", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

async fn log_in(world: &World, person: &Person, token: &str, group: &str) -> (u16, Value) {
    let body = json!({ "id_token": token, "key_request": person.request(), "group": group }).to_string();
    asked(world, "POST /login", &body).await
}

/// A login that succeeds.
async fn logged_in(world: &World, person: &Person, token: &str, group: &str) -> Value {
    let (status, answer) = log_in(world, person, token, group).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn connector(world: &World, person: &Person, answer: &Value) -> Connector {
    let authority = world.authority(DAEMON);
    let cert = answer["svid"].as_str().unwrap();
    let svid = X509Svid::from_pem(cert.as_bytes(), person.key.serialize_pem().as_bytes()).unwrap();
    let bundles = TrustBundles::empty()
        .with_pem(
            authority.domain.parse().unwrap(),
            "bundle",
            authority.pem.as_bytes(),
            world.clock.now().wall,
        )
        .unwrap();
    let source = Arc::new(StaticSource::new(Some(Arc::new(svid)), bundles));
    let endpoint = Endpoint::new(&world.daemon().grpc.to_string(), DAEMON.parse().unwrap()).unwrap();
    Connector::new(source, world.clock.clone(), endpoint)
}

async fn client(world: &World, person: &Person, answer: &Value) -> Client {
    let channel = soon("a connection", connector(world, person, answer).connected_channel()).await.unwrap();
    let credentials =
        Credentials { cert: answer["svid"].as_str().unwrap().to_owned(), key: person.key.serialize_pem() };
    Client::new(answer["spiffe_id"].as_str().unwrap(), credentials, channel)
}

async fn waits_for_me(client: &Client) -> Result<usize, Refused> {
    let answer = client.approvals().list_approvals(v1::ListApprovalsRequest::default()).await;
    answer.map(|a| a.into_inner().waiting.len()).map_err(|status| Refused::of(&status))
}

// A person gets an SVID for a login, may do what the catalog says of their group, and that both are recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_and_acts_as_a_member_of_a_group() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "").await;
    let (status, terms) = asked(&world, "GET /login", "").await;
    assert_eq!((status, &terms["issuer"], &terms["client_id"]), (200, &json!(issuer.url()), &json!(CLIENT)));
    let ada = Person::new();
    let token = issuer.sign("k1", &ada.claims(&world, &issuer, "Ada", &["/ML/Owners", "ops", "other"]));
    let answer = logged_in(&world, &ada, &token, "").await;
    assert_eq!(answer["spiffe_id"], format!("spiffe://{DOMAIN}/human/x__41da/model-owners"));
    assert_eq!((&answer["kind"], &answer["groups"]), (&json!("operator"), &json!(["model-owners", "ops"])));
    let client = client(&world, &ada, &answer).await;
    assert_eq!(waits_for_me(&client).await, Ok(0));
    let who = client.operators().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    let login = who.login.unwrap();
    assert_eq!((login.human.as_str(), login.sub.as_str(), login.issuer), ("x__41da", "Ada", issuer.url()));
    assert_eq!(login.amr, ["pwd", "mfa"]);
    // The SVID ends with the login.
    assert_eq!(login.until.unwrap().seconds, who.svid_expires.unwrap().seconds);
    let records = world.records().await;
    let record = records.one("person.logged_in");
    assert_eq!(
        (&record["sub"], &record["human"], &record["amr"]),
        (&json!("Ada"), &json!("x__41da"), &json!(["pwd", "mfa"]))
    );
    assert_eq!(record["groups"], json!(["model-owners", "ops"]));
    let signature = token.rsplit('.').next().unwrap();
    assert!(!record.to_string().contains(signature), "no token is in the ledger");
}

// Each ID token that is not for this daemon, this key and this moment gives nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_token_with_any_fault_gives_no_svid() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "").await;
    let ada = Person::new();
    let good = ada.claims(&world, &issuer, "ada", &["ops"]);
    let now = world.clock.now().wall.seconds();
    let with = |change: &[(&str, Value)]| {
        let mut claims = good.clone();
        for (key, value) in change {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(*key)),
                value => claims[*key] = value.clone(),
            }
        }
        claims
    };
    let stranger = KeyPair::generate().unwrap();
    let es256 = json!({ "alg": "ES256", "kid": "k1" });
    let hmac = |secret: &[u8]| {
        let text = format!("{}.{}", part(&json!({ "alg": "HS256", "kid": "k1" })), part(&good));
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), text.as_bytes());
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
    };
    let public = issuer.keys.lock().unwrap()[0].1.public_key_pem();
    let bad = [
        ("issuer", issuer.sign("k1", &with(&[("iss", json!("http://127.0.0.1:1"))]))),
        ("issuer with a slash", issuer.sign("k1", &with(&[("iss", json!(format!("{}/", issuer.url())))]))),
        ("audience", issuer.sign("k1", &with(&[("aud", json!("another"))]))),
        ("a second audience", issuer.sign("k1", &with(&[("aud", json!([CLIENT, "another"]))]))),
        ("another authorized party", issuer.sign("k1", &with(&[("azp", json!("another"))]))),
        (
            "another authorized party in a list",
            issuer.sign("k1", &with(&[("aud", json!([CLIENT])), ("azp", json!("another"))])),
        ),
        ("an empty authorized party", issuer.sign("k1", &with(&[("azp", json!(""))]))),
        ("no audience", issuer.sign("k1", &with(&[("aud", json!([]))]))),
        ("another key's nonce", issuer.sign("k1", &with(&[("nonce", json!(Person::new().nonce()))]))),
        ("an empty nonce", issuer.sign("k1", &with(&[("nonce", json!(""))]))),
        ("no nonce", issuer.sign("k1", &with(&[("nonce", Value::Null)]))),
        ("expired", issuer.sign("k1", &with(&[("exp", json!(now))]))),
        ("no expiry", issuer.sign("k1", &with(&[("exp", Value::Null)]))),
        ("old", issuer.sign("k1", &with(&[("iat", json!(now - 601))]))),
        ("from the future", issuer.sign("k1", &with(&[("iat", json!(now + 61))]))),
        ("no time", issuer.sign("k1", &with(&[("iat", Value::Null)]))),
        ("no subject", issuer.sign("k1", &with(&[("sub", Value::Null)]))),
        ("an empty subject", issuer.sign("k1", &with(&[("sub", json!(""))]))),
        ("a subject that is not ASCII", issuer.sign("k1", &with(&[("sub", json!("ädä"))]))),
        ("alg none", format!("{}.{}.", part(&json!({ "alg": "none" })), part(&good))),
        ("alg none with a key", format!("{}.{}.", part(&json!({ "alg": "none", "kid": "k1" })), part(&good))),
        ("HS256 with the public key", hmac(public.as_bytes())),
        ("HS256 with the client id", hmac(CLIENT.as_bytes())),
        ("another signer", signed(&stranger, &es256, &good)),
        ("an unknown key", signed(&stranger, &json!({ "alg": "ES256", "kid": "k9" }), &good)),
        (
            "a key in the header",
            signed(
                &stranger,
                &json!({ "alg": "ES256", "jwk": jwk(&("k9".into(), KeyPair::generate().unwrap())) }),
                &good,
            ),
        ),
        ("another algorithm of the key", signed(&stranger, &json!({ "alg": "ES384", "kid": "k1" }), &good)),
        ("no token", String::new()),
        ("too long", "a".repeat(33 << 10)),
    ];
    for (what, token) in bad {
        let (status, answer) = log_in(&world, &ada, &token, "").await;
        assert_eq!((status, &answer["reason"]), (403, &json!("LOGIN_REFUSED")), "{what}: {answer}");
        assert!(!answer.to_string().contains("svid\":"), "{what}");
    }
    assert!(world.records().await.of("person.logged_in").is_empty());
    // The keys are not fetched for each bad token.
    let fetched = issuer.asked.lock().unwrap().iter().filter(|path| *path == "/keys").count();
    assert!(fetched <= 2, "{fetched}");
    // The comparison means something.
    let good = with(&[("azp", json!(CLIENT)), ("aud", json!([CLIENT]))]);
    logged_in(&world, &ada, &issuer.sign("k1", &good), "").await;
}

// An ID token is of use once, for one key, and not after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_token_is_used_once() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "device_flow = true").await;
    let ada = Person::new();
    let mut claims = ada.claims(&world, &issuer, "ada", &["ops"]);
    claims.as_object_mut().unwrap().remove("nonce");
    let token = issuer.sign("k1", &claims);
    logged_in(&world, &ada, &token, "").await;
    // The last character of this signature has four bits that mean nothing: the provider's text is not the only one.
    let (rest, last) = token.split_at(token.len() - 1);
    let respelled = format!("{rest}{}", char::from(last.as_bytes()[0] + 1));
    for (person, token) in [(&ada, &token), (&Person::new(), &token), (&ada, &respelled)] {
        let (status, answer) = log_in(&world, person, token, "").await;
        assert_eq!((status, &answer["reason"]), (403, &json!("LOGIN_REFUSED")), "{answer}");
        assert!(answer["text"].as_str().unwrap().contains("was used"), "{answer}");
    }
    // A daemon that started since does not know which tokens were used.
    world.time().advance(Duration::from_secs(2));
    world.restart().await;
    let (status, answer) = log_in(&world, &ada, &token, "").await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer["text"].as_str().unwrap().contains("not issued just now"), "{answer}");
}

// People get no group that the provider does not say, and no identity that the catalog does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_in_a_wrong_group_is_refused() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "required_amr = [\"mfa\"]").await;
    let ada = Person::new();
    let token = |groups: &[&str]| issuer.sign("k1", &ada.claims(&world, &issuer, "ada", groups));
    for (groups, wanted) in [
        (vec!["ops"], "model-owners"),
        (vec!["ops"], "nosuch"),
        (vec!["model-owners"], "model-owners"),
        (vec!["other"], ""),
        (vec![], ""),
    ] {
        let (status, answer) = log_in(&world, &ada, &token(&groups), wanted).await;
        assert_eq!(
            (status, &answer["reason"]),
            (403, &json!("LOGIN_REFUSED")),
            "{groups:?} {wanted}: {answer}"
        );
    }
    let mut claims = ada.claims(&world, &issuer, "ada", &["ops"]);
    claims["amr"] = json!(["pwd"]);
    let (status, answer) = log_in(&world, &ada, &issuer.sign("k1", &claims), "").await;
    assert!(status == 403 && answer["text"].as_str().unwrap().contains("without mfa"), "{answer}");
    assert!(world.records().await.of("person.logged_in").is_empty());
}

// What ends a login ends it at once, and after a restart too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_was_ended_is_of_no_use() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "").await;
    let platform = world.client(PLATFORM).await;
    let revoke = async |name: &str| {
        let (name, reason) = (name.to_owned(), "left the team".to_owned());
        platform.operators().revoke(v1::RevokeRequest { name, reason, ..Default::default() }).await
    };
    let mut ended = Vec::new();
    let mut standing = None;
    for (sub, end) in [
        ("a", "log out"),
        ("b", "human:b"),
        ("c", "identity:spiffe://login.acme.example/human/c/ops"),
        ("d", "lock"),
        ("e", "nothing"),
    ] {
        let person = Person::new();
        let token = issuer.sign("k1", &person.claims(&world, &issuer, sub, &["ops"]));
        let answer = logged_in(&world, &person, &token, "").await;
        let client = client(&world, &person, &answer).await;
        let watch = v1::TailLedgerRequest { from_index: 0, ..Default::default() };
        let mut stream = client.operators().tail_ledger(watch).await.unwrap().into_inner();
        assert_eq!(waits_for_me(&client).await, Ok(0), "{end}");
        match end {
            "log out" => {
                let out = client.operators().log_out(v1::LogOutRequest {}).await.unwrap().into_inner();
                assert!(out.ended);
            }
            "lock" => {
                let (name, reason) = ("human:d".to_owned(), "left".to_owned());
                let lock = v1::LockRequest {
                    name: name.clone(),
                    reason: reason.clone(),
                    ahead: true,
                    ..Default::default()
                };
                platform.operators().lock(lock).await.unwrap();
                let token = issuer.sign("k1", &person.claims(&world, &issuer, sub, &["/ML/Owners"]));
                let (_, locked) = log_in(&world, &person, &token, "").await;
                assert_eq!(locked["reason"], "LOCKED", "a new login is kept out: {locked}");
                platform.operators().unlock(v1::UnlockRequest { name, reason }).await.unwrap();
            }
            "nothing" => {
                standing = Some((person, answer));
                continue;
            }
            name => drop(revoke(name).await.unwrap()),
        }
        waits_for_me(&client).await.unwrap_err().is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED");
        let over = soon("the end of the stream", async {
            loop {
                if let Err(status) = stream.message().await {
                    return Refused::of(&status);
                }
            }
        });
        world.time().advance(Duration::from_secs(2));
        over.await.is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED");
        ended.push((person, answer));
    }
    drop(platform);
    world.restart().await;
    for (person, answer) in &ended {
        let client = client(&world, person, answer).await;
        waits_for_me(&client).await.unwrap_err().is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED");
    }
    let (person, answer) = standing.unwrap();
    let client = client(&world, &person, &answer).await;
    assert_eq!(waits_for_me(&client).await, Ok(0), "a login outlasts a restart");
}

// An SVID of the people trust domain is of no use without a recorded login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_svid_without_a_login_is_of_no_use() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "").await;
    // A thief who has the key of the authority can sign, and gets no further.
    let root = rcgen::Issuer::from_ca_cert_pem(
        &world.read("people.pem"),
        KeyPair::from_pem(&world.read("people.key")).unwrap(),
    )
    .unwrap();
    let thief = Person::new();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&format!("spiffe://{DOMAIN}/human/ada/ops"))];
    (params.not_before, params.not_after) = {
        let now = world.clock.now().wall;
        (at(now), at(now.plus(Duration::from_secs(3_600))))
    };
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];

    let cert = params.signed_by(&thief.key, &root).unwrap().pem();
    let answer = json!({ "svid": cert, "spiffe_id": format!("spiffe://{DOMAIN}/human/ada/ops") });
    let client = client(&world, &thief, &answer).await;
    waits_for_me(&client).await.unwrap_err().is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED");
}

// A person has no access through an entry that does not name the person, whether they log in or are logged in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_hides_the_person_gives_no_access() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "").await;
    let ada = Person::new();
    let token = issuer.sign("k1", &ada.claims(&world, &issuer, "ada", &["ops"]));
    let answer = logged_in(&world, &ada, &token, "").await;
    assert_eq!(waits_for_me(&client(&world, &ada, &answer).await).await, Ok(0));
    let catalog = world.read("catalog.d/acme.toml");
    let entry = format!("match = \"spiffe://{DOMAIN}/human/*/ops\"\nkind = \"operator\"\n");
    let named = format!("{entry}human = \"segment:2\"\n");
    assert!(catalog.contains(&named));
    for wrong in ["", "human = \"segment:1\"\n", "human = \"segment:3\"\n"] {
        world.write("catalog.d/acme.toml", &catalog.replace(&named, &format!("{entry}{wrong}")));
        world.time().advance(Duration::from_secs(2));
        world.restart().await;
        let claims = ada.claims(&world, &issuer, "ada", &["ops"]);
        let (status, refused) = log_in(&world, &ada, &issuer.sign("k1", &claims), "").await;
        assert_eq!((status, &refused["reason"]), (403, &json!("LOGIN_REFUSED")), "{wrong}: {refused}");
        assert!(refused.to_string().contains("segment:2"), "{wrong}: {refused}");
        let client = client(&world, &ada, &answer).await;
        waits_for_me(&client).await.unwrap_err().is(tonic::Code::PermissionDenied, "PRINCIPAL_UNKNOWN");
    }
}

// A login counts only while its issuer is the one of the configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_of_another_issuer_does_not_count() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    let mut world = world(&issuer, "").await;
    let ada = Person::new();
    let token = issuer.sign("k1", &ada.claims(&world, &issuer, "ada", &["ops"]));
    let answer = logged_in(&world, &ada, &token, "").await;
    let text = world.read("leasehold.toml");
    for (url, counts) in [(other.url(), false), (issuer.url(), true)] {
        world.write("leasehold.toml", &text.replace(&issuer.url(), &url));
        world.restart().await;
        let seen = waits_for_me(&client(&world, &ada, &answer).await).await;
        match counts {
            true => assert_eq!(seen, Ok(0)),
            false => seen.unwrap_err().is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED"),
        }
    }
}

// A provider that is down is not asked for each token, also if its keys were known once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_down_is_asked_seldom() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "").await;
    let ada = Person::new();
    logged_in(&world, &ada, &issuer.sign("k1", &ada.claims(&world, &issuer, "ada", &["ops"])), "").await;
    world.time().advance(Duration::from_secs(3_601));
    let token = issuer.sign("k1", &ada.claims(&world, &issuer, "ada", &["ops"]));
    issuer.keys.lock().unwrap().clear();
    issuer.asked.lock().unwrap().clear();
    for _ in 0..5 {
        let (_, answer) = log_in(&world, &ada, &token, "").await;
        assert_eq!(answer["reason"], "PROVIDER_UNAVAILABLE", "{answer}");
    }
    assert_eq!(issuer.asked.lock().unwrap().len(), 1);
}

// A token from a clock that is ahead is not used before its time, so no later run of the daemon takes it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_ahead_waits_for_its_time() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "").await;
    let ada = Person::new();
    let mut claims = ada.claims(&world, &issuer, "ada", &["ops"]);
    let issued = world.clock.now().wall.seconds() + 10;
    claims["iat"] = json!(issued);
    let token = issuer.sign("k1", &claims);
    let (status, answer) = {
        let login = log_in(&world, &ada, &token, "");
        tokio::pin!(login);
        loop {
            tokio::select! {
                done = &mut login => break done,
                () = tokio::time::sleep(Duration::from_millis(100)) => world.time().advance(Duration::from_secs(1)),
            }
        }
    };
    assert_eq!(status, 200, "{answer}");
    assert!(world.clock.now().wall.seconds() >= issued, "it was used before its time");
    world.time().advance(Duration::from_secs(1));
    world.restart().await;
    let (status, answer) = log_in(&world, &ada, &token, "").await;
    assert_eq!((status, &answer["reason"]), (403, &json!("LOGIN_REFUSED")), "{answer}");
}

// Policy can ask for a second factor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_can_ask_for_a_second_factor() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "").await;
    world.write(
        "policy/mfa.cedar",
        "@id(\"guard-lists-mfa\") @explain(\"operators sign in with a second factor\")\n\
         forbid (principal is Leasehold::Operator, action == Leasehold::Action::\"ListApprovals\", resource)\n\
         unless { context.amr.contains(\"mfa\") };\n",
    );
    world.restart().await;
    for (amr, allowed) in [(json!(["pwd"]), false), (json!(["pwd", "mfa"]), true), (Value::Null, false)] {
        let person = Person::new();
        let mut claims = person.claims(&world, &issuer, "ada", &["/ML/Owners"]);
        match &amr {
            Value::Null => drop(claims.as_object_mut().unwrap().remove("amr")),
            amr => claims["amr"] = amr.clone(),
        }
        let answer = logged_in(&world, &person, &issuer.sign("k1", &claims), "").await;
        let seen = waits_for_me(&client(&world, &person, &answer).await).await;
        match allowed {
            true => assert_eq!(seen, Ok(0)),
            false => seen.unwrap_err().is(tonic::Code::PermissionDenied, "POLICY_DENIED"),
        }
    }
}

// A login lasts only as long as the configuration would admit it: its methods, its group, its length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_the_configuration_would_not_admit_is_over() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "session = \"1h\"\ndevice_flow = true").await;
    let ada = Person::new();
    let mut claims = ada.claims(&world, &issuer, "ada", &["ops"]);
    claims["amr"] = json!(["pwd"]);
    let answer = logged_in(&world, &ada, &issuer.sign("k1", &claims), "").await;
    let device = Person::new();
    let mut claims = device.claims(&world, &issuer, "dee", &["ops"]);
    claims.as_object_mut().unwrap().remove("nonce");
    let by_device = logged_in(&world, &device, &issuer.sign("k1", &claims), "").await;
    let text = world.read("leasehold.toml");
    world.time().advance(Duration::from_secs(1_200));
    let session = "session = \"1h\"";
    for (change, to, counts) in [
        (session, "session = \"1h\"\nrequired_amr = [\"pwd\"]", true),
        (session, "session = \"1h\"\nrequired_amr = [\"mfa\"]", false),
        (session, "session = \"30m\"", true),
        (session, "session = \"15m\"", false),
        ("ops = \"ops\"", "", false),
        ("ops = \"ops\"", "ops = \"/Other/Ops\"", false),
        ("model-owners = \"/ML/Owners\"", "", true),
        (CLIENT, "another-client", false),
        (session, session, true),
    ] {
        assert!(text.contains(change), "{change}");
        world.write("leasehold.toml", &text.replacen(change, to, 1));
        world.restart().await;
        let seen = waits_for_me(&client(&world, &ada, &answer).await).await;
        match counts {
            true => assert_eq!(seen, Ok(0), "{to}"),
            false => seen.unwrap_err().is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED"),
        }
    }
    assert_eq!(waits_for_me(&client(&world, &device, &by_device).await).await, Ok(0));
    world.write("leasehold.toml", &text.replace("device_flow = true", "device_flow = false"));
    world.restart().await;
    let seen = waits_for_me(&client(&world, &device, &by_device).await).await;
    seen.unwrap_err().is(tonic::Code::Unauthenticated, "LOGIN_REQUIRED");
    assert_eq!(waits_for_me(&client(&world, &ada, &answer).await).await, Ok(0));
}

// RFC 5280, section 4.1.2.2: an authority gives each certificate another serial number, whatever its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_svid_of_a_person_has_another_serial_number() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "").await;
    let ada = Person::new();
    for sub in ["ada", "bob", "ada", "eve"] {
        world.time().advance(Duration::from_secs(2));
        let claims = ada.claims(&world, &issuer, sub, &["ops"]);
        logged_in(&world, &ada, &issuer.sign("k1", &claims), "").await;
    }
    let records = world.records().await;
    let serials: std::collections::BTreeSet<_> =
        records.of("person.logged_in").iter().map(|r| r["serial"].as_str().unwrap().to_owned()).collect();
    assert_eq!(serials.len(), 4, "{serials:?}");
    // At most 20 octets, positive and not guessable.
    assert!(serials.iter().all(|serial| (24..=40).contains(&serial.len())), "{serials:?}");
}

// Tokens that are dated ahead wait for their time, and no one else waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_does_not_hold_up_the_logins_of_others() {
    let issuer = Issuer::start().await;
    let world = world(&issuer, "").await;
    let ahead = world.clock.now().wall.seconds() + 14;
    let flood: Vec<_> = (0..40)
        .map(|n| {
            let person = Person::new();
            let mut claims = person.claims(&world, &issuer, "flood", &["ops"]);
            claims["iat"] = json!(ahead);
            claims["jti"] = json!(n);
            (issuer.sign("k1", &claims), person)
        })
        .collect();
    let all = flood.iter().map(|(token, person)| log_in(&world, person, token, ""));
    let all = futures_util::future::join_all(all);
    tokio::pin!(all);
    // The clock stands still, so those that wait go on waiting.
    for sub in ["ada", "bob", "eve"] {
        let person = Person::new();
        let token = issuer.sign("k1", &person.claims(&world, &issuer, sub, &["ops"]));
        let mut asked = 0;
        loop {
            let answered = tokio::select! {
                (status, answer) = log_in(&world, &person, &token, "") => (status, answer),
                _ = &mut all => panic!("a token was used before its time"),
            };
            // While the flood arrives, its tokens are being checked.
            if answered.0 == 200 {
                break;
            }
            asked += 1;
            assert!(asked < 100, "{sub}: {answered:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    world.time().advance(Duration::from_secs(15));
    let done = soon("the logins of the flood", all).await;
    let good = done.iter().filter(|(status, _)| *status == 200).count();
    assert!((1..=4).contains(&good), "{good}");
}

// A person has an identity for each of their groups. All of them together have the share of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_groups_of_a_person_have_one_share() {
    let issuer = Issuer::start().await;
    let mut world = world(&issuer, "").await;
    let text = world.read("leasehold.toml");
    let room = "[server]\nconnections_operators_max = 2\nconnections_max = 2\nconnections_per_peer_max = 1\n";
    world.write("leasehold.toml", &text.replacen("[server]\n", room, 1));
    world.restart().await;
    let mut held = Vec::new();
    for group in ["ops", "model-owners"].repeat(2) {
        let ada = Person::new();
        let token = issuer.sign("k1", &ada.claims(&world, &issuer, "ada", &["/ML/Owners", "ops"]));
        let answer = logged_in(&world, &ada, &token, group).await;
        // A connection that is refused for its share stays open for a moment.
        if let Ok(channel) = connector(&world, &ada, &answer).connected_channel().await {
            let credentials = Credentials {
                cert: answer["svid"].as_str().unwrap().to_owned(),
                key: ada.key.serialize_pem(),
            };
            held.push(Client::new(answer["spiffe_id"].as_str().unwrap(), credentials, channel));
        }
    }
    let mut admitted = 0;
    for client in &held {
        admitted += usize::from(waits_for_me(client).await.is_ok());
    }
    assert_eq!(admitted, 2, "one of the places for operators, and one of the others");
    let operator = world.client(OPERATOR).await;
    operator.revoke(TICKETS).await.unwrap();
}

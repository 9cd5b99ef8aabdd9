//! Notices, from what happens to what a receiver of webhooks gets.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, response::IntoResponse};
use base64::{Engine, engine::general_purpose::STANDARD};
use leasehold::proto::v1;
use ring::hmac;
use serde_json::Value;

use crate::{
    approvals::{MILO, MONA, production},
    harness::*,
};

const KEY: &[u8; 32] = b"a secret of thirty-two bytes....";

/// One delivery.
#[derive(Clone, Debug)]
struct Heard {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Heard {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Its occasion and what it is about.
    fn about(&self) -> (String, String) {
        let event = self.event();
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        (text("type"), text("subject"))
    }

    /// Checks the signature as a receiver does, by the text of Standard Webhooks.
    fn is_signed(&self) {
        let (id, at) = (self.header("webhook-id"), self.header("webhook-timestamp"));
        let mut signed = format!("{id}.{at}.").into_bytes();
        signed.extend_from_slice(&self.body);
        let signature = self.header("webhook-signature").strip_prefix("v1,").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
        hmac::verify(&key, &signed, &STANDARD.decode(signature).unwrap()).unwrap();
        assert_eq!(self.event()["id"], id);
    }
}

/// What a receiver answers next. The last answer stays.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Status(u16),
    Redirect,
    /// It takes the request, and never answers.
    Never,
}

/// A real HTTP server that keeps what it hears.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Receiver {
    async fn start(answers: &[Answer]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Receiver {
            address: listener.local_addr().unwrap(),
            heard: Arc::default(),
            answers: Arc::new(Mutex::new(answers.iter().copied().collect())),
        };
        let app = Router::new().fallback(hear).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        receiver
    }

    fn answer_with(&self, answer: Answer) {
        *self.answers.lock().unwrap() = [answer].into();
    }

    fn all(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until it has heard so much.
    async fn heard(&self, count: usize) -> Vec<Heard> {
        eventually("a notice", async || self.all().len() >= count).await;
        self.all()
    }

    /// Waits for a notice of this type about this name.
    async fn heard_of(&self, occasion: &str, subject: &str) -> Heard {
        let wanted = (format!("leasehold.{occasion}"), subject.to_owned());
        let find = || self.all().into_iter().find(|heard| heard.about() == wanted);
        eventually(&format!("{wanted:?}"), async || find().is_some()).await;
        find().unwrap()
    }

    /// The section of the configuration that names it.
    fn section(&self, name: &str, tenants: &str, format: &str) -> String {
        let all = r#"["waiting", "granted", "denied", "voided", "recalled", "revoked", "lost"]"#;
        let Receiver { address, .. } = self;
        format!(
            "[[notify]]\nname = \"{name}\"\nurl = \"http://{address}/hook\"\nsecret_file = \"notify.key\"\n\
             events = {all}\ntenants = {tenants}\nformat = \"{format}\"\n"
        )
    }
}

async fn hear(
    State(receiver): State<Receiver>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    receiver.heard.lock().unwrap().push(Heard { path: uri.path().to_owned(), headers, body });
    let answer = {
        let mut answers = receiver.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() }
    };
    match answer {
        None => ().into_response(),
        Some(Answer::Status(code)) => axum::http::StatusCode::from_u16(code).unwrap().into_response(),
        Some(Answer::Redirect) => axum::response::Redirect::temporary("/elsewhere").into_response(),
        Some(Answer::Never) => std::future::pending().await,
    }
}

/// A daemon with these webhooks.
async fn world(sections: &[String]) -> World {
    let mut world = World::prepared(|setup| {
        setup.real_clock = true;
        setup.more = sections.concat();
    });
    write_secret(&world);
    world.restart().await;
    world
}

/// Writes the secret that signs. Only its owner may read it.
fn write_secret(world: &World) {
    world.write("notify.key", &format!("whsec_{}\n", STANDARD.encode(KEY)));
    std::fs::set_permissions(world.file("notify.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn waiting_job(world: &World) -> v1::Job {
    let launcher = world.client(LAUNCHER).await;
    launcher.create(production(), "live").await.unwrap().into_inner().job.unwrap()
}

async fn approve(world: &World, person: &str, job: &v1::Job) {
    let request = v1::ApproveRequest {
        job: job.id.clone(),
        request_digest: job.request_digest.clone(),
        gates: Vec::new(),
        reason: "reviewed, CHG-1412".into(),
    };
    world.client(person).await.approvals().approve(request).await.unwrap();
}

/// Locks and unlocks a dataset, which are two notices.
async fn lock_and_unlock(operator: &Client, name: &str) {
    let lock =
        v1::LockRequest { name: name.into(), reason: "a check".into(), ahead: true, ..Default::default() };
    operator.operators().lock(lock).await.unwrap();
    let unlock = v1::UnlockRequest { name: name.into(), reason: "checked".into() };
    operator.operators().unlock(unlock).await.unwrap();
}

// People hear of a request, its approvals, its recall and the end of its job, each signed, with no secret in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_hears_of_a_job_from_request_to_recall() {
    let receiver = Receiver::start(&[]).await;
    let world = world(&[receiver.section("ops", "[\"*\"]", "cloudevents")]).await;
    let job = waiting_job(&world).await;
    let subject = format!("job:{}", job.id);
    let waiting = receiver.heard_of("waiting", &subject).await;
    waiting.is_signed();
    assert_eq!(
        (waiting.path.as_str(), waiting.header("content-type")),
        ("/hook", "application/cloudevents+json; charset=utf-8")
    );
    let event = waiting.event();
    assert_eq!((&event["specversion"], &event["tenant"]), (&"1.0".into(), &"acme".into()));
    assert_eq!(event["source"], "https://leasehold.example");
    let data = &event["data"];
    assert_eq!(
        (&data["job_name"], &data["request_digest"]),
        (&"live".into(), &job.request_digest.clone().into())
    );
    assert!(
        data["gates"][0].as_str().unwrap().starts_with("gate-production-finetune: 2 of model-owners"),
        "{data}"
    );

    approve(&world, MONA, &job).await;
    let granted = receiver.heard_of("granted", &subject).await.event();
    assert_eq!(granted["data"]["still_waits_at"][0], "gate-production-finetune");
    approve(&world, MILO, &job).await;
    eventually("the second approval", async || {
        let by_milo = |h: &Heard| h.event()["data"]["approver"].as_str() == Some(MILO);
        receiver.all().iter().any(by_milo)
    })
    .await;
    let ready =
        |h: &Heard| h.event()["data"]["summary"].as_str().is_some_and(|s| s.ends_with("it may begin"));
    assert!(receiver.all().iter().any(ready), "a notice of an approval comes after it counts");

    let recall = v1::RecallDatasetRequest {
        name: TICKETS.into(),
        reason: "consent withdrawn".into(),
        ..Default::default()
    };
    world.client(OPERATOR).await.operators().recall_dataset(recall).await.unwrap();
    let recalled = receiver.heard_of("recalled", TICKETS).await;
    recalled.is_signed();
    assert_eq!(recalled.event()["data"]["why"], "consent withdrawn");
    receiver.heard_of("revoked", &subject).await;
    // Two notices never share an id, and none has a token.
    let all = receiver.all();
    let ids: std::collections::BTreeSet<&str> = all.iter().map(|h| h.header("webhook-id")).collect();
    assert_eq!(ids.len(), all.len());
    assert!(all.iter().all(|h| !String::from_utf8_lossy(&h.body).contains("eyJ")));
}

// A notice is sent again after an error, with the same id and body and a new signature.
#[tokio::test(flavor = "multi_thread")]
async fn a_notice_is_sent_again_after_an_error() {
    let receiver = Receiver::start(&[Answer::Status(500), Answer::Status(429), Answer::Status(204)]).await;
    let world = world(&[receiver.section("again", "[\"acme\"]", "cloudevents")]).await;
    waiting_job(&world).await;
    let heard = receiver.heard(3).await;
    assert!(
        heard
            .iter()
            .all(|h| h.header("webhook-id") == heard[0].header("webhook-id") && h.body == heard[0].body)
    );
    heard.iter().for_each(Heard::is_signed);
    // The next one comes once, so the first is not sent a fourth time.
    lock_and_unlock(&world.client(OPERATOR).await, TICKETS).await;
    let heard = receiver.heard(5).await;
    assert_eq!(heard.len(), 5);
    assert_eq!(heard[3].about().0, "leasehold.revoked");
}

// A redirect is not followed: a receiver cannot send notices elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_a_receiver_is_not_followed() {
    let receiver = Receiver::start(&[Answer::Redirect]).await;
    let world = world(&[receiver.section("moved", "[\"acme\"]", "cloudevents")]).await;
    waiting_job(&world).await;
    let heard = receiver.heard(2).await;
    assert!(heard.iter().all(|h| h.path == "/hook"), "{heard:?}");
    assert!(logged().contains("the receiver redirects (307 Temporary Redirect)"));
}

// A tenant's receiver gets notices only of its tenant, and a receiver for all gets those of every tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_receiver_hears_only_of_its_tenant() {
    let (acme, globex, all) =
        (Receiver::start(&[]).await, Receiver::start(&[]).await, Receiver::start(&[]).await);
    let world = world(&[
        acme.section("acme", "[\"acme\"]", "cloudevents"),
        globex.section("globex", "[\"globex\"]", "cloudevents"),
        all.section("all", "[\"*\"]", "cloudevents"),
    ])
    .await;
    let platform = world.client(PLATFORM).await;
    for name in ["dataset:globex/reviews@v1", "domain:hpc.acme.example", TICKETS] {
        lock_and_unlock(&platform, name).await;
    }
    all.heard(6).await;
    acme.heard(2).await;
    globex.heard(2).await;
    let names = |receiver: &Receiver| receiver.all().iter().map(|h| h.about().1).collect::<Vec<_>>();
    assert_eq!(names(&acme), [TICKETS, TICKETS]);
    assert_eq!(names(&globex), ["dataset:globex/reviews@v1", "dataset:globex/reviews@v1"]);
    // No number in it counts what others do.
    let shown = String::from_utf8_lossy(&acme.all()[0].body).into_owned();
    assert!(!shown.contains("\"seq\"") && !shown.contains("\"index\""), "{shown}");
}

// The tenants whose jobs depend on a person hear of a lock on the person, and of its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_hears_that_a_person_is_locked_and_unlocked() {
    let (acme, globex) = (Receiver::start(&[]).await, Receiver::start(&[]).await);
    let world = world(&[
        acme.section("acme", "[\"acme\"]", "cloudevents"),
        globex.section("globex", "[\"globex\"]", "cloudevents"),
    ])
    .await;
    // It is done for ada.
    waiting_job(&world).await;
    let platform = world.client(PLATFORM).await;
    lock_and_unlock(&platform, "human:ada").await;
    lock_and_unlock(&platform, "human:bob").await;
    lock_and_unlock(&platform, "dataset:globex/reviews@v1").await;
    globex.heard(2).await;
    let about = |receiver: &Receiver| receiver.all().iter().map(Heard::about).collect::<Vec<_>>();
    assert!(
        about(&globex).iter().all(|(_, name)| name == "dataset:globex/reviews@v1"),
        "{:?}",
        about(&globex)
    );
    acme.heard(3).await;
    let of_ada: Vec<_> = acme.all().into_iter().filter(|h| h.about().1 == "human:ada").collect();
    assert_eq!((of_ada.len(), acme.all().len()), (2, 3), "{:?}", about(&acme));
    let summaries: Vec<_> = of_ada.iter().map(|h| h.event()["data"]["summary"].to_string()).collect();
    assert!(summaries[0].contains("was locked by") && summaries[1].contains("is no longer locked by"));
    assert!(of_ada.iter().all(|h| h.event()["data"].get("leases_ended").is_none()));
}

// A receiver that never answers holds up no request, no ending and no stop, and its queue is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_holds_nothing_up() {
    let receiver = Receiver::start(&[Answer::Never]).await;
    let mut world = world(&[receiver.section("silent", "[\"acme\"]", "cloudevents")]).await;
    let dropped = world.counted("leasehold_notices_total", "dropped").await;
    // Those of a tenant have a rate.
    let operator = world.client(PLATFORM).await;
    waiting_job(&world).await;
    receiver.heard(1).await;
    // More notices than the queue holds.
    for _ in 0..leasehold::limits::NOTICES_MAX / 2 + 20 {
        lock_and_unlock(&operator, TICKETS).await;
    }
    eventually("a full queue", async || world.counted("leasehold_notices_total", "dropped").await > dropped)
        .await;
    let full =
        logged().lines().filter(|l| l.contains("queue of a webhook is full") && l.contains("silent")).count();
    assert_eq!(full, 1, "it is logged once");
    let stopped = world.stop().await.unwrap();
    assert_eq!(stopped, leasehold::internals::daemon::Stopped::InOrder);
}

// What was not delivered before a restart is delivered after it, with the same id.
#[tokio::test(flavor = "multi_thread")]
async fn a_notice_that_waits_survives_a_restart() {
    let receiver = Receiver::start(&[Answer::Status(503)]).await;
    let mut world = world(&[receiver.section("later", "[\"acme\"]", "cloudevents")]).await;
    let job = waiting_job(&world).await;
    let before = receiver.heard_of("waiting", &format!("job:{}", job.id)).await;
    world.stop().await;
    let place_file = world.file("state/notices/later");
    let place = || std::fs::read_to_string(&place_file).unwrap().trim().parse::<u64>().unwrap();
    let (attempts, waits_after) = (receiver.all().len(), place());
    receiver.answer_with(Answer::Status(200));
    world.restart().await;
    let heard = receiver.heard(attempts + 1).await;
    let after = heard.last().unwrap();
    assert_eq!((after.header("webhook-id"), &after.body), (before.header("webhook-id"), &before.body));
    // Once the daemon has read the answer, the notice is not sent once more after the next restart.
    eventually("the place after the notice", async || place() > waits_after).await;
    let attempts = receiver.all().len();
    world.restart().await;
    lock_and_unlock(&world.client(OPERATOR).await, TICKETS).await;
    let heard = receiver.heard(attempts + 2).await;
    assert_eq!(heard[attempts].about().1, TICKETS);
}

// A body for Slack has one text, in which no one is called and no link is hidden.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_for_slack_is_plain() {
    let receiver = Receiver::start(&[]).await;
    let world = world(&[receiver.section("chat", "[\"acme\"]", "slack")]).await;
    let lock = v1::LockRequest {
        name: TICKETS.into(),
        reason: "<!channel> see <https://evil.example|here>".into(),
        ..Default::default()
    };
    world.client(OPERATOR).await.operators().lock(lock).await.unwrap();
    let heard = receiver.heard(1).await;
    let body = heard[0].event();
    let text = body["text"].as_str().unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1);
    assert!(
        !text.contains('<') && text.starts_with("*revoked*: dataset:acme/tickets@v3 was locked by"),
        "{text}"
    );
}

/// A receiver behind TLS, with its own authority. Counts the requests that it reads.
async fn tls_receiver() -> (String, SocketAddr, Arc<Mutex<usize>>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 1, 1);
    let cert = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(Mutex::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut head = vec![0u8; 64 << 10];
            if matches!(tls.read(&mut head).await, Ok(1..)) {
                *counted.lock().unwrap() += 1;
                let _ =
                    tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                let _ = tls.shutdown().await;
            }
        }
    });
    (cert.pem(), address, count)
}

// A receiver over https is known only by the authorities that its section names.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_under_another_authority_hears_nothing() {
    let (good, bad) = (tls_receiver().await, tls_receiver().await);
    let section = |name: &str, address: SocketAddr| {
        format!(
            "[[notify]]\nname = \"{name}\"\nurl = \"https://localhost:{}/\"\nca = \"receiver.pem\"\n\
             secret_file = \"notify.key\"\nevents = [\"revoked\"]\ntenants = [\"acme\"]\n",
            address.port()
        )
    };
    let mut world = World::prepared(|setup| {
        setup.real_clock = true;
        setup.more = section("good", good.1) + &section("bad", bad.1);
    });
    write_secret(&world);
    world.write("receiver.pem", &good.0);
    world.restart().await;
    lock_and_unlock(&world.client(OPERATOR).await, TICKETS).await;
    eventually("both notices", async || *good.2.lock().unwrap() >= 2).await;
    eventually("the refusal of the other", async || {
        logged().lines().any(|l| l.contains("webhook=bad") && l.contains("could not be delivered"))
    })
    .await;
    assert_eq!(*bad.2.lock().unwrap(), 0);
}

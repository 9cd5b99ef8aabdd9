//! Direct keys: clients of S3 without an SVID and without a wrapper, which are programs that others wrote.

use std::{
    fs::OpenOptions,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use http::Method;
use leasehold::{
    limits,
    proto::v1::{self, CredentialKind, Half, Outcome},
};
use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use object_store::{
    Certificate, ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path,
    signer::Signer,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::{gateway::world_with_gateway, harness::*};

const PART: &str = "tickets/v3/train/part-0.jsonl";

/// Makes a web certificate. Returns both as PEM.
fn web_certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A daemon whose gateway has a listener for clients without an SVID. Signatures have the time of the machine.
async fn world() -> World {
    world_with(|_| {}).await
}

async fn world_with(change: impl FnOnce(&mut Setup)) -> World {
    let mut world = world_with_gateway(
        |setup| {
            setup.real_clock = true;
            let acme = setup.catalog.get_mut("acme.toml").unwrap();
            let endpoint = format!(
                "checks    = \"feed\"\npresenter = \"mtls\"\ns3_endpoint = \"localhost:8446\"\ns3_server_id = \"{DAEMON}\"\n"
            );
            *acme = acme.replacen("checks    = \"feed\"\npresenter = \"mtls\"\n", &endpoint, 1);
            change(setup);
        },
        "127.0.0.1:0",
    )
    .await;
    let (cert, key) = web_certificate();
    world.write("web.pem", &cert);
    world.write("web.key", &key);
    std::fs::set_permissions(world.file("web.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = world.read("leasehold.toml");
    let direct = "[gateway]\ndirect = \"127.0.0.1:0\"\ndirect_cert = \"web.pem\"\ndirect_key = \"web.key\"\n";
    world.write("leasehold.toml", &config.replace("[gateway]\n", direct));
    world.restart().await;
    world
}

/// A key, as its client has it.
#[derive(Clone)]
struct DirectKey {
    lease: String,
    access: String,
    secret: String,
    token: String,
    answer: v1::IssueCredentialResponse,
}

async fn try_key(worker: &Worker, half: Half) -> Result<DirectKey, tonic::Status> {
    let request = v1::IssueCredentialRequest {
        session: worker.session(),
        half: half as i32,
        kind: CredentialKind::S3 as i32,
        audience: GATEWAY.into(),
        ..Default::default()
    };
    let answer = worker.client.members().issue_credential(request).await?.into_inner();
    let key = answer.s3_key.clone().expect("a key");
    Ok(DirectKey {
        lease: answer.lease.clone().unwrap().id,
        access: key.access_key,
        secret: key.secret_key,
        token: answer.token.clone(),
        answer,
    })
}

async fn key(worker: &Worker, half: Half) -> DirectKey {
    try_key(worker, half).await.unwrap_or_else(|e| panic!("{:?}", Refused::of(&e)))
}

/// A client of a bucket. It tries nothing again, so that a test sees each answer.
fn bucket(world: &World, name: &str, key: &DirectKey) -> AmazonS3 {
    bucket_with(world, name, &key.access, &key.secret, Some(&key.token))
}

fn bucket_with(world: &World, name: &str, access: &str, secret: &str, token: Option<&str>) -> AmazonS3 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = Certificate::from_pem(world.read("web.pem").as_bytes()).unwrap();
    let address: SocketAddr = world.daemon().gateway_direct.unwrap();
    let builder = AmazonS3Builder::new()
        .with_endpoint(format!("https://localhost:{}", address.port()))
        .with_client_options(ClientOptions::new().with_root_certificate(root))
        .with_bucket_name(name)
        .with_access_key_id(access)
        .with_secret_access_key(secret)
        .with_retry(RetryConfig { max_retries: 0, ..Default::default() });
    match token {
        Some(token) => builder.with_token(token).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

async fn read(bucket: &AmazonS3) -> Result<Vec<u8>, String> {
    let got = soon("a read", bucket.get(&Path::from(PART))).await.map_err(|e| e.to_string())?;
    Ok(got.bytes().await.map_err(|e| e.to_string())?.to_vec())
}

#[track_caller]
fn refuses(answer: Result<Vec<u8>, String>, what: &[&str]) {
    let text = answer.expect_err("a refusal");
    for what in what {
        assert!(text.contains(what), "{what}: {text}");
    }
}

// A client without an SVID reads and writes by a key that names its lease, and ends with it in the middle of a download.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_an_svid_works_by_its_key() {
    let world = world().await;
    let launcher = world.client(LAUNCHER).await;
    let mut worker = world.working().await;
    worker.beat().await;
    let (reading, writing) = (key(&worker, Half::Reading).await, key(&worker, Half::Writing).await);
    assert_eq!(reading.answer.binding(), v1::Binding::Bearer);
    let bound = reading.answer.revocation_bound.clone().unwrap();
    assert_eq!((bound.by.as_str(), bound.at_most.unwrap().seconds), ("feed", 3));
    assert!(reading.access.starts_with("LHK") && reading.access != writing.access);

    let data = bucket(&world, "acme-data", &reading);
    assert_eq!(read(&data).await.unwrap(), b"0123456789");
    let all: Vec<_> = data.list(None).try_collect().await.unwrap();
    assert_eq!(all.len(), 2, "only what is leased");
    refuses(
        data.get(&Path::from("patients/v1/x")).await.map(|_| Vec::new()).map_err(|e| e.to_string()),
        &["AccessDenied"],
    );
    let models = bucket(&world, "acme-models", &writing);
    let folder = format!("out/support-lora/{}", worker.job);
    let odd = Path::from(format!("{folder}/a b+c=é&.json"));
    models.put(&odd, PutPayload::from_static(b"{}")).await.unwrap();
    assert_eq!(models.head(&odd).await.unwrap().size, 2);
    let mut upload =
        WriteMultipart::new(models.put_multipart(&Path::from(format!("{folder}/w"))).await.unwrap());
    for chunk in 0..12u8 {
        upload.write(&vec![chunk; 1 << 20]);
    }
    soon("an upload in parts", upload.finish()).await.unwrap();
    // One key is for one half.
    assert!(data.put(&odd, PutPayload::from_static(b"x")).await.is_err());
    refuses(read(&bucket(&world, "acme-data", &writing)).await, &["TOKEN_SCOPE"]);

    let mut download = data.get(&Path::from("tickets/v3/large")).await.unwrap().into_stream();
    soon("the first bytes", download.next()).await.unwrap().unwrap();
    launcher.end(&worker.job, 1, Outcome::Completed).await.unwrap();
    let cut = soon("the cut", async {
        loop {
            match download.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    });
    assert!(cut.await.is_some());
    refuses(read(&data).await, &["ExpiredToken", "REVOKED", "if the job is still open", "s3-key"]);
}

// Each part of a key is needed: the secret, the session token, and both of one lease. An ordinary token has no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_key_opens_nothing() {
    let world = world().await;
    let mut worker = world.working().await;
    worker.beat().await;
    let (one, other) = (key(&worker, Half::Reading).await, key(&worker, Half::Reading).await);
    let ordinary = worker.issue(Half::Reading).await;
    let with = |access: &str, secret: &str, token: Option<&str>| {
        bucket_with(&world, "acme-data", access, secret, token)
    };
    assert!(read(&with(&one.access, &one.secret, Some(&one.token))).await.is_ok());
    let refused = read(&with(&one.access, &other.secret, Some(&one.token))).await;
    refuses(refused, &["SignatureDoesNotMatch"]);
    refuses(read(&with(&one.access, &one.secret, None)).await, &["InvalidToken"]);
    refuses(read(&with(&one.access, &one.secret, Some(&other.token))).await, &["TOKEN_PRESENTER"]);
    refuses(read(&with(&one.access, &one.secret, Some("x.y.z"))).await, &["TOKEN_MALFORMED"]);
    refuses(
        read(&with("AKIAIOSFODNN7EXAMPLE", &one.secret, Some(&one.token))).await,
        &["InvalidAccessKeyId"],
    );
    let made_up = format!("LHK{}", ordinary.lease.id[2..].to_ascii_uppercase());
    refuses(read(&with(&made_up, &one.secret, Some(&ordinary.text))).await, &["InvalidAccessKeyId"]);
}

// A renewal keeps the key: its client goes on with the newer session token. What ends the lease ends the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lasts_as_long_as_its_lease() {
    let mut world = world().await;
    let operator = world.client(OPERATOR).await;
    let mut worker = world.working().await;
    worker.beat().await;
    let [mut renewed, released, revoked, restarted] = [
        key(&worker, Half::Reading).await,
        key(&worker, Half::Reading).await,
        key(&worker, Half::Reading).await,
        key(&worker, Half::Reading).await,
    ];
    renewed.token = worker.renew(&renewed.lease).await.unwrap().into_inner().token;
    assert!(read(&bucket(&world, "acme-data", &renewed)).await.is_ok());
    worker.release(&released.lease).await.unwrap();
    refuses(read(&bucket(&world, "acme-data", &released)).await, &["ExpiredToken", "REVOKED"]);
    // A URL that was signed before the revocation is refused after it.
    let before = bucket(&world, "acme-data", &revoked);
    assert!(read(&before).await.is_ok());
    let url = before.signed_url(Method::GET, &Path::from(PART), Duration::from_secs(600)).await.unwrap();
    let (status, text) = get(&world, url.as_str()).await;
    assert_eq!((status, text.as_str()), (200, "0123456789"));
    operator.revoke(&format!("lease:{}", revoked.lease)).await.unwrap();
    let (status, text) = get(&world, url.as_str()).await;
    assert!(status == 403 && text.contains("ExpiredToken") && text.contains("REVOKED"), "{text}");
    let stripped = url.as_str().replace("X-Amz-Security-Token", "X-Amz-Other");
    let (status, text) = get(&world, &stripped).await;
    assert!(status == 400 && text.contains("InvalidToken"), "{text}");
    // The secret was in memory only.
    let bucket_before = bucket(&world, "acme-data", &restarted);
    assert!(read(&bucket_before).await.is_ok());
    world.restart().await;
    refuses(
        read(&bucket(&world, "acme-data", &restarted)).await,
        &["ExpiredToken", "the daemon was restarted", "s3-key"],
    );
}

/// Fetches a URL as any program does that has it. Returns the status and the text.
async fn get(world: &World, url: &str) -> (u16, String) {
    get_by(&world.read("web.pem"), url).await
}

/// Fetches a URL over a new connection to a server with this certificate.
async fn get_by(pem: &str, url: &str) -> (u16, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
    let client = reqwest::Client::builder().add_root_certificate(root).build().unwrap();
    let answer = soon("an answer", client.get(url).send()).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

const NO_BEARER: &str = r#"
@id("guard-bearer")
@explain("tickets are not for credentials that work from any machine")
forbid (principal is Leasehold::Workload, action == Leasehold::Action::"read_dataset", resource is Leasehold::Dataset)
when { context.binding == "bearer" };
"#;

// Policy can demand a binding: it refuses keys, and it ends live ones, while tokens go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_can_forbid_direct_keys() {
    let world = world().await;
    let mut worker = world.working().await;
    worker.beat().await;
    let (live, token) = (key(&worker, Half::Reading).await, worker.issue(Half::Reading).await);
    let data = bucket(&world, "acme-data", &live);
    assert!(read(&data).await.is_ok());
    world.write("policy/bearer.cedar", NO_BEARER);
    world.daemon().reload();
    let refused = soon("the refusal", async {
        loop {
            match try_key(&worker, Half::Reading).await {
                Err(status) => return Refused::of(&status),
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    refused.await.is(Code::PermissionDenied, "POLICY_DENIED");
    soon("the end of the key", async {
        while read(&data).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    refuses(read(&data).await, &["ExpiredToken", "REVOKED"]);
    // The daemon has ended the lease too, and has counted and recorded its end.
    let gateway = world.client(GATEWAY).await;
    assert!(!gateway.introspect(&live.token, WORKER).await.active);
    worker.renew(&token.lease.id).await.unwrap();
    let records = world.records().await;
    assert!(records.of("lowered").iter().any(|r| r["name"] == format!("lease:{}", live.lease)));
    // A key for the other half, which the rule allows, outlives the next reload.
    let writing = key(&worker, Half::Writing).await;
    world.daemon().reload();
    worker.renew(&writing.lease).await.unwrap();
}

const BOUND_ONLY: &str = r#"
@id("guard-binding")
@explain("tickets are only for credentials that are bound to their holder")
forbid (principal is Leasehold::Workload, action == Leasehold::Action::"read_dataset", resource is Leasehold::Dataset)
unless { context.binding == "certificate" || context.binding == "subject" }
"#;

// A rule that demands a binding must let a job be created, because a job has no credential then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_for_a_binding_lets_jobs_be_created() {
    let world = world().await;
    let launcher = world.client(LAUNCHER).await;
    let worker = world.working().await;
    let applies = async |text: &str, key: &str| {
        world.write("policy/binding.cedar", text);
        world.daemon().reload();
        let answer = launcher.create(spec(), key).await;
        (answer, try_key(&worker, Half::Reading).await.map_err(|status| Refused::of(&status)))
    };
    let (created, key) = applies(&format!("{BOUND_ONLY}when {{ context.binding != \"\" }};"), "one").await;
    created.unwrap();
    key.err().unwrap().is(Code::PermissionDenied, "POLICY_DENIED");
    assert!(!worker.issue(Half::Reading).await.text.is_empty());
    let (created, _) = applies(&format!("{BOUND_ONLY};"), "two").await;
    refused(created).is(Code::PermissionDenied, "POLICY_DENIED");
}

// The order of an issue holds for keys: locks, the catalog, and the record before the answer. The secret is kept nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_issued_like_a_token() {
    let world = world().await;
    let operator = world.client(OPERATOR).await;
    let mut worker = world.working().await;
    worker.beat().await;
    let issued = key(&worker, Half::Reading).await;
    let records = world.records().await;
    let record = records.of("credential.issued").last().copied().unwrap().clone();
    let credential = &record["credential"];
    assert_eq!(
        (&credential["binding"], &credential["s3_access_key"]),
        (&"bearer".into(), &issued.access.clone().into())
    );
    assert!(!records.text.contains(&issued.secret), "the secret is in the ledger");
    let shown = format!("{:?}", issued.answer);
    assert!(!shown.contains(&issued.secret) && !logged().contains(&issued.secret));
    for file in
        std::fs::read_dir(world.file("state")).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file())
    {
        let bytes = std::fs::read(&file).unwrap();
        let has = bytes.windows(issued.secret.len()).any(|w| w == issued.secret.as_bytes());
        assert!(!has, "the secret is in {}", file.display());
    }
    operator.lock(TICKETS).await.unwrap();
    let refused = Refused::of(&try_key(&worker, Half::Reading).await.err().unwrap());
    refused.is(Code::PermissionDenied, "LOCKED");
    refuses(read(&bucket(&world, "acme-data", &issued)).await, &["ExpiredToken"]);
}

// Only the gateway of an audience resolves its keys, and only while the lease lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_gateway_of_a_key_resolves_it() {
    let world = world().await;
    let mut worker = world.working().await;
    worker.beat().await;
    let (issued, ordinary) = (key(&worker, Half::Reading).await, worker.issue(Half::Reading).await);
    let today = world.clock.now().wall.to_string().replace('-', "")[..8].to_owned();
    let gateway = world.client(GATEWAY).await;
    let ask = |audience: &str, access: &str, date: &str| v1::ResolveKeyRequest {
        audience: audience.into(),
        access_key: access.into(),
        date: date.into(),
    };
    let resolved = gateway.verifiers().resolve_key(ask(GATEWAY, &issued.access, &today)).await.unwrap();
    assert_eq!(resolved.get_ref().date_key.len(), 32);
    assert!(!format!("{resolved:?}").contains("date_key"));
    let made_up = format!("LHK{}", ordinary.lease.id[2..].to_ascii_uppercase());
    for (asked, code, reason) in [
        (ask(GATEWAY, &made_up, &today), Code::NotFound, "LEASE_NOT_FOUND"),
        (ask(GATEWAY, "LHK", &today), Code::NotFound, "LEASE_NOT_FOUND"),
        (ask(WEB, &issued.access, &today), Code::NotFound, "LEASE_NOT_FOUND"),
        (ask(GATEWAY, &issued.access, "20200101"), Code::InvalidArgument, "FIELD_INVALID"),
    ] {
        refused(gateway.verifiers().resolve_key(asked).await).is(code, reason);
    }
    let asked = ask(GATEWAY, &issued.access, &today);
    refused(worker.client.verifiers().resolve_key(asked.clone()).await)
        .is(Code::NotFound, "AUDIENCE_UNKNOWN");
    worker.release(&issued.lease).await.unwrap();
    refused(gateway.verifiers().resolve_key(asked).await).is(Code::NotFound, "LEASE_NOT_FOUND");
}

// An audience without a gateway has no use for a key, so none is issued.
#[tokio::test(flavor = "multi_thread")]
async fn an_audience_without_a_gateway_gives_no_key() {
    let world = World::start().await;
    let mut worker = world.working().await;
    worker.beat().await;
    let refused = Refused::of(&try_key(&worker, Half::Reading).await.err().unwrap());
    refused.is(Code::Unimplemented, "NOT_SUPPORTED");
}

// The command prints what credential_process of AWS expects, for the member whose agent keeps its session in a folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_prints_a_key_for_credential_process() {
    let world = world().await;
    let mut worker = world.working().await;
    worker.beat().await;
    let command = async |dir: &std::path::Path| {
        let mut command = world.leasehold(WORKER, &[], &["s3-key", "--dir", dir.to_str().unwrap()]);
        (command.exit().await, command.stdout(), command.stderr())
    };
    let none = command(world.dir.path()).await;
    assert_eq!((none.0, none.1.as_str()), (Some(1), ""), "{}", none.2);
    assert!(none.2.contains("leasehold agent --dir"), "{}", none.2);

    let v1::Session { job, attempt, instance, secret } = worker.session().unwrap();
    let secret = leasehold::secret::Secret::from_bytes(&secret).unwrap();
    let saved = serde_json::json!({
        "job": job, "attempt": attempt, "instance": instance, "secret": secret.to_text().expose(),
    });
    std::fs::create_dir(world.file("creds")).unwrap();
    world.write("creds/.leasehold-session", &saved.to_string());
    let (code, out, err) = command(&world.file("creds")).await;
    assert_eq!(code, Some(0), "{err}");
    let key: serde_json::Value = serde_json::from_str(&out).unwrap();
    let text = |name: &str| key[name].as_str().unwrap().to_owned();
    assert_eq!((&key["Version"], key.as_object().unwrap().len()), (&1.into(), 5));
    let expires = leasehold::clock::Wall::parse(&text("Expiration")).unwrap();
    assert!(expires > world.clock.now().wall);
    let (access, secret, token) = (text("AccessKeyId"), text("SecretAccessKey"), text("SessionToken"));
    assert!(read(&bucket_with(&world, "acme-data", &access, &secret, Some(&token))).await.is_ok());
}

/// A file whose readers wait without end, as on a disk that hangs. It is a pipe that no process writes into.
struct HungFile(PathBuf);

impl HungFile {
    fn in_place_of(path: PathBuf) -> Self {
        std::fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        HungFile(path)
    }
}

impl Drop for HungFile {
    fn drop(&mut self) {
        // End the wait of the thread that reads the pipe, because the runtime of the test waits for that thread.
        let _ = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&self.0);
    }
}

// While a read of the certificate hangs, clients still connect with the last good certificate, and the daemon can stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_on_a_hung_disk_stops_nothing() {
    let mut world = world_with(|setup| setup.real_clock = false).await;
    let pem = world.read("web.pem");
    let port = world.daemon().gateway_direct.unwrap().port();
    let url = format!("https://localhost:{port}/");
    assert_eq!(get_by(&pem, &url).await.0, 403);
    let hung = HungFile::in_place_of(world.file("web.pem"));
    world.time().advance(limits::GATEWAY_CERTIFICATE_LOOK);
    for _ in 0..20 {
        assert_eq!(get_by(&pem, &url).await.0, 403);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.stop().await.unwrap();
    drop(hung);
}

// A client without a good signature is disconnected after a limited time, however often it sends requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_proves_nothing_is_disconnected() {
    let world = world_with(|setup| setup.real_clock = false).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.read("web.pem").as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(world.daemon().gateway_direct.unwrap()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut client = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut ask = async || {
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.ok()?;
        let n = soon("an answer", client.read(&mut buffer)).await.ok().filter(|n| *n > 0)?;
        Some(String::from_utf8_lossy(buffer.get(..n)?).into_owned())
    };
    let first = ask().await.expect("an answer");
    assert!(first.starts_with("HTTP/1.1 403"), "{first}");
    let mut asked = Duration::ZERO;
    while asked < 2 * limits::GATEWAY_DIRECT_UNPROVEN_TIME {
        world.time().advance(Duration::from_secs(1));
        asked += Duration::from_secs(1);
        tokio::time::sleep(Duration::from_millis(5)).await;
        if ask().await.is_none() {
            assert!(asked >= limits::GATEWAY_DIRECT_UNPROVEN_TIME, "after {asked:?}");
            return;
        }
    }
    panic!("it is still connected after {asked:?}");
}

//! The S3 gateway inside the daemon, with a client of object stores that knows nothing of Leasehold.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderValue, Request};
use hyper::{body::Incoming, client::conn::http1, server, service::service_fn};
use hyper_util::rt::TokioIo;
use leasehold::{
    link::{Alpn, Connector, Endpoint},
    proto::v1::{self, Outcome},
};
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder},
    list::{PaginatedListOptions, PaginatedListStore},
    path::Path,
};

use crate::{
    decided::{globex_worker, share_tickets},
    harness::*,
};

const SECRET: &str = "a-local-secret";
/// Larger than all buffers between the two ends.
pub const LARGE: u64 = 64 << 20;

/// What the wrapper does for a command: a plain endpoint on this machine, whose requests go on over mutual TLS with the member's
/// tokens.
pub struct Forwarder {
    address: SocketAddr,
}

impl Forwarder {
    pub async fn start(connector: Connector, tokens: Vec<String>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tokens = Arc::new(tokens);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (connector, tokens) = (connector.clone(), tokens.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (connector, tokens) = (connector.clone(), tokens.clone());
                    async move { Ok::<_, Infallible>(forward(connector, &tokens, request).await) }
                });
                tokio::spawn(
                    server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service),
                );
            }
        });
        Forwarder { address }
    }

    /// A client of a bucket. It tries nothing again, so that a test sees each answer.
    pub fn bucket(&self, name: &str) -> AmazonS3 {
        // Its HTTP client takes the provider of the process, also for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_bucket_name(name)
            .with_access_key_id("LOCAL")
            .with_secret_access_key(SECRET)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
            .unwrap()
    }
}

async fn forward(
    connector: Connector,
    tokens: &[String],
    mut request: Request<Incoming>,
) -> http::Response<Incoming> {
    for token in tokens {
        request.headers_mut().append("x-leasehold-token", HeaderValue::from_str(token).unwrap());
    }
    request.headers_mut().insert("x-leasehold-secret-key", HeaderValue::from_static(SECRET));
    let dialed = connector.connect(Alpn::Http1).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
    tokio::spawn(connection);
    client.send_request(request).await.unwrap()
}

/// A daemon with a gateway over two directories.
pub async fn world() -> World {
    world_with_gateway(|_| {}, "127.0.0.1:0").await
}

/// The same, with a gateway at this address.
pub async fn world_with_gateway(change: impl FnOnce(&mut Setup), listen: &str) -> World {
    let mut world = World::prepared(|setup| {
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        *acme = acme.replace(
            "verifiers = [\"spiffe://k8s.acme.example/ns/data/sa/gateway\"]",
            &format!("verifiers = [\"spiffe://k8s.acme.example/ns/data/sa/gateway\", \"{DAEMON}\"]"),
        );
        // A tenant names only identities that the platform lets it name.
        let claim = format!("\n[[claim]]\ntenant = \"acme\"\nmatch = [\"{DAEMON}\"]\n");
        setup.catalog.get_mut("platform.toml").unwrap().push_str(&claim);
        change(setup);
    });
    let config = world.read("leasehold.toml");
    let store = |bucket: &str| {
        format!("[[gateway.store]]\nlocation = \"s3://{bucket}/\"\ndirectory = \"{bucket}\"\n")
    };
    let gateway = format!(
        "[gateway]\nlisten = \"{listen}\"\naudience = \"{GATEWAY}\"\n{}{}",
        store("acme-data"),
        store("acme-models")
    );
    world.write("leasehold.toml", &format!("{config}{gateway}"));
    for folder in ["acme-data/tickets/v3/train", "acme-data/patients/v1", "acme-models/base-7b/2026.10"] {
        std::fs::create_dir_all(world.file(folder)).unwrap();
    }
    world.write("acme-data/tickets/v3/train/part-0.jsonl", "0123456789");
    world.write("acme-data/patients/v1/x", "secret");
    world.write("acme-models/base-7b/2026.10/config.json", "{}");
    std::fs::File::create(world.file("acme-data/tickets/v3/large")).unwrap().set_len(LARGE).unwrap();
    world.restart().await;
    world
}

fn names(listed: Vec<object_store::ObjectMeta>) -> Vec<String> {
    listed.into_iter().map(|meta| meta.location.to_string()).collect()
}

/// A client that knows only S3 reads its dataset, writes checkpoints of any size, sees nothing of others, and is cut with its job.
// An unmodified client of S3 works through its lease, and ends with it in the middle of a download.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_client_reads_and_writes_through_its_lease() {
    let world = world().await;
    let launcher = world.client(LAUNCHER).await;
    let mut worker = world.working().await;
    worker.beat().await;
    let [reading, writing] = worker.issue_both().await;
    let address = world.daemon().gateway.unwrap().to_string();
    let endpoint = Endpoint::new(&address, DAEMON.parse().unwrap()).unwrap();
    let connector =
        |id: &str| Connector::new(world.source(&world.svid(id)), world.clock.clone(), endpoint.clone());
    let tokens = vec![reading.text.clone(), writing.text.clone()];
    let forwarder = Forwarder::start(connector(WORKER), tokens.clone()).await;
    let (data, models) = (forwarder.bucket("acme-data"), forwarder.bucket("acme-models"));

    let path = Path::from("tickets/v3/train/part-0.jsonl");
    let whole = soon("a read", data.get(&path)).await.unwrap().bytes().await.unwrap();
    assert_eq!(&whole[..], b"0123456789");
    assert_eq!(&data.get_range(&path, 2..5).await.unwrap()[..], b"234");
    assert_eq!(data.head(&path).await.unwrap().size, 10);
    let all: Vec<_> = data.list(None).try_collect().await.unwrap();
    assert_eq!(names(all), ["tickets/v3/large", "tickets/v3/train/part-0.jsonl"], "only what is leased");
    let foreign = data.get(&Path::from("patients/v1/x")).await.unwrap_err();
    assert!(matches!(foreign, object_store::Error::PermissionDenied { .. }), "{foreign}");

    let folder = format!("out/support-lora/{}", worker.job);
    let small = Path::from(format!("{folder}/metrics.json"));
    models.put(&small, PutPayload::from_static(b"{\"loss\": 1}")).await.unwrap();
    assert_eq!(world.read(&format!("acme-models/{small}")), "{\"loss\": 1}");
    let large = Path::from(format!("{folder}/epoch-1/weights.bin"));
    let mut upload = WriteMultipart::new(models.put_multipart(&large).await.unwrap());
    for chunk in 0..12u8 {
        upload.write(&vec![chunk; 1 << 20]);
    }
    soon("an upload in parts", upload.finish()).await.unwrap();
    assert_eq!(models.head(&large).await.unwrap().size, 12 << 20);
    let stable = forwarder.bucket("leasehold");
    let copy = Path::from(format!("{folder}/copy"));
    models.copy(&small, &copy).await.unwrap();
    let seen: Vec<_> = stable.list(Some(&Path::from("checkpoint"))).try_collect().await.unwrap();
    assert_eq!(seen.len(), 3, "{seen:?}");
    models.delete(&copy).await.unwrap();
    assert!(matches!(models.get(&copy).await, Err(object_store::Error::NotFound { .. })));
    let stolen = models.put(&Path::from("base-7b/2026.10/config.json"), PutPayload::from_static(b"x")).await;
    assert!(matches!(stolen, Err(object_store::Error::PermissionDenied { .. })));

    // The same tokens from another holder open nothing.
    let thief = Forwarder::start(connector(OTHER_WORKER), tokens).await;
    let refused = thief.bucket("acme-data").get(&path).await.unwrap_err().to_string();
    assert!(refused.contains("TOKEN_PRESENTER"), "{refused}");

    let mut download = data.get(&Path::from("tickets/v3/large")).await.unwrap().into_stream();
    let mut received = soon("the first bytes", download.next()).await.unwrap().unwrap().len() as u64;
    launcher.end(&worker.job, 1, Outcome::Completed).await.unwrap();
    let cut = soon("the cut", async {
        loop {
            match download.next().await {
                Some(Ok(bytes)) => received += bytes.len() as u64,
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    });
    assert!(cut.await.is_some() && received < LARGE, "{received}");
    let ended = soon("a refusal", data.get(&path)).await.unwrap_err();
    assert!(matches!(ended, object_store::Error::PermissionDenied { .. }), "{ended}");
    assert!(ended.to_string().contains("REVOKED"), "{ended}");
}

// What a job did read and write is in the ledger and in the job, with what was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_job_read_is_recorded() {
    let world = world().await;
    let launcher = world.client(LAUNCHER).await;
    let mut worker = world.working().await;
    worker.beat().await;
    let [reading, writing] = worker.issue_both().await;
    let endpoint =
        Endpoint::new(&world.daemon().gateway.unwrap().to_string(), DAEMON.parse().unwrap()).unwrap();
    let connector = Connector::new(world.source(&world.svid(WORKER)), world.clock.clone(), endpoint);
    let forwarder = Forwarder::start(connector, vec![reading.text.clone(), writing.text.clone()]).await;
    let (data, models) = (forwarder.bucket("acme-data"), forwarder.bucket("acme-models"));
    let path = Path::from("tickets/v3/train/part-0.jsonl");
    for _ in 0..3 {
        data.get(&path).await.unwrap().bytes().await.unwrap();
    }
    data.put(&path, PutPayload::from_static(b"x")).await.unwrap_err();
    let out = Path::from(format!("out/support-lora/{}/metrics.json", worker.job));
    models.put(&out, PutPayload::from_static(b"{}")).await.unwrap();

    let close = v1::CloseJobRequest { job: worker.job.clone(), reason: "done".into(), ..Default::default() };
    launcher.jobs().close_job(close).await.unwrap();
    let used = async || launcher.job(&worker.job).await.uses;
    eventually("the report", async || {
        world.time().advance(std::time::Duration::from_secs(10));
        used().await.len() == 2
    })
    .await;
    let uses = used().await;
    let of = |name: &str| uses.iter().find(|u| u.resource == name).unwrap().clone();
    let read = of(TICKETS);
    assert_eq!(
        (read.objects, read.reads, read.read_bytes, read.writes, read.refused),
        (1, 3, 30, 0, 1),
        "{read:?}"
    );
    assert!(read.first.is_some_and(|first| read.last.is_some_and(|last| last.seconds >= first.seconds)));
    let written = of(LINE);
    assert_eq!(
        (written.objects, written.writes, written.written_bytes, written.reads, written.refused),
        (1, 1, 2, 0, 0),
        "{written:?}"
    );
    let records = world.records().await;
    assert_eq!(records.of("job.used").len(), 1, "one report, when the leases were over");
    assert!(records.of("use.lost").is_empty());
    let mut world = world;
    world.restart().await;
    assert_eq!(world.client(LAUNCHER).await.job(&worker.job).await.uses, uses, "it outlives the daemon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_that_ends_before_it_begins_is_refused() {
    let world = world().await;
    let (launcher, gateway) = (world.client(LAUNCHER).await, world.client(GATEWAY).await);
    let mut worker = world.working().await;
    worker.beat().await;
    let [reading, _] = worker.issue_both().await;
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let report = |seq, first, last| v1::ReportUseRequest {
        audience: GATEWAY.into(),
        run: 7,
        seq,
        uses: vec![v1::LeaseUse {
            lease: reading.lease.id.clone(),
            job: worker.job.clone(),
            resource: TICKETS.into(),
            reads: 1,
            first,
            last,
            ..Default::default()
        }],
        ..Default::default()
    };
    let send = async |report| gateway.verifiers().report_use(report).await;
    let no = refused(send(report(1, at(1_790_000_060), at(1_790_000_000))).await);
    no.is(tonic::Code::InvalidArgument, "FIELD_INVALID");
    for said in ["`uses.first`", "is later than", "2026-"] {
        assert!(no.text.contains(said), "{no:?}");
    }
    for (first, last) in [(None, at(1)), (at(1), None)] {
        refused(send(report(1, first, last)).await).is(tonic::Code::InvalidArgument, "FIELD_MISSING");
    }
    assert_eq!(launcher.job(&worker.job).await.uses.len(), 0);
    // One moment is an interval, too.
    let taken = send(report(1, at(1_790_000_000), at(1_790_000_000))).await.unwrap().into_inner();
    assert_eq!((taken.unknown, launcher.job(&worker.job).await.uses.len()), (0, 1));
}

// A tenant that lists a large folder over and over has only its share of the listings, so other tenants can list too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_of_one_tenant_keep_no_other_tenant_waiting() {
    const NAMES: usize = 60_000;
    const AT_ONCE: usize = 60;
    let world = world_with_gateway(share_tickets, "127.0.0.1:0").await;
    std::fs::create_dir(world.file("acme-data/tickets/v3/many")).unwrap();
    for n in 0..NAMES {
        std::fs::File::create(world.file(&format!("acme-data/tickets/v3/many/{n}"))).unwrap();
    }
    let endpoint =
        Endpoint::new(&world.daemon().gateway.unwrap().to_string(), DAEMON.parse().unwrap()).unwrap();
    let forwarder = async |worker: &Worker, id: &str| {
        let token = worker.issue(v1::Half::Reading).await.text;
        let connector = Connector::new(world.source(&world.svid(id)), world.clock.clone(), endpoint.clone());
        Forwarder::start(connector, vec![token]).await
    };
    let attacker = world.working().await;
    let flood = forwarder(&attacker, WORKER).await.bucket("acme-data");
    let worker = globex_worker(&world, vec![TICKETS.into()], "k").await;
    let other = forwarder(&worker, &format!("{GLOBEX_WORKER}-k")).await.bucket("acme-data");
    let list = async |bucket: &AmazonS3, folder: &str| {
        bucket.list_with_delimiter(Some(&Path::from(folder))).await.map(|listed| listed.objects.len())
    };
    let before = Instant::now();
    assert_eq!(list(&other, "tickets/v3/train").await.unwrap(), 1);
    println!("idle: {:?}", before.elapsed());

    // The client asks for only one name, so it has little work, but the gateway reads the whole folder.
    let first = || PaginatedListOptions { max_keys: Some(1), ..Default::default() };
    let flooding: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let flood = flood.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(error) = flood.list_paginated(Some("tickets/v3/many/"), first()).await {
                        return error.to_string();
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..10 {
        let asked = Instant::now();
        assert_eq!(soon("a small listing", list(&other, "tickets/v3/train")).await.unwrap(), 1);
        let took = asked.elapsed();
        println!("flooded: {took:?}");
        assert!(took < Duration::from_secs(1), "a small listing took {took:?}");
    }
    for flooding in flooding {
        assert!(!flooding.is_finished(), "the flood has ended: {:?}", flooding.await);
        flooding.abort();
    }
}

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;

use super::*;
use crate::{
    catalog::Catalog,
    gateway::{
        directory::DirectoryStore,
        store::LocationStore,
        testing::{SECRET, presigned, sha256_hex, signed},
        upload_memory::UploadMemory,
    },
    limits,
    link::{Alpn, Connector, Endpoint, Shares},
    name::{FenceName, Scope},
    token::{AuthorizationDetail, Claims},
    verify::testing::{AUDIENCE, FenceLowerer, JOB, ScriptedDaemon, soon},
};

#[path = "bucket_tests.rs"]
mod bucket;

type Sent = UnsyncBoxBody<Bytes, std::convert::Infallible>;

const HOST: &str = "127.0.0.1:9000";
/// Larger than all buffers between the two ends.
const LARGE: u64 = 64 << 20;
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

const CATALOG: &str = r#"
[tenant.acme]
[[principal]]
match = "spiffe://a.example/worker"
kind = "workload"
[[audience]]
name = "spiffe://a.example/files"
verifiers = ["spiffe://a.example/files"]
checks = "feed"
presenter = "mtls"
[[dataset]]
name = "tickets@v3"
location = "s3://acme-data/ds/"
audience = "spiffe://a.example/files"
pin = "none"
classification = "internal"
data_classes = []
source_trust = "curated"
purposes = ["support-tuning"]
owner = "data@acme.example"
[[dataset]]
name = "secret@v1"
location = "s3://acme-data/ds-secret/"
audience = "spiffe://a.example/files"
pin = "none"
classification = "internal"
data_classes = []
source_trust = "curated"
purposes = ["support-tuning"]
owner = "data@acme.example"
[[dataset]]
name = "elsewhere@v1"
location = "s3://no-store/x/"
audience = "spiffe://a.example/files"
pin = "none"
classification = "internal"
data_classes = []
source_trust = "curated"
purposes = ["support-tuning"]
owner = "data@acme.example"
[[model]]
name = "base-7b@2026.10"
location = "s3://acme-models/base-7b/"
audience = "spiffe://a.example/files"
pin = "none"
tier = "lab"
environment = "development"
risk = "low"
tool_access = "none"
owner = "models@acme.example"
[[checkpoint]]
name = "support-lora"
location = "s3://acme-models/out/"
audience = "spiffe://a.example/files"
model = "base-7b@2026.10"
owner = "models@acme.example"
"#;

/// A gateway with a scripted feed, over folders with files.
struct Case {
    daemon: ScriptedDaemon,
    lowering: FenceLowerer,
    data: TempDir,
    models: TempDir,
    endpoint: Endpoint,
    verifier: Verifier,
    rooms: Arc<GatewayRoom>,
    _shutdown: tokio_util::sync::DropGuard,
}

/// An answer, read whole.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    /// The code of an error.
    fn code(&self) -> &str {
        self.part("Code")
    }

    fn part(&self, name: &str) -> &str {
        self.parts(name).into_iter().next().unwrap_or_default()
    }

    fn parts(&self, name: &str) -> Vec<&str> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        self.text.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap()).collect()
    }

    #[track_caller]
    fn is(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.text);
    }
}

impl Case {
    async fn new() -> Self {
        let mut daemon = ScriptedDaemon::start().await;
        let (verifier, feed) = daemon.following().await;
        let lowering = feed.go_on(daemon.clock.clone());
        let (data, models, catalog) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |name: &str, text: &str| {
            let path = data.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("ds/train/part 1.txt", "0123456789");
        write("ds/train/part-2.txt", "abc");
        write("ds/a.txt", "a");
        write("ds-secret/x", "secret");
        std::fs::File::create(data.path().join("ds/large")).unwrap().set_len(LARGE).unwrap();
        std::os::unix::fs::symlink("../ds-secret/x", data.path().join("ds/link")).unwrap();
        std::os::unix::fs::symlink("../ds-secret", data.path().join("ds/links")).unwrap();
        std::fs::create_dir(models.path().join("base-7b")).unwrap();
        std::fs::write(models.path().join("base-7b/config.json"), "{}").unwrap();
        std::fs::write(catalog.path().join("acme.toml"), CATALOG).unwrap();
        let catalog = Catalog::load(catalog.path()).map_err(|e| e.to_string()).unwrap();
        let store =
            |dir: &TempDir| Arc::new(LocationStore::Directory(DirectoryStore::new(dir.path().to_owned())));
        let stores = Stores::new([
            ("s3://acme-data/".to_owned(), store(&data)),
            ("s3://acme-models/".to_owned(), store(&models)),
        ]);
        let gateway =
            Gateway::new(verifier.clone(), Arc::new(move || catalog.clone()), stores, daemon.clock.clone());
        let rooms = gateway.rooms.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let serving =
            gateway.serve(listener, daemon.source("/files"), ServeOptions::default(), shutdown.clone());
        tokio::spawn(serving);
        let endpoint = Endpoint::new(&address, AUDIENCE.parse().unwrap()).unwrap();
        Case { daemon, lowering, data, models, endpoint, verifier, rooms, _shutdown: shutdown.drop_guard() }
    }

    async fn client(&self, path: &str) -> http1::SendRequest<Sent> {
        let connector =
            Connector::new(self.daemon.source(path), self.daemon.clock.clone(), self.endpoint.clone());
        let dialed = connector.connect(Alpn::Http1).await.unwrap();
        let (client, connection) = http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A token that opens some resources.
    fn token(&self, opens: &[&str]) -> String {
        self.token_with(opens, |_| ())
    }

    fn token_with(&self, opens: &[&str], change: impl FnOnce(&mut Claims)) -> String {
        self.daemon.token(|claims| {
            let scopes: Vec<Scope> = opens.iter().map(|name| Scope::whole(name.parse().unwrap())).collect();
            claims.authorization_details = AuthorizationDetail::of_scopes(&scopes, claims.lh.job);
            change(claims);
        })
    }

    fn reading(&self) -> String {
        self.token(&["dataset:acme/tickets@v3", "model:acme/base-7b@2026.10", "dataset:acme/elsewhere@v1"])
    }

    fn writing(&self) -> String {
        self.token_with(&["checkpoint:acme/support-lora"], |claims| {
            claims.lh.lease = crate::name::LeaseId(2);
        })
    }

    /// Sends a signed request of the worker with both tokens.
    async fn ask(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        self.ask_with(method, target, body, &[]).await
    }

    async fn ask_with(&self, method: &str, target: &str, body: &[u8], more: &[(&str, &str)]) -> Answer {
        let headers = signed(method, HOST, target, &sha256_hex(body), more);
        self.send(request(method, target, headers, &[&self.reading(), &self.writing()], full(body))).await
    }

    async fn send(&self, request: Request<Sent>) -> Answer {
        let response = self.client("/worker").await.send_request(request).await.unwrap();
        read_answer(response).await
    }

    fn worker(&self) -> crate::name::SpiffeId {
        "spiffe://a.example/worker".parse().unwrap()
    }

    fn memory(&self) -> UploadMemory {
        UploadMemory::new(self.rooms.upload_kib.clone(), self.worker())
    }

    fn checkpoint(&self, name: &str) -> std::path::PathBuf {
        self.models.path().join(format!("out/{JOB}/{name}"))
    }
}

async fn read_answer(response: Response<Incoming>) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, text: String::from_utf8_lossy(&bytes).into_owned() }
}

fn request(
    method: &str,
    target: &str,
    headers: Vec<(String, String)>,
    tokens: &[&str],
    body: Sent,
) -> Request<Sent> {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    for token in tokens {
        request = request.header(TOKEN, *token);
    }
    request.header(SECRET_KEY, SECRET).body(body).unwrap()
}

fn full(body: &[u8]) -> Sent {
    Full::from(body.to_vec()).boxed_unsync()
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    all
}

// A holder reads objects, ranges and listings of its lease, by both names of a resource.
#[tokio::test]
async fn a_holder_reads_what_its_lease_opens() {
    let case = Case::new().await;
    let whole = case.ask("GET", "/acme-data/ds/train/part%201.txt", b"").await;
    assert_eq!((whole.status, whole.text.as_str()), (200, "0123456789"));
    assert_eq!(whole.headers["cache-control"], "no-store");
    let stable = case.ask("GET", "/leasehold/dataset/acme/tickets%40v3/a.txt", b"").await;
    assert_eq!((stable.status, stable.text.as_str()), (200, "a"));
    let range = [("range", "bytes=2-4")];
    let part = case.ask_with("GET", "/acme-data/ds/train/part%201.txt", b"", &range).await;
    assert_eq!((part.status, part.text.as_str()), (206, "234"));
    assert_eq!(part.headers["content-range"], "bytes 2-4/10");
    let beyond = [("range", "bytes=10-")];
    case.ask_with("GET", "/acme-data/ds/train/part%201.txt", b"", &beyond).await.is(416, "InvalidRange");
    let tag = whole.headers["etag"].to_str().unwrap();
    let same = case.ask_with("GET", "/acme-data/ds/train/part%201.txt", b"", &[("if-none-match", tag)]).await;
    assert_eq!(same.status, 304);
    let head = case.ask("HEAD", "/acme-models/base-7b/config.json", b"").await;
    assert_eq!((head.status, &head.headers["content-length"]), (200, &http::HeaderValue::from_static("2")));

    let buckets = case.ask("GET", "/", b"").await;
    assert_eq!(buckets.parts("Name"), ["acme-data", "acme-models", "leasehold", "no-store"]);
    let top = case.ask("GET", "/acme-data?delimiter=%2F&list-type=2", b"").await;
    assert_eq!(top.parts("Prefix"), ["", "ds/"], "{}", top.text);
    let all = case.ask("GET", "/acme-data?delimiter=&list-type=2&prefix=ds%2Ftrain", b"").await;
    assert_eq!(all.parts("Key"), ["ds/train/part 1.txt", "ds/train/part-2.txt"]);
    let first = case.ask("GET", "/acme-data?list-type=2&max-keys=2", b"").await;
    assert_eq!(first.parts("Key"), ["ds/a.txt", "ds/large"]);
    assert_eq!(first.part("IsTruncated"), "true");
    let next = first.part("NextContinuationToken");
    let rest = case.ask("GET", &format!("/acme-data?continuation-token={next}&list-type=2"), b"").await;
    assert_eq!(rest.parts("Key"), ["ds/train/part 1.txt", "ds/train/part-2.txt"]);
    let old = case.ask("GET", "/acme-data?delimiter=%2F&encoding-type=url&prefix=ds%2F", b"").await;
    assert_eq!(old.parts("Key"), ["ds/a.txt", "ds/large"]);
    assert_eq!(old.parts("Prefix"), ["ds/", "ds/train/"]);
    assert_eq!(case.ask("HEAD", "/acme-data", b"").await.status, 200);
    case.ask("GET", "/acme-data?location=", b"").await.is(200, "");
    case.ask("GET", "/acme-data/ds/none", b"").await.is(404, "NoSuchKey");
}

// Nothing outside of the leased prefixes is read, listed or written: siblings, climbs, links, other tenants' buckets. A
// foreign key and an absent one get the same answer.
#[tokio::test]
async fn nothing_beyond_the_lease_is_opened() {
    let case = Case::new().await;
    let mut answers = Vec::new();
    for target in [
        "/acme-data/ds-secret/x",
        "/acme-data/ds-secret/absent",
        "/acme-data/other",
        "/globex-data/x",
        "/leasehold/dataset/acme/secret%40v1/x",
        "/leasehold/checkpoint/acme/support-lora/j-00000000000000000000000000000000/x",
    ] {
        let answer = case.ask("GET", target, b"").await;
        answer.is(403, "AccessDenied");
        answers.push(answer.part("Message").replace(&target[1..], "").replace("%40", "@"));
        case.ask("PUT", target, b"x").await.is(403, "AccessDenied");
        case.ask("DELETE", target, b"").await.is(403, "AccessDenied");
    }
    assert_eq!(answers[0], answers[1], "foreign and absent are the same");
    for target in [
        "/acme-data/ds/../ds-secret/x",
        "/acme-data/ds/%2e%2e/ds-secret/x",
        "/acme-data/ds/..%2Fds-secret%2Fx",
        "/acme-data/ds//train/part%201.txt",
        "/acme-data/ds/link",
        "/acme-data/ds/links/x",
        "/acme-data/ds/a%00b",
        "/acme-data/ds/train",
    ] {
        let answer = case.ask("GET", target, b"").await;
        assert!(matches!(answer.status, 403 | 404), "{target}: {} {}", answer.status, answer.text);
        assert!(!answer.text.contains("secret<"), "{target}");
    }
    // Datasets and models are never written.
    case.ask("PUT", "/acme-data/ds/new", b"x").await.is(403, "AccessDenied");
    case.ask("DELETE", "/acme-models/base-7b/config.json", b"").await.is(403, "AccessDenied");
    let source = [("x-amz-copy-source", "/acme-data/ds-secret/x")];
    let target = format!("/acme-models/out/{JOB}/stolen");
    case.ask_with("PUT", &target, b"", &source).await.is(403, "AccessDenied");
    let list = case.ask("GET", "/acme-data?list-type=2", b"").await;
    assert!(!list.text.contains("secret") && !list.text.contains("link"), "{}", list.text);
    case.ask("GET", "/acme-data?list-type=2&prefix=ds-secret%2F", b"").await.is(200, "");
    let keys = "<Delete><Object><Key>ds-secret/x</Key></Object><Object><Key>ds/a.txt</Key></Object></Delete>";
    let bulk = case.ask("POST", "/acme-data?delete=", keys.as_bytes()).await;
    assert_eq!(bulk.parts("Code"), ["AccessDenied", "AccessDenied"], "{}", bulk.text);
    assert_eq!(std::fs::read(case.data.path().join("ds-secret/x")).unwrap(), b"secret");
    assert!(files(case.models.path()) == ["config.json"], "{:?}", files(case.models.path()));
    let none = case.ask("GET", "/no-store/x/y", b"").await;
    none.is(403, "AccessDenied");
    assert!(none.part("Message").contains("[[gateway.store]]"), "{}", none.text);
    case.ask("PUT", "/new-bucket", b"").await.is(501, "NotImplemented");
    case.ask("GET", "/acme-data?acl=", b"").await.is(501, "NotImplemented");
}

// A request counts only if it is signed with the wrapper's key in Version 4, by the holder of a token.
#[tokio::test]
async fn a_request_must_be_signed_by_the_holder() {
    let case = Case::new().await;
    let (token, target) = (case.reading(), "/acme-data/ds/a.txt");
    let good = signed("GET", HOST, target, UNSIGNED, &[]);
    let asked =
        |headers: Vec<(String, String)>, tokens: &[&str]| request("GET", target, headers, tokens, full(b""));
    assert_eq!(case.send(asked(good.clone(), &[&token])).await.status, 200);

    let mut stranger = case.client("/stranger").await;
    let stolen = read_answer(stranger.send_request(asked(good.clone(), &[&token])).await.unwrap()).await;
    stolen.is(403, "AccessDenied");
    assert!(stolen.part("Message").starts_with("TOKEN_PRESENTER"), "{}", stolen.text);
    assert_eq!(stolen.headers["leasehold-reason"], "TOKEN_PRESENTER");

    case.send(asked(good.clone(), &[])).await.is(403, "AccessDenied");
    case.send(asked(good.clone(), &[&token, &token, &token])).await.is(403, "AccessDenied");
    let mut wrong = asked(good.clone(), &[&token]);
    wrong.headers_mut().insert(SECRET_KEY, "another".parse().unwrap());
    case.send(wrong).await.is(403, "SignatureDoesNotMatch");
    let mut moved = asked(good.clone(), &[&token]);
    moved.headers_mut().insert("host", "elsewhere".parse().unwrap());
    case.send(moved).await.is(403, "SignatureDoesNotMatch");
    case.send(asked(vec![("host".into(), HOST.into())], &[&token])).await.is(403, "AccessDenied");
    let v2 = vec![("host".into(), HOST.into()), ("authorization".into(), "AWS KEY:c2ln".into())];
    let refused = case.send(asked(v2, &[&token])).await;
    refused.is(400, "InvalidRequest");
    assert!(refused.part("Message").contains("Version 2"), "{}", refused.text);
    let host = || vec![("host".to_owned(), HOST.to_owned())];
    let v2 = format!("{target}?AWSAccessKeyId=K&Expires=9999999999&Signature=c2ln");
    case.send(request("GET", &v2, host(), &[&token], full(b""))).await.is(400, "InvalidRequest");
    let encoded = v2.replace("AWSAccess", "%41WSAccess").replace("Signature", "%53ignature");
    case.send(request("GET", &encoded, host(), &[&token], full(b""))).await.is(400, "InvalidRequest");

    let link = presigned(HOST, target, 60);
    assert_eq!(case.send(request("GET", &link, host(), &[&token], full(b""))).await.status, 200);
    case.lowering.lower(FenceName::job(JOB));
    let access = soon_revoked(&case, &link, &token).await;
    access.is(403, "ExpiredToken");
    assert!(access.part("Message").starts_with("REVOKED: "), "{}", access.text);
}

/// Asks until the revocation has arrived.
async fn soon_revoked(case: &Case, link: &str, token: &str) -> Answer {
    for _ in 0..1_000 {
        let host = vec![("host".to_owned(), HOST.to_owned())];
        let answer = case.send(request("GET", link, host, &[token], full(b""))).await;
        if answer.status != 200 {
            return answer;
        }
    }
    panic!("it was never revoked");
}

// A download is cut in the middle, and never ends as if it were whole, when its job is revoked.
#[tokio::test]
async fn a_revocation_cuts_a_download() {
    let case = Case::new().await;
    let target = "/acme-data/ds/large";
    let headers = signed("GET", HOST, target, UNSIGNED, &[]);
    let token = case.reading();
    let mut client = case.client("/worker").await;
    let response = client.send_request(request("GET", target, headers, &[&token], full(b""))).await.unwrap();
    assert_eq!(response.headers()["content-length"], LARGE.to_string().as_str());
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    case.lowering.lower(FenceName::job(JOB));
    let (mut received, mut is_cut) = (first.len() as u64, false);
    loop {
        // A reader that stalls is cut too, by the clock.
        case.daemon.clock.advance(Duration::from_millis(20));
        match body.frame().await {
            Some(Ok(frame)) => received += frame.into_data().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => is_cut = true,
            None => break,
        }
        if is_cut {
            break;
        }
    }
    assert!(is_cut && received < LARGE, "{received}");
}

// Objects are written whole or not at all: PutObject with its checksums, copies, folders, deletes.
#[tokio::test]
async fn a_checkpoint_is_written_whole_or_not_at_all() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/epoch%201/w.bin");
    let put = case.ask("PUT", &target, b"weights").await;
    put.is(200, "");
    assert_eq!(std::fs::read(case.checkpoint("epoch 1/w.bin")).unwrap(), b"weights");
    let stable = format!("/leasehold/checkpoint/acme/support-lora/{JOB}/epoch%201/w.bin");
    let read = case.ask("GET", &stable, b"").await;
    assert_eq!((read.text.as_str(), &read.headers["etag"]), ("weights", &put.headers["etag"]));
    let only_new = [("if-none-match", "*")];
    case.ask_with("PUT", &target, b"other", &only_new).await.is(412, "PreconditionFailed");
    let wrong = [("x-amz-checksum-crc32", "AAAAAA==")];
    case.ask_with("PUT", &target, b"other", &wrong).await.is(400, "BadDigest");
    let wrong = [("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")];
    case.ask_with("PUT", &target, b"other", &wrong).await.is(400, "BadDigest");
    let tokens = [&*case.reading(), &*case.writing()];
    let headers = signed("PUT", HOST, &target, &sha256_hex(b"said"), &[]);
    let lied = case.send(request("PUT", &target, headers, &tokens, full(b"sent"))).await;
    assert_eq!(lied.status, 400, "{}", lied.text);
    assert_eq!(std::fs::read(case.checkpoint("epoch 1/w.bin")).unwrap(), b"weights");

    let copy = format!("/acme-models/out/{JOB}/copy");
    let source = [("x-amz-copy-source", "/acme-data/ds/a.txt")];
    case.ask_with("PUT", &copy, b"", &source).await.is(200, "");
    assert_eq!(std::fs::read(case.checkpoint("copy")).unwrap(), b"a");
    case.ask("PUT", &format!("/acme-models/out/{JOB}/copy/below"), b"x").await.is(400, "InvalidArgument");
    case.ask("PUT", &format!("/acme-models/out/{JOB}/dir/"), b"").await.is(200, "");
    assert_eq!(case.ask("HEAD", &format!("/acme-models/out/{JOB}/dir/"), b"").await.status, 200);
    assert_eq!(case.ask("DELETE", &target, b"").await.status, 204);
    assert!(!case.checkpoint("epoch 1").exists(), "an empty folder goes with its last object");
    let keys = format!("<Delete><Object><Key>out/{JOB}/copy</Key></Object></Delete>");
    let bulk = case.ask("POST", "/acme-models?delete=", keys.as_bytes()).await;
    assert_eq!(bulk.part("Key"), format!("out/{JOB}/copy"), "{}", bulk.text);
    assert_eq!(files(case.models.path()), ["config.json"]);
}

// The trailing checksum of a chunked upload is compared with its bytes.
#[tokio::test]
async fn a_trailing_checksum_is_compared() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/t");
    let more = [
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "9"),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
    ];
    for (sum, status) in [("y/Q5Jg==", 200), ("AAAAAA==", 400)] {
        let headers = signed("PUT", HOST, &target, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", &more);
        let body = format!("9\r\n123456789\r\n0\r\nx-amz-checksum-crc32:{sum}\r\n\r\n");
        let tokens = [&*case.writing()];
        let answer = case.send(request("PUT", &target, headers, &tokens, full(body.as_bytes()))).await;
        assert_eq!(answer.status, status, "{sum} {}", answer.text);
    }
    assert_eq!(std::fs::read(case.checkpoint("t")).unwrap(), b"123456789");
}

// An upload in parts appears when it is completed. Only its holder finds it, and a revoked upload never appears.
#[tokio::test]
async fn parts_appear_together_or_never() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/big");
    let created = case.ask("POST", &format!("{target}?uploads="), b"").await;
    let id = created.part("UploadId").to_owned();
    assert!(!id.is_empty(), "{}", created.text);
    let large = vec![7u8; 5 << 20];
    let one = case.ask("PUT", &format!("{target}?partNumber=1&uploadId={id}"), &large).await;
    let two = case.ask("PUT", &format!("{target}?partNumber=2&uploadId={id}"), b"end").await;
    let tag = |answer: &Answer| answer.headers["etag"].to_str().unwrap().to_owned();
    let list = case.ask("GET", &format!("{target}?uploadId={id}"), b"").await;
    assert_eq!(list.parts("PartNumber"), ["1", "2"]);
    assert_eq!(case.ask("GET", &target, b"").await.status, 404, "it is not visible yet");
    let part = |n: u16, tag: &str| format!("<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>");
    let parts = |all: String| format!("<CompleteMultipartUpload>{all}</CompleteMultipartUpload>");
    let end = format!("{target}?uploadId={id}");
    let swapped = parts(part(2, &tag(&two)) + &part(1, &tag(&one)));
    case.ask("POST", &end, swapped.as_bytes()).await.is(400, "InvalidPartOrder");
    let other = parts(part(1, "\"x\""));
    case.ask("POST", &end, other.as_bytes()).await.is(400, "InvalidPart");
    case.ask("POST", &end, b"<broken").await.is(400, "MalformedXML");
    let elsewhere = format!("/acme-models/out/{JOB}/other?uploadId={id}");
    let good = parts(part(1, &tag(&one)) + &part(2, &tag(&two)));
    case.ask("POST", &elsewhere, good.as_bytes()).await.is(404, "NoSuchUpload");
    let done = case.ask("POST", &end, good.as_bytes()).await;
    done.is(200, "");
    let again = case.ask("POST", &end, good.as_bytes()).await;
    assert_eq!(again.part("ETag"), done.part("ETag"), "an answer that was lost is given again");
    let stored = std::fs::read(case.checkpoint("big")).unwrap();
    assert!(stored.len() == (5 << 20) + 3 && stored.ends_with(b"\x07end"));

    let created = case.ask("POST", &format!("{target}2?uploads="), b"").await;
    let id = created.part("UploadId").to_owned();
    let one = case.ask("PUT", &format!("{target}2?partNumber=1&uploadId={id}"), b"x").await;
    case.lowering.lower(FenceName::job(JOB));
    let good = parts(part(1, &tag(&one)));
    let end = format!("{target}2?uploadId={id}");
    soon(|| case.verifier.state().is_ok()).await;
    loop {
        let answer = case.ask("GET", "/", b"").await;
        if answer.status == 403 {
            break;
        }
    }
    case.ask("POST", &end, good.as_bytes()).await.is(403, "ExpiredToken");
    assert!(!case.checkpoint("big2").exists());
    // The parts are removed at the next check.
    for _ in 0..200 {
        case.daemon.clock.advance(Duration::from_millis(100));
        if files(&case.models.path().join(".leasehold-uploads")).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the parts of a revoked upload stay");
}

// Two requests may complete one upload at once. The object is whole, and both clients learn its tag in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_at_a_time_completes_an_upload() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/twice");
    let created = case.ask("POST", &format!("{target}?uploads="), b"").await;
    let id = created.part("UploadId").to_owned();
    let mut list = String::new();
    for number in 1..=4u8 {
        let part = vec![number; 6 << 20];
        let stored = case.ask("PUT", &format!("{target}?partNumber={number}&uploadId={id}"), &part).await;
        let tag = stored.headers["etag"].to_str().unwrap();
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
    }
    let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let end = format!("{target}?uploadId={id}");
    let sum = [("x-amz-checksum-crc32", "AAAAAA==")];
    case.ask_with("POST", &end, list.as_bytes(), &sum).await.is(501, "NotImplemented");
    let complete = || case.ask("POST", &end, list.as_bytes());
    let (one, two, three) = tokio::join!(complete(), complete(), complete());
    let statuses = [one.status, two.status, three.status];
    assert!(statuses.contains(&200), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    complete().await.is(200, "");
    let stored = std::fs::read(case.checkpoint("twice")).unwrap();
    let whole: Vec<u8> = (1..=4u8).flat_map(|number| vec![number; 6 << 20]).collect();
    assert!(stored == whole, "the object has {} bytes", stored.len());
}

// A token of the next attempt can reach the gateway before the feed reports that the earlier attempt is over.
#[tokio::test]
async fn an_older_attempt_changes_nothing_after_the_next_began() {
    let case = Case::new().await;
    let writing = |number: u64| {
        case.token_with(&["checkpoint:acme/support-lora"], |claims| {
            claims.lh.lease = crate::name::LeaseId(u128::from(number) + 10);
            claims.lh.attempt = crate::name::AttemptNumber::new(number).unwrap();
        })
    };
    let (first, second) = (writing(1), writing(2));
    let target = |name: &str| format!("/acme-models/out/{JOB}/{name}");
    let put = |name: &str, token: &str, body: Sent, length: usize| {
        let length = length.to_string();
        let more = [("content-length", length.as_str())];
        let headers = signed("PUT", HOST, &target(name), UNSIGNED, &more);
        request("PUT", &target(name), headers, &[token], body)
    };
    assert_eq!(case.send(put("early", &first, full(b"1"), 1)).await.status, 200);
    // The body of this upload is complete only after the second attempt has begun.
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let frames = tokio_stream::wrappers::ReceiverStream::new(rx);
    let body = StreamBody::new(frames).boxed_unsync();
    let mut client = case.client("/worker").await;
    let late = tokio::spawn(client.send_request(put("late", &first, body, 2)));
    tx.send(Ok(http_body::Frame::data(Bytes::from_static(b"1")))).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), tx.reserve()).await.unwrap().map(drop).unwrap();
    assert_eq!(case.send(put("next", &second, full(b"2"), 1)).await.status, 200);
    tx.send(Ok(http_body::Frame::data(Bytes::from_static(b"1")))).await.unwrap();
    drop(tx);
    let answer = read_answer(late.await.unwrap().unwrap()).await;
    answer.is(403, "AccessDenied");
    assert_eq!(answer.headers["leasehold-reason"], "ATTEMPT_STALE");
    case.send(put("more", &first, full(b"1"), 1)).await.is(403, "AccessDenied");
    for (name, is_there) in [("early", true), ("late", false), ("next", true), ("more", false)] {
        assert_eq!(case.checkpoint(name).exists(), is_there, "{name}");
    }
}

// A body in chunks that ends early is refused, also if its request has no Content-Length.
#[tokio::test]
async fn a_chunked_body_that_ends_early_is_refused() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/short");
    let more = [("content-encoding", "aws-chunked"), ("x-amz-decoded-content-length", "18")];
    let headers = signed("PUT", HOST, &target, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", &more);
    let (sender, frames) = tokio::sync::mpsc::channel(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
    sender.send(Ok(http_body::Frame::data(Bytes::from_static(b"9\r\n123456789\r\n")))).await.unwrap();
    drop(sender);
    let token = case.writing();
    let answer = case.send(request("PUT", &target, headers, &[&token], body.boxed_unsync())).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert!(!case.checkpoint("short").exists());
}

// A condition that the gateway does not evaluate is refused: it is never ignored.
#[tokio::test]
async fn unknown_conditions_are_refused() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/kept");
    case.ask("PUT", &target, b"x").await.is(200, "");
    let copy = [("x-amz-copy-source", "/acme-data/ds/a.txt"), ("if-none-match", "*")];
    case.ask_with("PUT", &target, b"", &copy).await.is(501, "NotImplemented");
    let key = format!("<Key>out/{JOB}/kept</Key>");
    let keys = format!("<Delete><Object>{key}<ETag>other</ETag></Object></Delete>");
    let bulk = case.ask("POST", "/acme-models?delete=", keys.as_bytes()).await;
    assert_eq!(bulk.part("Code"), "NotImplemented", "{}", bulk.text);
    assert_eq!(std::fs::read(case.checkpoint("kept")).unwrap(), b"x");
}

// A slow writer is cut when its access ends, and leaves nothing.
#[tokio::test]
async fn a_revocation_ends_an_upload() {
    let case = Case::new().await;
    let target = format!("/acme-models/out/{JOB}/slow");
    let headers = signed("PUT", HOST, &target, UNSIGNED, &[("content-length", "1000")]);
    let (sender, frames) = tokio::sync::mpsc::channel(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
    let token = case.writing();
    let mut client = case.client("/worker").await;
    let sent = request("PUT", &target, headers, &[&token], body.boxed_unsync());
    let answering = tokio::spawn(async move { client.send_request(sent).await });
    sender.send(Ok(http_body::Frame::data(Bytes::from_static(b"some")))).await.unwrap();
    let staging = case.models.path().join(".leasehold-uploads");
    soon(|| !files(&staging).is_empty()).await;
    case.lowering.lower(FenceName::job(JOB));
    let answer = read_answer(answering.await.unwrap().unwrap()).await;
    answer.is(403, "ExpiredToken");
    soon(|| files(&staging).is_empty()).await;
    assert!(!case.checkpoint("slow").exists());
}

// A client whose body does not come loses its slot, for all operations.
#[tokio::test]
async fn a_body_that_does_not_come_ends_its_request() {
    let case = Case::new().await;
    let folder = format!("/acme-models/out/{JOB}/folder/");
    let object = format!("/acme-models/out/{JOB}/object");
    for (method, target) in [("PUT", folder.as_str()), ("PUT", &object), ("POST", "/acme-models?delete=")] {
        let headers = signed(method, HOST, target, UNSIGNED, &[("content-length", "1000")]);
        let (sender, frames) = tokio::sync::mpsc::channel(1);
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(frames));
        let mut client = case.client("/worker").await;
        let sent = request(method, target, headers, &[&case.writing()], body.boxed_unsync());
        let answering = tokio::spawn(async move { client.send_request(sent).await });
        let taken =
            || case.rooms.requests.take(&case.worker(), limits::GATEWAY_REQUESTS_PER_PEER_MAX).is_err();
        soon(taken).await;
        for _ in 0..200 {
            if answering.is_finished() {
                break;
            }
            case.daemon.clock.advance(Duration::from_millis(500));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(answering.is_finished(), "{method} {target} holds its place");
        let answer = read_answer(answering.await.unwrap().unwrap()).await;
        assert!(answer.status >= 400, "{method} {target}: {}", answer.text);
        soon(|| !taken()).await;
        drop(sender);
    }
}

// One holder has a bounded number of listings under way, and reads meanwhile.
#[tokio::test]
async fn listings_of_one_holder_are_bounded() {
    let case = Case::new().await;
    let others = case.rooms.listings.take(&case.worker(), limits::GATEWAY_LISTINGS_PER_PEER_MAX).unwrap();
    case.ask("GET", "/acme-data?list-type=2", b"").await.is(503, "SlowDown");
    let hub = case.ask("GET", "/_hub/api/datasets/acme/tickets", b"").await;
    assert_eq!(hub.status, 503, "{}", hub.text);
    assert_eq!(case.ask("GET", "/acme-data/ds/a.txt", b"").await.status, 200);
    drop(others);
    case.ask("GET", "/acme-data?list-type=2", b"").await.is(200, "");
}

#[path = "hub/front_tests.rs"]
mod hub_tests;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_is_too_long_is_the_clients_fault() {
    let case = Case::new().await;
    let token = case.reading();
    for (method, target) in [
        ("POST", "/acme-data?delete="),
        ("POST", "/acme-data/k?uploadId=u"),
        ("PUT", "/acme-data/k?tagging="),
        ("PUT", "/acme-data/k?%74agging="),
    ] {
        for (length, status, code) in
            [(Some("8388609"), 400, "MaxMessageLengthExceeded"), (None, 411, "MissingContentLength")]
        {
            let mut headers = signed(method, HOST, target, UNSIGNED, &[]);
            headers.extend(length.map(|length| ("content-length".to_owned(), length.to_owned())));
            // The answer comes before the document.
            let endless = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, _>>();
            let endless: Sent = StreamBody::new(endless).boxed_unsync();
            let asked = request(method, target, headers, &[&token], endless);
            let answer = tokio::time::timeout(Duration::from_secs(10), case.send(asked)).await;
            answer.expect("an answer").is(status, code);
        }
    }
}

// Such an identity cannot hold a lease. It must not take the connections and open files of holders.
#[tokio::test]
async fn an_identity_that_no_entry_matches_gets_few_connections() {
    let case = Case::new().await;
    let status = async |client: &mut http1::SendRequest<Sent>| {
        let headers = vec![("host".to_owned(), HOST.to_owned())];
        client.send_request(request("GET", "/", headers, &[], full(b""))).await.unwrap().status().as_u16()
    };
    let mut open = Vec::new();
    for _ in 0..limits::CONNECTIONS_UNKNOWN_PER_PEER_MAX {
        open.push(case.client("/nobody").await);
    }
    let mut one_more = case.client("/nobody").await;
    assert_ne!(status(open.last_mut().unwrap()).await, 429);
    assert_eq!(status(&mut one_more).await, 429);
}

use std::{path::Path, time::Duration};

use futures_util::StreamExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;

use super::*;
use crate::{
    link::{Alpn, Connector, Endpoint},
    name::{FenceName, JobId, Scope},
    token::{AuthorizationDetail, Claims},
    verify::testing::{AUDIENCE, FenceLowerer, JOB, ScriptedDaemon, a_moment, soon},
};

/// The size of a body that is larger than all buffers between the two ends.
const LARGE: u64 = 64 << 20;

type Sent = UnsyncBoxBody<Bytes, BodyError>;

/// A file server with a scripted feed, and folders with files.
struct Case {
    daemon: ScriptedDaemon,
    lowering: FenceLowerer,
    data: TempDir,
    checkpoints: TempDir,
    transfers: broadcast::Receiver<FileTransfer>,
    endpoint: Endpoint,
    _verifier: Verifier,
    _shutdown: tokio_util::sync::DropGuard,
}

impl Case {
    async fn new() -> Self {
        let mut daemon = ScriptedDaemon::start().await;
        let (verifier, feed) = daemon.following().await;
        let lowering = feed.go_on(daemon.clock.clone());
        let (data, checkpoints) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(data.path().join("train")).unwrap();
        std::fs::write(data.path().join("train/part 1.txt"), "0123456789").unwrap();
        std::fs::File::create(data.path().join("large")).unwrap().set_len(LARGE).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", data.path().join("link")).unwrap();
        let folders = HashMap::from([
            ("dataset:acme/tickets@v3".parse().unwrap(), data.path().to_owned()),
            ("model:acme/base-7b@2026.10".parse().unwrap(), data.path().join("train")),
        ]);
        let server = FileServer::new(verifier.clone(), folders, checkpoints.path().to_owned())
            .with_upload_bytes_max(1 << 20);
        let transfers = server.transfers();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let (source, clock) = (daemon.source("/files"), daemon.clock.clone());
        let serving = server.serve(listener, source, clock, shutdown.clone());
        tokio::spawn(async move { serving.await.unwrap() });
        let endpoint = Endpoint::new(&address, AUDIENCE.parse().unwrap()).unwrap();
        let _shutdown = shutdown.drop_guard();
        Case { daemon, lowering, data, checkpoints, transfers, endpoint, _verifier: verifier, _shutdown }
    }

    fn connector(&self, path: &str) -> Connector {
        Connector::new(self.daemon.source(path), self.daemon.clock.clone(), self.endpoint.clone())
    }

    async fn client(&self, path: &str) -> http1::SendRequest<Sent> {
        let dialed = self.connector(path).connect(Alpn::Http1).await.unwrap();
        let (client, connection) = http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Sends a request of the worker on a new connection.
    async fn ask(&self, request: Request<Sent>) -> Response<Incoming> {
        self.client("/worker").await.send_request(request).await.unwrap()
    }

    async fn get(&self, path: &str) -> Response<Incoming> {
        self.ask(request(Method::GET, path, &self.daemon.token(|_| ()))).await
    }

    /// Makes a token for checkpoints.
    fn writer(&self, change: impl FnOnce(&mut Claims)) -> String {
        self.daemon.token(|c| {
            opens(c, "checkpoint:acme/support-lora");
            change(c);
        })
    }

    async fn transfer(&mut self) -> FileTransfer {
        tokio::time::timeout(Duration::from_secs(120), self.transfers.recv()).await.unwrap().unwrap()
    }
}

/// Changes a token, so that it opens only one resource.
fn opens(claims: &mut Claims, resource: &str) {
    let scope = Scope::whole(resource.parse().unwrap());
    claims.authorization_details = AuthorizationDetail::of_scopes([&scope], claims.lh.job);
}

fn request(method: Method, path: &str, token: &str) -> Request<Sent> {
    with_body(method, path, token, Sent::default())
}

fn with_body(method: Method, path: &str, token: &str, body: Sent) -> Request<Sent> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "files")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(body)
        .unwrap()
}

fn full(text: &str) -> Sent {
    Full::from(text.to_owned()).map_err(|never| match never {}).boxed_unsync()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Returns the status and the reason of a refusal. Header and body must have the same reason.
async fn refusal(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let reason = response.headers()["leasehold-reason"].to_str().unwrap().to_owned();
    let body: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(body["reason"], reason);
    assert!(body["message"].as_str().is_some_and(|m| !m.is_empty()));
    (status, reason)
}

/// Returns every file below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    all
}

const FILE: &str = "/dataset/acme/tickets@v3/train/part%201.txt";
const SHARD: &str = "/checkpoint/acme/support-lora";

#[tokio::test]
async fn a_holder_reads_a_file_a_range_and_a_listing() {
    let mut case = Case::new().await;
    let whole = case.get(FILE).await;
    assert_eq!(
        (whole.status(), &whole.headers()["content-length"]),
        (StatusCode::OK, &"10".parse().unwrap())
    );
    assert_eq!(whole.headers()["cache-control"], "no-store");
    assert_eq!(text(whole).await, "0123456789");
    let ended = case.transfer().await;
    assert_eq!((ended.bytes, ended.end, ended.path.as_str()), (10, TransferEnd::Whole, "train/part 1.txt"));
    assert_eq!((ended.direction, ended.peer.path()), (TransferDirection::Download, "/worker"));
    let token = case.daemon.token(|_| ());
    for (range, status, shown, bytes) in [
        ("bytes=2-4", 206, Some("bytes 2-4/10"), "234"),
        ("bytes=7-", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=8-99", 206, Some("bytes 8-9/10"), "89"),
        ("bytes=1-2,4-5", 200, None, "0123456789"),
        ("bytes=4-2", 200, None, "0123456789"),
        ("lines=1-2", 200, None, "0123456789"),
    ] {
        let mut request = request(Method::GET, FILE, &token);
        request.headers_mut().insert(header::RANGE, range.parse().unwrap());
        let part = case.ask(request).await;
        assert_eq!(part.status(), status, "{range}");
        assert_eq!(part.headers().get("content-range").map(|v| v.to_str().unwrap()), shown, "{range}");
        assert_eq!(text(part).await, bytes, "{range}");
    }
    for range in ["bytes=10-", "bytes=99-100", "bytes=-0"] {
        let mut request = request(Method::GET, FILE, &token);
        request.headers_mut().insert(header::RANGE, range.parse().unwrap());
        assert_eq!(case.ask(request).await.status(), 416, "{range}");
    }
    for folder in ["/dataset/acme/tickets@v3", "/dataset/acme/tickets@v3/"] {
        let listing: serde_json::Value = serde_json::from_str(&text(case.get(folder).await).await).unwrap();
        let large = serde_json::json!({"name": "large", "kind": "file", "bytes": LARGE});
        let train = serde_json::json!({"name": "train", "kind": "folder", "bytes": 0});
        assert_eq!(listing["entries"], serde_json::json!([large, train]));
    }
    let model = case.daemon.token(|c| {
        opens(c, "model:acme/base-7b@2026.10");
    });
    let read = case.ask(request(Method::GET, "/model/acme/base-7b@2026.10/part%201.txt", &model)).await;
    assert_eq!(text(read).await, "0123456789");
}

#[tokio::test]
async fn no_path_leads_out_of_its_folder() {
    let case = Case::new().await;
    for (path, status) in [
        ("/dataset/acme/tickets@v3/../../etc/passwd", 400),
        ("/dataset/acme/tickets@v3/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/dataset/acme/tickets@v3/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 400),
        ("/dataset/acme/tickets@v3//etc/passwd", 400),
        ("/dataset/acme/tickets@v3/%2fetc%2fpasswd", 400),
        ("/dataset/acme/tickets@v3/train/%00", 400),
        ("/dataset/acme/tickets@v3/%252e%252e/x", 404),
        ("/dataset/acme/tickets@v3/link", 404),
        ("/dataset/acme/tickets@v3/link/x", 404),
        ("/dataset/acme/tickets@v3/nothing", 404),
        ("/dataset/../acme/tickets@v3", 400),
        ("/dataset/acme/..", 400),
        ("/etc/passwd/x", 400),
        ("/", 400),
    ] {
        let answer = case.get(path).await;
        assert_eq!(answer.status(), status, "{path}");
        assert!(!text(answer).await.contains("root:"), "{path}");
    }
}

#[tokio::test]
async fn without_access_nothing_says_whether_a_file_exists() {
    let case = Case::new().await;
    let token = case.daemon.token(|_| ());
    let thief = case.client("/thief").await.send_request(request(Method::GET, FILE, &token)).await.unwrap();
    assert_eq!(refusal(thief).await, (403, "TOKEN_PRESENTER".into()));
    for path in
        ["/dataset/acme/other@v1/x", "/model/acme/base-7b@2026.10/part%201.txt", "/dataset/acme/tickets/x"]
    {
        assert_eq!(refusal(case.get(path).await).await, (403, "TOKEN_SCOPE".into()), "{path}");
    }
    let ask =
        async |token: &str, path: &str| refusal(case.ask(request(Method::GET, path, token)).await).await;
    let expired = case.daemon.token(|c| c.exp = c.iat);
    for path in [FILE, "/dataset/acme/tickets@v3/nothing"] {
        assert_eq!(ask(&expired, path).await, (401, "TOKEN_EXPIRED".into()));
        assert_eq!(ask("nonsense", path).await, (401, "TOKEN_MALFORMED".into()));
    }
    let old = case.daemon.token(|c| c.lh.epoch -= 1);
    assert_eq!(ask(&old, FILE).await, (401, "TOKEN_EPOCH".into()));
    let none = Request::builder().uri(FILE).header(header::HOST, "files").body(Sent::default()).unwrap();
    let none = case.ask(none).await;
    assert_eq!(none.headers()["www-authenticate"], "Bearer");
    assert_eq!(refusal(none).await, (401, "TOKEN_MALFORMED".into()));
    let method = case.ask(request(Method::POST, FILE, &token)).await;
    assert_eq!(refusal(method).await, (405, "NOT_SUPPORTED".into()));
    case.lowering.lower(FenceName::job(JOB));
    let revoked = loop {
        let answer = case.get(FILE).await;
        if answer.status() != StatusCode::OK {
            break answer;
        }
    };
    assert_eq!(refusal(revoked).await, (403, "REVOKED".into()));
}

#[tokio::test]
async fn only_its_own_job_uses_a_checkpoint() {
    let case = Case::new().await;
    let token = case.writer(|_| ());
    let ask = async |method: Method, path: &str, body: &str| {
        case.ask(with_body(method, path, &token, full(body))).await
    };
    let own = format!("{SHARD}/{JOB}/step-10/shard-0.bin");
    for body in ["first", "second"] {
        assert_eq!(ask(Method::PUT, &own, body).await.status(), 201);
        assert_eq!(text(ask(Method::GET, &own, "").await).await, body);
    }
    assert_eq!(files(case.checkpoints.path()), ["shard-0.bin"]);
    let listing = text(ask(Method::GET, &format!("{SHARD}/{JOB}"), "").await).await;
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    assert_eq!(listing["entries"][0]["name"], "step-10");
    let other = format!("{SHARD}/{}/x", JobId(3));
    for method in [Method::PUT, Method::GET, Method::DELETE] {
        assert_eq!(refusal(ask(method, &other, "x").await).await, (403, "TOKEN_SCOPE".into()));
    }
    let line = format!("/checkpoint/acme/other-lora/{JOB}/x");
    assert_eq!(refusal(ask(Method::PUT, &line, "x").await).await, (403, "TOKEN_SCOPE".into()));
    let reader = case.daemon.token(|_| ());
    let put = case.ask(with_body(Method::PUT, &own, &reader, full("x"))).await;
    assert_eq!(refusal(put).await, (403, "TOKEN_SCOPE".into()));
    for folder in [format!("{SHARD}/{JOB}"), format!("{SHARD}/{JOB}/step-10/")] {
        assert_eq!(ask(Method::PUT, &folder, "x").await.status(), 400);
    }
    assert_eq!(ask(Method::PUT, &format!("{SHARD}/{JOB}/step-10"), "x").await.status(), 409);
    assert_eq!(ask(Method::DELETE, &own, "").await.status(), 204);
    assert_eq!(ask(Method::DELETE, &own, "").await.status(), 404);
    assert!(files(case.checkpoints.path()).is_empty());
}

#[tokio::test]
async fn a_too_large_upload_is_refused_and_leaves_nothing() {
    let case = Case::new().await;
    let token = case.writer(|_| ());
    let path = format!("{SHARD}/{JOB}/x");
    let chunk = "x".repeat(1 << 19);
    let announced = full(&chunk.repeat(3));
    assert_eq!(case.ask(with_body(Method::PUT, &path, &token, announced)).await.status(), 413);
    let frames = futures_util::stream::repeat_with(move || {
        Ok::<_, BodyError>(hyper::body::Frame::data(Bytes::from(chunk.clone())))
    });
    let unannounced = http_body_util::StreamBody::new(frames.take(3)).boxed_unsync();
    assert_eq!(case.ask(with_body(Method::PUT, &path, &token, unannounced)).await.status(), 413);
    soon(|| files(case.checkpoints.path()).is_empty()).await;
}

/// Reads a large body until it has begun, lowers a fence, and reads on until the error.
async fn cut_while_reading(case: &Case, response: Response<Incoming>) -> u64 {
    assert_eq!(response.headers()["content-length"], LARGE.to_string().as_str());
    let mut body = response.into_body();
    let mut bytes = 0;
    while bytes < 1 << 20 {
        bytes += body.frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
    }
    case.lowering.lower(FenceName::resource("dataset:acme/tickets".parse().unwrap()));
    // Bytes in flight may arrive. The whole file must not arrive, because the reader is slow.
    loop {
        match body.frame().await {
            Some(Ok(frame)) => bytes += frame.into_data().unwrap().len() as u64,
            Some(Err(_)) => return bytes,
            None => panic!("the whole file arrived: {bytes} bytes"),
        }
        tokio::time::sleep(Duration::from_micros(500)).await; // a slow reader: the file would take half a second
    }
}

#[tokio::test]
async fn a_download_is_cut_half_way_when_its_fence_is_lowered() {
    let mut case = Case::new().await;
    let token = case.daemon.token(|_| ());
    let response = case.ask(request(Method::GET, "/dataset/acme/tickets@v3/large", &token)).await;
    let bytes = cut_while_reading(&case, response).await;
    assert!(bytes < LARGE);
    let ended = case.transfer().await;
    assert_eq!(ended.end, TransferEnd::Cut(Reason::Revoked));
    assert!(ended.bytes >= bytes && ended.bytes < LARGE, "{ended:?}, and {bytes} arrived");
}

#[tokio::test]
async fn over_http_2_only_the_revoked_stream_is_cut() {
    let mut case = Case::new().await;
    let dialed = case.connector("/worker").connect(Alpn::Http2).await.unwrap();
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(dialed.tls)).await.unwrap();
    tokio::spawn(connection);
    let uri = |path: &str| format!("https://files{path}");
    let (token, model) =
        (case.daemon.token(|_| ()), case.daemon.token(|c| opens(c, "model:acme/base-7b@2026.10")));
    let large = request(Method::GET, &uri("/dataset/acme/tickets@v3/large"), &token);
    let response = client.send_request(large).await.unwrap();
    assert!(cut_while_reading(&case, response).await < LARGE);
    assert_eq!(case.transfer().await.end, TransferEnd::Cut(Reason::Revoked));
    let small = request(Method::GET, &uri("/model/acme/base-7b@2026.10/part%201.txt"), &model);
    assert_eq!(text(client.send_request(small).await.unwrap()).await, "0123456789");
}

/// Reads one frame, lowers a fence, and checks that the rest does not arrive.
async fn cut_while_stalled(case: &mut Case, response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut bytes = body.frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
    // The client stops reading. All buffers fill up, and then the body is not polled for another chunk.
    for _ in 0..300 {
        a_moment().await;
    }
    case.lowering.lower(FenceName::job(JOB));
    let clock = case.daemon.clock.clone();
    let passing = tokio::spawn(async move {
        loop {
            a_moment().await;
            clock.advance(Duration::from_millis(1));
        }
    });
    let ended = case.transfer().await;
    passing.abort();
    assert_eq!(ended.end, TransferEnd::Cut(Reason::Revoked));
    assert!(ended.bytes < LARGE);
    let error = loop {
        match body.frame().await {
            Some(Ok(frame)) => bytes += frame.into_data().unwrap().len() as u64,
            Some(Err(error)) => break error,
            None => panic!("the whole file arrived"),
        }
    };
    assert!(bytes < LARGE, "{bytes}: {error}");
}

#[tokio::test]
async fn a_download_with_a_stalled_client_is_cut() {
    let mut case = Case::new().await;
    let token = case.daemon.token(|_| ());
    let response = case.ask(request(Method::GET, "/dataset/acme/tickets@v3/large", &token)).await;
    cut_while_stalled(&mut case, response).await;
}

#[tokio::test]
async fn over_http_2_a_stalled_stream_is_cut_with_its_connection() {
    let mut case = Case::new().await;
    let dialed = case.connector("/worker").connect(Alpn::Http2).await.unwrap();
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(dialed.tls)).await.unwrap();
    tokio::spawn(connection);
    let token = case.daemon.token(|_| ());
    let large = request(Method::GET, "https://files/dataset/acme/tickets@v3/large", &token);
    let response = client.send_request(large).await.unwrap();
    cut_while_stalled(&mut case, response).await;
}

#[tokio::test]
async fn a_revoked_upload_is_cut_and_leaves_nothing() {
    let mut case = Case::new().await;
    let token = case.writer(|_| ());
    let path = format!("{SHARD}/{JOB}/step-10/shard-0.bin");
    // The client sends a first part, and then nothing, so that the upload does not end.
    let first =
        futures_util::stream::iter([Ok::<_, BodyError>(hyper::body::Frame::data(Bytes::from("half")))]);
    let stalled =
        http_body_util::StreamBody::new(first.chain(futures_util::stream::pending())).boxed_unsync();
    let mut client = case.client("/worker").await;
    let answer = tokio::spawn(client.send_request(with_body(Method::PUT, &path, &token, stalled)));
    soon(|| files(case.checkpoints.path()).len() == 1).await;
    case.lowering.lower(FenceName::job(JOB));
    let ended = case.transfer().await;
    assert_eq!((ended.direction, ended.end), (TransferDirection::Upload, TransferEnd::Cut(Reason::Revoked)));
    assert_eq!(refusal(answer.await.unwrap().unwrap()).await, (403, "REVOKED".into()));
    soon(|| files(case.checkpoints.path()).is_empty()).await;
    assert!(!case.checkpoints.path().join("acme").exists(), "not even a folder");
}

#[tokio::test]
async fn an_upload_whose_client_vanishes_leaves_nothing() {
    let mut case = Case::new().await;
    let token = case.writer(|_| ());
    let path = format!("{SHARD}/{JOB}/x");
    let first =
        futures_util::stream::iter([Ok::<_, BodyError>(hyper::body::Frame::data(Bytes::from("half")))]);
    let stalled =
        http_body_util::StreamBody::new(first.chain(futures_util::stream::pending())).boxed_unsync();
    let dialed = case.connector("/worker").connect(Alpn::Http1).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
    let connection = tokio::spawn(connection);
    let answer = tokio::spawn(client.send_request(with_body(Method::PUT, &path, &token, stalled)));
    soon(|| files(case.checkpoints.path()).len() == 1).await;
    connection.abort();
    assert_eq!(case.transfer().await.end, TransferEnd::Broken);
    assert!(answer.await.unwrap().is_err());
    soon(|| files(case.checkpoints.path()).is_empty()).await;
}

#[tokio::test]
async fn unfinished_uploads_of_an_earlier_server_are_removed() {
    let case = Case::new().await;
    let (checkpoints, verifier) = (case.checkpoints.path(), case._verifier.clone());
    soon(|| checkpoints.join(".uploads").exists()).await;
    std::fs::write(checkpoints.join(".uploads/left"), "half").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = FileServer::new(verifier, HashMap::new(), checkpoints.to_owned());
    let ended = CancellationToken::new();
    ended.cancel();
    server.serve(listener, case.daemon.source("/files"), case.daemon.clock.clone(), ended).await.unwrap();
    assert!(files(checkpoints).is_empty());
    assert!(case.data.path().join("large").exists());
}

//! A bucket as a store, tried against a second gateway. The client library is not ours, so its requests are independent of our
//! server.

use futures_util::TryStreamExt;
use hyper::{server, service::service_fn};
use s3s::dto::{ETag, ETagCondition, Range};

use super::*;
use crate::gateway::{
    bucket::BucketStore,
    bucket_client::{BucketSettings, S3Settings, open},
    conditions::Conditions,
    key::{ObjectPath, SubKey},
    list_work::ListWork,
    listing::ListQuery,
    store::{Entry, FinalCheck, StoreError},
    upload_memory::UploadMemory,
};

/// Adds the worker's tokens to plain requests, as a wrapper does.
async fn start_forwarder(case: &Case) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connector =
        Connector::new(case.daemon.source("/worker"), case.daemon.clock.clone(), case.endpoint.clone());
    let tokens = Arc::new([case.reading(), case.writing()]);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (connector, tokens) = (connector.clone(), tokens.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (connector, tokens) = (connector.clone(), tokens.clone());
                async move {
                    for token in &*tokens {
                        request.headers_mut().append(TOKEN, token.parse().unwrap());
                    }
                    request.headers_mut().insert(SECRET_KEY, SECRET.parse().unwrap());
                    let dialed = connector.connect(Alpn::Http1).await.unwrap();
                    let (mut client, connection) = http1::handshake(TokioIo::new(dialed.tls)).await.unwrap();
                    tokio::spawn(connection);
                    client.send_request(request).await
                }
            });
            tokio::spawn(server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
        }
    });
    address
}

async fn bucket(case: &Case, keys: &TempDir, location: &str) -> BucketStore {
    let address = start_forwarder(case).await;
    let (access_key_file, secret_key_file) = (keys.path().join("id"), keys.path().join("key"));
    std::fs::write(&access_key_file, "STORE\n").unwrap();
    std::fs::write(&secret_key_file, format!("{SECRET}\n")).unwrap();
    let settings = S3Settings {
        endpoint: Some(format!("http://{address}")),
        region: "us-east-1".to_owned(),
        access_key_file,
        secret_key_file,
    };
    open(location, &BucketSettings::S3(settings)).unwrap()
}

fn path(key: &str) -> ObjectPath {
    ObjectPath { folder: String::new(), key: SubKey::parse(key).unwrap() }
}

fn live() -> FinalCheck {
    Box::new(|| Ok(()))
}

async fn read(store: &BucketStore, name: &str, range: Option<Range>) -> Result<Vec<u8>, StoreError> {
    let reading = store.read(&path(name), range, &Conditions::default()).await?;
    let chunks: Vec<Bytes> = reading.chunks.try_collect().await?;
    assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>() as u64, reading.range.end - reading.range.start);
    Ok(chunks.concat())
}

// Objects in a bucket are read, listed, written whole and in parts, and deleted. A refused or dropped upload is not
// visible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_behind_the_gateway_is_a_store() {
    let (case, keys) = (Case::new().await, tempfile::tempdir().unwrap());
    let store = bucket(&case, &keys, &format!("s3://acme-models/out/{JOB}/")).await;
    let (memory, work) = (case.memory(), ListWork::of(1_000, live()));

    let mut upload = store.begin(&path("a/small"), &memory, Some(10)).unwrap();
    upload.write(Bytes::from_static(b"0123456789")).await.unwrap();
    let placed = upload.publish(&Conditions::default(), live()).await.unwrap();
    assert_eq!((placed.size, store.head(&path("a/small")).await.unwrap()), (10, placed.clone()));
    assert_eq!(read(&store, "a/small", None).await.unwrap(), b"0123456789");
    let middle = Range::Int { first: 2, last: Some(4) };
    assert_eq!(read(&store, "a/small", Some(middle)).await.unwrap(), b"234");
    assert_eq!(read(&store, "a/small", Some(Range::Suffix { length: 3 })).await.unwrap(), b"789");
    let beyond = read(&store, "a/small", Some(Range::Int { first: 10, last: None })).await;
    assert!(matches!(beyond, Err(StoreError::Range(10))), "{beyond:?}");
    assert!(matches!(read(&store, "a/none", None).await, Err(StoreError::NotFound)));
    let same = Conditions {
        if_none_match: Some(ETagCondition::ETag(ETag::Strong(placed.e_tag.clone()))),
        ..Conditions::default()
    };
    assert!(matches!(store.read(&path("a/small"), None, &same).await, Err(StoreError::NotModified)));
    let only_new = Conditions { if_none_match: Some(ETagCondition::Any), ..Conditions::default() };
    let mut again = store.begin(&path("a/small"), &memory, None).unwrap();
    again.write(Bytes::from_static(b"other")).await.unwrap();
    assert!(matches!(again.publish(&only_new, live()).await, Err(StoreError::Precondition)));

    // The object is larger than one part, so it is sent in parts.
    let mut large = store.begin(&path("b/large"), &memory, Some(20 << 20)).unwrap();
    for byte in 0..20u8 {
        large.write(Bytes::from(vec![byte; 1 << 20])).await.unwrap();
    }
    assert_eq!(large.publish(&Conditions::default(), live()).await.unwrap().size, 20 << 20);
    let mut revoked = store.begin(&path("revoked"), &memory, Some(1)).unwrap();
    revoked.write(Bytes::from_static(b"x")).await.unwrap();
    let ended: FinalCheck = Box::new(|| Err(Refusal::new(Reason::Revoked, "it was revoked")));
    assert!(matches!(revoked.publish(&Conditions::default(), ended).await, Err(StoreError::Ended(_))));
    assert!(!case.checkpoint("revoked").exists());

    let parts = store.begin_parts(&path("c")).await.unwrap();
    let mut stored = Vec::new();
    for (number, size) in [(1u16, 5usize << 20), (2, 3)] {
        let mut part = parts.begin_part(&memory, Some(size as u64)).unwrap();
        part.write(&vec![7; size]).unwrap();
        stored.push((number, parts.store_part(number, part).await.unwrap()));
    }
    assert_eq!(parts.complete(&stored, &Conditions::default(), live()).await.unwrap().size, (5 << 20) + 3);
    let too_large = parts.begin_part(&memory, Some(1 << 40));
    assert!(matches!(too_large, Err(StoreError::PartTooLarge(_))));

    let all = store.list("", &ListQuery { max: 10, ..ListQuery::default() }, &work).await.unwrap();
    let names: Vec<&str> = all.all.iter().map(Entry::name).collect();
    assert_eq!((names, all.is_complete), (vec!["a/small", "b/large", "c"], true));
    let folders =
        ListQuery { max: 1, delimiter: Some("/".into()), after: "a/".into(), ..ListQuery::default() };
    let next = store.list("", &folders, &work).await.unwrap();
    assert_eq!(next.all, [Entry::Prefix("b/".into())], "what follows a common prefix");
    store.delete(&path("c"), live()).await.unwrap();
    store.delete(&path("c"), live()).await.unwrap();
    assert!(matches!(store.head(&path("c")).await, Err(StoreError::NotFound)));

    // The key of the store is read again when its file changes.
    std::fs::write(keys.path().join("key"), "another-secret\n").unwrap();
    assert!(store.head(&path("a/small")).await.is_err(), "the old key is not used any more");
}

// The memory for bytes that wait to be sent is counted: by the length, if it is known, and otherwise the amount for an
// upload in parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_uploads_to_a_bucket_is_counted() {
    let (case, keys) = (Case::new().await, tempfile::tempdir().unwrap());
    let store = bucket(&case, &keys, &format!("s3://acme-models/out/{JOB}/")).await;
    let memory =
        UploadMemory::new(Shares::new(64 << 10, 32 << 10), "spiffe://a.example/worker".parse().unwrap());
    let begin = |length| store.begin(&path("x"), &memory, length);
    let parts = store.begin_parts(&path("y")).await.unwrap();
    let large = begin(None).unwrap();
    assert!(matches!(begin(None), Err(StoreError::NoMemory)), "a second one does not fit");
    assert!(matches!(begin(Some(1 << 30)), Err(StoreError::NoMemory)));
    assert!(matches!(parts.begin_part(&memory, Some(16 << 20)), Err(StoreError::NoMemory)));
    let small: Vec<_> = (0..8).map(|_| begin(Some(1 << 20)).unwrap()).collect();
    assert!(matches!(begin(Some(1 << 20)), Err(StoreError::NoMemory)), "small ones count too");
    drop((large, small));
    drop(begin(None).unwrap());
    drop(parts.begin_part(&memory, Some(16 << 20)).unwrap());
}

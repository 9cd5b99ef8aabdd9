//! A crowd of connections that ask for nothing.

use std::fs;

use futures_util::{StreamExt, stream};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasehold::{
    link::{Alpn, ConnectError},
    proto::v1::{self, Half},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use tonic::body::Body;

use super::{process::Place, stop::working};
use crate::harness::*;

/// The number of connections, unless `LEASEHOLD_IDLE` sets another. The limit on open files may reduce it.
const IDLE: u64 = 1_000;
/// Files that each side has open in addition.
const OTHERS: u64 = 500;
/// The memory of the daemon that one connection may use: TLS buffers and empty HTTP/2 windows.
const BYTES_EACH_MAX: u64 = 64 << 10;
/// Handshakes at the same time.
const AT_ONCE: usize = 8;

/// The resident memory of a process, in bytes.
fn resident(pid: nix::unistd::Pid) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

fn open_files(pid: nix::unistd::Pid) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

// Proves law 43.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_take_bounded_memory() {
    // The daemon gets the same limit as this process.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let asked = std::env::var("LEASEHOLD_IDLE").ok().map_or(IDLE, |n| n.parse().unwrap());
    let count = asked.min(most.saturating_sub(OTHERS));
    let place = Place::new();
    let process = place.serve().await;
    let (gateway, operator) = (place.client(GATEWAY), place.client(OPERATOR));
    assert_eq!(
        operator.jobs().list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs,
        []
    );
    let (files, before, from) =
        (open_files(process.pid()), resident(process.pid()), place.clock().now().boot);
    // Each is attested, and then only answers pings: the daemon cuts a connection that does not answer as a dead peer.
    let connector = &place.connector(OTHER_WORKER);
    let idle: Vec<_> = stream::iter(0..count)
        .map(|_| async move {
            // On a busy machine a handshake may take longer than it may.
            let dialed = soon("a connection", async {
                loop {
                    match connector.connect(Alpn::Http2).await {
                        Err(ConnectError::TimedOut { .. }) => {}
                        done => return done.unwrap(),
                    }
                }
            })
            .await;
            let (sender, connection) =
                http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(dialed.tls)).await.unwrap();
            tokio::spawn(connection);
            sender
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let each = resident(process.pid()).saturating_sub(before) / count;
    println!(
        "{count} of {asked} connections fit: {each} bytes each, made in {:?}",
        place.clock().now().boot.since(from)
    );
    assert!(each < BYTES_EACH_MAX, "an idle connection takes {each} bytes");
    // If this process had no time to answer their pings, some were cut.
    let open = open_files(process.pid());
    let alive = idle.iter().filter(|sender| !sender.is_closed()).count() as u64;
    assert!(
        open >= files + alive && alive >= count / 2,
        "{open} files, {files} before; {alive} of {count} are alive"
    );
    // Old connections go on, and a new one is accepted as if it were the only one.
    let worker = working(&place).await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&gateway).await;
    let newcomer = place.client(GATEWAY);
    operator.revoke(TICKETS).await.unwrap();
    assert!(!token.seen_by(&newcomer).await.active);
    drop(idle);
    eventually("their files to be closed", async || open_files(process.pid()) < files + 8).await;
    process.stop().await;
}

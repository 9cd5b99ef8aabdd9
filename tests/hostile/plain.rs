//! The listeners without mutual TLS: keys and probes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::siege::Siege;

/// Connections that send half of a request and wait.
const HALF_SENT: usize = 3_000;

async fn half_sent(address: SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..HALF_SENT {
        let Ok(mut tcp) = TcpStream::connect(address).await else { continue };
        let _ = tcp.write_all(b"GET /keys HTTP/1.1\r\nhost: localhost\r\nx-half: ").await;
        held.push(tcp);
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_requests_keep_no_one_from_keys_and_probes() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let siege = Siege::begin().await;
    for (address, path) in [(siege.place.issuer(), "/keys"), (siege.place.probes(), "/readyz")] {
        let attack = async {
            let held = half_sent(address).await;
            let mut slowest = Duration::ZERO;
            for _ in 0..50 {
                let began = Instant::now();
                let (status, _) = siege.place.world.http(address, path).await;
                assert_eq!(status, 200, "{path}");
                slowest = slowest.max(began.elapsed());
                // The others need time for enough answers to judge by.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            drop(held);
            slowest
        };
        let (slowest, measured) = siege.during("half-sent requests", attack).await;
        measured.holds();
        println!("{path}: the slowest of 50 answers took {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{path} took {slowest:?}");
    }
}

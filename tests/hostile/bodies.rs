//! Requests that do not end.

use std::time::Duration;

use bytes::Bytes;
use leasehold::{limits, link::Alpn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    attacker::{Attacker, framed},
    harness::*,
    siege::Siege,
};

const CREATE: &str = "/leasehold.v1.JobService/CreateJob";
const WHO: &str = "/leasehold.v1.OperatorService/WhoAmI";
const BEATS: &str = "/leasehold.v1.MemberService/KeepAlive";

/// Opens as many streams as the daemon allows, each with all but the last byte of a message.
async fn half_messages(siege: &Siege, id: &str, path: &str, bytes: usize) -> Vec<Attacker> {
    let message = framed(&vec![0; bytes]);
    let half: Bytes = message.slice(..message.len() - 1);
    let mut attackers = Vec::new();
    for _ in 0..4 {
        let Ok(attacker) = Attacker::connect(&siege.place, id).await else { continue };
        for _ in 0..256 {
            let Some(mut call) = attacker.begin(path).await else { break };
            let _ = call.body.send_data(half.clone(), false);
            tokio::spawn(async move {
                let _body = call.body;
                let _ = call.answer.await;
            });
        }
        attackers.push(attacker);
    }
    // Time to send all of it, and for the daemon to keep it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    attackers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_of_a_stranger_take_no_memory() {
    let siege = Siege::begin().await;
    for (path, bytes) in [(WHO, 1 << 20), (CREATE, 1 << 20), (WHO, 250 << 10)] {
        let (_attackers, measured) =
            siege.during("half messages of a stranger", half_messages(&siege, NOBODY, path, bytes)).await;
        measured.holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_of_a_launcher_stay_within_its_bytes() {
    let siege = Siege::begin().await;
    for (path, bytes) in [(CREATE, 1 << 20), (CREATE, 250 << 10), (BEATS, 1 << 20), (BEATS, 8 << 10)] {
        let (_attackers, measured) =
            siege.during("half messages of a launcher", half_messages(&siege, NIGHTLY, path, bytes)).await;
        measured.holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_end_is_refused_in_time() {
    let siege = Siege::begin().await;
    let message = framed(&[0; 1_000]);
    for (id, path, sent) in
        [(NOBODY, WHO, 0), (NIGHTLY, CREATE, 3), (NIGHTLY, CREATE, 500), (NIGHTLY, BEATS, 500)]
    {
        let attacker = Attacker::connect(&siege.place, id).await.unwrap();
        let mut call = attacker.begin(path).await.unwrap();
        call.body.send_data(message.slice(..sent), false).unwrap();
        let answer =
            tokio::time::timeout(limits::BODY * 2, call.answer).await.expect("an answer in time").unwrap();
        let status = answer.headers().get("grpc-status").unwrap();
        assert_eq!(status, "8", "{path} after {sent} bytes: {answer:?}");
    }
}

/// A client that is often refused keeps its connection, even if its messages arrive shortly after their headers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_calls_with_late_bodies_end_no_connection() {
    let siege = Siege::begin().await;
    let stranger = Attacker::connect(&siege.place, NOBODY).await.unwrap();
    // The HTTP/2 library ends a connection after 1,024 messages that arrive after their response.
    for n in 0..1_100 {
        let mut call = stranger.begin(CREATE).await.unwrap_or_else(|| panic!("no stream for call {n}"));
        let early = tokio::time::timeout(Duration::from_millis(5), &mut call.answer).await;
        call.body.send_data(framed(&[]), true).unwrap_or_else(|e| panic!("call {n}: {e}"));
        if early.is_err() {
            let answer = call.answer.await.unwrap_or_else(|e| panic!("call {n}: {e}"));
            assert_eq!(answer.headers().get("grpc-status").unwrap(), "7", "{answer:?}");
        }
    }
    assert!(!stranger.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_http_2_is_not_begun_ends() {
    let siege = Siege::begin().await;
    let mut tls = siege.place.connector(NOBODY).connect(Alpn::Http2).await.unwrap().tls;
    tls.write_all(b"PRI * HTTP/2.0").await.unwrap();
    let mut said = Vec::new();
    let closed = tokio::time::timeout(limits::HANDSHAKE * 2, tls.read_to_end(&mut said)).await;
    assert!(closed.is_ok(), "it is still open");
}

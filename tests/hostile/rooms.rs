//! Few clients that take all connections and waiting places.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use leasehold::{limits, proto::v1};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, net::TcpSocket};

use crate::{attacker::Attacker, harness::*, process::Place, siege::Siege};

const WAIT: &str = "/leasehold.v1.OperatorService/WaitDurable";

/// Opens as many connections as the daemon allows, up to a number.
async fn connections(place: &Place, id: &str, most: usize) -> Vec<Attacker> {
    let mut open = Vec::new();
    for _ in 0..most {
        match Attacker::connect(place, id).await {
            Ok(attacker) => open.push(attacker),
            Err(_) => break,
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_take_the_connections_of_those_who_are_known() {
    let room = "connections_max = 40\nconnections_per_peer_max = 20\nconnections_operators_max = 4";
    let siege = Siege::of(Place::of_server(room)).await;
    let attack = async {
        let mut held = Vec::new();
        for n in 0..60 {
            held.extend(connections(&siege.place, &format!("{NOBODY}-{n}"), 10).await);
        }
        tokio::time::sleep(2 * limits::CONNECTION_GRACE).await;
        held.retain(|attacker| !attacker.is_closed());
        held
    };
    let (held, measured) = siege.during("connections of strangers", attack).await;
    measured.holds();
    assert!(held.len() <= limits::CONNECTIONS_UNKNOWN_MAX, "{} strangers are in", held.len());
    assert!(held.len() > limits::CONNECTIONS_UNKNOWN_PER_PEER_MAX, "some of them are let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_identity_leaves_connections_to_others() {
    let room = "connections_max = 40\nconnections_per_peer_max = 40\nconnections_operators_max = 4";
    let siege = Siege::of(Place::of_server(room)).await;
    let attack = async {
        let mut held = connections(&siege.place, NIGHTLY, 60).await;
        held.extend(connections(&siege.place, OTHER_WORKER, 60).await);
        tokio::time::sleep(2 * limits::CONNECTION_GRACE).await;
        held
    };
    let (_held, measured) = siege.during("connections of two who are known", attack).await;
    measured.holds();
}

/// Half handshakes, which are sent one byte at a time, and begun again whenever the daemon ends them.
async fn half_handshakes(siege: &Siege, from: &[Ipv4Addr], sockets: usize) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let address: SocketAddr = siege.place.address.parse().unwrap();
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 500]].concat();
    let one = async |from: Ipv4Addr| {
        loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            let Ok(mut tcp) = socket.connect(address).await else { continue };
            for byte in &hello {
                tokio::time::sleep(Duration::from_millis(450)).await;
                if tcp.write_all(std::slice::from_ref(byte)).await.is_err() {
                    break;
                }
            }
        }
    };
    let all = from.iter().cycle().take(sockets).map(|from| one(*from));
    let _ = tokio::time::timeout(Duration::from_secs(15), futures_util::future::join_all(all)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_handshakes_of_one_address_keep_no_other_out() {
    let siege = Siege::begin().await;
    let from = [Ipv4Addr::new(127, 0, 0, 5)];
    let ((), measured) = siege.during("half handshakes", half_handshakes(&siege, &from, 6_000)).await;
    measured.holds();
}

/// They fill the places and the queues of all of these addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_handshakes_of_many_addresses_keep_no_other_out() {
    let siege = Siege::begin().await;
    let from: Vec<_> = (0..24).map(|n| Ipv4Addr::new(127, 0, 9, n)).collect();
    let attack = half_handshakes(&siege, &from, 6_000);
    let ((), measured) = siege.during("half handshakes of 24 addresses", attack).await;
    measured.holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_the_disk_do_not_take_the_room_of_locks() {
    let siege = Siege::begin().await;
    let operator = siege.place.client(OPERATOR);
    siege.take_the_disk_away();
    let ending = operator.revoke(TICKETS).await.unwrap().into_inner().ending.unwrap();
    assert!(!ending.durable);
    let request = v1::WaitDurableRequest { receipt: ending.receipt };
    let attack = async {
        let mut held = Vec::new();
        for n in 0..18 {
            let id = [NIGHTLY, WORKER][n % 2];
            let Ok(attacker) = Attacker::connect(&siege.place, id).await else { break };
            let mut calls = Vec::new();
            for _ in 0..250 {
                calls.extend(attacker.ask(WAIT, &request).await);
            }
            held.push((attacker, calls));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let locked = operator.lock("identity:spiffe://k8s.acme.example/ns/ml/job/stolen").await;
        assert!(locked.is_ok(), "{locked:?}");
        held
    };
    let (_held, measured) = siege.during("waits for the disk", attack).await;
    measured.holds();
}

//! The feed: a snapshot and every lowering after it, in their order.

use std::collections::BTreeMap;

use leasehold::{
    clock::LeaseTime,
    internals::fence::{Lowering, Seq, Subscription},
    name::FenceName,
};
use shuttle::thread;
use tokio::sync::broadcast::error::TryRecvError;

use super::world::{NOW, World, explore, name};

const NAMES: [&str; 3] = ["tenant:acme", "human:ada", "domain:td.example"];

/// All that a subscriber knows after it has read everything that was sent.
fn known(mut from: Subscription) -> BTreeMap<FenceName, Seq> {
    let mut known: BTreeMap<_, _> = from.snapshot.into_iter().collect();
    let mut last = from.at;
    loop {
        match from.lowerings.try_recv() {
            Ok(Lowering { seq, name, .. }) => {
                assert_eq!(seq.0, last.0 + 1, "the feed is broken: not in the order of its Seqs");
                last = seq;
                known.insert(name, seq);
            }
            Err(TryRecvError::Empty | TryRecvError::Closed) => return known,
            Err(e) => panic!("{e}"),
        }
    }
}

fn lowerings_during_a_subscription(subscribe: fn(&World) -> Subscription, lower: fn(&World, &FenceName)) {
    explore(move || {
        let w = World::new();
        let lowerers: Vec<_> = NAMES
            .map(|n| {
                let w = w.clone();
                thread::spawn(move || lower(&w, &name(n)))
            })
            .into();
        let subscription = subscribe(&w);
        for t in lowerers {
            t.join().unwrap();
        }
        let known = known(subscription);
        for n in NAMES {
            assert!(
                known.contains_key(&name(n)),
                "the feed is broken: a lowering was lost between snapshot and stream"
            );
        }
    });
}

// Proves law 13.
#[test]
fn nothing_is_lost_between_snapshot_and_stream() {
    lowerings_during_a_subscription(
        |w| w.fences.subscribe(),
        |w, n| {
            w.fences.lower(n, NOW);
        },
    );
}

// Proves law 13.
#[test]
#[should_panic(expected = "the feed is broken")]
fn a_snapshot_taken_before_the_stream_begins_is_caught() {
    lowerings_during_a_subscription(
        |w| {
            let first = w.fences.subscribe();
            let mut then = w.fences.subscribe();
            (then.snapshot, then.at) = (first.snapshot, then.at);
            then
        },
        |w, n| {
            w.fences.lower(n, NOW);
        },
    );
}

// Proves law 13.
#[test]
#[should_panic(expected = "the feed is broken")]
fn a_lowering_that_publishes_its_seq_late_is_caught() {
    lowerings_during_a_subscription(
        |w| w.fences.subscribe(),
        |w, n| {
            w.fences.lower_in_two_steps(n);
        },
    );
}

// Proves law 37.
#[test]
fn a_slow_reader_stops_no_one_and_learns_what_it_lost() {
    shuttle::check_random(
        || {
            let w = World::new();
            let mut slow = w.fences.subscribe().lowerings;
            let backlog = leasehold::limits::FEED_BACKLOG as u64;
            for n in 0..backlog + 5 {
                let person = name(&format!("human:p{n}"));
                assert_eq!(w.fences.lower(&person, LeaseTime(n)).seq, Seq(n + 1));
            }
            assert_eq!(slow.try_recv(), Err(TryRecvError::Lagged(5)));
        },
        1,
    );
}

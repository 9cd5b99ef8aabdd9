//! Calls that are valid, and take the daemon's time.

use std::time::Duration;

use leasehold::proto::v1;

use crate::{attacker::Attacker, harness::*, siege::Siege};

const LIST: &str = "/leasehold.v1.JobService/ListJobs";
const REVOKE: &str = "/leasehold.v1.OperatorService/Revoke";
const JOBS: usize = 600;
const CONNECTIONS: usize = 4;
const CALLS: usize = 64;
const ATTACK: Duration = Duration::from_secs(8);

/// Keeps as many calls under way as a few connections hold, until the attack is over.
async fn flood(siege: &Siege, id: &str, path: &str, message: &impl prost::Message) {
    let all = (0..CONNECTIONS).map(async |_| {
        loop {
            let Ok(attacker) = Attacker::with_window(&siege.place, id, 1 << 20).await else { continue };
            let mut calls = tokio::task::JoinSet::new();
            while let Some(call) = attacker.ask(path, message).await {
                calls.spawn(call.ends());
                if calls.len() >= CALLS {
                    calls.join_next().await;
                }
            }
        }
    });
    let _ = tokio::time::timeout(ATTACK, futures_util::future::join_all(all)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_lists_keeps_no_operator_from_a_revoke() {
    let siege = Siege::begin().await;
    let launcher = siege.place.client(NIGHTLY);
    for n in 0..JOBS {
        launcher
            .create(v1::JobSpec { acting_for: String::new(), ..spec() }, &format!("listed {n}"))
            .await
            .unwrap();
    }
    let page = v1::ListJobsRequest { page_size: 1_000, ..Default::default() };
    let none = v1::ListJobsRequest { id_prefix: "j-zzzz".into(), ..page.clone() };
    for request in [page, none] {
        let ((), measured) = siege.during("lists", flood(&siege, NIGHTLY, LIST, &request)).await;
        measured.holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_mistyped_names_keeps_no_operator_from_a_revoke() {
    let siege = Siege::begin().await;
    let mistyped = v1::RevokeRequest {
        name: "dataset:globex/revews@v1".into(),
        reason: "flood".into(),
        ..Default::default()
    };
    let ((), measured) =
        siege.during("mistyped names", flood(&siege, GLOBEX_OPERATOR, REVOKE, &mistyped)).await;
    measured.holds();
}

//! The sealed segments of a running daemon: compressed, moved to an archive, and read in every form.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use futures_util::future::join_all;
use leasehold::proto::v1::{self, Half};
use serde_json::Value;

use crate::harness::*;

/// Runs a command as an administrator, and returns its exit code and the JSON that it prints.
async fn run(words: &[&str]) -> (Option<i32>, Value) {
    let mut command = plain(env!("CARGO_BIN_EXE_leasehold"));
    let output = soon("a command", command.args(words).args(["-o", "json"]).output()).await.unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn compressed_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|e| e == "zst")).collect()
}

fn segment_names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("ledger-")).collect()
}

/// The numbers of plain and of compressed segments in a directory.
fn forms(folder: &Path) -> (usize, usize) {
    let names = segment_names(folder);
    let compressed = names.iter().filter(|name| name.ends_with(".zst")).count();
    (names.len() - compressed, compressed)
}

/// Renews leases until the ledger has this many segments, of which only the last is plain.
async fn grow(world: &World, worker: &Worker, segments: usize) {
    let mut leases = Vec::new();
    for _ in 0..16 {
        leases.push(worker.issue(Half::Reading).await.lease.id);
    }
    let state = world.file("state");
    // For a moment, a segment has both files.
    let count =
        || segment_names(&state).iter().map(|n| n.trim_end_matches(".zst")).collect::<BTreeSet<_>>().len();
    while count() < segments {
        for answer in join_all(leases.iter().map(|lease| worker.renew(lease))).await {
            answer.unwrap();
        }
    }
    eventually("all sealed segments compressed", async || forms(&state) == (1, segments - 1)).await;
}

async fn tailed(world: &World, from_index: u64) -> Vec<u64> {
    let request = v1::TailLedgerRequest { from_index, no_follow: true, ..Default::default() };
    let platform = world.client(PLATFORM).await;
    let mut tail = platform.operators().tail_ledger(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(line) = soon("a record", tail.message()).await.unwrap() {
        all.push(line.index);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_segments_are_compressed_archived_and_verified() {
    let mut world = World::with(|setup| setup.more = "segment = \"1MiB\"\n".to_owned()).await;
    let (state, archive) = (world.file("state"), world.file("archive"));
    let (ledger, to) = (state.to_str().unwrap(), archive.to_str().unwrap());
    let mut worker = world.working().await;
    grow(&world, &worker, 5).await;
    let all = world.records().await.all.len() as u64;
    assert_eq!(tailed(&world, 1).await, (1..=all).collect::<Vec<_>>());

    // The daemon starts from compressed segments.
    world.restart().await;
    let (code, report) = run(&["audit", "verify", ledger]).await;
    assert_eq!((code, &report["first"]["index"]), (Some(0), &1.into()));

    // Segments move while the daemon runs.
    let archived =
        async |more: &[&str]| run(&[&["ledger", "archive", ledger, "--to", to], more].concat()).await;
    let (code, plan) = archived(&["--dry-run"]).await;
    assert_eq!((code, archive.exists()), (Some(0), false));
    let (code, done) = archived(&[]).await;
    assert_eq!((code, &done["moved"]), (Some(0), &plan["moved"]));
    let moved = done["moved"].as_array().unwrap().len();
    assert!(moved >= 2, "{done}");
    assert_eq!(forms(&archive), (0, moved));
    let stays_from = done["stays_from"].as_u64().unwrap();
    let (code, report) = run(&["audit", "verify", ledger]).await;
    assert_eq!((code, report["first"]["index"].as_u64()), (Some(0), Some(stays_from)));
    let (code, report) = run(&["audit", "verify", ledger, "--archive", to]).await;
    assert_eq!((code, &report["first"]["index"]), (Some(0), &1.into()));
    assert_eq!(report["archived_segments"].as_u64(), Some(moved as u64));
    assert_eq!(report["snapshots"], report["snapshots_followed"]);
    assert_eq!(tailed(&world, 1).await.first(), Some(&stays_from));

    // It starts again, goes on, and its next segments continue the archive.
    world.restart().await;
    worker.client = world.client(WORKER).await;
    worker.rejoin().await.unwrap();
    grow(&world, &worker, forms(&state).1 + 3).await;
    drop(worker);
    let (code, done) = archived(&["--keep", "3"]).await;
    assert_eq!((code, done["segments_left"].as_u64()), (Some(0), Some(3)));
    world.stop().await;
    let (code, report) = run(&["audit", "verify", ledger, "--archive", to]).await;
    assert_eq!((code, &report["first"]["index"]), (Some(0), &1.into()));
    assert_eq!(report["archived_segments"].as_u64(), Some(forms(&archive).1 as u64));

    // A damaged file in the archive is found, and the next archive does not touch it.
    let file = compressed_files(&archive).pop().unwrap();
    let good = fs::read(&file).unwrap();
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    assert_eq!(run(&["audit", "verify", ledger, "--archive", to]).await.0, Some(7));
    fs::write(&file, &good).unwrap();
    assert_eq!(run(&["audit", "verify", ledger, "--archive", to]).await.0, Some(0));
    world.restart().await;
}

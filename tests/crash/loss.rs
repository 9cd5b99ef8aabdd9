//! The ledger's files are removed or replaced by older copies, while the daemon serves and between two runs.

use std::{fs, path::Path};

use tonic::Code;

use super::process::{Place, durable};
use crate::harness::*;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|f| f.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn segments(state: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(state).unwrap().map(|f| f.unwrap().path());
    files.filter(|f| f.extension().is_some_and(|e| e == "jsonl")).collect()
}

/// Starts a daemon that must refuse to start, and returns its messages.
async fn refused_start(place: &Place) -> String {
    let mut process = place.start();
    assert_ne!(process.ended().await.code(), Some(0), "{}", process.log());
    let said = process.log();
    assert!(!said.contains(" ready "), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_ledger_is_noticed_and_no_start_forgets_its_locks() {
    let place = Place::new();
    let mut process = place.serve().await;
    let (operator, launcher) = (place.client(OPERATOR), place.client(LAUNCHER));
    let first = operator.lock("dataset:acme/patients@v1").await.unwrap().into_inner().ending.unwrap();
    assert!(durable(&operator, &first).await);
    let (state, kept) = (place.world.file("state"), place.world.file("kept"));
    copy(&state, &kept);
    segments(&state).iter().for_each(|file| fs::remove_file(file).unwrap());

    // The daemon notices it even though it writes nothing meanwhile.
    eventually("a daemon that is not ready", async || place.probe("/readyz").await == Some(503)).await;
    process.says("removed or renamed").await;
    let second = operator.lock("dataset:acme/patients").await.unwrap().into_inner().ending.unwrap();
    assert!(!second.durable, "a lock in a file that is gone was called durable");
    refused(launcher.create(spec(), "no").await).is(Code::Unavailable, "LEDGER_UNAVAILABLE");
    process.kill().await;

    let said = refused_start(&place).await;
    assert!(said.contains("--new-ledger") && said.contains("head.key"), "{said}");
    // The original files are enough to go on.
    copy(&kept, &state);
    let mut process = place.start();
    assert_eq!(process.ready().await, 2);
    let locks =
        operator.operators().list_locks(leasehold::proto::v1::ListLocksRequest::default()).await.unwrap();
    assert_eq!(locks.into_inner().locks[0].name, "dataset:acme/patients@v1");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_older_than_the_copy_of_its_head_is_refused() {
    let place = Place::new();
    let text =
        place.world.read("leasehold.toml").replacen("[ledger]\n", "[ledger]\nhead_copy = \"head.json\"\n", 1);
    place.world.write("leasehold.toml", &text);
    let (state, old) = (place.world.file("state"), place.world.file("old"));
    place.serve().await.stop().await;
    copy(&state, &old);
    let before = place.world.read("head.json");
    let process = place.serve().await;
    let operator = place.client(OPERATOR);
    operator.lock("dataset:acme/patients@v1").await.unwrap();
    eventually("a newer copy of the head", async || place.world.read("head.json") != before).await;
    process.stop().await;
    // An old copy of the whole ledger, with its own head.
    fs::remove_dir_all(&state).unwrap();
    copy(&old, &state);
    let said = refused_start(&place).await;
    assert!(said.contains("tail was cut off"), "{said}");
    // Without any of the files, this is still not a first start.
    fs::remove_dir_all(&state).unwrap();
    let said = refused_start(&place).await;
    assert!(said.contains("a copy of its head"), "{said}");
}

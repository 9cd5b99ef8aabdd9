//! The bench, run by the real program.

use std::process::Stdio;

use crate::harness::{plain, soon};

// Each server, from the one that only answers to the daemon, does the issues that it is measured by.
#[tokio::test(flavor = "multi_thread")]
async fn a_bench_of_stages_measures_each_server() {
    let mut bench = plain(env!("CARGO_BIN_EXE_leasehold"));
    bench.args(["bench", "stages", "--in-flight", "4", "--seconds", "1", "-o", "json"]);
    bench.stdin(Stdio::null()).kill_on_drop(true);
    let done = soon("the bench", bench.output()).await.unwrap();
    let (out, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let value: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{said}"));
    let stages = value["stages"].as_array().unwrap();
    let calls = stages.iter().filter_map(|s| s["measured"]["calls"].as_u64());
    assert!(done.status.success() && stages.len() == 5 && calls.clone().all(|n| n > 0), "{out}{said}");
    assert_eq!(stages.last().unwrap()["adds"], "all else: the daemon");
}

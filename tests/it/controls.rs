//! The controls, tried by the real program as a user tries them.

use std::process::Stdio;

use crate::harness::{plain, soon};

// Each step of each control in docs/controls.toml ends as it must, on the shipped catalogs and policy.
#[tokio::test(flavor = "multi_thread")]
async fn every_control_holds_when_it_is_tried() {
    let mut controls = plain(env!("CARGO_BIN_EXE_leasehold"));
    controls.args(["controls", "--run", "-o", "json"]).stdin(Stdio::null()).kill_on_drop(true);
    let done = soon("the controls", controls.output()).await.unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    let value: serde_json::Value = serde_json::from_str(&out)
        .unwrap_or_else(|e| panic!("{e}: {out}{}", String::from_utf8_lossy(&done.stderr)));
    let all = value["controls"].as_array().unwrap();
    let failed: Vec<_> = all.iter().filter(|c| c["held"] != true).collect();
    assert!(failed.is_empty() && done.status.success(), "{failed:#?}");
    let absent = value["not_here"].as_array().unwrap();
    assert_eq!(all.len() + absent.len(), 50);
}

//! The stories of the demo, run by the real program as a user runs them.

use std::process::Stdio;

use crate::harness::{plain, soon};

// Each claim of the story about people is observed: approvals, a changed request, a recall and a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_governance_story_observes_all_its_claims() {
    let mut demo = plain(env!("CARGO_BIN_EXE_leasehold"));
    demo.args(["demo", "--story", "governance", "-o", "json"]).stdin(Stdio::null()).kill_on_drop(true);
    let done = soon("the story", demo.output()).await.unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{}: {out}{}", done.status, String::from_utf8_lossy(&done.stderr));
    let claims: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&out).into_iter().map(Result::unwrap).collect();
    assert!(claims.iter().all(|c| c["holds"] == true), "{out}");
    for part in [
        "waits for people",
        "another group cannot approve",
        "second owner of models",
        "waits again",
        "is recalled",
        "comes back",
        "verify-clean",
    ] {
        assert!(claims.iter().any(|c| c["claim"].as_str().unwrap().contains(part)), "{part}: {out}");
    }
}

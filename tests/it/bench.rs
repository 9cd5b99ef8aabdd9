//! The bench, run by the real program.

use std::{ffi::OsStr, os::unix::fs::PermissionsExt, process::Stdio};

use crate::harness::{plain, soon};

// The bench measures issues and renewals at each server, from the one that only answers to the daemon. A renewal has no stage for a
// line in the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_bench_of_stages_measures_each_server() {
    let value = run_bench(&["stages", "--in-flight", "4", "--seconds", "1"]).await;
    let stages = value["stages"].as_array().unwrap();
    let calls = stages.iter().filter_map(|s| s["measured"]["calls"].as_u64());
    assert!(stages.len() == 15 && calls.clone().all(|n| n > 0), "{value}");
    for (what, stages) in ["issue", "renew"].iter().zip(stages.chunks(8)) {
        assert!(stages.iter().all(|s| s["what"] == *what), "{value}");
        assert_eq!(stages.last().unwrap()["adds"], "all else: the daemon");
    }
}

/// Runs the bench with these arguments, and returns what it prints for programs.
async fn run_bench(arguments: &[&str]) -> serde_json::Value {
    let mut bench = plain(env!("CARGO_BIN_EXE_leasehold"));
    bench.arg("bench").args(arguments).args(["-o", "json"]).stdin(Stdio::null()).kill_on_drop(true);
    let done = soon("the bench", bench.output()).await.unwrap();
    let (out, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{said}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{said}"))
}

// The echo answers each request of the mix too, so the mix has a limit beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mix_of_requests_is_measured_beside_its_limit() {
    let value = run_bench(&["mixed", "--seconds", "1"]).await;
    let figures = value["figures"].as_array().unwrap();
    let [mixed] = figures.as_slice() else { panic!("{value}") };
    assert_eq!((&mixed["what"], &mixed["in_flight"]), (&"mixed".into(), &100.into()));
    assert!(
        mixed["ours"]["calls"].as_u64() > Some(0) && mixed["limit"]["calls"].as_u64() > Some(0),
        "{value}"
    );
}

// The verifier refuses a revoked job too. Verifier and daemon refuse leases that end together from their deadlines on.
#[tokio::test(flavor = "multi_thread")]
async fn many_leases_end_by_a_revocation_or_together() {
    let value = run_bench(&["revoke", "storm", "--quick", "--leases", "60", "--rate", "20"]).await;
    let [revoked] = value["revoke"].as_array().unwrap().as_slice() else { panic!("{value}") };
    assert_eq!((&revoked["leases"], &revoked["refused"]["calls"]), (&60.into(), &5.into()), "{value}");
    let [storm] = value["storm"].as_array().unwrap().as_slice() else { panic!("{value}") };
    assert_eq!((&storm["leases"], &storm["checks_refused"]), (&60.into(), &60.into()), "{value}");
    assert_eq!(storm["introspections_refused"], 60, "{value}");
    let calls = ["issue_before", "issue_during"].map(|when| storm[when]["calls"].as_u64());
    assert!(calls.iter().all(|calls| *calls > Some(0)), "{value}");
}

// The page gets a table and a picture, and keeps the rest of its text. The chart is a second file.
#[tokio::test(flavor = "multi_thread")]
async fn growth_is_measured_and_written_into_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let (page, chart) = (folder.path().join("page.md"), folder.path().join("chart.svg"));
    let marks = "<!-- leasehold bench --page writes growth from here -->\n<!-- to here: growth -->";
    std::fs::write(&page, format!("Before.\n{marks}\nAfter.\n")).unwrap();
    let [page, chart] = [&page, &chart].map(|path| path.to_str().unwrap());
    let numbers = ["--quick", "--leases", "80,40", "--verifiers", "1,3", "--rate", "20"];
    let files = ["--page", page, "--chart", chart];
    let value = run_bench(&[&["growth"][..], &numbers, &files].concat()).await;
    assert_eq!(value["figures"], serde_json::json!([]), "growth has no rate");
    let [small, large] = value["growth"]["steps"].as_array().unwrap().as_slice() else { panic!("{value}") };
    for (step, leases) in [(small, 40), (large, 80)] {
        assert_eq!((&step["leases"], &step["revocation"]["leases"]), (&leases.into(), &leases.into()));
        assert_eq!(step["storm"]["checks_refused"], leases / 4, "{value}");
        assert!(step["memory_bytes"].as_u64() > Some(1 << 20), "{value}");
        assert!(
            step["look_up"]["calls"].as_u64() > Some(0) && step["issue"]["calls"] == leases / 2,
            "{value}"
        );
    }
    let feeds = value["growth"]["feeds"].as_array().unwrap();
    let verifiers: Vec<_> = feeds.iter().map(|f| (&f["verifiers"], &f["heard"]["calls"])).collect();
    assert_eq!(verifiers, [(&1.into(), &20.into()), (&3.into(), &20.into())]);
    assert_eq!(value["growth"]["stopped"], serde_json::json!([]));

    let text = std::fs::read_to_string(page).unwrap();
    assert!(
        text.starts_with("Before.\n<!--") && text.ends_with("<!-- to here: growth -->\nAfter.\n"),
        "{text}"
    );
    assert!(
        text.contains("\n| 80 | ") && text.contains("\n| 3 | ") && text.contains("(img/growth.svg)"),
        "{text}"
    );
    for svg in [folder.path().join("img/growth.svg"), chart.into()] {
        let svg = std::fs::read_to_string(svg).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    }
}

// The result says how far the bench went, so that a reader does not believe that the largest number was measured.
#[tokio::test(flavor = "multi_thread")]
async fn growth_that_is_stopped_says_where() {
    let value = run_bench(&["growth", "--leases", "90000", "--verifiers", "1", "--at-most", "1"]).await;
    assert_eq!(value["growth"]["steps"], serde_json::json!([]));
    let [stopped] = value["growth"]["stopped"].as_array().unwrap().as_slice() else { panic!("{value}") };
    assert_eq!(stopped, "90000 leases: 0 were made: the time was over");
}

async fn bench_vault(args: &[&OsStr]) -> (Option<i32>, String) {
    let mut bench = plain(env!("CARGO_BIN_EXE_leasehold"));
    bench.args(["bench", "vault", "--quick"]).args(args).env("PATH", "/nonexistent");
    bench.stdin(Stdio::null()).kill_on_drop(true);
    let done = soon("the bench", bench.output()).await.unwrap();
    assert!(done.stdout.is_empty(), "{}", String::from_utf8_lossy(&done.stdout));
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_vault_the_bench_says_how_to_get_it() {
    let (code, said) = bench_vault(&[]).await;
    assert!(code == Some(64) && said.contains("there is no vault in PATH"), "{code:?} {said}");
    assert!(said.contains("tests/interop/vault/build"), "{said}");
    let (code, said) = bench_vault(&["--vault".as_ref(), "/bin/true".as_ref()]).await;
    assert!(code == Some(64) && said.contains("did not print a version of Vault"), "{code:?} {said}");
}

// A Vault that does not start ends the bench, with the last lines of its log. Nothing stays in the folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_ends_at_once_ends_the_bench() {
    let folder = tempfile::tempdir().unwrap();
    let (program, dir) = (folder.path().join("vault"), folder.path().join("bench"));
    let script = "#!/bin/sh\ncase $1 in version) echo Vault v9.9 ;; *) echo no storage >&2; exit 3 ;; esac\n";
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    let args: [&OsStr; 4] = ["--vault".as_ref(), program.as_ref(), "--dir".as_ref(), dir.as_os_str()];
    let (code, said) = bench_vault(&args).await;
    assert!(
        code == Some(1) && said.contains("Vault ended with exit status: 3: no storage"),
        "{code:?} {said}"
    );
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

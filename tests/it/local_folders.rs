//! `stage` and `sync` of a job file: folders that the wrapper fills before the command starts, and uploads while it runs.

use std::{fs, path::PathBuf};

use leasehold::proto::v1::{self, JobState, Outcome};
use nix::sys::signal::Signal;

use crate::{gateway::world_with_gateway, harness::*};

/// A world whose wrappers find the gateway.
async fn world() -> (World, Port) {
    let port = Port::reserve();
    let listen = port.address.to_string();
    let change = |setup: &mut Setup| {
        setup.real_clock = true;
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        let at = format!("[[audience]]\nname      = \"{GATEWAY}\"\n");
        assert!(acme.contains(&at));
        let found = format!("{at}s3_endpoint = \"{listen}\"\ns3_server_id = \"{DAEMON}\"\n");
        *acme = acme.replacen(&at, &found, 1);
    };
    (world_with_gateway(change, &listen).await, port)
}

/// A job with a staged model and a synced checkpoint line.
fn spec(world: &World, stage: &str, run: &str) -> String {
    let at = |name: &str| world.file(name).display().to_string();
    format!(
        "name = \"support-lora\"\npurpose = \"support-tuning\"\nmax_duration = \"2h\"\n[tune]\nmethod = \"lora\"\n\
         [[read]]\nresource = \"{TICKETS}\"\n[[read]]\nresource = \"{MODEL}\"\nstage = \"{}\"\n\
         [[write]]\nresource = \"{LINE}\"\nsync = \"{}\"\n[run]\n{run}\n",
        at(stage),
        at("scratch/out"),
    )
}

impl World {
    /// The path of a file in the folder of a job at the gateway.
    fn stored(&self, job: &str, name: &str) -> PathBuf {
        self.file(&format!("acme-models/out/support-lora/{job}/{name}"))
    }
}

const UNTIL_ALLOWED: &str = "while [ ! -e $HERE/go ]; do sleep 0.02; done";

// A program that knows only files finds its model, and what it wrote is uploaded, at once or after its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_staged_and_results_are_uploaded() {
    let (world, _port) = world().await;
    fs::create_dir(world.file("acme-models/base-7b/2026.10/weights")).unwrap();
    world.write("acme-models/base-7b/2026.10/weights/part-0.bin", &"w".repeat(100_000));
    let script = format!(
        "cd $HERE/scratch; stat -c %a base; cat base/config.json; wc -c <base/weights/part-0.bin; \
         mkdir -p out/step-1; echo early >out/step-1/w; {UNTIL_ALLOWED}; echo late >out/late; ln -s base/config.json out/link"
    );
    fs::create_dir(world.file("scratch")).unwrap();
    let mut wrapper = world.wrap(&spec(&world, "scratch/base", ""), &[], &script);
    wrapper.child_says("100000").await;
    assert!(wrapper.stdout().starts_with("700\n{}"), "{}", wrapper.stdout());
    let job = wrapper.job().await;
    eventually("the first upload", async || world.stored(&job, "step-1/w").exists()).await;
    assert!(!world.stored(&job, "late").exists());
    fs::write(world.file("go"), "").unwrap();
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert_eq!(fs::read_to_string(world.stored(&job, "late")).unwrap(), "late\n");
    assert!(!world.stored(&job, "link").exists(), "a link is not followed");
    assert!(!world.file("scratch/base").exists(), "the copy is removed");
    assert!(world.file("scratch/out/late").exists(), "what the command wrote stays");
    let said = wrapper.stderr();
    for line in
        ["copied model:acme/base-7b@2026.10 to", "uploaded 2 files, 11 bytes, from", "removed the copy in"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    let (job, attempt) = world.client(WORKER).await.stands(&job).await;
    assert_eq!((job.state(), job.outcome()), (JobState::Closed, Outcome::Completed), "{}", attempt.detail);
}

// The end of access removes the copy while the command goes on, and names what was not uploaded.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_removes_the_copy() {
    let (world, _port) = world().await;
    let script = format!("ls $HERE/base; {UNTIL_ALLOWED}; echo x >$HERE/scratch/out/x; exit 0");
    fs::create_dir(world.file("scratch")).unwrap();
    let mut wrapper = world.wrap(&spec(&world, "base", "on_revoke = \"ignore\""), &[], &script);
    wrapper.child_says("config.json").await;
    let job = wrapper.job().await;
    world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
    eventually("the copy is gone", async || !world.file("base").exists()).await;
    fs::write(world.file("go"), "").unwrap();
    assert_eq!(wrapper.exit().await, Some(125), "{}", wrapper.stderr());
    let said = wrapper.stderr();
    assert!(said.contains("1 file (2 bytes), such as `x` of") && said.contains("are not uploaded"), "{said}");
    assert!(!world.stored(&job, "x").exists());
}

// If the wrapper is killed, its guard removes the copy after the command.
#[tokio::test(flavor = "multi_thread")]
async fn the_guard_removes_the_copy() {
    let (world, _port) = world().await;
    let mut wrapper = world.wrap(&spec(&world, "base", ""), &[], &format!("ls $HERE/base; {UNTIL_ALLOWED}"));
    wrapper.child_says("config.json").await;
    wrapper.signal(Signal::SIGKILL);
    eventually("the copy is gone", async || !world.file("base").exists()).await;
    let _ = wrapper.exit().await;
}

// The next attempt finds the checkpoints of the one before, on a machine that has none of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_finds_earlier_checkpoints() {
    let (world, _port) = world().await;
    let members = "[members]\nattempts = 3\n";
    let text = spec(&world, "base", "") + members;
    fs::create_dir(world.file("scratch")).unwrap();
    let script = format!(
        "mkdir $HERE/scratch/out/step-1; echo one >$HERE/scratch/out/step-1/w; echo up; {UNTIL_ALLOWED}; sleep 60"
    );
    let mut wrapper = world.wrap(&text, &["--attempt-key", "first"], &script);
    wrapper.child_says("up").await;
    let job = wrapper.job().await;
    wrapper.signal(Signal::SIGTERM);
    assert_eq!(wrapper.exit().await, Some(143), "{}", wrapper.stderr());
    assert_eq!(fs::read_to_string(world.stored(&job, "step-1/w")).unwrap(), "one\n", "uploaded in the drain");
    fs::remove_dir_all(world.file("scratch/out")).unwrap();
    let again = ["--job", job.as_str(), "--attempt-key", "second"];
    let mut wrapper = world.wrap(&text, &again, "cat $HERE/scratch/out/step-1/w; exit 0");
    assert_eq!(wrapper.exit().await, Some(0), "{}", wrapper.stderr());
    assert_eq!(wrapper.stdout(), "one\n");
    assert!(wrapper.stderr().contains("uploaded 0 files"), "{}", wrapper.stderr());
}

// A folder with files of others is not touched, and nothing is started.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_others_is_not_used() {
    let (world, _port) = world().await;
    fs::create_dir(world.file("base")).unwrap();
    world.write("base/theirs", "1");
    let mut wrapper = world.wrap(&spec(&world, "base", ""), &[], "echo started");
    assert_eq!(wrapper.exit().await, Some(125));
    let said = wrapper.stderr();
    assert!(
        said.contains("cannot be used: it contains other files: name a folder that does not exist"),
        "{said}"
    );
    assert_eq!((wrapper.stdout().as_str(), world.read("base/theirs").as_str()), ("", "1"));
    let jobs = world.client(WORKER).await.jobs().list_jobs(v1::ListJobsRequest::default()).await.unwrap();
    let jobs = jobs.into_inner().jobs;
    assert!(!jobs.is_empty() && jobs.iter().all(|job| job.state() == JobState::Closed), "{jobs:?}");
}

//! What people read on these paths: each says what happened, whose fault it was, and what to do.

use nix::sys::signal::Signal;

use crate::{harness::*, scene::*};

/// What is said while a wrapper runs is told apart by how it ran.
fn told(all: &mut String, world: &World, what: &str, wrapper: &Wrapper, code: i32) {
    *all += &format!("# {what}\n{}-- exit {code}\n\n", plain(world, &wrapper.stderr()));
}

/// What was said, with what differs from run to run taken out.
fn plain(world: &World, said: &str) -> String {
    let here = world.dir.path().to_str().unwrap().to_owned();
    let real = std::fs::canonicalize(&here).unwrap().to_str().unwrap().to_owned();
    let said = said.replace(&here, "HERE").replace(&real, "HERE");
    said.lines().map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n").collect()
}

fn word(word: &str) -> String {
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if word.starts_with("HERE/credentials/leasehold-") {
        return "DIR".to_owned();
    }
    let is_job = bare.len() == 28 && bare.starts_with("j-");
    let is_time = bare.len() >= 20 && bare.starts_with("20") && bare.contains('T') && bare.ends_with('Z');
    let is_address = bare.starts_with("127.0.0.1:") || bare.starts_with("localhost:");
    match (is_job, is_time, is_address) {
        (true, ..) => word.replace(bare, "j-…"),
        (_, true, _) => word.replace(bare, "TIME"),
        (.., true) => word.replace(bare, "ADDRESS"),
        _ => word.to_owned(),
    }
}

async fn refused(world: &World, id: &str, args: &[&str]) -> String {
    let mut wrapper = world.leasehold(id, &[], args);
    let code = wrapper.exit().await.unwrap();
    format!("{}-- exit {code}\n\n", plain(world, &wrapper.stderr()))
}

fn run<'a>(job: &'a str, key: &'a str, instance: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["run", "--job", job, "--attempt-key", key, "--instance", instance];
    [&args[..], more, &["--", "true"]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_before_a_start_says_what_it_means_and_what_to_do() {
    let world = world().await;
    let launcher = world.client(LAUNCHER).await;
    let mut all = String::new();
    let job = crew(&world, 1).await;
    let dir = world.file("credentials");
    let deaf = format!("trap '' TERM; {UNTIL_TOLD}");
    let place = ["--dir", dir.to_str().unwrap(), "--", "sh", "-c", &deaf];
    let held = ["run", "--job", &job, "--attempt-key", "k-1", "--instance", "node-1"];
    let mut held = world.leasehold(WORKER, &[], &[&held[..], &place].concat());
    held.child_says("up").await;

    all += &refused(&world, WORKER, &run(&job, "k-1", "node-2", &[])).await;
    all += &refused(&world, WORKER, &run(&job, "k-1", "node-1", &[])).await;
    all += &refused(&world, OTHER_WORKER, &run(&job, "k-1", "node-1", &[])).await;
    held.signal(Signal::SIGTERM);
    held.says("reading goes on").await;
    all += &refused(&world, WORKER, &run(&job, "k-2", "node-1", &[])).await;
    launcher.end(&job, 1, leasehold::proto::v1::Outcome::Failed).await.unwrap();
    assert_eq!(held.exit().await, Some(137));
    all += &refused(&world, WORKER, &run(&job, "k-1", "node-1", &[])).await;
    all += &refused(&world, WORKER, &["agent", "attach", &job]).await;
    for key in ["k-2", "k-3"] {
        launcher.begin(&job, key).await.unwrap();
    }
    launcher.end(&job, 3, leasehold::proto::v1::Outcome::Interrupted).await.unwrap();
    all += &refused(&world, WORKER, &run(&job, "k-4", "node-1", &[])).await;
    all += &refused(&world, WORKER, &run("j-00000000000000000000000001", "k", "a", &[])).await;

    let members = leasehold::proto::v1::Members { join: vec![SHARED.into()], ..members() };
    let shared = launcher
        .create(leasehold::proto::v1::JobSpec { members: Some(members), ..spec() }, "shared")
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap()
        .id;
    launcher.begin(&shared, "k").await.unwrap();
    world.write("ticket", &"A".repeat(43));
    world.write("garbage", "soon");
    let (ticket, garbage) = (world.file("ticket"), world.file("garbage"));
    for file in [ticket.to_str().unwrap(), garbage.to_str().unwrap(), "/no/such/ticket"] {
        all +=
            &refused(&world, SHARED, &["run", "--job", &shared, "--ticket-file", file, "--", "true"]).await;
    }

    std::fs::create_dir(world.file("mine")).unwrap();
    world.write("mine/thesis.tex", "x");
    let mine = world.file("mine");
    all += &refused(&world, WORKER, &["agent", "--job", &job, "--dir", mine.to_str().unwrap()]).await;
    all += &refused(&world, WORKER, &["agent", "--job", &job, "--watch-pid", "2147483647"]).await;
    all += &refused(&world, WORKER, &["agent", "--job", &job, "--on-revoke", "kill"]).await;
    all += &refused(&world, WORKER, &["run", "--job", &job, "--", "no-such-command"]).await;
    println!("{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_turn_of_a_run_says_what_it_means_and_what_to_do() {
    let mut world = world_with_an_address().await;
    let mut all = String::new();
    let address = world.daemon().grpc.to_string();
    let spec = job_toml("", "[members]\nattempts = 3\n[run]\ngrace = \"1s\"\ndrain = \"1s\"\n");

    let mut drained = world.wrap(&spec, &[], &format!("trap '' TERM; {UNTIL_TOLD}"));
    drained.child_says("up").await;
    drained.signal(Signal::SIGTERM);
    let code = drained.exit().await.unwrap();
    told(&mut all, &world, "drained", &drained, code);

    let mut revoked = world.wrap(&spec, &[], "echo up; exec sleep 600");
    revoked.child_says("up").await;
    let job = revoked.job().await;
    world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
    let code = revoked.exit().await.unwrap();
    told(&mut all, &world, "revoked", &revoked, code);

    let mut stale = world.wrap(&spec, &[], "echo up; exec sleep 600");
    stale.child_says("up").await;
    let job = stale.job().await;
    world.client(WORKER).await.begin(&job, "a requeue").await.unwrap();
    let code = stale.exit().await.unwrap();
    told(&mut all, &world, "superseded", &stale, code);

    let mut locked = world.wrap(&spec, &["--on-revoke", "ignore"], UNTIL_TOLD);
    locked.child_says("up").await;
    world.client(OPERATOR).await.lock(&format!("identity:{WORKER}")).await.unwrap();
    locked.says("goes on without access").await;
    world.write("go", "");
    let code = locked.exit().await.unwrap();
    told(&mut all, &world, "locked", &locked, code);
    world.client(OPERATOR).await.unlock(&format!("identity:{WORKER}")).await.unwrap();
    std::fs::remove_file(world.file("go")).unwrap();

    let spec = job_toml("credential_ttl = \"2s\"", "[run]\nrejoin = \"4s\"\n");
    let mut away = world.wrap(&spec, &[], UNTIL_TOLD);
    away.child_says("up").await;
    world.stop().await;
    away.says("no longer trying to come back").await;
    world.write("go", "");
    let code = away.exit().await.unwrap();
    told(&mut all, &world, "the daemon went away, for good", &away, code);

    let mut none = world.leasehold_at(&address, WORKER, &[], &["run", "--job", &job, "--", "true"]);
    let code = none.exit().await.unwrap();
    told(&mut all, &world, "no daemon", &none, code);
    println!("{all}");
}

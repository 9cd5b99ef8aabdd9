//! The texts that people read: each says what happened, whose fault it was, and what to do.

use nix::sys::signal::Signal;

use crate::{harness::*, scene::*};

/// Appends the output of a wrapper under a heading.
fn append(all: &mut String, world: &World, what: &str, wrapper: &Wrapper, code: i32) {
    *all += &format!("# {what}\n{}-- exit {code}\n\n", plain(world, &wrapper.stderr()));
}

/// The output without the parts that differ from run to run.
fn plain(world: &World, said: &str) -> String {
    let here = world.dir.path().to_str().unwrap().to_owned();
    let real = std::fs::canonicalize(&here).unwrap().to_str().unwrap().to_owned();
    let said = said.replace(&here, "HERE").replace(&real, "HERE");
    // Depends on the machine.
    let lines = said.lines().filter(|line| !line.contains("credentials are on disk"));
    lines.map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n").collect()
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
async fn each_refusal_before_a_start_says_what_to_do() {
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
    insta::assert_snapshot!(all, @r#"
    leasehold: error: the attempt has reached its limit of joined members: 1
      code   MEMBERS_FULL
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  not a fault of this process: the job allows fewer members than have come; the others go on
      fix    start fewer, or create a job with a larger members.max
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: another participant is joined as `node-1`
      code   INSTANCE_TAKEN
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  another process takes part under this name: two processes were given the same name, or the previous process has not ended yet
      fix    give each process its own --instance; the name of a dead process is free again within seconds
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: there is no such job, or none that you may see
      code   JOB_NOT_FOUND
      you    spiffe://k8s.acme.example/ns/ml/job/other
      means  no job with this ID is visible to you; a mistyped ID and another team's job look the same
      fix    list those that you may see: leasehold job list
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: attempt 1 is still draining; set `supersede` to end it now
      code   ATTEMPT_DRAINING
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  not a fault of this run: the run before it is still saving its work and has some time left for that
      fix    start again in a moment, or with --supersede to end the other run now
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: the key belongs to attempt 1, which is over
      code   ATTEMPT_KEY_USED
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  a run with this key has ended; no key is used twice, so that a late process of the old run gets no access
      fix    a new run needs a new key: use the scheduler's restart count in it
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: no attempt of j-… is running
      code   ATTEMPT_NOT_FOUND
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  no run of this job has begun, or its last run has ended
      fix    begin one: leasehold agent --job j-…, or leasehold run --job j-… --spec FILE
    Nothing was started, no access was given.
    -- exit 1

    leasehold: error: the job is closed: interrupted
      code   JOB_CLOSED
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  the job is closed permanently; no run can open it again
      fix    see why: leasehold job show ID; then create another job
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: there is no such job, or none that you may see
      code   JOB_NOT_FOUND
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  no job with this ID is visible to you; a mistyped ID and another team's job look the same
      fix    list those that you may see: leasehold job list
    Nothing was started, no access was given.
    -- exit 125

    leasehold: denied: several jobs share your identity, so joining needs the ticket of this attempt
      code   TICKET_REQUIRED
      you    spiffe://hpc.acme.example/slurm/ml-support/node
      means  several jobs can use your identity, or the job names it only by a pattern that others match too, so each process must prove that it belongs to this job
      fix    give the ticket that the launcher wrote: leasehold job begin ID --attempt-key K --ticket-to FILE, then --ticket-file FILE here; if members.start has your full SPIFFE ID, --job ID --attempt-key K is enough, and this command gets the ticket itself
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: this file has no ticket
      file   HERE/garbage
      fix    give the file that `leasehold job begin --ticket-to` wrote: one line of 43 characters; with --attempt-key you need no ticket
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: the ticket cannot be read: No such file or directory (os error 2)
      file   /no/such/ticket
      fix    give the file that `leasehold job begin --ticket-to` wrote: one line of 43 characters; with --attempt-key you need no ticket
    Nothing was started, no access was given.
    -- exit 125

    leasehold: error: HERE/mine cannot hold credentials: there are other files in it (`thesis.tex`); name an empty directory
    Nothing was started, no access was given.
    -- exit 1

    leasehold: error: there is no process 2147483647 to watch: start it before, or leave --watch-pid out
    Nothing was started, no access was given.
    -- exit 1

    leasehold: error: --on-revoke kill needs a process to kill
      fix    add --watch-pid PID, or leave --on-revoke out
    Nothing was changed.
    -- exit 64

    leasehold: error: cannot run `no-such-command`: no such command; write its path, or put it on the PATH
    Nothing was started, no access was given.
    -- exit 127
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_of_a_run_says_what_to_do() {
    let mut all = String::new();
    let spec = job_toml("", "[members]\nattempts = 3\n[run]\ngrace = \"1s\"\ndrain = \"1s\"\n");
    {
        let world = world().await;
        let mut drained = world.wrap(&spec, &[], &format!("trap '' TERM; {UNTIL_TOLD}"));
        drained.child_says("up").await;
        drained.signal(Signal::SIGTERM);
        let code = drained.exit().await.unwrap();
        append(&mut all, &world, "drained", &drained, code);
    }
    {
        let world = world().await;
        let mut revoked = world.wrap(&spec, &[], "echo up; exec sleep 600");
        revoked.child_says("up").await;
        let job = revoked.job().await;
        world.client(OPERATOR).await.revoke(&format!("job:{job}")).await.unwrap();
        let code = revoked.exit().await.unwrap();
        append(&mut all, &world, "revoked", &revoked, code);
        let mut another = world.wrap(&spec, &[], "true");
        let code = another.exit().await.unwrap();
        append(&mut all, &world, "another job under the same identity", &another, code);
    }
    {
        let world = world().await;
        let mut stale = world.wrap(&spec, &[], "echo up; exec sleep 600");
        stale.child_says("up").await;
        let job = stale.job().await;
        world.client(WORKER).await.begin(&job, "a requeue").await.unwrap();
        let code = stale.exit().await.unwrap();
        append(&mut all, &world, "superseded", &stale, code);
    }
    {
        let world = world().await;
        let mut locked = world.wrap(&spec, &["--on-revoke", "ignore"], UNTIL_TOLD);
        locked.child_says("up").await;
        world.client(OPERATOR).await.lock(&format!("identity:{WORKER}")).await.unwrap();
        locked.says("goes on without access").await;
        world.write("go", "");
        let code = locked.exit().await.unwrap();
        append(&mut all, &world, "locked", &locked, code);
    }
    {
        let mut world = world_with_an_address().await;
        let address = world.daemon().grpc.to_string();
        let spec = job_toml("credential_ttl = \"4s\"", "[run]\nrejoin = \"10s\"\n");
        let mut away = world.wrap(&spec, &[], UNTIL_TOLD);
        away.child_says("up").await;
        let job = away.job().await;
        world.stop().await;
        away.says("no longer trying to reconnect").await;
        world.write("go", "");
        let code = away.exit().await.unwrap();
        append(&mut all, &world, "the daemon went away, for good", &away, code);
        let mut none = world.leasehold_at(&address, WORKER, &[], &["run", "--job", &job, "--", "true"]);
        let code = none.exit().await.unwrap();
        append(&mut all, &world, "no daemon", &none, code);
    }
    insta::assert_snapshot!(all, @r#"
    # drained
    leasehold: j-…, attempt 1: reads dataset:acme/tickets@v3, model:acme/base-7b@2026.10; writes checkpoint:acme/support-lora; until TIME at the latest
    leasehold: attempt 1 is draining: SIGTERM from outside: reading goes on until TIME, checkpoint writes until TIME
    leasehold: access has ended (ATTEMPT_DRAINING): the time to finish is over: it was given until TIME
    leasehold: the credential files are wiped; the command is ended by SIGTERM, and by SIGKILL after 1 s
    leasehold: interrupted: ended by SIGKILL after SIGTERM; access had ended before
    -- exit 137

    # revoked
    leasehold: j-…, attempt 1: reads dataset:acme/tickets@v3, model:acme/base-7b@2026.10; writes checkpoint:acme/support-lora; until TIME at the latest
    leasehold: access has ended (REVOKED): the job is closed (revoked): by spiffe://people.acme.example/u/ada: seen in the wild
    leasehold: what it means: someone has ended this access on purpose; it does not come back by itself
    leasehold: the credential files are wiped; the command is ended by SIGTERM, and by SIGKILL after 1 s
    leasehold: interrupted: ended by SIGTERM; access had ended before
    -- exit 143

    # another job under the same identity
    leasehold: denied: your identity belongs to only one job, and that is j-…
      code   IDENTITY_BOUND
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      means  this identity may work for one job at a time, and has taken part in another job that is open or ended a short while ago; a run that was killed counts too
      fix    go on with that job while it is open (--job j-…); or run each job under its own SPIFFE ID, or have the catalog say identity = "shared"; this identity is free 25 h after j-… has ended
    Nothing was started, no access was given.
    -- exit 125

    # superseded
    leasehold: j-…, attempt 1: reads dataset:acme/tickets@v3, model:acme/base-7b@2026.10; writes checkpoint:acme/support-lora; until TIME at the latest
    leasehold: this attempt was superseded (ATTEMPT_STALE): attempt 1 is over: attempt 2 began
    leasehold: what it means: not a fault of this run: a newer run of the same job has begun, and only one run at a time has access
    leasehold: the credential files are wiped; the command is ended by SIGTERM, and by SIGKILL after 1 s
    leasehold: interrupted: ended by SIGTERM; access had ended before
    -- exit 143

    # locked
    leasehold: j-…, attempt 1: reads dataset:acme/tickets@v3, model:acme/base-7b@2026.10; writes checkpoint:acme/support-lora; until TIME at the latest
    leasehold: access has ended (LOCKED): identity:spiffe://k8s.acme.example/ns/ml/job/tuner is locked: under investigation
    leasehold: what it means: an operator has locked this until further notice
    leasehold: the credential files are wiped; the command goes on without access
    leasehold: completed: exit code 0; access had ended before
    -- exit 0

    # the daemon went away, for good
    leasehold: j-…, attempt 1: reads dataset:acme/tickets@v3, model:acme/base-7b@2026.10; writes checkpoint:acme/support-lora; until TIME at the latest
    leasehold: the daemon is away (UNREACHABLE: cannot reach `ADDRESS`): servers that follow or ask the daemon refuse your credentials until it is back, and other servers accept them until TIME at the latest; your program goes on; trying to reconnect
    leasehold: the credentials have expired and their files are removed; your program goes on, and the files come back when the daemon does
    leasehold: the daemon has been away for 10s, longer than `rejoin` allows: no longer trying to reconnect; your program is not at fault and goes on without access; start it again to get new access
    leasehold: completed: exit code 0; this could not be reported (UNREACHABLE: cannot reach `ADDRESS`): access ends by itself within 300 s
    -- exit 0

    # no daemon
    leasehold: cannot reach `ADDRESS`: trying again for up to 10 s
    leasehold: error: cannot reach `ADDRESS`
      code   UNREACHABLE
      you    spiffe://k8s.acme.example/ns/ml/job/tuner
      cause  Connection refused (os error 111)
      means  nothing was decided: the request did not reach the daemon
      fix    check that the server runs, the address, and the network between
    Nothing was started, no access was given.
    -- exit 125
    "#);
}

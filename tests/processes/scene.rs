//! A daemon with short beats, one job, and the cause of its end in the ledger.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use leasehold::proto::v1;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::*;

/// A beat each second, of which two may be missed: for tests about missed beats. A busy machine misses some too.
pub const SHORT: &str = "beat = \"1s\"\nlost_after = 2\nrejoin = \"30s\"";
pub const WINDOW: Duration = Duration::from_secs(2);
/// A window of five minutes, which is longer than any test, so that no member is lost by missed beats.
pub const LONG: &str = "lost_after = 60\ndrain_read = \"2m\"";

/// Prints `up`, and runs until the file `go` exists.
pub const UNTIL_TOLD: &str = "echo up; while [ ! -e $HERE/go ]; do sleep 0.02; done; echo down";

pub async fn world() -> World {
    world_of(LONG).await
}

pub async fn world_of(lease: &str) -> World {
    World::with(|setup| {
        setup.real_clock = true;
        setup.lease = lease.to_owned();
    })
    .await
}

/// A world whose daemon keeps its address over a restart.
pub async fn world_with_an_address() -> World {
    let mut world = World::prepared(|setup| {
        setup.real_clock = true;
        setup.lease = LONG.to_owned();
    });
    world.stays_where_it_is();
    world.restart().await;
    world
}

/// A job for `n` members, each with the identity of the usual worker, which may also begin it.
pub async fn crew(world: &World, n: u32) -> String {
    crew_with(world, v1::Members { expect: n, max: n, ..members() }).await
}

pub fn members() -> v1::Members {
    let (join, start) = (vec![WORKER.into()], vec![WORKER.into()]);
    v1::Members { join, start, expect: 1, max: 1, attempts: 3, ..Default::default() }
}

pub async fn crew_with(world: &World, members: v1::Members) -> String {
    let launcher = world.client(LAUNCHER).await;
    let spec = v1::JobSpec { members: Some(members), ..spec() };
    launcher.create(spec, "crew").await.unwrap().into_inner().job.unwrap().id
}

/// Waits for a process id that a script writes to a file.
pub async fn pid_in(world: &World, name: &str) -> Pid {
    let path = world.file(name);
    let read = || fs::read_to_string(&path).ok().filter(|t| t.ends_with('\n'));
    eventually(name, async || read().is_some()).await;
    Pid::from_raw(read().unwrap().trim().parse().unwrap())
}

/// A shell that writes its id to a file and runs without end.
pub fn rank(name: &str, ignoring: &str) -> String {
    let ignore = if ignoring.is_empty() { String::new() } else { format!("trap \"\" {ignoring}; ") };
    format!(
        "sh -c '{ignore}echo $$ > $HERE/{name}.new; mv $HERE/{name}.new $HERE/{name}; while :; do sleep 0.05; done'"
    )
}

pub fn runs(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

pub async fn gone(pid: Pid) {
    eventually("the end of a process", async || !runs(pid)).await;
}

pub fn send(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap();
}

/// The last record about the end of a job or of a member.
pub async fn cause(world: &World) -> String {
    let records = world.records().await;
    let ends = ["job.closed", "attempt.ended", "member.left", "member.away", "member.lost"];
    let of = |kind: &&str| records.of(kind).last().map(|r| (r["index"].as_u64(), (*r).clone()));
    let Some((_, last)) = ends.iter().filter_map(of).max_by_key(|(index, _)| *index) else {
        return "nothing".to_owned();
    };
    let word = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
    let outcome = last["outcome"].as_str().map(|o| format!(" ({o})")).unwrap_or_default();
    format!("{}{outcome}: {}", word("type"), word("detail"))
}

/// Prints one row of the table.
pub fn row(what: &str, ended: &str, since: Instant, cause: &str, exit: Option<i32>) {
    let exit = exit.map_or("-".to_owned(), |code| code.to_string());
    let ms = since.elapsed().as_millis();
    println!("| {what:<52} | {ended:<34} | {ms:>6} ms | {cause:<70} | {exit:>4} |");
}

pub fn not_run(what: &str, why: &str) {
    println!("| {what:<52} | NOT RUN: {why}");
}

/// A cgroup (version 1 or 2) with a memory limit, if one can be created.
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    pub fn make(bytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let place = |prefix: &str| {
            own.lines().find_map(|l| l.split_once(':')?.1.strip_prefix(prefix).map(str::to_owned))
        };
        let name = format!("leasehold-test-{}", std::process::id());
        let v1 = place("memory:").map(|p| (format!("/sys/fs/cgroup/memory{p}"), "memory.limit_in_bytes"));
        let v2 = place(":").map(|p| (format!("/sys/fs/cgroup{p}"), "memory.max"));
        [v1, v2].into_iter().flatten().find_map(|(home, file)| {
            let folder = PathBuf::from(home).join(&name);
            fs::create_dir(&folder).ok()?;
            let limit = MemoryLimit(folder);
            fs::write(limit.0.join(file), bytes.to_string()).ok()?;
            Some(limit)
        })
    }

    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

//! The real daemon on a small real disk that fills up and goes read-only: a tmpfs in its own mount namespace.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use leasehold::{
    internals::ledger::{self, Dir},
    proto::v1::{self, Half},
};
use tonic::Code;

use super::process::{Place, durable};
use crate::harness::*;

/// Room for the ledger's reserve and a little more.
const SMALL: &str = "24m";
const LARGE: &str = "64m";

/// A separate file system for the daemon's state, which other processes do not see. Dropping this removes it.
struct SmallDisk {
    holder: Child,
    state: PathBuf,
}

impl SmallDisk {
    /// Mounts it. If this machine does not allow that, returns the reason.
    fn mount(place: &Place) -> Result<Self, String> {
        let state = place.world.file("state");
        fs::create_dir(&state).unwrap();
        let script = "mount -t tmpfs -o mode=700,size=\"$1\" tmpfs \"$0\" && echo mounted && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(&state)
            .arg(SMALL)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said.trim() != "mounted" {
            let mut why = String::new();
            holder.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            holder.wait().unwrap();
            return Err(why.trim().to_owned());
        }
        Ok(SmallDisk { holder, state })
    }

    /// The words that run a command inside, to be put before it.
    fn inside(&self) -> [String; 4] {
        ["nsenter".into(), "--target".into(), self.holder.id().to_string(), "--mount".into()]
    }

    /// The daemon's state as processes inside see it.
    fn seen(&self) -> PathBuf {
        let state = self.state.strip_prefix("/").unwrap();
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(state)
    }

    /// Fills the disk to the last byte.
    fn fill(&self) {
        let mut file =
            fs::File::options().append(true).create(true).open(self.seen().join("filler")).unwrap();
        for chunk in [64 << 10, 4_096, 1] {
            while file.write_all(&vec![7; chunk]).is_ok() {}
        }
    }

    fn remount(&self, how: &str) -> Output {
        let [nsenter, rest @ ..] = self.inside();
        let mount = ["mount", "-o", &format!("remount,{how}")].map(str::to_owned);
        Command::new(nsenter).args(rest).args(mount).arg(&self.state).output().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Asks for a credential until it gets one, and sends beats meanwhile.
async fn given_again(worker: &mut Worker) -> Token {
    let mut token = None;
    eventually("issuing to go on", async || {
        worker.beat().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        token = worker.try_issue(Half::Reading).await.ok().map(|a| worker.token(a.into_inner()));
        token.is_some()
    })
    .await;
    token.unwrap()
}

/// Asks until the ledger is the reason of a refusal: records that fit into the last page of a file are still written.
async fn refused_for_the_disk(worker: &mut Worker) {
    eventually("a refusal", async || match worker.try_issue(Half::Reading).await {
        Ok(_) => false,
        Err(status) => {
            Refused::of(&status).is(Code::Unavailable, "LEDGER_UNAVAILABLE");
            true
        }
    })
    .await;
}

async fn another(place: &Place, n: u32) -> Worker {
    let holder = format!("spiffe://k8s.acme.example/ns/ml/job/disk-{n}");
    let members = v1::Members { join: vec![holder.clone()], ..Default::default() };
    let launcher = place.client(LAUNCHER);
    let spec = v1::JobSpec { members: Some(members), ..spec() };
    let job = launcher.create(spec, &format!("disk {n}")).await.unwrap().into_inner().job.unwrap().id;
    let began = launcher.begin(&job, "run-1").await.unwrap().into_inner();
    let mut worker = Worker::join(place.client(&holder), &job, 1, "rank-0", &began.ticket).await.unwrap();
    worker.keep_alive().await;
    worker
}

// Proves law 39b.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_or_read_only_disk_only_endings_work() {
    // Filling a disk takes an unknown time, so no member may be lost meanwhile.
    let place = Place::with("lost_after = 60");
    // A compressed segment would give space back, and the disk would no longer be full.
    let text = place.world.read("leasehold.toml").replacen("[ledger]\n", "[ledger]\ncompress = false\n", 1);
    place.world.write("leasehold.toml", &text);
    let disk = match SmallDisk::mount(&place) {
        Ok(disk) => disk,
        Err(why) => {
            eprintln!("SKIPPED: no mount namespace on this machine ({why}); the file layer's tests stand in");
            return;
        }
    };
    let inside = disk.inside();
    let mut process = place.start_by(&inside.each_ref().map(String::as_str));
    process.ready().await;
    let (operator, gateway) = (place.client(OPERATOR), place.client(GATEWAY));
    let (mut first, mut second, mut third) =
        (another(&place, 1).await, another(&place, 2).await, another(&place, 3).await);
    let [one, two] = [first.issue(Half::Reading).await, second.issue(Half::Reading).await];

    // Full: nothing widens. Then the disk also goes read-only, like a file system after an error. If the daemon checks
    // the free space before a write, that write never fails. So try once more.
    loop {
        disk.fill();
        refused_for_the_disk(&mut first).await;
        if process.log().contains("the ledger cannot be written") {
            break;
        }
        fs::remove_file(disk.seen().join("filler")).unwrap();
        given_again(&mut first).await;
    }
    let mut said = String::new();
    eventually("a read-only disk", async || {
        let done = disk.remount("ro");
        said = String::from_utf8_lossy(&done.stderr).into_owned();
        done.status.success()
    })
    .await;
    let ending = operator.revoke(&format!("job:{}", first.job)).await.unwrap().into_inner().ending.unwrap();
    assert!(!ending.durable && !ending.receipt.is_empty(), "{ending:?}");
    one.is_dead(&gateway, "LEASE_ENDED").await;
    two.is_live(&gateway).await;
    let locked = operator.lock("dataset:acme/patients@v1").await.unwrap().into_inner();
    let locked_ending = locked.ending.unwrap();
    assert!(!locked_ending.durable);
    refused_for_the_disk(&mut second).await;
    let launcher = place.client(LAUNCHER);
    refused(launcher.create(spec(), "no").await).is(Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert_eq!(place.probe("/readyz").await, Some(503));
    assert_eq!(place.probe("/livez").await, Some(200));
    let wait = v1::WaitDurableRequest { receipt: ending.receipt.clone() };
    let mut operators = operator.operators();
    let waiting = tokio::time::timeout(Duration::from_millis(500), operators.wait_durable(wait)).await;
    assert!(!matches!(waiting, Ok(Ok(_))), "a read-only disk made a record durable");

    // Healed: the endings are written first, then issuing goes on.
    let healed = disk.remount(&format!("rw,size={LARGE}"));
    assert!(healed.status.success(), "{said} {healed:?}");
    let mut on_disk = false;
    eventually("the endings on disk", async || {
        second.beat().await;
        third.beat().await;
        on_disk = durable(&operator, &ending).await && durable(&operator, &locked_ending).await;
        on_disk
    })
    .await;
    given_again(&mut second).await;
    third.beat().await;

    // Full again: an ending uses the reserve, and is on disk although nothing else fits.
    disk.fill();
    refused_for_the_disk(&mut second).await;
    let ending = operator.revoke(&format!("job:{}", second.job)).await.unwrap().into_inner().ending.unwrap();
    eventually("an ending in the reserve", async || durable(&operator, &ending).await).await;
    refused_for_the_disk(&mut third).await;
    fs::remove_file(disk.seen().join("filler")).unwrap();
    let last = given_again(&mut third).await;
    last.is_live(&gateway).await;

    // Records that were reported as durable are there after a kill.
    process.kill().await;
    ledger::verify(&Dir::at(disk.seen()), None).unwrap();
    let mut process = place.start_by(&inside.each_ref().map(String::as_str));
    assert_eq!(process.ready().await, 2);
    for worker in [&first, &second] {
        assert_eq!(place.client(LAUNCHER).job(&worker.job).await.state(), v1::JobState::Closed);
    }
    assert_eq!(place.client(LAUNCHER).job(&third.job).await.state(), v1::JobState::Running);
    let locks = place.client(OPERATOR).operators().list_locks(v1::ListLocksRequest::default()).await.unwrap();
    assert_eq!(locks.into_inner().locks[0].name, "dataset:acme/patients@v1");
    process.stop().await;
}

//! Real `leasehold run` processes, each with a child that ends when it is asked to.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use leasehold::proto::v1::{JobState, Outcome};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin},
};

use super::process::Place;
use crate::harness::*;

/// Prints its process id, and exits with the number that it reads.
const CHILD: &str = r#"echo $$ > "$0/pid"; read code; exit "$code""#;

/// A wrapper, which has its own identity.
pub struct Run {
    pub holder: String,
    /// The exit code of its child.
    code: u8,
    process: Child,
    /// The stdin of the child, which it has from the wrapper.
    stdin: Option<ChildStdin>,
    dir: PathBuf,
    pid: String,
    /// The daemon was away when it ended.
    pub ended_alone: bool,
}

impl Run {
    /// Starts several at once, and waits until each child runs.
    pub async fn several(place: &Place, count: u8) -> Vec<Run> {
        place.world.write("job.toml", &job_toml("", ""));
        let mut contexts = String::new();
        for code in 0..count {
            let svid = place.world.svid(&holder(code));
            for (end, text, mode) in [("key", &svid.key, 0o600), ("pem", &svid.cert, 0o644)] {
                let name = format!("run-{code}.{end}");
                place.world.write(&name, text);
                fs::set_permissions(place.world.file(&name), fs::Permissions::from_mode(mode)).unwrap();
            }
            contexts.push_str(&format!(
                "[context.run-{code}]\nserver = \"{}\"\nserver_id = \"{DAEMON}\"\n\
                 bundles = {{ \"leasehold.example\" = \"leasehold.example.pem\" }}\n\
                 [context.run-{code}.identity.workload]\ncert = \"run-{code}.pem\"\nkey = \"run-{code}.key\"\n",
                place.address
            ));
        }
        place.world.write("contexts.toml", &contexts);
        let mut runs: Vec<Run> = (0..count).map(|code| Run::start(place, code)).collect();
        for run in &mut runs {
            eventually("a child", async || {
                let gone = run.process.try_wait().unwrap();
                assert!(gone.is_none(), "it ended with {gone:?}: {}", run.said());
                run.token().is_some() && run.says_pid().is_some()
            })
            .await;
            run.pid = run.says_pid().unwrap();
        }
        runs
    }

    fn start(place: &Place, code: u8) -> Run {
        let dir = place.world.file(&format!("run-{code}"));
        fs::create_dir_all(dir.join("credentials")).unwrap();
        let log = fs::File::create(dir.join("said")).unwrap();
        let mut process = plain(env!("CARGO_BIN_EXE_leasehold"))
            .args(["--context", &format!("run-{code}"), "run", "--spec"])
            .arg(place.world.file("job.toml"))
            .arg("--dir")
            .arg(dir.join("credentials"))
            .args(["--", "sh", "-c", CHILD])
            .arg(&dir)
            .env("LEASEHOLD_CONTEXTS", place.world.file("contexts.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = process.stdin.take();
        Run { holder: holder(code), code, process, stdin, dir, pid: String::new(), ended_alone: false }
    }

    /// The token of the reading half, if there is one.
    pub fn token(&self) -> Option<String> {
        let private = fs::read_dir(self.dir.join("credentials")).unwrap().next()?.unwrap().path();
        fs::read_to_string(private.join("reading-gateway")).ok()
    }

    fn says_pid(&self) -> Option<String> {
        let pid = fs::read_to_string(self.dir.join("pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.join("said")).unwrap()
    }

    /// The child that was started at first still runs, and no other was started.
    pub fn goes_on(&mut self) {
        assert!(self.process.try_wait().unwrap().is_none(), "{} ended: {}", self.holder, self.said());
        assert_eq!(self.says_pid().as_ref(), Some(&self.pid), "{} has another child", self.holder);
        assert!(Path::new("/proc").join(&self.pid).exists(), "{}: its child is gone", self.holder);
    }

    /// Tells the child to end.
    pub async fn tell(&mut self) {
        let mut stdin = self.stdin.take().expect("it was not told before");
        stdin.write_all(format!("{}\n", self.code).as_bytes()).await.unwrap();
    }

    /// Waits until the wrapper has ended, with its child's code and without files left behind.
    pub async fn has_ended(&mut self) {
        let status = soon("the end of a wrapper", self.process.wait()).await.unwrap();
        assert_eq!(status.code(), Some(i32::from(self.code)), "{}: {}", self.holder, self.said());
        assert_eq!(self.token(), None, "{}", self.holder);
    }

    /// What the daemon knows of it at the end: it has no access, and its outcome is recorded if it could be reported.
    pub async fn is_accounted_for(&self, place: &Place) {
        let said = self.said();
        let (before, _) = said.split_once(", attempt ").unwrap();
        let (_, id) = before.rsplit_once("leasehold: ").unwrap();
        let job = place.client(OPERATOR).job(id).await;
        assert_eq!((job.attempts.len(), job.live_leases), (1, 0), "{}", self.holder);
        if self.ended_alone && said.contains("could not be reported") {
            return;
        }
        let outcome = if self.code == 0 { Outcome::Completed } else { Outcome::Failed };
        assert_eq!((job.state(), job.outcome()), (JobState::Closed, outcome), "{}: {said}", self.holder);
    }
}

fn holder(code: u8) -> String {
    format!("spiffe://k8s.acme.example/ns/ml/job/run-{code}")
}

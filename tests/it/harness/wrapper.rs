//! A real `leasehold run` with a real child, and with a contexts file like a user's.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{Client, Credentials, DAEMON, LINE, MODEL, TICKETS, WORKER, World, eventually, soon};

/// The specification of the usual run. Lines for the top of the file come first, tables last.
pub fn job_toml(top: &str, tables: &str) -> String {
    format!(
        "name = \"support-lora\"\npurpose = \"support-tuning\"\nmax_duration = \"2h\"\n{top}\n\
         [tune]\nmethod = \"lora\"\n\
         [[read]]\nresource = \"{TICKETS}\"\n[[read]]\nresource = \"{MODEL}\"\n[[write]]\nresource = \"{LINE}\"\n{tables}"
    )
}

/// A running wrapper. Dropping it kills the wrapper and its child.
pub struct Wrapper {
    process: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
    credentials: PathBuf,
    /// How the name of its private directory begins.
    own: String,
}

impl World {
    /// Writes a new SVID of the worker, as its agent does: each file whole, the key first.
    pub fn write_worker(&self) {
        self.write_worker_as(&self.svid(WORKER));
    }

    /// Replaces the worker's SVID by this one.
    pub fn write_worker_as(&self, svid: &Credentials) {
        for (name, text) in [("worker.key", &svid.key), ("worker.pem", &svid.cert)] {
            self.write("next", text);
            fs::set_permissions(self.file("next"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(self.file("next"), self.file(name)).unwrap();
        }
    }

    /// Runs a shell script under the wrapper, as the usual worker, with this specification.
    pub fn wrap(&self, spec: &str, args: &[&str], script: &str) -> Wrapper {
        let run = self.run_of(spec, args, script);
        self.leasehold(WORKER, &[], &run.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same, with these lines in the context for the source of its identity.
    pub fn wrap_with(&self, identity: &str, spec: &str, args: &[&str], script: &str) -> Wrapper {
        let run = self.run_of(spec, args, script);
        let server = self.daemon().grpc.to_string();
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        self.started(&server, "contexts.toml", identity, &[], &run)
    }

    fn run_of(&self, spec: &str, args: &[&str], script: &str) -> Vec<String> {
        self.write("job.toml", spec);
        let (spec, dir) = (self.file("job.toml"), self.file("credentials"));
        let begin = ["run", "--spec", spec.to_str().unwrap(), "--dir", dir.to_str().unwrap()];
        [&begin, args, &["--", "sh", "-c", script]].concat().into_iter().map(str::to_owned).collect()
    }

    /// Runs the program with the context of an identity. If other commands are given, they come first and run it.
    pub fn leasehold(&self, id: &str, before: &[&str], args: &[&str]) -> Wrapper {
        self.leasehold_at(&self.daemon().grpc.to_string(), id, before, args)
    }

    /// The same with the daemon's address, even if no daemon runs.
    pub fn leasehold_at(&self, server: &str, id: &str, before: &[&str], args: &[&str]) -> Wrapper {
        let (name, contexts) = if id == WORKER {
            // Other threads may be reading their files.
            if !self.file("worker.pem").exists() {
                self.write_worker();
            }
            ("worker", "contexts.toml")
        } else {
            let svid = self.svid(id);
            self.write("other.pem", &svid.cert);
            self.write("other.key", &svid.key);
            fs::set_permissions(self.file("other.key"), fs::Permissions::from_mode(0o600)).unwrap();
            ("other", "contexts-other.toml")
        };
        let files = format!(
            "bundles = {{ \"leasehold.example\" = \"leasehold.example.pem\" }}\n\
             [context.it.identity.workload]\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n"
        );
        self.started(server, contexts, &files, before, args)
    }

    fn started(
        &self,
        server: &str,
        contexts: &str,
        identity: &str,
        before: &[&str],
        args: &[&str],
    ) -> Wrapper {
        self.write_contexts(server, contexts, identity);
        let credentials = self.file("credentials");
        fs::create_dir_all(&credentials).unwrap();
        let words: Vec<&str> = before
            .iter()
            .copied()
            .chain([env!("CARGO_BIN_EXE_leasehold")])
            .chain(args.iter().copied())
            .collect();
        // In a session without a terminal, even if the tests were started at one.
        let mut process = plain("setsid")
            .args(&words)
            .env("LEASEHOLD_CONTEXTS", self.file(contexts))
            .env("HERE", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let out = collect(process.stdout.take().unwrap());
        let err = collect(process.stderr.take().unwrap());
        let own =
            if before.is_empty() { format!("leasehold-{}-", process.id().unwrap()) } else { String::new() };
        Wrapper { process, out, err, credentials, own }
    }
}

impl World {
    fn write_contexts(&self, server: &str, contexts: &str, identity: &str) {
        let text = format!(
            "current = \"it\"\n[context.it]\nserver = \"{server}\"\nserver_id = \"{DAEMON}\"\n{identity}"
        );
        if fs::read_to_string(self.file(contexts)).ok().as_ref() != Some(&text) {
            self.write(contexts, &text);
        }
    }

    /// Writes the contexts file of the usual worker, for programs that a test starts itself.
    #[allow(dead_code, reason = "not all tests start some")]
    pub fn contexts_of_worker(&self) -> PathBuf {
        if !self.file("worker.pem").exists() {
            self.write_worker();
        }
        self.write_contexts(&self.daemon().grpc.to_string(), "contexts.toml", WORKER_FILES);
        self.file("contexts.toml")
    }
}

#[allow(dead_code, reason = "not all tests start programs themselves")]
const WORKER_FILES: &str = "bundles = { \"leasehold.example\" = \"leasehold.example.pem\" }\n\
    [context.it.identity.workload]\ncert = \"worker.pem\"\nkey = \"worker.key\"\n";

impl Wrapper {
    pub fn stdout(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    pub fn stderr(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// Waits until the wrapper has said this.
    pub async fn says(&self, text: &str) {
        let heard = async {
            while !self.stderr().contains(text) {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(super::PATIENCE, heard).await.is_err() {
            panic!("it never said `{text}`, but: {}", self.stderr());
        }
    }

    /// Waits until the child has said this.
    pub async fn child_says(&self, text: &str) {
        eventually(text, async || self.stdout().contains(text)).await;
    }

    /// The job, from the line about its attempt. The child writes to the same stream, so the line may be interrupted.
    pub async fn job(&self) -> String {
        self.says(", attempt ").await;
        let stderr = self.stderr();
        let (before, _) = stderr.split_once(", attempt ").unwrap();
        before.rsplit_once("leasehold: ").unwrap().1.to_owned()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().expect("it runs").try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end and for all of its output, and returns its exit code.
    pub async fn exit(&mut self) -> Option<i32> {
        let status = soon("the end of the wrapper", self.process.wait()).await.unwrap();
        let done = async || Arc::strong_count(&self.out) == 1 && Arc::strong_count(&self.err) == 1;
        eventually("the end of its streams", done).await;
        status.code()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// The credential files that are there, by name.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .directory()
            .map(|d| {
                fs::read_dir(d).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
            })
            .unwrap_or_default();
        names.retain(|n| !n.starts_with('.'));
        names.sort();
        names
    }

    pub fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.directory()?.join(name)).ok()
    }

    /// Its private directory.
    pub fn directory(&self) -> Option<PathBuf> {
        let is_own = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&self.own));
        fs::read_dir(&self.credentials).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir() && is_own(p))
    }
}

impl Client {
    /// Drains the first attempt of a job, with a grace of a minute.
    pub async fn drain(&self, job: &str) {
        let request = leasehold::proto::v1::DrainAttemptRequest {
            job: job.to_owned(),
            attempt: 1,
            grace: Some(super::worker::seconds(60)),
            reason: "maintenance".into(),
            ..Default::default()
        };
        self.jobs().drain_attempt(request).await.unwrap();
    }

    /// The states of the job and of its last attempt.
    pub async fn stands(&self, job: &str) -> (leasehold::proto::v1::Job, leasehold::proto::v1::Attempt) {
        let job = self.job(job).await;
        let attempt = job.attempts.last().cloned().unwrap_or_default();
        (job, attempt)
    }
}

/// A command without the environment variables of our program, any of which may be set where the tests run.
pub fn plain(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if ["LEASEHOLD", "SPIFFE_", "SLURM"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    command
}

fn collect(mut from: impl AsyncRead + Unpin + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let into = text.clone();
    tokio::spawn(async move {
        let mut chunk = [0u8; 4096];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
    });
    text
}

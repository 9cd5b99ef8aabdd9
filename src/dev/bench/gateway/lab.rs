//! The processes of a bench of a gateway: the daemon, the gateway, nginx, and a member that may read from both servers.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::ClientConfig;

use super::{GatewayPlan, light_client::LightTarget, nginx::Nginx, request::BenchRequest};
use crate::{
    dev::{
        Role, TRUST_DOMAIN,
        bench::lab::allow_any_rate,
        demo::{DemoMember, Stage, describe},
        deployment::TENANT,
        s3_client::{EMPTY_SHA256, S3Key},
    },
    identity::client_config,
    proto::v1,
    secret::{Secret, SecretText},
};

/// The object whose ranges are read, and its size.
pub(super) const LARGE: (&str, u64) = ("bench/large.bin", 256 << 20);
/// The object that is read as a whole, and its size.
pub(super) const WHOLE: (&str, u64) = ("bench/whole.bin", 64 << 20);
/// An object that no client reads to its end, and its size. Its file has no bytes on disk.
pub(super) const ENDLESS: (&str, u64) = ("bench/endless.bin", 64 << 30);

/// The longest that a process may take to start.
const START: Duration = Duration::from_secs(15);

/// The processes of the bench.
pub(super) struct GatewayLab<'a> {
    pub(super) stage: &'a Stage,
    daemon: tokio::process::Child,
    pub(super) gateway: EndedChild,
    pub(super) nginx: Option<Nginx>,
    pub(super) job: String,
    pub(super) member: DemoMember,
    key: S3Key,
    pub(super) wrapper: Option<WrapperEndpoint>,
}

/// A child that is ended with SIGTERM.
pub(super) struct EndedChild(Child);

/// A wrapper whose command waits, and its local endpoint.
pub(super) struct WrapperEndpoint {
    pub(super) port: u16,
    pub(super) key: S3Key,
    process: EndedChild,
    /// The command of this process ends when this pipe is closed.
    _stdin: ChildStdin,
}

impl EndedChild {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for EndedChild {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

impl<'a> GatewayLab<'a> {
    /// Makes the files, starts the processes, and joins a member that may read and write.
    pub(super) async fn open(stage: &'a Stage, plan: &GatewayPlan) -> Result<Self, String> {
        allow_any_rate(stage).map_err(|e| format!("the configuration cannot be written: {e}"))?;
        make_objects(&stage.deployment.data).map_err(|e| format!("the objects cannot be written: {e}"))?;
        let daemon = stage.start_daemon().await?;
        let gateway = start_gateway(stage).await?;
        let nginx = match &plan.nginx {
            Some(program) => Some(Nginx::start(program, &stage.deployment)?),
            None => None,
        };
        let job = stage.create_job(s3_job(stage)).await.map_err(|s| describe(&s))?;
        let member = stage.join(&job.id, "bench-gateway").await.map_err(|s| describe(&s))?;
        let secret = Secret::random().map_err(|e| e.to_string())?.to_text();
        let key = S3Key { region: "us-east-1".to_owned(), id: "LEASEHOLDBENCH".to_owned(), secret };
        Ok(GatewayLab { stage, daemon, gateway, nginx, job: job.id, member, key, wrapper: None })
    }

    /// Stops the processes.
    pub(super) async fn close(self) -> Result<(), String> {
        let GatewayLab { stage, daemon, gateway, nginx, wrapper, .. } = self;
        drop((wrapper, nginx, gateway));
        stage.stop_daemon(daemon).await
    }

    /// Starts a wrapper, unless there is one.
    pub(super) async fn open_wrapper(&mut self) -> Result<(), String> {
        if self.wrapper.is_none() {
            self.wrapper = Some(WrapperEndpoint::start(self.stage).await?);
        }
        Ok(())
    }

    /// Issues a lease, and returns it with its token.
    pub(super) async fn issue(&mut self, half: v1::Half) -> Result<(String, SecretText), String> {
        let request = v1::IssueCredentialRequest {
            session: Some(self.member.session.clone()),
            half: half as i32,
            ..Default::default()
        };
        let issued =
            self.member.members.issue_credential(request).await.map_err(|s| describe(&s))?.into_inner();
        Ok((issued.lease.unwrap_or_default().id, SecretText::new(issued.token)))
    }

    /// The target for a connection to the gateway, with TLS.
    pub(super) fn gateway_target(&self) -> Result<LightTarget, String> {
        Ok(LightTarget { port: self.stage.deployment.ports.s3, tls: Some(self.tls()?) })
    }

    /// The configuration of a member's connections, to the gateway or to nginx, which has the gateway's SVID.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let deployment = &self.stage.deployment;
        let identity = deployment.identity(Role::Trainer).map_err(|e| e.to_string())?;
        let server = deployment.id(Role::S3).map_err(|e| e.to_string())?;
        Ok(client_config(identity, self.stage.clock.clone(), server, &[b"http/1.1"]))
    }

    /// The request for an object of the sample data, to the gateway.
    pub(super) fn read_request(&self, object: &str, token: &SecretText) -> BenchRequest {
        let host = format!("localhost:{}", self.stage.deployment.ports.s3);
        let path = format!("/{TENANT}/data/{object}");
        self.sign("GET", &host, &path, EMPTY_SHA256).with_access(token, &self.key)
    }

    /// The request to write an object of the job, to the gateway.
    pub(super) fn write_request(&self, object: &str, token: &SecretText, payload: &str) -> BenchRequest {
        let host = format!("localhost:{}", self.stage.deployment.ports.s3);
        let path = format!("/{TENANT}/out/{}/{object}", self.job);
        self.sign("PUT", &host, &path, payload).with_access(token, &self.key)
    }

    fn sign(&self, method: &str, host: &str, path: &str, payload: &str) -> BenchRequest {
        BenchRequest::sign(method, host, path, &self.key, payload, self.stage.clock.now().wall)
    }
}

impl WrapperEndpoint {
    /// The id of the child's process.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    async fn start(stage: &Stage) -> Result<Self, String> {
        let log = File::create(stage.deployment.path("wrapper.stderr")).map_err(|e| e.to_string())?;
        let show = r#"printf '%s\n' "$AWS_ENDPOINT_URL_S3" "$AWS_REGION" "$AWS_SHARED_CREDENTIALS_FILE"; read -r end"#;
        let mut process = Command::new(&stage.program)
            .env("LEASEHOLD_CONTEXTS", &stage.contexts)
            .args(["run", "--spec"])
            .arg(stage.deployment.path("s3-job.toml"))
            .args(["--", "/bin/sh", "-c", show])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("the wrapper could not be started: {e}"))?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let process = EndedChild(process);
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
            return Err("the wrapper has no pipes".into());
        };
        let reading = tokio::task::spawn_blocking(move || {
            let lines: Vec<String> = BufReader::new(stdout).lines().take(3).map_while(Result::ok).collect();
            lines
        });
        let lines = tokio::time::timeout(START, reading).await;
        let lines = lines.map_err(|_| "the wrapper did not start")?.map_err(|e| e.to_string())?;
        let [endpoint, region, key_file] = lines.as_slice() else {
            let said = std::fs::read_to_string(stage.deployment.path("wrapper.stderr")).unwrap_or_default();
            return Err(format!("the wrapper ended: {}", said.trim()));
        };
        let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| format!("the wrapper has no endpoint: `{endpoint}`"))?;
        let key = S3Key::read(Path::new(key_file), region.clone()).map_err(|e| e.to_string())?;
        Ok(WrapperEndpoint { port, key, process, _stdin: stdin })
    }
}

/// The sample job whose resources the gateway serves.
fn s3_job(stage: &Stage) -> v1::JobSpec {
    v1::JobSpec {
        read: vec![format!("dataset:{TENANT}/shards@v1"), format!("model:{TENANT}/tiny@1")],
        write: vec![format!("checkpoint:{TENANT}/tiny-tuned")],
        ..stage.spec(1)
    }
}

/// Writes the objects that are read.
fn make_objects(data: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(data.join("bench"))?;
    let mut piece = vec![0_u8; 1 << 20];
    for (at, byte) in piece.iter_mut().enumerate() {
        *byte = u8::try_from(at.wrapping_mul(2_654_435_761) >> 11 & 0xff).unwrap_or_default();
    }
    for (name, bytes) in [LARGE, WHOLE] {
        let mut file = File::create(data.join(name))?;
        for _ in 0..bytes >> 20 {
            file.write_all(&piece)?;
        }
    }
    File::create(data.join(ENDLESS.0))?.set_len(ENDLESS.1)
}

/// Starts a gateway with the directories of a deployment as its stores.
async fn start_gateway(stage: &Stage) -> Result<EndedChild, String> {
    let deployment = &stage.deployment;
    let id = |role| deployment.id(role).map_err(|e| e.to_string());
    let mut text = format!(
        r#"[daemon]
address   = "localhost:{grpc}"
spiffe_id = "{daemon}"
[identity]
cert    = "svid/s3.pem"
key     = "svid/s3.key"
bundles = {{ "{TRUST_DOMAIN}" = "ca/bundle.pem" }}
[gateway]
listen   = "127.0.0.1:{s3}"
audience = "{audience}"
catalog  = "catalog.d"
"#,
        grpc = deployment.ports.grpc,
        daemon = id(Role::Daemon)?,
        s3 = deployment.ports.s3,
        audience = id(Role::S3)?,
    );
    for (location, directory) in [("data", "data"), ("models/tiny", "models/base"), ("out", "s3/out")] {
        text += &format!(
            "[[gateway.store]]\nlocation = \"s3://{TENANT}/{location}/\"\ndirectory = \"{directory}\"\n"
        );
    }
    let (file, log) = (deployment.path("gateway.toml"), deployment.path("gateway.log"));
    std::fs::write(&file, text).map_err(|e| e.to_string())?;
    let mut child = Command::new(&stage.program)
        .args(["gateway", "--config"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).map_err(|e| e.to_string())?)
        .spawn()
        .map_err(|e| format!("the gateway could not be started: {e}"))?;
    let listening = async {
        loop {
            if tokio::net::TcpStream::connect(("127.0.0.1", deployment.ports.s3)).await.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = child.try_wait() {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("the gateway ended with {status}: {}", said.trim()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let listening = tokio::time::timeout(START, listening).await;
    let child = EndedChild(child);
    listening.map_err(|_| "the gateway did not start")??;
    Ok(child)
}

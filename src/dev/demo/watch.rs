//! Waits until a token is refused, or a process has started or ended.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::{Child, Command};

use super::Stage;
use crate::{
    dev::deployment::TENANT,
    identity::Leaf,
    name::{Action, Half, Object},
    reason::Refusal,
    secret::SecretText,
    token::{Claims, Presenter},
    verify::Verifier,
};

/// The longest time that one step of a story may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
pub(super) const LOOK: Duration = Duration::from_millis(1);

pub(super) type Observed<T> = Result<T, String>;

/// Measures the time since it was made.
#[derive(Clone, Copy)]
pub(super) struct Stopwatch(tokio::time::Instant);

impl Stopwatch {
    pub(super) fn now() -> Self {
        Stopwatch(tokio::time::Instant::now())
    }

    /// Returns the elapsed time in milliseconds.
    pub(super) fn ms(self) -> f64 {
        self.0.elapsed().as_secs_f64() * 1_000.0
    }
}

/// A verifier, and the presenter and the resource for its checks.
pub(super) struct Checks<'a> {
    pub verifier: &'a Verifier,
    pub presenter: Presenter<'a>,
    pub object: Object,
}

impl<'a> Checks<'a> {
    /// Makes checks for the sample dataset. The presenter is the holder of a certificate.
    pub(super) fn of(verifier: &'a Verifier, holder: &'a Leaf) -> Observed<Self> {
        let presenter = Presenter::Svid { id: &holder.spiffe_id, x5t_s256: Some(&holder.x5t_s256) };
        let object = format!("dataset:{TENANT}/data@v1").parse().map_err(|_| "no such name")?;
        Ok(Checks { verifier, presenter, object })
    }
}

impl Checks<'_> {
    pub(super) async fn check(&self, token: &SecretText) -> Result<(), Refusal> {
        let action = Action::ReadDataset;
        self.verifier.check(token.expose(), self.presenter, &self.object, action).await.map(drop)
    }

    /// Waits until the token is refused, and returns the refusal.
    pub(super) async fn refused(&self, token: &SecretText) -> Observed<Refusal> {
        within("the token to be refused", async {
            loop {
                if let Err(refusal) = self.check(token).await {
                    return refusal;
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
    }

    /// Waits until the token is accepted. The verifier may need a moment until its feed has the lease.
    pub(super) async fn accepted(&self, token: &SecretText) -> Observed<()> {
        within("the token to be accepted", async {
            while self.check(token).await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
    }
}

pub(super) async fn within<T>(what: &str, wait: impl Future<Output = T>) -> Observed<T> {
    tokio::time::timeout(PATIENCE, wait)
        .await
        .map_err(|_| format!("waited {} s for {what}", PATIENCE.as_secs()))
}

/// A wrapper that runs a job, and the folder of its credentials.
pub(super) struct Wrapped {
    pub process: Child,
    pub dir: PathBuf,
    /// The file whose content is the exit code of the child. The child waits for it.
    pub go: PathBuf,
    pub log: PathBuf,
}

impl Stage {
    /// Starts `leasehold run` with a new job and a child that waits.
    pub(super) fn wrap(&self, name: &str) -> Observed<Wrapped> {
        self.wrap_as(name, &["--spec".into(), self.deployment.path("job.toml").into()], &[])
    }

    /// Starts `leasehold run` with these arguments for the wrapper and for the child.
    pub(super) fn wrap_as(&self, name: &str, run: &[OsString], child: &[&str]) -> Observed<Wrapped> {
        let dir = self.deployment.path(&format!("run-{name}"));
        std::fs::create_dir_all(dir.join("credentials")).map_err(|e| e.to_string())?;
        let (go, log) = (dir.join("go"), dir.join("stderr"));
        let stderr = std::fs::File::create(&log).map_err(|e| e.to_string())?;
        let process = Command::new(&self.program)
            .env("LEASEHOLD_CONTEXTS", &self.contexts)
            .arg("run")
            .args(run)
            .arg("--dir")
            .arg(dir.join("credentials"))
            .arg("--")
            .arg(&self.program)
            .arg("__await")
            .arg(&go)
            .args(child)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| e.to_string())?;
        Ok(Wrapped { process, dir, go, log })
    }
}

impl Wrapped {
    /// Returns the credential of one half, if there is one.
    pub(super) fn held(&self, half: Half) -> Option<SecretText> {
        token_of(&self.dir.join("credentials"), half)
    }

    /// Waits for the reading credential.
    pub(super) async fn token(&mut self) -> Observed<SecretText> {
        let log = self.log.clone();
        let found = within("the wrapper to hand over credentials", async {
            loop {
                if let Some(token) = self.held(Half::Reading) {
                    return Ok(token);
                }
                if let Ok(Some(status)) = self.process.try_wait() {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    return Err(format!("the wrapper ended with {status}: {said}"));
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await??;
        Ok(found)
    }

    pub(super) fn pid(&self) -> Observed<nix::unistd::Pid> {
        let id = self.process.id().ok_or("the wrapper is gone")?;
        Ok(nix::unistd::Pid::from_raw(i32::try_from(id).map_err(|e| e.to_string())?))
    }

    /// Waits for the process id that the child writes beside its file.
    pub(super) async fn child(&self) -> Observed<nix::unistd::Pid> {
        let file = self.go.with_extension("pid");
        let id = within("the child to start", async {
            loop {
                if let Some(id) =
                    std::fs::read_to_string(&file).ok().and_then(|t| t.trim().parse::<i32>().ok())
                {
                    return id;
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await?;
        Ok(nix::unistd::Pid::from_raw(id))
    }

    pub(super) fn end_child(&self, code: u8) -> Observed<()> {
        let draft = self.go.with_extension("draft");
        std::fs::write(&draft, code.to_string()).map_err(|e| e.to_string())?;
        std::fs::rename(draft, &self.go).map_err(|e| e.to_string())
    }

    /// Waits until the wrapper has ended, and returns how it ended.
    pub(super) async fn ended(&mut self) -> Observed<String> {
        let status = within("the wrapper to end", self.process.wait()).await?.map_err(|e| e.to_string())?;
        use std::os::unix::process::ExitStatusExt;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "ended".into(),
        })
    }

    pub(super) fn files_left(&self) -> bool {
        self.held(Half::Reading).is_some() || self.held(Half::Writing).is_some()
    }

    pub(super) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Reads the token of one half from the list that the wrapper wrote.
fn token_of(below: &Path, half: Half) -> Option<SecretText> {
    let index = std::fs::read_dir(below)
        .ok()?
        .filter_map(Result::ok)
        .map(|e| e.path().join("credentials.json"))
        .find(|p| p.exists())?;
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let one = json
        .get("credentials")?
        .as_array()?
        .iter()
        .find(|c| c.get("half").and_then(|h| h.as_str()) == Some(half.as_str()))?;
    crate::dev::read_token(Path::new(one.get("path")?.as_str()?)).ok()
}

/// Decodes the claims of a token. Does not verify the token.
pub(super) fn claims_of(token: &SecretText) -> Observed<Claims> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = token.expose().split('.').nth(1).ok_or("no token")?;
    let json = URL_SAFE_NO_PAD.decode(claims).map_err(|e| e.to_string())?;
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

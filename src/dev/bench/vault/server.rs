//! A process of Vault.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
    time::Duration,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    VaultProgram, VaultStorage,
    answers::{CreatedToken, describe_error, read_init, read_token, read_unseal},
    client::{VaultClient, VaultRequest},
};
use crate::{dev::bench::peers::unused_ports, plain, secret::SecretText};

/// The protections of Vault that are switched off in its favour.
pub const SWITCHED_OFF: [&str; 3] = [
    "TLS: Vault answers in plain HTTP, the daemon over mutual TLS",
    "the audit device: Vault keeps no record of who got which token, the daemon waits until its record is on disk",
    "mlock: Vault's memory may be swapped",
];

/// The longest that Vault may take to start, to get ready for tokens, or to accept a connection.
const START: Duration = Duration::from_secs(60);
/// The pause between two attempts to reach a Vault that starts.
const LOOK: Duration = Duration::from_millis(20);
/// The life of a token.
const TOKEN_SECONDS: u64 = 3_600;
/// The role whose tokens are measured.
const ROLE: &str = "bench";
/// The most bytes of Vault's log that a message shows.
const LOG_SHOWN: usize = 600;

/// A running Vault that is unsealed and has a role for tokens. It ends when this value is dropped.
pub(super) struct VaultServer {
    process: Child,
    pub(super) tokens: VaultTokens,
}

/// The tokens of a Vault, and the requests for them.
pub(super) struct VaultTokens {
    port: u16,
    root: SecretText,
}

impl VaultServer {
    /// Starts Vault in a new folder below `folder`.
    pub(super) async fn start(
        program: &VaultProgram,
        storage: VaultStorage,
        folder: &Path,
    ) -> Result<Self, String> {
        let folder = folder.join(format!("vault-{}", storage.as_str()));
        let [port, cluster_port] = unused_ports()?;
        let log = folder.join("log");
        let prepare = || {
            // The data of an earlier process would change the figures.
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            fs::create_dir_all(folder.join("data"))?;
            fs::write(folder.join("vault.json"), config(storage, &folder, port, cluster_port).to_string())?;
            File::create(&log)
        };
        let stderr = prepare().map_err(|e| format!("the folder of Vault cannot be written: {e}"))?;
        let process = Command::new(&program.path)
            .arg("server")
            .arg("-config")
            .arg(folder.join("vault.json"))
            .env_clear()
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("`{}` could not be started: {e}", plain::path(&program.path)))?;
        let mut server =
            VaultServer { process, tokens: VaultTokens { port, root: SecretText::new(String::new()) } };
        server.set_up().await.map_err(|why| format!("{why}: {}", end_of(&log)))?;
        Ok(server)
    }

    /// Waits until the process listens, and prepares it.
    async fn set_up(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        while VaultClient::connect(self.tokens.port).await.is_err() {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("Vault ended with {status}"));
            }
            if begin.elapsed() > START {
                return Err("Vault did not start".to_owned());
            }
            sleep(LOOK).await;
        }
        self.tokens = VaultTokens::set_up(self.tokens.port).await?;
        Ok(())
    }

    /// The id of the process.
    pub(super) fn id(&self) -> Result<u32, String> {
        self.process.id().ok_or_else(|| "Vault has ended".to_owned())
    }

    /// Ends the process.
    pub(super) async fn stop(mut self) -> Result<(), String> {
        self.process.kill().await.map_err(|e| format!("Vault could not be ended: {e}"))
    }
}

impl VaultTokens {
    /// Initializes the Vault on this port, unseals it, waits until it is active, and makes a role.
    pub(super) async fn set_up(port: u16) -> Result<Self, String> {
        timeout(START, Self::prepare(port)).await.map_err(|_| "Vault was not ready in time")?
    }

    async fn prepare(port: u16) -> Result<Self, String> {
        let mut client = VaultClient::connect(port).await?;
        let put = |path: &str, token: Option<&SecretText>, body: Value| {
            VaultRequest::new(Method::PUT, port, path, token, Some(&body))
        };
        let shares = json!({ "secret_shares": 1, "secret_threshold": 1 });
        let secrets = read_init(&client.send(&put("sys/init", None, shares)?).await?)?;
        let key = json!({ "key": secrets.unseal_key.expose() });
        read_unseal(&client.send(&put("sys/unseal", None, key)?).await?)?;
        let health = VaultRequest::new(Method::GET, port, "sys/health", None, None)?;
        while client.send(&health).await.is_err() {
            // Vault answers with an error until it leads its cluster.
            sleep(LOOK).await;
        }
        let role = json!({ "allowed_policies": "default" });
        let path = format!("auth/token/roles/{ROLE}");
        client.send(&put(&path, Some(&secrets.root_token), role)?).await?;
        let tokens = VaultTokens { port, root: secrets.root_token };
        let created = tokens.create(&mut client).await?;
        match created.seconds {
            TOKEN_SECONDS => Ok(tokens),
            seconds => Err(format!("a token of Vault lasts {seconds} s instead of {TOKEN_SECONDS} s")),
        }
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<VaultClient, String> {
        timeout(START, VaultClient::connect(self.port)).await.map_err(|_| "Vault accepts no connection")?
    }

    /// The request that creates a token.
    pub(super) fn create_request(&self) -> Result<VaultRequest, String> {
        let body = json!({ "ttl": format!("{TOKEN_SECONDS}s") });
        let path = format!("auth/token/create/{ROLE}");
        VaultRequest::new(Method::POST, self.port, &path, Some(&self.root), Some(&body))
    }

    /// Creates a token.
    pub(super) async fn create(&self, client: &mut VaultClient) -> Result<CreatedToken, String> {
        read_token(&client.send(&self.create_request()?).await?)
    }

    /// Revokes all tokens of the role. Vault answers when it has done so.
    pub(super) async fn revoke_all(&self, client: &mut VaultClient) -> Result<(), String> {
        let path = format!("sys/leases/revoke-prefix/auth/token/create/{ROLE}");
        let body = json!({ "sync": true });
        let request = VaultRequest::new(Method::PUT, self.port, &path, Some(&self.root), Some(&body))?;
        client.send(&request).await.map(drop)
    }

    /// Whether Vault still accepts a token.
    pub(super) async fn accepts(&self, client: &mut VaultClient, token: &SecretText) -> Result<bool, String> {
        let request = VaultRequest::new(Method::GET, self.port, "auth/token/lookup-self", Some(token), None)?;
        match client.ask(&request).await? {
            (StatusCode::OK, _) => Ok(true),
            (StatusCode::FORBIDDEN, _) => Ok(false),
            (status, body) => Err(request.failed(&describe_error(status, &body))),
        }
    }
}

/// The configuration of Vault.
fn config(storage: VaultStorage, folder: &Path, port: u16, cluster_port: u16) -> Value {
    let data = folder.join("data").display().to_string();
    let storage = match storage {
        VaultStorage::Raft => json!({ "raft": { "path": data, "node_id": "bench" } }),
        VaultStorage::Memory => json!({ "inmem": {} }),
    };
    let (address, cluster) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{cluster_port}"));
    json!({
        "storage": storage,
        "listener": { "tcp": { "address": address, "cluster_address": cluster, "tls_disable": true } },
        "api_addr": format!("http://{address}"),
        "cluster_addr": format!("https://{cluster}"),
        "disable_mlock": true,
        "ui": false,
        "log_level": "error",
        // Revoking 20,000 leases can take longer than the usual limit of 90 s.
        "default_max_request_duration": "1h",
    })
}

/// The end of a log, on one line.
fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let end = text.get(text.len().saturating_sub(LOG_SHOWN)..).unwrap_or_default();
    plain::line(String::from_utf8_lossy(end).trim()).into_owned()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

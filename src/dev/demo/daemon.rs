//! Starts and stops the daemon process of the demo.

use std::{process::Stdio, time::Duration};

use tokio::process::{Child, Command};

use super::{
    Stage,
    watch::{Observed, PATIENCE, within},
};
use crate::{dev::Role, proto::v1};

impl Stage {
    /// Starts the daemon and waits until it serves.
    pub(in crate::dev) async fn start_daemon(&self) -> Observed<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.deployment.path("daemon.log"))
            .map_err(|e| e.to_string())?;
        let mut child = Command::new(&self.program)
            .args(["serve", "--config"])
            .arg(self.deployment.path("leasehold.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| e.to_string())?;
        within("the daemon to serve", async {
            loop {
                if let Ok(mut client) = self.operator_client(Role::Operator)
                    && client.who_am_i(v1::WhoAmIRequest {}).await.is_ok()
                {
                    return Ok(());
                }
                if let Ok(Some(status)) = child.try_wait() {
                    let log = std::fs::read_to_string(self.deployment.path("daemon.log")).unwrap_or_default();
                    return Err(format!("the daemon ended with {status}: {log}"));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await??;
        Ok(child)
    }

    /// Stops the daemon with SIGTERM.
    pub(in crate::dev) async fn stop_daemon(&self, mut daemon: Child) -> Observed<()> {
        if let Some(id) = daemon.id().and_then(|id| i32::try_from(id).ok()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM)
                .map_err(|e| e.to_string())?;
        }
        let status = tokio::time::timeout(PATIENCE, daemon.wait())
            .await
            .map_err(|_| "the daemon did not stop")?
            .map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the daemon stopped with {status}")) }
    }
}

//! `leasehold serve`.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, Session, failure::mistakes};
use crate::{
    config::{Config, IdentityConfig, IdentityFrom},
    daemon::{Daemon, StartError, Stopped, allow_open_files, init_logging, init_metrics},
    identity::Pick,
    ledger::{LockError, Lost, OpenError},
};

/// Runs the daemon until SIGTERM.
///
/// SIGHUP reads catalog, policies and identity files anew; a bad one changes nothing. Logs go to stderr; the line `ready` names
/// what it listens on. Until it has a first SVID of its own it answers nobody, its probes neither, and the log says what is waited
/// for. Check the file first with `leasehold config check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold serve --config /etc/leasehold/leasehold.toml
  leasehold config check /etc/leasehold/leasehold.toml && systemctl reload leasehold")]
pub struct ServeArgs {
    /// The configuration; paths in it are relative to it.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_CONFIG")]
    pub config: PathBuf,
    /// Begin a new ledger although the state directory shows that there was one and it is lost for good. Give it once, by hand:
    /// no lock and no job of before is in force then, and the new ledger's first record says so.
    #[arg(long)]
    pub new_ledger: bool,
}

impl ServeArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        // Listened for from the first moment, so that a stop while starting is a stop.
        let mut stops = Stops::listen()?;
        let mut loaded = Config::load(&self.config)?;
        overrule(&mut loaded.config.identity, session);
        if self.new_ledger {
            loaded.config.ledger.lost = Lost::BeginNew;
        }
        init_logging(&loaded.config.log);
        allow_open_files(&loaded.config.server.room);
        init_metrics();
        let daemon = tokio::select! {
            daemon = Daemon::start(&loaded.config) => daemon.map_err(|e| not_started(&e))?,
            () = stops.stop() => return Ok(Exit::Ok),
        };
        tracing::info!(
            grpc = %daemon.grpc,
            issuer = %daemon.issuer,
            probe = %daemon.probe,
            epoch = daemon.broker.epoch(),
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        Ok(match serve(daemon, stops).await {
            Stopped::InOrder => Exit::Ok,
            Stopped::Failed => Exit::Failure,
        })
    }
}

/// What was said on the command line counts before the file.
fn overrule(identity: &mut IdentityConfig, session: &Session) {
    identity.wait = session.identity_wait.unwrap_or(identity.wait);
    if let Some(endpoint) = session.workload_api.clone() {
        let pick = match &identity.from {
            IdentityFrom::WorkloadApi { pick, .. } => pick.clone(),
            IdentityFrom::Files { .. } => Pick::First,
        };
        identity.from = IdentityFrom::WorkloadApi { endpoint: Some(endpoint), pick };
    }
}

/// Serves until a signal stops it.
pub(super) async fn serve(daemon: Daemon, mut stops: Stops) -> Stopped {
    let stopper = daemon.stopper();
    let reload = daemon.reloader();
    let signals = tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = stops.term.recv() => return stopper.cancel(),
                _ = stops.int.recv() => return stopper.cancel(),
                _ = stops.hangup.recv() => {
                    tracing::info!("SIGHUP: reading identity files, catalog and policy anew");
                    // A panic in it must not end the daemon's ear for SIGTERM; what is bad is logged.
                    let reload = reload.clone();
                    let _ = tokio::task::spawn_blocking(move || reload()).await;
                }
            }
        }
    });
    let stopped = daemon.run().await;
    signals.abort();
    stopped
}

/// The signals that a daemon listens to.
pub(super) struct Stops {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stops {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|e| Failure::new(Exit::Failure, format!("signals cannot be listened to: {e}")))
        };
        Ok(Stops {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Why it did not start, with all causes.
pub(super) fn not_started(error: &StartError) -> Failure {
    let mut text = error.to_string();
    let mut lines = Vec::new();
    if let StartError::Faults(faults) = error {
        text = mistakes("the configuration", faults.0.len());
        lines.clone_from(&faults.0);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        let said = e.to_string();
        // Some say their cause themselves.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = e.source();
    }
    let failure = lines.into_iter().fold(Failure::new(Exit::Failure, text), |f, line| f.with("", line));
    failure
        .fix(match error {
            StartError::Listen { .. } => {
                "choose another address in the configuration, or stop what listens there"
            }
            StartError::Ledger(OpenError::Lock(LockError::Held { .. })) => {
                "one daemon has one ledger: stop the other, or give this one a server.state of its own"
            }
            StartError::Ledger(OpenError::Tamper(_)) => {
                "`leasehold audit verify DIR` tells where; keep the files as they are, and restore a copy that is good"
            }
            StartError::Ledger(_) | StartError::Epoch(_) | StartError::HeadKey(_) => {
                "see that the directory of server.state is there, is this user's to write, and has room on its disk"
            }
            StartError::NoIdentity(_) => {
                "see that the SPIFFE agent runs and has a registration entry for the daemon, then start again"
            }
            StartError::WorkloadApi(_) => {
                "write identity.workload_api, or set the variable in the daemon's unit"
            }
            _ => "`leasehold config check FILE` looks at everything that it names",
        })
        .saying("Nothing was served.")
}

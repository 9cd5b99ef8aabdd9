//! Implements `leasehold serve`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, Failure, Session, failure::mistakes, parse, svid::mint_command};
use crate::{
    config::{Config, IdentityConfig, IdentityFrom},
    daemon::{BoundFrom, Daemon, StartError, Stopped, allow_open_files, init_logging, init_metrics},
    identity::{Pick, WorkloadEndpoint, X509Svid},
    ledger::{LockError, Lost, OpenError},
    name::PrincipalKind,
};

/// Runs the daemon: it decides who gets access, issues credentials and ends them.
#[derive(Debug, Args)]
#[command(after_help = "\
SIGTERM stops it. SIGHUP reads catalog, policies and identity files again; a file with a mistake
changes nothing. Logs go to stderr; the line `ready` has the addresses that it listens on. Before
that it waits for its first certificate (SVID).

Examples:
  leasehold serve --config /etc/leasehold/leasehold.toml
  leasehold config check /etc/leasehold/leasehold.toml && systemctl reload leasehold")]
pub struct ServeArgs {
    /// The configuration file. Paths in it are relative to its directory
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_CONFIG")]
    pub config: PathBuf,
    /// Begin a new ledger if the old one is permanently lost. All locks and jobs are lost with it. Use this once, by hand
    #[arg(long)]
    pub new_ledger: bool,
    #[command(flatten)]
    everywhere: ServerOptions,
}

/// The options of the whole program, in words for a command that serves. Their values are read from the session.
#[derive(Debug, Args)]
pub(super) struct ServerOptions {
    /// The SPIFFE agent that gives this server its identity, instead of the agent in the file: unix:///PATH
    #[arg(long, value_name = "URI")]
    workload_api: Option<WorkloadEndpoint>,
    /// How long a start waits for the first identity, instead of identity.wait in the file
    #[arg(long, env = "LEASEHOLD_IDENTITY_WAIT", hide_env = true, value_name = "SPAN", value_parser = humantime::parse_duration)]
    identity_wait: Option<Duration>,
    // These options of the whole program are only for commands that call a daemon, so the help of a server hides them.
    #[arg(long, hide = true, env = "LEASEHOLD_CONTEXT", hide_env = true)]
    context: Option<String>,
    #[arg(id = "role", long = "as", hide = true, value_parser = parse::role())]
    role: Option<PrincipalKind>,
}

impl ServeArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        // The signals are received from the beginning, so that a signal during the start also stops the daemon.
        let mut stops = Stops::listen()?;
        let mut loaded = Config::load(&self.config)?;
        apply_options(&mut loaded.config.identity, session);
        if self.new_ledger {
            loaded.config.ledger.lost = Lost::BeginNew;
        }
        init_logging(&loaded.config.log);
        let is_default = loaded.defaults.iter().any(|used| used.key == "server.connections_max");
        let from = if is_default { BoundFrom::Default } else { BoundFrom::File };
        let listeners = 1 + usize::from(loaded.config.gateway.is_some());
        allow_open_files(&mut loaded.config.server.room, from, listeners);
        init_metrics();
        let daemon = tokio::select! {
            daemon = Daemon::start(&loaded.config) => daemon.map_err(|e| match (&e, mint_of(&loaded.config.identity, session)) {
                (StartError::Faults(_), Some(mint)) => not_started(&e).fix_instead(mint),
                _ => not_started(&e),
            })?,
            () = stops.stop() => return Ok(Exit::Ok),
        };
        tracing::info!(
            grpc = %daemon.grpc,
            issuer = %daemon.issuer,
            probe = %daemon.probe,
            s3 = daemon.gateway.map(tracing::field::display),
            s3_direct = daemon.gateway_direct.map(tracing::field::display),
            people = daemon.login.map(tracing::field::display),
            epoch = daemon.broker.epoch(),
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        Ok(match serve(daemon, stops, async {}).await {
            Stopped::InOrder => Exit::Ok,
            Stopped::Failed => Exit::Failure,
        })
    }
}

/// Returns the command that issues the daemon's certificate again, if it has expired and was made by `leasehold init`.
pub(super) fn mint_of(identity: &IdentityConfig, session: &Session) -> Option<String> {
    let IdentityFrom::Files { cert, key } = &identity.from else { return None };
    let svid = X509Svid::load(cert, key).ok()?;
    let has_ended = !svid.is_current(session.now().wall);
    has_ended.then(|| mint_command(cert, svid.spiffe_id()))?
}

/// Applies the options of the command line, which take precedence over the file.
pub(super) fn apply_options(identity: &mut IdentityConfig, session: &Session) {
    identity.wait = session.identity_wait.unwrap_or(identity.wait);
    if let Some(endpoint) = session.workload_api.clone() {
        let pick = match &identity.from {
            IdentityFrom::WorkloadApi { pick, .. } => pick.clone(),
            IdentityFrom::Files { .. } => Pick::First,
        };
        identity.from = IdentityFrom::WorkloadApi { endpoint: Some(endpoint), pick };
    }
}

/// Serves until a signal stops the daemon. Before the daemon stops, `first` stops everything that depends on it.
pub(super) async fn serve(
    daemon: Daemon,
    stops: Stops,
    first: impl Future<Output = ()> + Send + 'static,
) -> Stopped {
    let stopper = daemon.stopper();
    let reload = daemon.reloader();
    let signals = tokio::spawn(async move {
        stops.handle(reload).await;
        first.await;
        stopper.cancel();
    });
    let stopped = daemon.run().await;
    signals.abort();
    stopped
}

/// Whether a reload ended, or a signal to stop came first.
#[derive(Debug, PartialEq, Eq)]
enum Reloading {
    Done,
    Stopped,
}

/// Reloads on a thread that may block, so a disk that hangs does not delay a stop. The daemon logs mistakes in the files, and
/// goes on after a panic in the reload.
async fn reload_unless(reload: Arc<dyn Fn() + Send + Sync>, stop: impl Future<Output = ()>) -> Reloading {
    tokio::select! {
        _ = tokio::task::spawn_blocking(move || reload()) => Reloading::Done,
        () = stop => Reloading::Stopped,
    }
}

/// The signals to which a daemon reacts.
pub(super) struct Stops {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stops {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|e| Failure::new(Exit::Failure, format!("signals cannot be received: {e}")))
        };
        Ok(Stops {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Reloads at each SIGHUP. Returns at the signal to stop.
    async fn handle(mut self, reload: Arc<dyn Fn() + Send + Sync>) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: reading identity files, catalog and policy again");
                    if reload_unless(reload.clone(), self.stop()).await == Reloading::Stopped {
                        return;
                    }
                }
            }
        }
    }

    /// Reloads at each SIGHUP, and stops at the signal to stop.
    pub(super) async fn until_stopped(self, stopper: CancellationToken, reload: Arc<dyn Fn() + Send + Sync>) {
        self.handle(reload).await;
        stopper.cancel();
    }

    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Explains why the daemon did not start, with all causes.
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
        // Some messages already contain their cause.
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
                "choose another address in the configuration, or stop the program that listens there"
            }
            StartError::Ledger(OpenError::Lock(LockError::Held { .. })) => {
                "two daemons cannot share a ledger: stop the other one, or set another server.state for this one"
            }
            StartError::Ledger(OpenError::Tamper(_)) => {
                "`leasehold audit verify DIR` shows where; keep the files as they are, and restore a good copy"
            }
            StartError::Ledger(_) | StartError::Epoch(_) | StartError::HeadKey(_) => {
                "check that the directory of server.state exists, that this user may write it, and that its disk has space"
            }
            StartError::NoIdentity(_) => {
                "check that the SPIFFE agent runs and has a registration entry for the daemon, then start again"
            }
            StartError::WorkloadApi(_) => {
                "set identity.workload_api in the configuration, or the variable in the daemon's systemd unit"
            }
            _ => "run `leasehold config check FILE`, which checks everything that the file names",
        })
        .saying("The daemon did not start.")
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError, mpsc};

    use super::*;

    // The reload waits for a disk that hangs, until the end of the test.
    #[tokio::test]
    async fn a_reload_that_hangs_delays_no_stop() {
        let (disk, hangs) = mpsc::channel::<()>();
        let hangs = Mutex::new(hangs);
        let reload = Arc::new(move || {
            let _ = hangs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        });
        let stopped = reload_unless(reload, tokio::time::sleep(Duration::from_millis(20)));
        let stopped = tokio::time::timeout(Duration::from_secs(5), stopped).await;
        drop(disk);
        assert_eq!(stopped, Ok(Reloading::Stopped));
        assert_eq!(reload_unless(Arc::new(|| {}), std::future::pending()).await, Reloading::Done);
        assert_eq!(
            reload_unless(Arc::new(|| panic!("a fault")), std::future::pending()).await,
            Reloading::Done
        );
    }
}

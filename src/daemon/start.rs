//! The daemon's start and stop.

use std::{net::SocketAddr, path::Path, sync::Arc};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use super::{
    failure::{StartError, with_mistakes},
    free_space::watch_free_space,
    gateway_process::{bind_direct, direct_listener, gateway_of_daemon},
    identity,
    inspect::{self, StartParts},
    ledger::{self, OpenedLedger},
    listeners, notices, rules, telemetry,
};
use crate::{
    api::{
        Edge, EdgeRoom, MetricsText, NotReady, Readiness, ReadyNotes, Reloader, issuer_routes, login_routes,
        probe_routes,
    },
    broker::{Broker, BrokerContext, BrokerSettings, KeptRules, PolicyOrigin, Rules, Task, Tickets},
    clock::{Clock, SystemClock, Wall},
    config::{Config, PolicyFrom, RoomConfig},
    fence::Registry,
    gateway::GatewaySettings,
    identity::{IdentitySource, login_server_config, wait_for_identity},
    ledger::{Actor, EpochBegan, Event, Head, HeadCopy, HeadKey, Health, Ledger},
    limits,
    link::{self, Acceptor, HandshakeFailure, HandshakeObserver, Protocol, ServeOptions},
    people::People,
    reason::Reason,
    secret::random_u128,
    state::{OpenCounts, Rebuilt, Store},
    token::SigningKey,
};

/// The way in which the daemon stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The daemon was asked to stop.
    InOrder,
    /// A task of the daemon ended by itself, or the ledger could not be closed.
    Failed,
}

/// A daemon that serves.
pub struct Daemon {
    /// Serves gRPC. If the configured port is 0, this has the port that the system chose. This is also true of the
    /// other addresses.
    pub grpc: SocketAddr,
    /// Serves discovery and `/keys`.
    pub issuer: SocketAddr,
    /// Serves `/livez`, `/readyz` and `/metrics`.
    pub probe: SocketAddr,
    /// Serves S3, if the configuration has a gateway.
    pub gateway: Option<SocketAddr>,
    /// Serves S3 to clients without an SVID, if the gateway does.
    pub gateway_direct: Option<SocketAddr>,
    /// Serves `/login`, if people log in.
    pub login: Option<SocketAddr>,
    /// Problems that did not stop the start, for the operator.
    pub warnings: Vec<String>,
    /// Decides the requests of the gRPC listener.
    pub broker: Arc<Broker>,
    reloader: Reloader,
    identity: Arc<dyn IdentitySource>,
    ledger: Ledger,
    /// The copy of the ledger's head, if the configuration names a file for it.
    copy: Option<HeadCopy>,
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
}

impl Daemon {
    /// Starts with the clocks of this machine.
    ///
    /// # Errors
    ///
    /// The errors of [`start_with`](Self::start_with).
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let clock = Arc::new(SystemClock::new());
        let raise = clock.clone();
        Self::start_with(config, clock, move |at| raise.not_before(at)).await
    }

    /// Starts with the given clock. Calls `raise_clock_to` with the time of the ledger's last record.
    ///
    /// # Errors
    ///
    /// The reason for which the daemon did not start. Everything that it opened is closed.
    pub async fn start_with(
        config: &Config,
        clock: Arc<dyn Clock>,
        raise_clock_to: impl FnOnce(Wall) + Send,
    ) -> Result<Self, StartError> {
        let StartParts { rules, tls, people } = inspect_config(config, &clock).await?;
        let identity = identity::open(&config.identity, config.people.as_ref(), clock.clone())?;
        // The daemon listens before it opens the ledger: a second daemon fails here or at the ledger's lock, and harms
        // nothing.
        let listeners = Listeners::bind(config, tls)?;

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (follower, shutdown) = (identity.clone(), stop.clone());
        tasks.spawn(async move {
            follower.follow(shutdown).await;
            "the source of the daemon's identity"
        });
        let wait = config.identity.wait;
        wait_for_identity(&*identity, &*clock, wait, |why| {
            tracing::warn!(why, seconds = wait.as_secs(), "no identity was issued yet: the daemon waits");
        })
        .await?;

        let OpenedLedger { opened, recorded, key: head_key, copy } = open_ledger(config, &clock).await?;
        let tickets = Tickets::new(&head_key.derive("tickets")?);
        if let Some(latest) = opened.latest {
            raise_clock_to(latest);
        }
        let people = people.map(|people| Arc::new(People { began: clock.now().wall, ..people }));
        let rebuilt = recorded.rebuilt(clock.now().lease);
        let (ledger, epoch) = (opened.ledger, opened.epoch);
        if epoch > 1 {
            let OpenCounts { jobs, suspended, draining, locks } = rebuilt.left();
            let (seq, in_order) = (rebuilt.seq, rebuilt.in_order);
            tracing::info!(epoch, in_order, jobs, suspended, draining, locks, %seq, "this is the state that the previous run left");
        }
        let began = epoch_record(&rules, &rebuilt, &head_key, opened.replaces)?;
        ledger.append(&began).await.map_err(StartError::Epoch)?;
        head_key.keep(&config.server.state)?;
        ledger.sign_with(head_key);

        let fences = Arc::new(Registry::new(rebuilt.seq));
        let state = Store::new(rebuilt, fences.clone(), ledger.clone(), clock.clone());
        let (signer, settings) = (SigningKey::generate(epoch, 1)?, broker_settings(config, people));
        let context =
            BrokerContext::new(clock.clone(), fences, state, ledger.clone(), rules, signer, epoch, settings);
        let broker = Broker::new(context, tickets)?;
        keep_rules(&broker, &config.server.state).await?;
        let reloader = rules::reloader(config, clock.clone());
        let notices = notices::open(config, &broker).await?;

        let mut daemon = Daemon {
            grpc: bound_address(&listeners.grpc, config.server.grpc),
            issuer: bound_address(&listeners.issuer, config.issuer.listen.address()),
            probe: bound_address(&listeners.probe, config.server.probe),
            gateway: listeners.gateway.as_ref().and_then(|listener| listener.local_addr().ok()),
            gateway_direct: listeners.direct.as_ref().and_then(|listener| listener.local_addr().ok()),
            login: listeners.login.as_ref().and_then(|listener| listener.local_addr().ok()),
            warnings: opened.warnings,
            broker,
            reloader,
            identity,
            ledger,
            copy,
            stop,
            tasks,
        };
        daemon.serve_all(config, listeners, &clock).await?;
        if let Some(notices) = notices {
            let stop = daemon.stop.clone();
            daemon.spawn("the notices", notices.run(stop));
        }
        Ok(daemon)
    }

    /// Serves on all listeners, and starts the background tasks.
    async fn serve_all(
        &mut self,
        config: &Config,
        listeners: Listeners,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), StartError> {
        self.serve_grpc(listeners.grpc, &config.server.room, clock).await?;
        self.serve_http(listeners.issuer, listeners.tls, listeners.probe, clock);
        if let Some(listener) = listeners.login {
            self.serve_logins(listener, clock);
        }
        self.spawn_background(config, clock);
        if let (Some(settings), Some(listener)) = (&config.gateway, listeners.gateway) {
            self.serve_gateway(settings, &config.server.room, (listener, listeners.direct), clock)?;
        }
        Ok(())
    }

    /// Starts a task. When it ends, the daemon stops.
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    async fn serve_grpc(
        &mut self,
        listener: TcpListener,
        room: &RoomConfig,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), StartError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::Serving).await;
        for service in ["JobService", "MemberService", "OperatorService", "VerifierService"] {
            health.set_service_status(format!("leasehold.v1.{service}"), ServingStatus::Serving).await;
        }
        let stop = self.stop.clone();
        let edge = Edge::new(self.broker.clone(), self.reloader.clone(), stop.clone()).with_room(EdgeRoom {
            requests_max: room.requests_max,
            requests_per_peer_max: room.requests_per_peer_max,
            buffered_bytes_max: room.buffered_bytes_max,
            buffered_bytes_per_peer_max: room.buffered_bytes_per_peer_max,
        });
        let (classify, readers, shutdown) = (edge.classify(), edge.clone(), stop.clone());
        self.spawn("the check for clients that do not read their answers", async move {
            readers.close_unread_connections(shutdown).await;
        });
        let service = edge.service(health_service).map_err(|e| StartError::Services(e.to_string()))?;
        let acceptor = Acceptor::new(self.identity.clone(), clock.clone(), Protocol::Grpc);
        let options = ServeOptions { classify, ..listener_options(room) };
        self.spawn("the gRPC listener", link::serve(listener, acceptor, service, options, stop));
        Ok(())
    }

    /// Serves discovery and keys, and the probes.
    fn serve_http(
        &mut self,
        issuer: TcpListener,
        tls: Option<TlsAcceptor>,
        probe: TcpListener,
        clock: &Arc<dyn Clock>,
    ) {
        let routes = issuer_routes(self.broker.clone());
        let serving = listeners::serve(issuer, tls, routes, clock.clone(), self.stop.clone());
        self.spawn("the issuer's listener", serving);
        let (recorder, broker, ledger) =
            (telemetry::init_metrics(), self.broker.clone(), self.ledger.clone());
        let metrics: MetricsText = Arc::new(move || {
            broker.measure();
            metrics::gauge!("leasehold_ledger_good").set(f64::from(u8::from(is_good(&ledger))));
            recorder.as_ref().map(PrometheusHandle::render).unwrap_or_default()
        });
        let routes = probe_routes(self.readiness(clock.clone()), metrics);
        let serving = listeners::serve(probe, None, routes, clock.clone(), self.stop.clone());
        self.spawn("the probes' listener", serving);
    }

    /// Serves S3 to holders of leases. The gateway calls this daemon over mutual TLS, like a gateway on another
    /// machine.
    fn serve_gateway(
        &mut self,
        settings: &GatewaySettings,
        room: &RoomConfig,
        (listener, direct): (TcpListener, Option<TcpListener>),
        clock: &Arc<dyn Clock>,
    ) -> Result<(), StartError> {
        let (gateway, resolver) =
            gateway_of_daemon(settings, &self.identity, self.grpc, self.broker.clone(), clock.clone())?;
        if let Some(direct) = direct_listener(settings, direct, resolver)? {
            let serving = gateway.clone().serve_direct(direct, self.stop.clone());
            self.spawn("the gateway's listener for clients without an SVID", serving);
        }
        let serving =
            gateway.serve(listener, self.identity.clone(), listener_options(room), self.stop.clone());
        self.spawn("the gateway", serving);
        Ok(())
    }

    /// Serves the logins of people, who have no SVID yet.
    fn serve_logins(&mut self, listener: TcpListener, clock: &Arc<dyn Clock>) {
        let tls = TlsAcceptor::from(login_server_config(self.identity.clone()));
        let routes = login_routes(self.broker.clone());
        let serving = listeners::serve(listener, Some(tls), routes, clock.clone(), self.stop.clone());
        self.spawn("the listener for logins", serving);
    }

    fn readiness(&self, clock: Arc<dyn Clock>) -> Readiness {
        let (ledger, stopping, source) = (self.ledger.clone(), self.stop.clone(), self.identity.clone());
        let broker = self.broker.clone();
        Arc::new(move || {
            if stopping.is_cancelled() {
                return Err(NotReady::new(Reason::ShuttingDown));
            }
            identity::ready(&source.current(), clock.now().wall)?;
            match ledger.health() {
                Health::Good => {
                    Ok(ReadyNotes { catalog_mistakes: broker.rules.in_force().catalog().not_taken().len() })
                }
                Health::EndingsOnly { why } | Health::Failing { why } => {
                    Err(NotReady::new(Reason::LedgerUnavailable).because(why.to_string()))
                }
                Health::Stopped => Err(NotReady::new(Reason::LedgerUnavailable)),
            }
        })
    }

    /// Starts the background tasks. The daemon runs nothing else except its listeners.
    fn spawn_background(&mut self, config: &Config, clock: &Arc<dyn Clock>) {
        for task in Task::ALL {
            self.spawn(task.name(), task.run(self.broker.clone(), self.stop.clone()));
        }
        let watch = identity::watch(self.identity.clone(), clock.clone(), self.stop.clone());
        self.spawn("the watch over the daemon's identity", watch);
        let (state, stop_bytes) = (config.server.state.clone(), config.ledger.free_space_stop_bytes);
        let watch =
            watch_free_space(self.broker.clone(), clock.clone(), state, stop_bytes, self.stop.clone());
        self.spawn("the watch over the disk", watch);
        if let Some(copy) = self.copy.clone() {
            let clock = self.broker.clock().clone();
            let keeping = ledger::keep_copies(self.ledger.clone(), copy, clock, self.stop.clone());
            self.spawn("the copy of the ledger's head", keeping);
        }
        let (ledger, shutdown) = (self.ledger.clone(), self.stop.clone());
        self.spawn("the ledger", async move {
            tokio::select! {
                _ = ledger.stopped() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }

    /// Returns the token that stops the daemon.
    pub fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Reads identity files, catalog and policy again. If one of them has a mistake, the old one stays in force.
    /// Blocks.
    pub fn reload(&self) {
        (self.reloader())();
    }

    /// Returns a function that does the work of [`reload`](Self::reload).
    pub fn reloader(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (identity, read, broker) = (self.identity.clone(), self.reloader.clone(), self.broker.clone());
        Arc::new(move || {
            if let Err(error) = identity.reload() {
                tracing::error!(error = %error, "the identity files cannot be used: the last good ones stay");
            }
            if let Err(refusal) = broker.rules.reload(|before| read(before), Actor::Daemon("reload".into())) {
                tracing::error!(text = %with_mistakes(&refusal), "the new catalog or policy was not accepted");
            }
        })
    }

    /// Serves until the daemon is stopped or one of its tasks ends. Then waits for open connections, records the end
    /// of this run, and closes the ledger.
    pub async fn run(mut self) -> Stopped {
        let died = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = self.tasks.join_next() => Some(ended),
        };
        let mut stopped = Stopped::InOrder;
        if let Some(ended) = died
            && !self.stop.is_cancelled()
        {
            stopped = Stopped::Failed;
            match ended {
                Some(Ok(what)) => {
                    tracing::error!(what, "a task of the daemon ended by itself: the daemon stops");
                }
                Some(Err(e)) => tracing::error!(error = %e, "a task of the daemon failed: the daemon stops"),
                None => {}
            }
        }
        tracing::info!(
            "stopping: new requests are refused, and clients with open streams are asked to connect again"
        );
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::SHUTDOWN.saturating_add(limits::CONNECTION_GRACE), drained)
            .await
            .is_err()
        {
            tracing::warn!("connections were still open after the wait: they are closed now");
            self.tasks.shutdown().await;
        }
        self.ledger.defer(&Event::EpochEnded { reason: "stopped".into() });
        match self.ledger.close(limits::LEDGER_WAIT).await {
            Ok(head) => tracing::info!(index = head.index, digest = %head.digest, "ledger closed"),
            Err(error) => {
                tracing::error!(%error, "the ledger was not closed in order");
                stopped = Stopped::Failed;
            }
        }
        if let Some(copy) = self.copy {
            ledger::keep_copy(&self.ledger, copy).await;
        }
        stopped
    }
}

/// The listeners of a daemon, bound but not served.
struct Listeners {
    grpc: TcpListener,
    issuer: TcpListener,
    probe: TcpListener,
    gateway: Option<TcpListener>,
    /// The gateway's listener for clients without an SVID.
    direct: Option<TcpListener>,
    /// The listener for the logins of people.
    login: Option<TcpListener>,
    /// TLS of the issuer's listener, if it has TLS.
    tls: Option<TlsAcceptor>,
}

impl Listeners {
    fn bind(config: &Config, tls: Option<TlsAcceptor>) -> Result<Self, StartError> {
        let grpc = listen("gRPC", config.server.grpc)?;
        let issuer = listen("discovery and keys", config.issuer.listen.address())?;
        let probe = listen("probes", config.server.probe)?;
        let gateway = match &config.gateway {
            Some(gateway) => Some(listen("S3", gateway.listen)?),
            None => None,
        };
        let direct = match &config.gateway {
            Some(gateway) => bind_direct(gateway)?,
            None => None,
        };
        let login = match &config.people {
            Some(people) => Some(listen("logins", people.listen)?),
            None => None,
        };
        Ok(Listeners { grpc, issuer, probe, gateway, direct, login, tls })
    }
}

/// Reads all files that the configuration names, and logs the warnings.
async fn inspect_config(config: &Config, clock: &Arc<dyn Clock>) -> Result<StartParts, StartError> {
    let (config, inspected_at) = (config.clone(), clock.clone());
    let inspection = tokio::task::spawn_blocking(move || inspect::inspect(&config, &inspected_at))
        .await
        .map_err(|e| StartError::BrokenOff(e.to_string()))?;
    for warning in inspection.warnings() {
        tracing::warn!(%warning, "configuration");
    }
    let parts = inspection.into_parts()?;
    rules::log_mistakes(parts.rules.catalog(), clock.now().wall);
    Ok(parts)
}

/// Makes the broker save each version of the rules in the state directory.
async fn keep_rules(broker: &Arc<Broker>, state: &Path) -> Result<(), StartError> {
    let (broker, folder) = (broker.clone(), KeptRules::at(state));
    let kept = tokio::task::spawn_blocking(move || broker.rules.keep_rules_in(folder)).await;
    kept.map_err(|e| StartError::BrokenOff(e.to_string()))
}

async fn open_ledger(config: &Config, clock: &Arc<dyn Clock>) -> Result<OpenedLedger, StartError> {
    let (ledger, state, clock) = (config.ledger.clone(), config.server.state.clone(), clock.clone());
    let opened = tokio::task::spawn_blocking(move || OpenedLedger::open(&ledger, &state, clock))
        .await
        .map_err(|e| StartError::BrokenOff(e.to_string()))??;
    for warning in &opened.opened.warnings {
        tracing::warn!(%warning, "ledger");
    }
    Ok(opened)
}

/// Returns the first record of this run.
fn epoch_record(
    rules: &Rules,
    rebuilt: &Rebuilt,
    key: &HeadKey,
    replaces: Option<Head>,
) -> Result<Event, StartError> {
    let nonce = random_u128()?;
    Ok(Event::EpochBegan(EpochBegan {
        nonce: format!("{nonce:032x}"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        catalog: rules.catalog().digest(),
        policy: rules.engine.digest(),
        seq: rebuilt.seq.0,
        head_key: Some(key.public().id()),
        replaces,
    }))
}

fn broker_settings(config: &Config, people: Option<Arc<People>>) -> BrokerSettings {
    BrokerSettings {
        issuer: config.issuer.url.clone(),
        lease_ttl: config.lease.token_ttl,
        beat: config.lease.beat,
        lost_after: config.lease.lost_after,
        rejoin: config.lease.rejoin,
        drain_read: config.lease.drain_read,
        break_glass: config.policy.break_glass.clone(),
        policy: match config.policy.source {
            PolicyFrom::Files => PolicyOrigin::Files(config.policy.dir.clone()),
            PolicyFrom::Applied => PolicyOrigin::Applied,
        },
        trusted_keys: config.policy.trusted_keys.clone(),
        rate_per_identity: config.ledger.rate_per_identity,
        rate_per_tenant: config.ledger.rate_per_tenant,
        people,
    }
}

/// Returns the bounds of a listener whose callers have SVIDs.
fn listener_options(room: &RoomConfig) -> ServeOptions {
    ServeOptions {
        handshakes_max: room.handshakes_max,
        connections_max: room.connections_max,
        connections_per_peer_max: room.connections_per_peer_max,
        connections_unknown_max: room.connections_unknown_max,
        connections_operators_max: room.connections_operators_max,
        streams_max: room.streams_per_connection_max,
        observer: count_failed_handshakes(),
        ..ServeOptions::default()
    }
}

/// Counts connections that are refused before a request.
fn count_failed_handshakes() -> HandshakeObserver {
    HandshakeObserver::new(|failure: &HandshakeFailure| {
        let reason = failure.reason().map_or("NONE", Reason::code);
        metrics::counter!("leasehold_handshakes_failed_total", "reason" => reason).increment(1);
    })
}

fn is_good(ledger: &Ledger) -> bool {
    matches!(ledger.health(), crate::ledger::Health::Good)
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    link::listen(address).map_err(|source| StartError::Listen { what, address, source })
}

fn bound_address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

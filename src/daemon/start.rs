//! Start and stop.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use super::{
    failure::{StartError, with_mistakes},
    identity, inspect,
    ledger::{self, OpenedLedger},
    listeners, rules, telemetry,
};
use crate::{
    api::{Edge, EdgeRoom, MetricsText, NotReady, Readiness, Reloader, issuer_routes, probe_routes},
    broker::{Broker, BrokerSettings, Task, Tickets},
    clock::{Clock, SystemClock},
    config::Config,
    fence::Registry,
    identity::{IdentitySource, first_identity},
    ledger::{Actor, EpochBegan, Event, HeadCopy, Health, Ledger},
    limits,
    link::{Acceptor, HandshakeFailure, HandshakeObserver, Protocol, ServeOptions},
    reason::Reason,
    secret::random_u128,
    state::{Left, Store},
    token::{KeyError, SigningKey},
};

/// How the daemon stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was asked to.
    InOrder,
    /// A part of it died, or the ledger could not be closed.
    Failed,
}

/// A daemon that serves.
pub struct Daemon {
    /// Where it listens, for each the address that the system gave.
    pub grpc: SocketAddr,
    pub issuer: SocketAddr,
    pub probe: SocketAddr,
    pub warnings: Vec<String>,
    pub broker: Arc<Broker>,
    reloader: Reloader,
    identity: Arc<dyn IdentitySource>,
    ledger: Ledger,
    /// The head's copy, if the configuration names one.
    copy: Option<HeadCopy>,
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
}

impl Daemon {
    /// Starts with the clocks of this machine.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let clock = Arc::new(SystemClock::new());
        let raise = clock.clone();
        Self::start_with(config, clock, move |at| raise.not_before(at)).await
    }

    /// Starts with another clock. `not_before` is told the time of the ledger's last record.
    pub async fn start_with(
        config: &Config,
        clock: Arc<dyn Clock>,
        not_before: impl FnOnce(crate::clock::Wall) + Send,
    ) -> Result<Self, StartError> {
        let (all, ours) = (config.clone(), clock.clone());
        let inspection = tokio::task::spawn_blocking(move || inspect(&all, &ours))
            .await
            .map_err(|e| StartError::BrokenOff(e.to_string()))?;
        for warning in inspection.warnings() {
            tracing::warn!(%warning, "configuration");
        }
        let (rules, tls) = inspection.into_parts()?;
        let identity = identity::open(&config.identity, clock.clone())?;

        // Listening comes before the ledger is touched: a second daemon fails here, or at the ledger's lock, and harms nothing.
        let grpc = listen("gRPC", config.server.grpc).await?;
        let issuer = listen("discovery and keys", config.issuer.listen.address()).await?;
        let probe = listen("probes", config.server.probe).await?;

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (follower, shutdown) = (identity.clone(), stop.clone());
        tasks.spawn(async move {
            follower.follow(shutdown).await;
            "the source of the daemon's identity"
        });
        let wait = config.identity.wait;
        first_identity(&*identity, &*clock, wait, |why| {
            tracing::warn!(why, seconds = wait.as_secs(), "no identity was issued yet: waiting for one");
        })
        .await?;

        let (ledger_config, state, ledger_clock) =
            (config.ledger.clone(), config.server.state.clone(), clock.clone());
        let opening = move || OpenedLedger::open(&ledger_config, &state, ledger_clock);
        let OpenedLedger { opened, recorded, key, copy } = tokio::task::spawn_blocking(opening)
            .await
            .map_err(|e| StartError::BrokenOff(e.to_string()))??;
        let tickets = Tickets::new(&key.derive("tickets")?);
        for warning in &opened.warnings {
            tracing::warn!(%warning, "ledger");
        }
        if let Some(latest) = opened.latest {
            not_before(latest);
        }
        let now = clock.now();
        let rebuilt = recorded.rebuilt(now.lease);
        let (ledger, epoch) = (opened.ledger, opened.epoch);
        if epoch > 1 {
            let Left { jobs, suspended, draining, locks } = rebuilt.left();
            let (seq, in_order) = (rebuilt.seq, rebuilt.in_order);
            tracing::info!(epoch, in_order, jobs, suspended, draining, locks, %seq, "this is what the last life left");
        }
        let nonce = random_u128().map_err(|_| KeyError::Generate)?;
        ledger
            .append(&Event::EpochBegan(EpochBegan {
                nonce: format!("{nonce:032x}"),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                catalog: rules.catalog().digest(),
                policy: rules.engine.digest(),
                seq: rebuilt.seq.0,
                head_key: Some(key.public().id()),
                replaces: opened.replaces,
            }))
            .await
            .map_err(StartError::Epoch)?;
        key.keep(&config.server.state)?;
        ledger.sign_with(key);

        let fences = Arc::new(Registry::new(rebuilt.seq));
        let state = Store::new(rebuilt, fences.clone(), ledger.clone(), clock.clone());
        let settings = BrokerSettings {
            issuer: config.issuer.url.clone(),
            lease_ttl: config.lease.token_ttl,
            beat: config.lease.beat,
            lost_after: config.lease.lost_after,
            rejoin: config.lease.rejoin,
            drain_read: config.lease.drain_read,
            break_glass: config.policy.break_glass.clone(),
            rate_per_identity: config.ledger.rate_per_identity,
            rate_per_tenant: config.ledger.rate_per_tenant,
        };
        let key = SigningKey::generate(epoch, 1)?;
        let broker =
            Broker::new(clock.clone(), fences, state, ledger.clone(), rules, key, tickets, epoch, settings)
                .map_err(|_| KeyError::Generate)?;
        let policy = config.policy.clone();
        let reloader: Reloader = Arc::new(move |before| rules::read(&policy, Some(before.catalog())));

        let mut daemon = Daemon {
            grpc: local(&grpc, config.server.grpc),
            issuer: local(&issuer, config.issuer.listen.address()),
            probe: local(&probe, config.server.probe),
            warnings: opened.warnings,
            broker,
            reloader,
            identity,
            ledger,
            copy,
            stop,
            tasks,
        };
        daemon.begin(grpc, issuer, tls, probe, clock, config).await?;
        Ok(daemon)
    }

    /// Begins all work of this life. Everything that runs is in this list.
    async fn begin(
        &mut self,
        grpc: TcpListener,
        issuer: TcpListener,
        tls: Option<tokio_rustls::TlsAcceptor>,
        probe: TcpListener,
        clock: Arc<dyn Clock>,
        config: &Config,
    ) -> Result<(), StartError> {
        let stop = self.stop.clone();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::Serving).await;
        for service in ["JobService", "MemberService", "OperatorService", "VerifierService"] {
            health.set_service_status(format!("leasehold.v1.{service}"), ServingStatus::Serving).await;
        }
        let room = &config.server.room;
        let edge = Edge::new(self.broker.clone(), self.reloader.clone(), stop.clone()).with_room(EdgeRoom {
            requests_max: room.requests_max,
            requests_per_peer_max: room.requests_per_peer_max,
            buffered_bytes_max: room.buffered_bytes_max,
            buffered_bytes_per_peer_max: room.buffered_bytes_per_peer_max,
        });
        let (classify, readers, shutdown) = (edge.classify(), edge.clone(), stop.clone());
        self.tasks.spawn(async move {
            readers.watch_readers(shutdown).await;
            "the look at clients that do not read"
        });
        let service = edge.service(health_service).map_err(|e| StartError::Services(e.to_string()))?;
        let acceptor = Acceptor::new(self.identity.clone(), clock.clone(), Protocol::Grpc);
        let observer = HandshakeObserver::new(|failure: &HandshakeFailure| {
            let reason = failure.reason().map_or("NONE", Reason::code);
            metrics::counter!("leasehold_handshakes_failed_total", "reason" => reason).increment(1);
        });
        let options = ServeOptions {
            handshakes_max: room.handshakes_max,
            connections_max: room.connections_max,
            connections_per_peer_max: room.connections_per_peer_max,
            connections_unknown_max: room.connections_unknown_max,
            connections_operators_max: room.connections_operators_max,
            streams_max: room.streams_per_connection_max,
            classify,
            observer,
            ..ServeOptions::default()
        };
        let serving = crate::link::serve(grpc, acceptor, service, options, stop.clone());
        self.tasks.spawn(async move {
            serving.await;
            "the gRPC listener"
        });

        let routes = issuer_routes(self.broker.clone());
        let (shutdown, time) = (stop.clone(), clock.clone());
        self.tasks.spawn(async move {
            listeners::serve(issuer, tls, routes, time, shutdown).await;
            "the issuer's listener"
        });
        let (ledger, stopping, source) = (self.ledger.clone(), stop.clone(), self.identity.clone());
        let now = clock.clone();
        let ready: Readiness = Arc::new(move || {
            if stopping.is_cancelled() {
                return Err(NotReady::new(Reason::ShuttingDown));
            }
            identity::ready(&source.current(), now.now().wall)?;
            match ledger.health() {
                Health::Good => Ok(()),
                Health::EndingsOnly { why } | Health::Failing { why } => {
                    Err(NotReady::new(Reason::LedgerUnavailable).because(why.to_string()))
                }
                Health::Stopped => Err(NotReady::new(Reason::LedgerUnavailable)),
            }
        });
        let (recorder, broker, ledger) =
            (telemetry::init_metrics(), self.broker.clone(), self.ledger.clone());
        let metrics: MetricsText = Arc::new(move || {
            broker.measure();
            metrics::gauge!("leasehold_ledger_good").set(f64::from(u8::from(is_good(&ledger))));
            recorder.as_ref().map(PrometheusHandle::render).unwrap_or_default()
        });
        let routes = probe_routes(ready, metrics);
        let (shutdown, time) = (stop.clone(), clock.clone());
        self.tasks.spawn(async move {
            listeners::serve(probe, None, routes, time, shutdown).await;
            "the probes' listener"
        });
        for task in Task::ALL {
            let (broker, shutdown) = (self.broker.clone(), stop.clone());
            self.tasks.spawn(async move {
                task.run(broker, shutdown).await;
                task.name()
            });
        }
        let (source, shutdown, watching) = (self.identity.clone(), stop.clone(), clock.clone());
        self.tasks.spawn(async move {
            identity::watch(source, watching, shutdown).await;
            "the look at the daemon's identity"
        });
        let (broker, shutdown, state) = (self.broker.clone(), stop.clone(), config.server.state.clone());
        let free_space_stop = config.ledger.free_space_stop_bytes;
        self.tasks.spawn(async move {
            watch_free_space(broker, clock, state, free_space_stop, shutdown).await;
            "the look at the disk"
        });
        if let Some(copy) = self.copy.clone() {
            let (ledger, clock, shutdown) = (self.ledger.clone(), self.broker.clock().clone(), stop.clone());
            self.tasks.spawn(async move {
                ledger::keep_copies(ledger, copy, clock, shutdown).await;
                "the copy of the ledger's head"
            });
        }
        let (ledger, shutdown) = (self.ledger.clone(), stop);
        self.tasks.spawn(async move {
            tokio::select! {
                _ = ledger.stopped() => {}
                () = shutdown.cancelled() => {}
            }
            "the ledger"
        });
        Ok(())
    }

    /// What stops it, for whoever holds it elsewhere.
    pub fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Reads identity files, catalog and policy again. A bad one changes nothing. Blocking.
    pub fn reload(&self) {
        (self.reloader())();
    }

    /// What reads them again, for whoever hears of it elsewhere.
    pub fn reloader(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (identity, read, broker) = (self.identity.clone(), self.reloader.clone(), self.broker.clone());
        Arc::new(move || {
            if let Err(error) = identity.reload() {
                tracing::error!(error = %error, "the identity files cannot be used: the last good ones stay");
            }
            if let Err(refusal) = broker.reload(|before| read(before), Actor::Daemon("reload".into()), false)
            {
                tracing::error!(text = %with_mistakes(&refusal), "catalog or policy were not taken");
            }
        })
    }

    /// Serves until it is stopped or a part of it dies, then drains, records the end and closes the ledger.
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
                Some(Ok(what)) => tracing::error!(what, "a part of the daemon ended by itself: stopping"),
                Some(Err(e)) => tracing::error!(error = %e, "a part of the daemon failed: stopping"),
                None => {}
            }
        }
        tracing::info!("stopping: no new work, streams are told to connect again");
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::SHUTDOWN.saturating_add(limits::CONNECTION_GRACE), drained)
            .await
            .is_err()
        {
            tracing::warn!("connections were still open at the end of the drain");
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

fn is_good(ledger: &Ledger) -> bool {
    matches!(ledger.health(), crate::ledger::Health::Good)
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { what, address, source })
}

fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// Stops issuing, loudly, before the disk is full.
async fn watch_free_space(
    broker: Arc<Broker>,
    clock: Arc<dyn Clock>,
    state: PathBuf,
    stop_bytes: u64,
    shutdown: CancellationToken,
) {
    const EACH: Duration = Duration::from_secs(5);
    let low = AtomicBool::new(false);
    loop {
        if let Ok(stat) = nix::sys::statvfs::statvfs(&state) {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            metrics::gauge!("leasehold_ledger_free_bytes").set(free as f64);
            let is_low = free < stop_bytes;
            if low.swap(is_low, Ordering::AcqRel) != is_low {
                if is_low {
                    tracing::error!(
                        free,
                        stop_bytes,
                        "the ledger's disk is nearly full: nothing more is issued"
                    );
                } else {
                    tracing::info!(free, "the ledger's disk has room again: issuing goes on");
                }
            }
            broker.hold(is_low);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = clock.sleep(EACH) => {}
        }
    }
}

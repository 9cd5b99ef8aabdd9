//! A gateway as a process beside the daemon, for example on another machine; and what it shares with the gateway inside the
//! daemon.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{ConfigFaults, StartError, Stopped, identity};
use crate::{
    broker::Broker,
    catalog::{Catalog, CatalogErrors},
    clock::{Clock, SystemClock},
    config::GatewayConfig,
    gateway::{CatalogReader, DirectListener, Gateway, GatewaySettings},
    identity::{IdentitySource, wait_for_identity},
    limits,
    link::{Connector, Endpoint, ServeOptions, listen},
    verify::{KeyResolver, UseReporter, Verifier, VerifierSettings},
};

/// A gateway that serves.
pub struct GatewayProcess {
    /// The address for S3. If the configured port is 0, this has the port that the system chose.
    pub address: SocketAddr,
    /// Serves S3 to clients without an SVID, if the configuration says so.
    pub direct: Option<SocketAddr>,
    identity: Arc<dyn IdentitySource>,
    catalog: Arc<ArcSwap<Catalog>>,
    catalog_files: PathBuf,
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
}

impl GatewayProcess {
    /// Starts the gateway. Requests wait until the daemon's fence feed is complete.
    ///
    /// # Errors
    ///
    /// The identity, the catalog or a store cannot be used, or the address is in use.
    pub async fn start(config: &GatewayConfig) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let stores = config.gateway.open_stores()?;
        let catalog = Catalog::load_at_start(&config.catalog).map_err(|errors| faults(&errors))?;
        for warning in config.gateway.warnings(&catalog) {
            tracing::warn!(%warning, "configuration");
        }
        let identity = identity::open(&config.identity, None, clock.clone())?;
        let (what, address) = ("S3", config.gateway.listen);
        let listener = listen(address).map_err(|source| StartError::Listen { what, address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        let for_direct = bind_direct(&config.gateway)?;
        let direct = for_direct.as_ref().and_then(|listener| listener.local_addr().ok());

        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let (follower, shutdown) = (identity.clone(), stop.clone());
        tasks.spawn(async move {
            follower.follow(shutdown).await;
            "the source of the gateway's identity"
        });
        let wait = config.identity.wait;
        wait_for_identity(&*identity, &*clock, wait, |why| {
            tracing::warn!(why, seconds = wait.as_secs(), "no identity was issued yet: the gateway waits");
        })
        .await?;
        let connector = Connector::new(identity.clone(), clock.clone(), config.daemon.clone());
        let audience = config.gateway.audience.clone();
        let reporter = UseReporter::new(&connector, audience.clone(), clock.clone());
        let resolver = KeyResolver::new(&connector, audience.clone(), clock.clone());
        let verifier = Verifier::start(VerifierSettings { connector, audience, clock: clock.clone() });
        let catalog = Arc::new(ArcSwap::from_pointee(catalog));
        let in_force = catalog.clone();
        let reader: CatalogReader = Arc::new(move || Catalog::clone(&in_force.load()));
        let gateway = Gateway::new(verifier, reader, stores, clock).reporting_to(reporter);
        if let Some(direct) = direct_listener(&config.gateway, for_direct, resolver)? {
            let serving = gateway.clone().serve_direct(direct, stop.clone());
            tasks.spawn(async move {
                serving.await;
                "the gateway's listener for clients without an SVID"
            });
        }
        let serving = gateway.serve(listener, identity.clone(), ServeOptions::default(), stop.clone());
        tasks.spawn(async move {
            serving.await;
            "the gateway"
        });
        let catalog_files = config.catalog.clone();
        Ok(GatewayProcess { address, direct, identity, catalog, catalog_files, stop, tasks })
    }

    /// Returns the token that stops the gateway.
    pub fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Returns a function that reads identity files and catalog again. If one of them has a mistake, the old one stays
    /// in force. The function blocks.
    pub fn reloader(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (identity, catalog, files) =
            (self.identity.clone(), self.catalog.clone(), self.catalog_files.clone());
        Arc::new(move || {
            if let Err(error) = identity.reload() {
                tracing::error!(error = %error, "the identity files cannot be used: the last good ones stay");
            }
            match catalog.load().reload(&files) {
                Ok(newer) => catalog.store(Arc::new(newer)),
                Err(errors) => {
                    for mistake in errors.iter() {
                        tracing::error!(%mistake, "the catalog was not accepted");
                    }
                }
            }
        })
    }

    /// Serves until the gateway is stopped or one of its tasks ends. Then ends its connections.
    pub async fn run(mut self) -> Stopped {
        let died = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = self.tasks.join_next() => ended,
        };
        let stopped = match died {
            Some(ended) if !self.stop.is_cancelled() => {
                let what = ended.unwrap_or("a task that panicked");
                tracing::error!(what, "a task of the gateway ended by itself: the gateway stops");
                Stopped::Failed
            }
            _ => Stopped::InOrder,
        };
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        let patience = limits::SHUTDOWN.saturating_add(limits::CONNECTION_GRACE);
        if tokio::time::timeout(patience, drained).await.is_err() {
            tracing::warn!("connections were still open after the wait: they are closed now");
            self.tasks.shutdown().await;
        }
        stopped
    }
}

fn faults(errors: &CatalogErrors) -> StartError {
    ConfigFaults(errors.iter().map(|error| format!("gateway.catalog: {error}")).collect()).into()
}

/// Binds the listener for clients without an SVID, if the settings have one.
pub(super) fn bind_direct(settings: &GatewaySettings) -> Result<Option<TcpListener>, StartError> {
    let Some(direct) = &settings.direct else { return Ok(None) };
    let (what, address) = ("S3 of clients without an SVID", direct.listen);
    listen(address).map(Some).map_err(|source| StartError::Listen { what, address, source })
}

/// Makes the listener for clients without an SVID ready to serve.
pub(super) fn direct_listener(
    settings: &GatewaySettings,
    listener: Option<TcpListener>,
    resolver: KeyResolver,
) -> Result<Option<DirectListener>, StartError> {
    let (Some(direct), Some(listener)) = (&settings.direct, listener) else { return Ok(None) };
    Ok(Some(DirectListener::new(listener, direct.certificate.clone(), resolver)?))
}

/// Makes the gateway that runs inside the daemon. It calls this daemon over mutual TLS, like a gateway on another
/// machine.
pub(super) fn gateway_of_daemon(
    settings: &GatewaySettings,
    identity: &Arc<dyn IdentitySource>,
    grpc: SocketAddr,
    broker: Arc<Broker>,
    clock: Arc<dyn Clock>,
) -> Result<(Gateway, KeyResolver), StartError> {
    let own = identity.current().svid.as_ref().map(|svid| svid.spiffe_id().clone());
    let own = own.ok_or_else(|| StartError::BrokenOff("the daemon's SVID is gone".to_owned()))?;
    let daemon = Endpoint::new(&reachable(grpc).to_string(), own);
    let daemon = daemon.map_err(|error| StartError::BrokenOff(error.to_string()))?;
    let connector = Connector::new(identity.clone(), clock.clone(), daemon);
    let audience = settings.audience.clone();
    let reporter = UseReporter::new(&connector, audience.clone(), clock.clone());
    let resolver = KeyResolver::new(&connector, audience.clone(), clock.clone());
    let verifier = Verifier::start(VerifierSettings { connector, audience, clock: clock.clone() });
    let catalog: CatalogReader = Arc::new(move || broker.rules.in_force().catalog().clone());
    let gateway = Gateway::new(verifier, catalog, settings.open_stores()?, clock).reporting_to(reporter);
    Ok((gateway, resolver))
}

/// Returns the address at which this machine reaches a listener. A wildcard becomes the loopback address.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

//! The last good document of a bundle endpoint, polled as often as its publisher asks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    endpoint::{BundleEndpoint, EndpointProfile},
    fetch::fetch,
};
use crate::{
    backoff::Backoff,
    clock::Clock,
    identity::{
        bundle::{Roots, TrustBundles},
        document::BundleDocument,
        file::{FileSource, IdentityFiles},
        load::LoadError,
        origin_status::OriginStatus,
        source::{IdentitySource, ReloadOutcome, StaticSource, Trust},
        source_state::SourceState,
        tls::bundle_config_spiffe,
        web::web_client,
    },
    limits,
};

/// A source with the roots of one foreign trust domain, without an SVID. It polls while [`IdentitySource::follow`]
/// runs.
///
/// If polls fail, the last good document stays in use for `outage_max`. A document with a lower sequence than the present
/// document is ignored. If the endpoint serves its own trust domain over `https_spiffe`, the configured bundle is
/// trusted until the first document arrives.
pub struct BundleSource {
    endpoint: BundleEndpoint,
    clock: Arc<dyn Clock>,
    tls: Arc<ClientConfig>,
    /// The roots that verify the server of the endpoint, for `https_spiffe`.
    server: Option<ServerRoots>,
    status: OriginStatus,
}

struct ServerRoots {
    /// The configured bundle.
    configured: FileSource,
    /// The roots that the TLS configuration uses.
    latest: Arc<StaticSource>,
    /// Whether the endpoint has served its own trust domain. If so, its last document counts.
    has_served: AtomicBool,
}

impl BundleSource {
    /// Reads the configured roots of the endpoint's server. Uses no network: only [`IdentitySource::follow`] does.
    ///
    /// # Errors
    ///
    /// The file with the roots of the server cannot be read or used.
    pub fn open(
        endpoint: BundleEndpoint,
        svid_life_max: Duration,
        outage_max: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LoadError> {
        let mut shown = TrustBundles::empty().with_svid_life_max(svid_life_max);
        let (tls, server) = match &endpoint.profile {
            EndpointProfile::Web { ca } => (Arc::new(web_client(Some(ca), clock.clone())?), None),
            EndpointProfile::Spiffe { id, bundle } => {
                let files = IdentityFiles { svid: None, bundles: vec![(id.trust_domain(), bundle.clone())] };
                let configured = FileSource::open_limited(files, svid_life_max, clock.clone())?;
                let bundles = TrustBundles::clone(&configured.current().bundles);
                if id.trust_domain() == endpoint.trust_domain {
                    shown = bundles.clone();
                }
                let latest = Arc::new(StaticSource::new(None, bundles));
                let tls = bundle_config_spiffe(latest.clone(), clock.clone(), id.clone());
                (tls, Some(ServerRoots { configured, latest, has_served: AtomicBool::new(false) }))
            }
        };
        let standing = SourceState::not_asked_yet();
        let origin = format!("the bundle endpoint {} of {}", endpoint.url, endpoint.trust_domain);
        let status = OriginStatus::new(origin, shown, standing, outage_max, clock.clone());
        Ok(BundleSource { endpoint, clock, tls, server, status })
    }

    /// Returns the endpoint.
    pub fn endpoint(&self) -> &BundleEndpoint {
        &self.endpoint
    }

    async fn poll(&self) {
        let mut backoff = Backoff::new(Duration::from_secs(1), limits::BUNDLE_REFRESH);
        let mut interval = None;
        loop {
            self.reload_configured();
            let (url, domain) = (&self.endpoint.url, &self.endpoint.trust_domain);
            match fetch(url, self.tls.clone(), domain, &*self.clock).await {
                Ok(document) => {
                    let hint = document.refresh_hint.unwrap_or(limits::BUNDLE_REFRESH);
                    interval = Some(hint.clamp(limits::BUNDLE_REFRESH_MIN, limits::BUNDLE_REFRESH_MAX));
                    self.take(&document);
                }
                Err(fault) => self.failed(fault.to_string()),
            }
            // Without a document, peers of that domain are refused, so retries for the first document are more
            // frequent.
            let wait = interval.unwrap_or_else(|| backoff.next_wait());
            self.status.wait_to_retry(wait).await;
        }
    }

    /// Loads the configured bundle again. The configured bundle verifies the server until the server has served its own
    /// bundle.
    fn reload_configured(&self) {
        let Some(server) = self.server.as_ref().filter(|s| !s.has_served.load(Ordering::Acquire)) else {
            return;
        };
        if let Err(error) = server.configured.reload()
            && self.status.may_log()
        {
            tracing::error!(%error, "the configured bundle of a bundle endpoint cannot be used: the one in use stays");
        }
        server.latest.replace(None, TrustBundles::clone(&server.configured.current().bundles));
    }

    fn take(&self, document: &BundleDocument) {
        let (domain, url) = (&self.endpoint.trust_domain, &self.endpoint.url);
        let now = self.clock.now();
        let roots = match Roots::from_document("bundle", document, now.wall) {
            Ok(roots) => roots,
            Err(error) => return self.failed(format!("its answer {error}")),
        };
        let trust = self.status.current();
        self.status.end_outage();
        if trust.bundles.roots(domain).is_some_and(|shown| roots.is_older_than(shown)) {
            if self.status.may_log() {
                tracing::warn!(%url, %domain, "a bundle with a lower sequence than that of the one in use was ignored");
            }
            return self.status.set_state(SourceState::Good);
        }
        for warning in roots.warnings(domain) {
            if self.status.may_log() {
                tracing::warn!(%url, %domain, %warning, "trust bundle");
            }
        }
        let mut bundles = self.status.no_bundles();
        bundles.replace(domain.clone(), roots);
        if let Some(server) = &self.server
            && self.serves_itself()
        {
            server.has_served.store(true, Ordering::Release);
            server.latest.replace(None, bundles.clone());
        }
        if bundles.trusts_as(&trust.bundles) {
            return self.status.set_state(SourceState::Good);
        }
        if self.status.may_log() {
            tracing::info!(%url, %bundles, "the bundle of a foreign trust domain was fetched");
        }
        self.status.replace(None, bundles, SourceState::Good);
    }

    fn serves_itself(&self) -> bool {
        matches!(&self.endpoint.profile, EndpointProfile::Spiffe { id, .. }
            if id.trust_domain() == self.endpoint.trust_domain)
    }

    pub(super) fn failed(&self, fault: String) {
        let (domain, url) = (&self.endpoint.trust_domain, &self.endpoint.url);
        let since = self.status.begin_outage();
        let why = format!("the bundle endpoint {url} of {domain}: {fault}");
        let standing = match &self.status.current().standing {
            SourceState::GivenUp { .. } => return,
            SourceState::Awaited { .. } => SourceState::Awaited { why },
            _ => SourceState::Stale { since, why },
        };
        if self.status.current().standing != standing && self.status.may_log() {
            tracing::error!(
                why = standing.why(),
                "a foreign bundle could not be fetched: the last good one stays"
            );
        }
        self.status.set_state(standing);
    }
}

impl IdentitySource for BundleSource {
    fn current(&self) -> Arc<Trust> {
        self.status.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.status.watch()
    }

    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.status.follow(self.poll(), shutdown).await })
    }

    /// Polls at once. A server over `https_spiffe` is again verified by the configured bundle.
    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        if let Some(server) = &self.server {
            server.has_served.store(false, Ordering::Release);
        }
        self.status.retry_now();
        Ok(ReloadOutcome::Unchanged)
    }
}

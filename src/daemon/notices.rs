//! The notices of a daemon to webhooks.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;

use super::failure::StartError;
use crate::{
    broker::Broker,
    config::Config,
    job::Job,
    name::{HumanName, JobId, LeaseId, SpiffeId, TenantName},
    notify::{NoticeLookup, NoticeParts, Notices},
};

/// Looks up the present state in the broker, for the texts of notices.
struct BrokerLookup(Arc<Broker>);

impl NoticeLookup for BrokerLookup {
    fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.0.job(id)
    }

    fn settled(&self, id: JobId) -> BoxFuture<'_, ()> {
        Box::pin(self.0.settled(id))
    }

    fn tenants_of_person(&self, human: &HumanName) -> BTreeSet<TenantName> {
        self.0.tenants_of_person(human)
    }

    fn tenant_of_identity(&self, id: &SpiffeId) -> Option<TenantName> {
        self.0.tenant_of_identity(id)
    }

    fn tenant_of_lease(&self, id: LeaseId) -> Option<TenantName> {
        self.0.tenant_of_lease(id)
    }
}

/// Opens the webhooks of a configuration. `None` if there are none.
pub(super) async fn open(config: &Config, broker: &Arc<Broker>) -> Result<Option<Notices>, StartError> {
    if config.notify.is_empty() {
        return Ok(None);
    }
    let (webhooks, state): (_, PathBuf) = (config.notify.clone(), config.server.state.clone());
    let (broker, source) = (broker.clone(), config.issuer.url.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let parts = NoticeParts {
            state: &state,
            ledger: broker.ledger().clone(),
            clock: broker.clock().clone(),
            lookup: Arc::new(BrokerLookup(broker)),
            source,
        };
        Notices::open(&webhooks, parts)
    });
    let opened = opened.await.map_err(|e| StartError::BrokenOff(e.to_string()))?;
    opened.map(Some).map_err(|e| StartError::Webhook(e.to_string()))
}

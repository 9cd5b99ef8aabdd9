//! Reading catalog and policy from where the configuration says.

use crate::{
    broker::Rules,
    catalog::Catalog,
    config::{self, PolicyConfig},
    policy::{Engine, Explain, PolicySource},
    reason::{Reason, Refusal},
};

/// Reads both anew: all of it is good, or none of it is taken. Blocking.
pub(super) fn read(policy: &PolicyConfig) -> Result<Rules, Refusal> {
    let invalid = |text: String| {
        Refusal::new(Reason::CatalogInvalid, text).fix("nothing was changed: correct it and reload")
    };
    let catalog = Catalog::load(&policy.catalog).map_err(|e| invalid(e.to_string()))?;
    for warning in catalog.warnings() {
        tracing::warn!(%warning, "catalog");
    }
    let explain = match policy.explain {
        config::Explain::Requester => Explain::Requester,
        config::Explain::Operators => Explain::Operators,
    };
    let engine = Engine::load(&PolicySource::Dir(policy.dir.clone()), &catalog, explain)
        .map_err(|e| invalid(e.to_string()))?;
    for warning in engine.warnings() {
        tracing::warn!(%warning, "policy");
    }
    Ok(Rules { engine })
}

//! Reading catalog and policy from where the configuration says.

use crate::{
    broker::Rules,
    catalog::Catalog,
    config::{self, PolicyConfig},
    policy::{Engine, Explain, PolicySource},
    reason::{Reason, Refusal},
};

/// Reads both. At a start all of it must be good. Of a catalog that follows another what is good is taken. Blocking.
pub(super) fn read(policy: &PolicyConfig, before: Option<&Catalog>) -> Result<Rules, Refusal> {
    let catalog = match before {
        None => Catalog::load(&policy.catalog),
        Some(before) => before.reload(&policy.catalog),
    }
    .map_err(|e| invalid(&e.to_string()))?;
    for fault in catalog.not_taken() {
        tracing::error!(%fault, "not taken into the catalog");
    }
    for warning in catalog.warnings() {
        tracing::warn!(%warning, "catalog");
    }
    let explain = match policy.explain {
        config::Explain::Requester => Explain::Requester,
        config::Explain::Operators => Explain::Operators,
    };
    let engine = Engine::load(&PolicySource::Dir(policy.dir.clone()), &catalog, explain)
        .map_err(|e| invalid(&e.to_string()))?;
    for warning in engine.warnings() {
        tracing::warn!(%warning, "policy");
    }
    Ok(Rules { engine })
}

/// What is wrong with the files: how much of it in the first line, each mistake a fact of its own.
fn invalid(all: &str) -> Refusal {
    let mut lines = all.lines();
    let first = lines.next().unwrap_or("catalog and policy cannot be read").trim_end_matches(':');
    lines
        .fold(Refusal::new(Reason::CatalogInvalid, first.to_owned()), |r, line| r.with(MISTAKE, line.trim()))
        .fix("nothing was changed: correct it and reload")
}

/// The label of each mistake.
pub(super) const MISTAKE: &str = "mistake";

//! Reads the catalog and the policy that the configuration names.

use std::sync::Arc;

use crate::{
    api::Reloader,
    broker::{KeptRules, Rules},
    catalog::{Catalog, Principal},
    clock::{Clock, Wall},
    config::{Config, PolicyConfig, PolicyFrom},
    name::TrustDomain,
    people::PERSON_SEGMENT,
    policy::{Engine, PolicyBundle, PolicySource, PolicyText, SignedBundle, TrustedKeys},
    reason::{Reason, Refusal},
};

/// The catalog and the policy, and all mistakes in them.
pub(super) struct ReadRules {
    pub(super) rules: Option<Rules>,
    /// Mistakes in the files of tenants. The daemon starts without these files or entries.
    pub(super) catalog_mistakes: Vec<String>,
    pub(super) catalog_faults: Vec<String>,
    pub(super) policy_faults: Vec<String>,
}

/// Reads the catalog and the policy. If the catalog cannot be used, policies are still checked as far as possible. If a
/// tenant's file has a mistake, the daemon leaves it out when it starts, and keeps its previous text at a reload. Blocks.
pub(super) fn read_all(policy: &PolicyConfig, kept: &KeptRules, before: Option<&Rules>) -> ReadRules {
    let mut read = ReadRules {
        rules: None,
        catalog_mistakes: Vec::new(),
        catalog_faults: Vec::new(),
        policy_faults: Vec::new(),
    };
    let (source, signed) = match source(policy, kept, before) {
        Ok(found) => found,
        Err(fault) => {
            read.policy_faults.extend(fault);
            return read;
        }
    };
    let catalog = match before {
        None => Catalog::load(&policy.catalog).or_else(|all| {
            let catalog = Catalog::load_at_start(&policy.catalog);
            if catalog.is_ok() {
                read.catalog_mistakes = all.iter().map(ToString::to_string).collect();
            }
            catalog
        }),
        Some(before) => before.catalog().reload(&policy.catalog),
    };
    let engine = match catalog {
        Ok(catalog) => Engine::load(&source, &catalog, policy.explain).map(Some),
        Err(errors) => {
            read.catalog_faults = errors.iter().map(ToString::to_string).collect();
            Engine::check(&source).map(|()| None)
        }
    };
    match engine {
        Ok(engine) => read.rules = engine.map(|engine| Rules { engine, signed }),
        Err(errors) => read.policy_faults = errors.iter().map(ToString::to_string).collect(),
    }
    read
}

/// Returns the function that reads the catalog and the policy again for this configuration.
pub(super) fn reloader(config: &Config, clock: Arc<dyn Clock>) -> Reloader {
    let (policy, kept) = (config.policy.clone(), KeptRules::at(&config.server.state));
    let people = config.people.as_ref().map(|people| people.trust_domain.clone());
    Arc::new(move |before| {
        let rules = read(&policy, &kept, Some(before), clock.now().wall)?;
        for warning in nameless_people(rules.catalog(), people.as_ref()) {
            tracing::warn!(%warning, "catalog and policy");
        }
        Ok(rules)
    })
}

/// Some catalog entries match people who log in. Returns a line for each such entry that does not name the person,
/// because it gives no access.
pub(super) fn nameless_people(catalog: &Catalog, people: Option<&TrustDomain>) -> Vec<String> {
    let entries = catalog.principals().filter(|entry| {
        people.is_some_and(|domain| entry.pattern.trust_domain() == domain)
            && !entry.names_person_in(PERSON_SEGMENT)
    });
    let line = |entry: &Arc<Principal>| {
        format!(
            "{}: `{}` gives no access, because it does not name the person: write human = \"segment:{PERSON_SEGMENT}\"",
            entry.declared_at, entry.pattern
        )
    };
    entries.map(line).collect()
}

/// Returns the policy with its signatures, from its source: the files, or the policy that was applied last. Until a
/// policy is applied, the files are in force. If the configuration names keys, one of them must have signed the policy.
fn source(
    policy: &PolicyConfig,
    kept: &KeptRules,
    before: Option<&Rules>,
) -> Result<(PolicySource, Option<SignedBundle>), Vec<String>> {
    let keys = TrustedKeys::load(&policy.trusted_keys).map_err(|fault| vec![fault])?;
    let files = || of_files(policy, &keys);
    let was_never_applied = matches!(kept.applied(), Ok(None));
    match (policy.source, before) {
        (PolicyFrom::Files, _) => files(),
        (PolicyFrom::Applied, _) if was_never_applied => files(),
        (PolicyFrom::Applied, Some(before)) => {
            checked(before.engine.texts().to_vec(), before.signed.clone(), &keys)
        }
        (PolicyFrom::Applied, None) => match kept.applied().map_err(|fault| vec![fault])? {
            None => files(),
            Some(applied) => {
                let (texts, signed) = kept.policy(applied.digest).map_err(|e| {
                    vec![format!(
                        "{e}; restore the folder policies of server.state, or write source = \"files\""
                    )]
                })?;
                checked(texts, signed, &keys)
            }
        },
    }
}

/// Reads the files once, so that the checked texts are the loaded texts.
fn of_files(
    policy: &PolicyConfig,
    keys: &TrustedKeys,
) -> Result<(PolicySource, Option<SignedBundle>), Vec<String>> {
    if policy.trusted_keys.is_empty() {
        return Ok((PolicySource::Dir(policy.dir.clone()), None));
    }
    let bundle = PolicyBundle::read(&policy.dir)?;
    let signed = bundle.signed();
    checked(bundle.policies, signed, keys)
}

/// Refuses a policy that no trusted key signed.
fn checked(
    texts: Vec<PolicyText>,
    signed: Option<SignedBundle>,
    keys: &TrustedKeys,
) -> Result<(PolicySource, Option<SignedBundle>), Vec<String>> {
    keys.check(&texts, signed.as_ref()).map_err(|fault| vec![fault.to_string()])?;
    Ok((PolicySource::Texts(texts), signed))
}

/// Reads the catalog and the policy again. Blocks.
fn read(
    policy: &PolicyConfig,
    kept: &KeptRules,
    before: Option<&Rules>,
    now: Wall,
) -> Result<Rules, Refusal> {
    let ReadRules { rules, catalog_faults, policy_faults, .. } = read_all(policy, kept, before);
    let Some(rules) = rules else {
        let count = catalog_faults.len().saturating_add(policy_faults.len());
        let text = format!("catalog and policy have {count} mistake(s)");
        let all = catalog_faults.into_iter().chain(policy_faults);
        return Err(all
            .fold(Refusal::new(Reason::CatalogInvalid, text), |r, line| r.with(MISTAKE, line))
            .fix("nothing was changed: correct it and reload"));
    };
    log_mistakes(rules.catalog(), now);
    let gaps = rules.engine.gaps();
    for warning in rules.catalog().warnings().iter().chain(rules.engine.warnings()).chain(&gaps) {
        tracing::warn!(%warning, "catalog and policy");
    }
    Ok(rules)
}

/// Logs the mistakes in the files on disk. The parts with mistakes are not in force. Also logs the observed tenants:
/// policy decides about their jobs, but refuses nothing.
pub(super) fn log_mistakes(catalog: &Catalog, now: Wall) {
    for mistake in catalog.not_taken() {
        tracing::error!(%mistake, "a part of the catalog files has a mistake and is not in force");
    }
    for observed in catalog.exceptions().observed.iter().filter(|observed| now < observed.until) {
        tracing::warn!(
            tenant = %observed.tenant, until = %observed.until, owner = observed.owner,
            "OBSERVE: policy does not refuse jobs of this tenant"
        );
    }
}

/// The label of each mistake in a refusal.
pub(super) const MISTAKE: &str = "mistake";

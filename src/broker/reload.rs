//! The reload of policy and catalog. It takes those catalog files that have no mistakes, then ends the leases that the new
//! rules do not allow.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    access::AccessControl,
    caller::Caller,
    changes::{ChangeQuestion, Consent, WaitingChange, WantedTexts, is_proposer, rules_digest},
    context::BrokerContext,
    decide::Decisions,
    kept_rules::{BroughtBy, KeptRules},
    rules::Rules,
    sweeps::Sweeps,
};
use crate::{
    catalog::Resource,
    ledger::{Actor, Event},
    name::{Digest, FenceName, ResourceName, SpiffeId, TenantName},
    policy::Rpc,
    reason::Refusal,
};

/// The result of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesReloaded {
    pub catalog: Digest,
    pub policy: Digest,
    /// The number of leases that ended, or would end in a dry run, because the new rules do not allow them.
    pub ended: u64,
}

/// The answer to a caller who reloads the rules.
pub struct ReloadAnswer {
    /// The rules that were read.
    pub rules: Arc<Rules>,
    pub reloaded: RulesReloaded,
    /// Set if people must approve the change first.
    pub waits: Option<WaitingChange>,
    /// The proposer of the change, if the caller approves a change that someone else proposed.
    pub approves: Option<SpiffeId>,
}

/// The use cases for the rules: show the catalog, and load the rules again.
pub struct RuleUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
    pub(super) sweeps: Sweeps,
    /// Allows one reload at a time.
    pub(super) reloading: Mutex<()>,
}

impl RuleUseCases {
    /// Returns the rules that are in force now.
    pub fn in_force(&self) -> Arc<Rules> {
        self.context.rules()
    }

    /// Refuses a caller that may not reload the files of all tenants. Returns the caller's tenant, if the
    /// caller may reload only because there is no other tenant.
    pub fn may_reload(&self, caller: &Caller) -> Result<Option<TenantName>, Refusal> {
        let text = "a reload reads the files of every tenant, and you are an operator of only one tenant";
        let fix = "ask a platform operator to reload, once your file has changed";
        self.may_propose(caller, Rpc::ReloadCatalog, text, fix)
    }

    /// Reads the rules again for a caller. Puts them in force unless people must approve the change first. Blocks.
    pub fn reload_for(
        &self,
        caller: &Caller,
        read: impl FnOnce(&Rules) -> Result<Rules, Refusal>,
        dry_run: bool,
    ) -> Result<ReloadAnswer, Refusal> {
        let tenant = self.may_reload(caller)?;
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.context.rules();
        let rules = Arc::new(read(&before)?);
        let texts = WantedTexts::default();
        let question = ChangeQuestion {
            rpc: Rpc::ReloadCatalog,
            from: rules_digest(&before),
            to: rules_digest(&rules),
            reason: "reload",
            texts: &texts,
        };
        let proposed = self.find_proposed(question.rpc, question.from, question.to);
        let approves = proposed.filter(|change| !is_proposer(change, caller)).map(|change| change.by.clone());
        let mut needed_people = false;
        let waits = match question.from == question.to {
            true => None,
            false if dry_run => self.would_wait(caller, tenant.as_ref(), question)?,
            false => match self.ask_consent(caller, tenant.as_ref(), question)? {
                Consent::Given(consent) => {
                    needed_people = consent.is_some();
                    None
                }
                Consent::Waits(waiting) => Some(waiting),
            },
        };
        let reloaded = match dry_run || waits.is_some() {
            true => self.would_reload(&rules),
            false => {
                self.close_applied(caller, question, needed_people)?;
                self.replace_rules(rules.clone(), caller.actor(), "reload")
            }
        };
        let approves = approves.filter(|_| needed_people || waits.is_some());
        Ok(ReloadAnswer { rules, reloaded, waits, approves })
    }

    /// Counts the leases that new rules would end.
    fn would_reload(&self, rules: &Rules) -> RulesReloaded {
        let (catalog, policy) = (rules.catalog().digest(), rules.engine.digest());
        let moved = moved(&self.context.rules(), rules);
        let denied = self.sweeps.no_longer_allowed(rules, &self.context.state.open_jobs());
        let ended = self.sweeps.count_behind(moved.iter().chain(denied.iter().map(|(name, _)| name)));
        RulesReloaded { catalog, policy, ended }
    }

    /// Reads the rules again and puts them in force, for the administrators of the host. No approval is needed.
    /// Only one reload runs at a time. Blocks.
    pub fn reload(
        &self,
        read: impl FnOnce(&Rules) -> Result<Rules, Refusal>,
        by: Actor,
    ) -> Result<(Arc<Rules>, RulesReloaded), Refusal> {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = Arc::new(read(&self.context.rules())?);
        let reloaded = self.replace_rules(rules.clone(), by, "reload");
        Ok((rules, reloaded))
    }

    /// Puts new rules in force. The revision is raised after the new rules are in place, so that a request that read the old
    /// rules decides again. It is raised before the sweep. So every lease that was made by the old rules is found. Either the
    /// sweep finds it, or the request that made it finds a new revision afterwards.
    pub(super) fn replace_rules(&self, rules: Arc<Rules>, by: Actor, reason: &str) -> RulesReloaded {
        self.context.reach.widen(rules.catalog());
        let before = self.context.rules.swap(rules.clone());
        self.context.fences.raise_revision();
        let ended_moved = self.sweeps.end_moved(&moved(&before, &rules));
        self.access.void_outdated_changes(rules.engine.digest(), rules_digest(&rules));
        self.access.void_changes_of_the_lost();
        let because = "catalog or policy no longer allow it";
        let jobs = self.context.state.open_jobs();
        let ended = self.sweeps.end_no_longer_allowed(&rules, &jobs, because).saturating_add(ended_moved);
        // Members and open streams must be decided again, by the new catalog.
        self.context.sessions.call_all();
        self.context.decide_again();
        self.keep_rules(&before, &rules, &by, reason);
        let (catalog, policy) = (rules.catalog().digest(), rules.engine.digest());
        self.context.ledger.defer(&Event::CatalogLoaded { catalog, policy, by, ended });
        tracing::info!(%catalog, %policy, ended, "catalog and policy in force");
        RulesReloaded { catalog, policy, ended }
    }

    /// Keeps the rules that are in force, now and after each change, in a folder. Blocks.
    pub fn keep_rules_in(&self, folder: KeptRules) {
        let how = BroughtBy {
            since: self.context.clock.now().wall,
            by: "the daemon".to_owned(),
            reason: "its start".to_owned(),
        };
        if let Err(error) = self.context.kept.get_or_init(|| folder).keep(&self.context.rules(), &how) {
            tracing::error!(%error, "the policy and the catalog in force could not be saved to disk");
        }
    }

    /// Keeps rules that came into force. This comes after the change, because endings must not wait for the disk.
    fn keep_rules(&self, before: &Rules, rules: &Rules, by: &Actor, reason: &str) {
        let Some(kept) = self.context.kept.get() else { return };
        let how =
            BroughtBy { since: self.context.clock.now().wall, by: by.to_string(), reason: reason.to_owned() };
        let policy = match before.engine.digest() == rules.engine.digest() {
            true => Ok(()),
            false => kept.keep_policy(rules, &how),
        };
        if let Err(error) = policy.and_then(|()| kept.keep(rules, &how)) {
            tracing::error!(%error, "the policy and the catalog in force could not be saved to disk");
        }
    }

    /// Returns the resources that the caller may see, in the order of their names: those that it may name in a job, or
    /// all. Begins after the name `after`.
    pub fn list_resources(
        &self,
        caller: &Caller,
        only: Option<&ResourceName>,
        after: Option<&ResourceName>,
        max: usize,
    ) -> Result<Vec<Resource>, Refusal> {
        let sees_all = self.access.is_for_all_tenants(caller, Rpc::ListResources)?;
        let is_wanted = |r: &Resource| only.is_none_or(|n| r.name == *n || r.name.unversioned() == *n);
        let rules = self.context.rules();
        let mut seen: Vec<_> = rules
            .catalog()
            .resources()
            .filter(|r| (sees_all || r.visible_to(caller.tenant())) && is_wanted(r))
            .filter(|r| after.is_none_or(|after| r.name.as_str() > after.as_str()))
            .collect();
        seen.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        let shown = seen.into_iter().take(max).map(|r| {
            let mut shown = r.clone();
            if !sees_all && shown.tenant != *caller.tenant() {
                // The caller must not learn the other tenants with which the owner shares the resource.
                shown.shared_with.retain(|tenant| tenant == caller.tenant());
            }
            shown
        });
        Ok(shown.collect())
    }
}

/// Returns the fences of the resources whose location or audience the new rules have changed.
fn moved(before: &Rules, now: &Rules) -> Vec<FenceName> {
    now.catalog().moved_since(before.catalog()).cloned().map(FenceName::resource).collect()
}

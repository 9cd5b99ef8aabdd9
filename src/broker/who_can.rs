//! Lists the entries of the catalog that policy allows to do something, and the gates that need approval first.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    caller::Caller,
    evaluate::{PolicyUseCases, decided_for, gives_access, is_launching, relations_of},
    lockout::extent,
    names,
    rules::Rules,
};
use crate::{
    catalog::{Principal, Resource},
    limits::WHO_CAN_PURPOSES_MAX,
    name::{Action, FenceKind, FenceName, Method, ResourceName, SpiffePattern, TenantName},
    policy::{AskedAct, Bundle, Call, EntryAnswer, JobRisk, Phase, Relation, RequestFacts, Rpc},
    reason::{Reason, Refusal},
    state::{Extent, Lock, LockName},
};

/// The question that policy answers for every entry.
#[derive(Clone, Debug)]
pub struct WhoCanQuestion {
    pub act: AskedAct,
    /// `None` tries each purpose that the dataset allows.
    pub purpose: Option<String>,
    pub method: Option<Method>,
    pub relations: Vec<Relation>,
}

/// An entry that may do the act of the question.
#[derive(Clone, Debug)]
pub struct EntryThatCan {
    pub entry: Arc<Principal>,
    /// Ids of the gates to be approved; empty if there are none.
    pub gates: Vec<String>,
    pub rules: Vec<String>,
    /// The purposes for which the entry may act, if the question names no purpose.
    pub purposes: Vec<String>,
}

/// The answer for some entries, in the order of the catalog.
#[derive(Clone, Debug)]
pub struct WhoCanPage {
    pub entries: Vec<EntryThatCan>,
    /// The last entry of this page, if there are more entries.
    pub next: Option<SpiffePattern>,
    pub notes: Vec<String>,
}

impl PolicyUseCases {
    /// Decides for up to `max` entries that the caller may see. Begins after the entry `after`.
    pub fn who_can(
        &self,
        caller: &Caller,
        q: &WhoCanQuestion,
        after: Option<&SpiffePattern>,
        max: usize,
    ) -> Result<WhoCanPage, Refusal> {
        let sees_all = self.access.is_for_all_tenants(caller, Rpc::WhoCan)?;
        let rules = self.context.rules();
        let resource = match &q.act {
            AskedAct::Call(_, tenant) => {
                self.access.authorize(caller, Rpc::WhoCan, tenant.as_ref(), &[], "")?;
                None
            }
            AskedAct::Access(_, name) => {
                let found = rules.catalog().resource(name.resource());
                Some(
                    found
                        .filter(|r| sees_all || r.visible_to(caller.tenant()))
                        .ok_or_else(|| absent(name.resource()))?,
                )
            }
        };
        let is_seen = |p: &&Arc<Principal>| sees_all || p.tenant == *caller.tenant();
        let all = rules.catalog().principals().filter(is_seen);
        let mut entries: Box<dyn Iterator<Item = &Arc<Principal>>> = match after {
            None => Box::new(all),
            Some(after) => {
                let mut rest = all.skip_while(|p| p.pattern != *after);
                if rest.next().is_none() {
                    return Err(Refusal::new(
                        Reason::FieldInvalid,
                        "`page_token` is not from a response of this catalog",
                    )
                    .with("field", "page_token")
                    .fix("begin with the first page again: the catalog has changed"));
                }
                Box::new(rest)
            }
        };
        let page: Vec<&Arc<Principal>> = entries.by_ref().take(max).collect();
        let next = entries.next().and(page.last()).map(|p| p.pattern.clone());
        let entries = page.into_iter().filter_map(|p| match (&q.act, resource) {
            (AskedAct::Access(action, _), Some(on)) => self.answer_for_access(&rules, p, *action, on, q),
            (AskedAct::Call(rpc, tenant), _) => self.answer_for_call(&rules, p, *rpc, tenant.as_ref(), q),
            (AskedAct::Access(..), None) => None,
        });
        let mut notes = notes(caller, &rules, resource, sees_all, q);
        let entries = match self.lock_for_all(q, resource) {
            Some(lock) => {
                let fence = resource.map(|r| FenceName::resource(r.name.clone()));
                let fences: Vec<_> = fence.iter().collect();
                notes.push(format!(
                    "no entry may do this: {}",
                    self.access.locked_for(caller.id(), &lock, &fences).text
                ));
                Vec::new()
            }
            None => {
                let pattern_locks = self.locks_on_patterns();
                entries.filter(|found| !self.is_locked(&found.entry, q, &pattern_locks)).collect()
            }
        };
        Ok(WhoCanPage { entries, next, notes })
    }

    /// Returns a lock that applies to all entries. It is on the resource, or on the tenant if the call gives access.
    fn lock_for_all(&self, q: &WhoCanQuestion, resource: Option<&Resource>) -> Option<Lock> {
        let names: Vec<FenceName> = match (&q.act, resource) {
            (AskedAct::Access(..), Some(r)) => names::of_resource(&r.name).into(),
            (AskedAct::Call(rpc, Some(tenant)), _) if gives_access(*rpc) => {
                vec![FenceName::tenant(tenant.clone())]
            }
            (AskedAct::Access(..) | AskedAct::Call(..), _) => Vec::new(),
        };
        self.context.state.lock_on(names.iter())
    }

    /// Returns the locks that can stop all identities of a pattern.
    fn locks_on_patterns(&self) -> Vec<Lock> {
        let mut locks = self.context.state.locks(None, usize::MAX);
        locks.retain(|lock| match &lock.name {
            LockName::Prefix(_) => true,
            LockName::Name(name) => matches!(name.kind(), FenceKind::Domain(_) | FenceKind::Human(_)),
            LockName::Launcher(_) | LockName::Recall(_) => false,
        });
        locks
    }

    /// Whether locks stop all identities of an entry from doing the act.
    fn is_locked(&self, entry: &Principal, q: &WhoCanQuestion, pattern_locks: &[Lock]) -> bool {
        let is_shut_out = match entry.pattern.exact() {
            Some(id) => self.access.lock_on_identity(&id).is_some(),
            None => pattern_locks.iter().any(|lock| extent(lock, entry) == Extent::All),
        };
        let is_refused = match &q.act {
            AskedAct::Access(..) => {
                self.context.state.lock_on([FenceName::tenant(entry.tenant.clone())].iter()).is_some()
            }
            AskedAct::Call(rpc, _) => {
                let launcher = entry.pattern.exact().filter(|_| is_launching(*rpc, &q.relations));
                launcher.is_some_and(|id| self.decisions.check_launcher_unlocked(&id).is_err())
            }
        };
        is_shut_out || is_refused
    }

    /// Returns the answer for an entry. If the question names no purpose, it tries each purpose of the dataset.
    fn answer_for_access(
        &self,
        rules: &Rules,
        entry: &Arc<Principal>,
        action: Action,
        on: &Resource,
        q: &WhoCanQuestion,
    ) -> Option<EntryThatCan> {
        let of_data = on.dataset().map(|d| d.purposes.iter().take(WHO_CAN_PURPOSES_MAX).collect::<Vec<_>>());
        let purposes: Vec<&str> = match (&q.purpose, of_data) {
            (Some(purpose), _) => vec![purpose],
            (None, Some(purposes)) => purposes.into_iter().map(String::as_str).collect(),
            (None, None) => vec![""],
        };
        let risk = JobRisk::of(rules.catalog(), &entry.tenant, [&on.name], [&**entry]);
        let (approved, mut found): (_, Option<EntryThatCan>) = (BTreeSet::new(), None);
        for purpose in purposes {
            let bundle = Bundle {
                job: "j-00000000000000000000000000",
                tenant: &entry.tenant,
                attempt: 1,
                phase: Phase::Running,
                purpose,
                facts: RequestFacts::assumed(&on.name),
                risk: &risk,
                method: q.method,
                ttl: self.context.settings.lease_ttl,
                now: self.context.clock.now().wall,
                approved: &approved,
                own_checkpoint: !matches!(&q.act, AskedAct::Access(_, on) if on.job().is_some()),
                binding: "",
                parts: &[],
            };
            let Some(answer) = rules.engine.entry_may_do(entry, action, &on.name, &bundle) else { continue };
            // A job of this entry could name any of these purposes. So show the gates of the purpose that has the
            // fewest.
            let EntryAnswer { gates, rules } = answer;
            let best = found.get_or_insert_with(|| EntryThatCan {
                entry: entry.clone(),
                gates: gates.clone(),
                rules: rules.clone(),
                purposes: Vec::new(),
            });
            if gates.len() < best.gates.len() {
                (best.gates, best.rules) = (gates, rules);
            }
            if q.purpose.is_none() && !purpose.is_empty() {
                best.purposes.push(purpose.to_owned());
            }
        }
        found
    }

    fn answer_for_call(
        &self,
        rules: &Rules,
        entry: &Arc<Principal>,
        rpc: Rpc,
        tenant: Option<&TenantName>,
        q: &WhoCanQuestion,
    ) -> Option<EntryThatCan> {
        let relations = relations_of(rpc, &q.relations);
        let tenant = decided_for(rules, rpc, tenant);
        let (caller, now) = (entry.pattern.example(), self.context.clock.now().wall);
        // Assumes a second factor and a reason, because every caller can provide both.
        let amr = ["mfa".to_owned()];
        let call =
            Call { caller: &caller, rpc, tenant, relations: &relations, now, reason: "asked", amr: &amr };
        let EntryAnswer { gates, rules } = rules.engine.entry_may_call(entry, &call)?;
        Some(EntryThatCan { entry: entry.clone(), gates, rules, purposes: Vec::new() })
    }
}

/// Returns notes on what a list of entries cannot show.
fn notes(
    caller: &Caller,
    rules: &Rules,
    resource: Option<&Resource>,
    sees_all: bool,
    q: &WhoCanQuestion,
) -> Vec<String> {
    let mut notes = Vec::new();
    if rules.engine.decides_by_identity() {
        notes.push("a rule depends on the exact SPIFFE ID, so this list can be wrong for some of an entry's IDs: check one ID with `leasehold can-i --for ID`".to_owned());
    }
    let Some(resource) = resource else { return notes };
    let others: Vec<_> = resource.shared_with.iter().map(TenantName::as_str).collect();
    if !sees_all && resource.tenant == *caller.tenant() && !others.is_empty() {
        notes.push(format!(
            "the resource is shared with {}: only operators of that tenant see its entries",
            others.join(", ")
        ));
    }
    if q.purpose.is_none() && resource.dataset().is_some_and(|d| d.purposes.len() > WHO_CAN_PURPOSES_MAX) {
        notes.push(format!(
            "only the first {WHO_CAN_PURPOSES_MAX} purposes of the dataset were tried: name a purpose"
        ));
    }
    notes
}

fn absent(name: &ResourceName) -> Refusal {
    Refusal::new(Reason::ResourceNotFound, format!("there is no {name}, or none that you may see"))
        .fix("check the name and its version: leasehold catalog list")
}

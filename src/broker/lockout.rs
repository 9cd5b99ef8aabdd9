//! Checks locks that would shut operators out. The caller must name each of these operators, and at least one operator
//! must remain who can lift the lock.

use std::collections::BTreeSet;

use super::{caller::Caller, operators::OperatorUseCases};
use crate::{
    catalog::Principal,
    name::{FenceKind, HumanName, PrincipalKind, TenantName},
    policy::{Call, Rpc},
    reason::{Reason, Refusal},
    state::{Extent, Lock, LockName},
};

impl OperatorUseCases {
    /// Refuses a lock that shuts operators out, unless the caller has named each of these operators. Also refuses a
    /// lock that no operator could lift, unless the daemon's configuration names a break-glass identity.
    pub(super) fn check_leaves_operators(
        &self,
        caller: &Caller,
        lock: &Lock,
        tenant: Option<&TenantName>,
        confirmed: &[String],
    ) -> Result<(), Refusal> {
        let rules = self.context.rules();
        let operators: Vec<&Principal> = rules
            .catalog()
            .principals()
            .map(|p| &**p)
            .filter(|p| p.kind == PrincipalKind::Operator && !p.disabled)
            .collect();
        if operators.iter().all(|p| extent(lock, p) == Extent::None) {
            return Ok(());
        }
        let shut_out = operators_to_confirm(caller, lock, &operators);
        let refusal = |text: String| {
            let refusal = Refusal::new(Reason::OperatorsLockedOut, text);
            shut_out.iter().fold(refusal, |r, who| r.with("locked out", who.clone()))
        };
        if self.context.settings.break_glass.is_empty() && !self.someone_could_lift(lock, tenant, &operators)
        {
            let text = format!("a lock on {} would leave no operator who could lift it", lock.name);
            return Err(refusal(text).fix(
                "lock something narrower, or name an identity that lifts locks in any case as policy.break_glass in the daemon's configuration",
            ));
        }
        if shut_out.iter().all(|who| confirmed.contains(who)) {
            return Ok(());
        }
        let text = format!("a lock on {} would shut out operators", lock.name);
        let options: Vec<String> = shut_out.iter().map(|who| format!("--locks-out '{who}'")).collect();
        Err(refusal(text).fix(format!(
            "lock something narrower; or, if you mean to shut these operators out, confirm it by {}",
            options.join(" ")
        )))
    }

    /// Whether policy lets an operator lift this lock while all locks, including this lock, are in force.
    fn someone_could_lift(&self, lock: &Lock, tenant: Option<&TenantName>, operators: &[&Principal]) -> bool {
        let (engine, now) = (&self.context.rules().engine, self.context.clock.now().wall);
        let mut locks = self.context.state.locks(None, usize::MAX);
        locks.push(lock.clone());
        let second_factor = ["mfa".to_owned()];
        operators.iter().any(|p| {
            let example = p.pattern.example();
            let call = Call {
                caller: &example,
                rpc: Rpc::Unlock,
                tenant,
                relations: &[],
                now,
                reason: "",
                amr: &second_factor,
            };
            let is_shut_out = locks.iter().any(|l| extent(l, p) == Extent::All);
            !is_shut_out && engine.authorize(&call).is_ok()
        })
    }
}

/// Returns whether a lock shuts out none, some or all identities of an entry, by SPIFFE ID or by the person.
pub(super) fn extent(lock: &Lock, p: &Principal) -> Extent {
    match (locked_human(lock), p.human_text()) {
        (None, _) => lock.shuts_out_of(&p.pattern),
        (Some(_), Some("*")) => Extent::Some,
        (Some(human), Some(text)) if text.eq_ignore_ascii_case(human.as_str()) => Extent::All,
        (Some(_), _) => Extent::None,
    }
}

/// Returns the person that a lock names, if it names a person.
pub(super) fn locked_human(lock: &Lock) -> Option<HumanName> {
    match &lock.name {
        LockName::Name(name) => match name.kind() {
            FenceKind::Human(human) => Some(human),
            _ => None,
        },
        LockName::Prefix(_) | LockName::Launcher(_) | LockName::Recall(_) => None,
    }
}

/// Returns the operators that the caller must confirm. A lock on one identity or person already names the operator, so
/// the caller confirms such a lock only if it locks itself out. All other locks shut operators out without naming them.
fn operators_to_confirm(caller: &Caller, lock: &Lock, operators: &[&Principal]) -> BTreeSet<String> {
    let human = locked_human(lock);
    let names_one = human.is_some()
        || matches!(&lock.name, LockName::Name(n) if matches!(n.kind(), FenceKind::Identity(_)));
    let covered = operators.iter().filter(|p| !names_one && extent(lock, p) != Extent::None);
    let mut names: BTreeSet<String> = covered.map(|p| p.pattern.to_string()).collect();
    let is_the_caller = human.is_some() && human == caller.principal.human(caller.id());
    if is_the_caller || names_one && lock.shuts_out(caller.id()) {
        names.insert(caller.id().to_string());
    }
    names
}

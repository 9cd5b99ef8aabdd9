//! Changes the policy through the daemon. The new policy is checked, tried on its cases and recorded, and then it is in
//! force at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use super::{
    caller::Caller,
    changes::{ChangeQuestion, Consent, WaitingChange, WantedTexts},
    judge_job::{JobQuestion, judge_job},
    kept_rules::{BroughtBy, KeptPolicy, KeptRules},
    proposals::ClosedChange,
    refusals::ledger_unavailable,
    reload::RuleUseCases,
    rules::Rules,
};
use crate::{
    job::JobState,
    ledger::{ConsentRecord, Event},
    limits::{JOBS_CHANGED_SHOWN_MAX, MISTAKES_SHOWN_MAX},
    name::{Digest, JobId, TenantName},
    policy::{
        Call, CallVerdict, Engine, Phase, PolicyBundle, PolicySource, PolicyText, Rpc, TrustedKeys,
        read_case_texts,
    },
    reason::{Reason, Refusal},
};

/// The source of the daemon's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PolicyOrigin {
    /// Files in this directory, which a reload reads again.
    Files(PathBuf),
    /// The policy that was applied last.
    #[default]
    Applied,
}

/// The policy that is wanted.
#[derive(Clone, Debug)]
pub enum WantedPolicy {
    Bundle(PolicyBundle),
    /// A policy that the daemon has kept, by its digest.
    Kept(Digest),
    /// The policy that was in force before the last change.
    Previous,
}

/// What the caller wants to do with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeStep {
    /// Requests a change: proposes it, or approves it if someone else has proposed the same change.
    Ask,
    /// Only approves a change that someone else has proposed.
    Approve,
}

/// An order to change the policy.
#[derive(Clone, Debug)]
pub struct PolicyOrder {
    pub step: ChangeStep,
    pub wanted: WantedPolicy,
    pub reason: String,
    /// Show what would change, and change nothing.
    pub dry_run: bool,
    /// The policy that the caller saw in force. If another policy is in force, the order is refused.
    pub in_force: Option<Digest>,
    /// The number of leases that the caller accepts to end. If more would end, the order is refused.
    pub ends_at_most: Option<u64>,
}

/// A rule that is new, gone or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleChange {
    pub id: String,
    /// The text of the rule in the policy in force. `None` if the rule is new.
    pub before: Option<String>,
    /// The text of the rule in the wanted policy. `None` if the rule is gone.
    pub after: Option<String>,
}

/// The effects of an order, or of its dry run.
#[derive(Clone, Debug)]
pub struct PolicyChange {
    pub before: Digest,
    pub after: Digest,
    /// The rules, ordered by id.
    pub rules: Vec<RuleChange>,
    /// The number of live leases that end.
    pub ended: u64,
    /// Jobs that wait for approval and get another decision, each with the new decision. A long list is cut.
    pub jobs: Vec<(JobId, String)>,
    pub cases: usize,
    /// A line for each case that fails.
    pub failed: Vec<String>,
    pub warnings: Vec<String>,
    pub is_applied: bool,
    /// Set if people must approve the change first.
    pub waits: Option<WaitingChange>,
}

/// The history of the policy.
#[derive(Clone, Debug)]
pub struct PolicyHistory {
    pub in_force: Digest,
    pub origin: PolicyOrigin,
    /// The kept policies, newest first.
    pub kept: Vec<KeptPolicy>,
    /// The changes that wait for people.
    pub proposed: Vec<WaitingChange>,
    /// The changes that were withdrawn, rejected or voided since the daemon started, the newest first.
    pub closed: Vec<ClosedChange>,
}

impl RuleUseCases {
    /// Refuses a caller that may not change the policy of all tenants.
    fn may_change_policy(&self, caller: &Caller, rpc: Rpc) -> Result<Option<TenantName>, Refusal> {
        let text = "the policy is for all tenants, and you are an operator of only one tenant";
        self.may_propose(caller, rpc, text, "ask a platform operator")
    }

    /// Lists the kept policies.
    pub fn policy_history(&self, caller: &Caller) -> Result<PolicyHistory, Refusal> {
        self.may_change_policy(caller, Rpc::ListPolicies)?;
        let kept = self.context.kept.get().map(KeptRules::policies).unwrap_or_default();
        let (in_force, origin) = (self.context.rules().engine.digest(), self.context.settings.policy.clone());
        let proposed = self.changes_waiting();
        Ok(PolicyHistory { in_force, origin, kept, proposed, closed: self.context.proposals.closed() })
    }

    /// Changes the policy, or shows what a change would do. A policy that cannot be used changes nothing. Blocks.
    pub fn apply_policy(&self, caller: &Caller, order: &PolicyOrder) -> Result<PolicyChange, Refusal> {
        let tenant = self.may_change_policy(caller, Rpc::ApplyPolicy)?;
        if tenant.is_some() {
            self.context.rates.charge_call(caller)?;
        }
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.context.rules();
        if let (ChangeStep::Approve, WantedPolicy::Kept(digest)) = (order.step, &order.wanted) {
            self.check_approves(caller, *digest)?;
        }
        let texts = self.texts_of(&order.wanted)?;
        let unsigned = self.check_signed(&texts);
        let source = PolicySource::Texts(texts.policies.clone());
        let engine = Engine::load(&source, before.catalog(), before.engine.explain())
            .map_err(|errors| unusable(errors.iter().map(ToString::to_string).collect()))?;
        let wanted = Arc::new(Rules { engine, signed: texts.signed.clone() });
        let mut change = self.change_to(&before, &wanted);
        self.run_cases(&wanted.engine, &texts.cases, &mut change)?;
        self.warn_of_lockout(caller, &wanted.engine, &mut change);
        let question = ChangeQuestion {
            rpc: Rpc::ApplyPolicy,
            from: change.before,
            to: change.after,
            reason: &order.reason,
            texts: &texts,
        };
        if order.dry_run {
            change.warnings.extend(unsigned.err().map(|refusal| refusal.text.into_owned()));
            if change.before != change.after {
                change.waits = self.would_wait(caller, tenant.as_ref(), question)?;
            }
            return Ok(change);
        }
        unsigned?;
        let kept = self.check_order(order, &change)?;
        if change.before == change.after {
            return Ok(change);
        }
        let consent = match self.ask_consent(caller, tenant.as_ref(), question)? {
            Consent::Given(consent) => consent,
            Consent::Waits(waiting) => return Ok(PolicyChange { waits: Some(waiting), ..change }),
        };
        let shown = reason_in_history(&order.reason, consent.as_ref());
        self.record_change(caller, question, &wanted, &change, (kept, &shown, consent))?;
        let reloaded = self.replace_rules(wanted, caller.actor(), &shown);
        Ok(PolicyChange { ended: reloaded.ended, is_applied: true, ..change })
    }

    /// Refuses a policy that no trusted key signed, if the configuration names keys. Blocks.
    fn check_signed(&self, texts: &WantedTexts) -> Result<(), Refusal> {
        let unsigned = |what: String| {
            Refusal::new(Reason::CatalogInvalid, what).fix("nothing was changed: have the policy signed")
        };
        let keys = TrustedKeys::load(&self.context.settings.trusted_keys).map_err(unsigned)?;
        keys.check(&texts.policies, texts.signed.as_ref()).map_err(|fault| unsigned(fault.to_string()))
    }

    /// Returns the texts of a policy. They include its test cases, if the policy came with test cases.
    fn texts_of(&self, wanted: &WantedPolicy) -> Result<WantedTexts, Refusal> {
        let kept = |digest: Digest| {
            let kept =
                self.context.kept.get().ok_or_else(|| no_such_policy("this daemon keeps no policies"))?;
            let (policies, signed) = kept.policy(digest).map_err(|e| no_such_policy(&e.to_string()))?;
            Ok(WantedTexts { policies, cases: Vec::new(), signed })
        };
        match wanted {
            WantedPolicy::Bundle(bundle) => {
                let (policies, cases) = (bundle.policies.clone(), bundle.cases.clone());
                Ok(WantedTexts { policies, cases, signed: bundle.signed() })
            }
            WantedPolicy::Kept(digest) => {
                let from = self.context.rules().engine.digest();
                match self.find_proposed(Rpc::ApplyPolicy, from, *digest) {
                    Some(proposed) => Ok(proposed.texts.clone()),
                    None => kept(*digest),
                }
            }
            WantedPolicy::Previous => {
                let last = self.context.kept.get().and_then(|kept| kept.applied().ok().flatten());
                let previous = last.and_then(|last| last.before);
                let previous = previous.ok_or_else(|| no_such_policy("no policy was applied before"))?;
                kept(previous)
            }
        }
    }

    /// Compares the policy in force with the wanted one.
    fn change_to(&self, before: &Rules, wanted: &Rules) -> PolicyChange {
        let ended = self
            .sweeps
            .no_longer_allowed(wanted, &self.context.state.open_jobs())
            .iter()
            .map(|(name, _)| self.context.fences.behind(name))
            .sum();
        PolicyChange {
            before: before.engine.digest(),
            after: wanted.engine.digest(),
            rules: rule_changes(&before.engine, &wanted.engine),
            ended,
            jobs: self.waiting_jobs_that_change(wanted),
            cases: 0,
            failed: Vec::new(),
            warnings: wanted.engine.warnings().iter().cloned().chain(wanted.engine.gaps()).collect(),
            is_applied: false,
            waits: None,
        }
    }

    /// Decides the waiting jobs by the wanted policy. Returns the jobs for which the answer changes.
    fn waiting_jobs_that_change(&self, wanted: &Rules) -> Vec<(JobId, String)> {
        let at = self.context.clock.now().wall;
        let waiting =
            self.context.state.open_jobs().into_iter().filter(|j| j.state == JobState::AwaitingApproval);
        let changed = waiting.filter_map(|job| {
            let approved = self.decisions.approved_gates(wanted, &job, None);
            let answer = judge_job(
                wanted,
                &JobQuestion {
                    job: &job,
                    phase: Phase::Creating,
                    attempt: 0,
                    member: None,
                    scopes: None,
                    ttl: self.decisions.ttl_of(&job),
                    at,
                    approved: &approved,
                },
            );
            let waiting = self.decisions.gates_waiting(&job);
            let before: BTreeSet<String> = waiting.into_iter().map(|gate| gate.id.clone()).collect();
            match answer.result {
                "deny" => Some((job.id, format!("denied: {}", answer.why))),
                "wait" if answer.gates == before => None,
                "wait" => {
                    let gates: Vec<String> = answer.gates.into_iter().collect();
                    Some((job.id, format!("waits for {}", gates.join(", "))))
                }
                _ => Some((job.id, "waits for no one".to_owned())),
            }
        });
        changed.take(JOBS_CHANGED_SHOWN_MAX).collect()
    }

    /// Runs the test cases that came with a policy.
    fn run_cases(
        &self,
        engine: &Engine,
        cases: &[PolicyText],
        change: &mut PolicyChange,
    ) -> Result<(), Refusal> {
        let files = cases.iter().map(|file| (file.file.as_str(), file.text.as_str()));
        let cases = read_case_texts(files, self.context.clock.now().wall)
            .map_err(|problems| unusable(problems.iter().map(ToString::to_string).collect()))?;
        let report = engine.run_cases(&cases);
        change.cases = cases.len();
        change.failed = report.failed.iter().map(ToString::to_string).collect();
        if !cases.is_empty() {
            change.warnings.extend(report.untried_text());
        }
        Ok(())
    }

    /// Warns a caller who could no longer change the policy once the wanted policy is in force.
    fn warn_of_lockout(&self, caller: &Caller, wanted: &Engine, change: &mut PolicyChange) {
        let may = |tenant| {
            let (rpc, now) = (Rpc::ApplyPolicy, self.context.clock.now().wall);
            let amr = caller.amr();
            let call = Call { caller: caller.id(), rpc, tenant, relations: &[], now, reason: "", amr };
            !matches!(wanted.judge_change(&call, &[]), CallVerdict::Deny { .. })
        };
        let may_again = may(None) || (caller.is_only_tenant() && may(Some(caller.tenant())));
        if !may_again {
            change.warnings.push(
                "this policy would not let you apply another policy: to go back, set policy.source = \"files\" in the daemon's configuration"
                    .to_owned(),
            );
        }
    }

    /// Refuses an order that must not take effect. Returns the folder of the kept policies.
    fn check_order(&self, order: &PolicyOrder, change: &PolicyChange) -> Result<&KeptRules, Refusal> {
        let conflict = |text: String| Refusal::new(Reason::StateConflict, text);
        if let PolicyOrigin::Files(dir) = &self.context.settings.policy {
            return Err(conflict(format!("this daemon reads its policy from files in {}", dir.display())).fix(
                "change the files and run `leasehold catalog reload`; or set policy.source = \"applied\" in the daemon's configuration",
            ));
        }
        if !change.failed.is_empty() {
            let text = format!("{} of {} cases of this policy fail", change.failed.len(), change.cases);
            return Err(mistakes(Refusal::new(Reason::CatalogInvalid, text), &change.failed).fix(
                "nothing was changed: correct the policy or its cases, and run `leasehold policy test`",
            ));
        }
        if order.in_force.is_some_and(|seen| seen != change.before) {
            return Err(conflict("the policy in force is not the one that you saw".to_owned())
                .with("in force", change.before.to_string())
                .fix("look at the difference again"));
        }
        if order.ends_at_most.is_some_and(|most| change.ended > most) {
            return Err(conflict(format!("it would now end {} leases", change.ended))
                .fix("look at the difference again"));
        }
        self.context
            .kept
            .get()
            .ok_or_else(|| conflict("this daemon has no folder for kept policies".to_owned()))
    }

    /// Saves the policy and records the change. Then marks the policy as the one that the daemon reads when it starts
    /// next.
    fn record_change(
        &self,
        caller: &Caller,
        question: ChangeQuestion<'_>,
        wanted: &Rules,
        change: &PolicyChange,
        (kept, shown, consent): (&KeptRules, &str, Option<ConsentRecord>),
    ) -> Result<(), Refusal> {
        let how = BroughtBy {
            since: self.context.clock.now().wall,
            by: caller.id().to_string(),
            reason: shown.to_owned(),
        };
        let unwritten = |e: std::io::Error| {
            tracing::error!(error = %e, "an applied policy could not be written");
            ledger_unavailable("the policy could not be written")
        };
        kept.keep_policy(wanted, &how).map_err(unwritten)?;
        let needed_people = consent.is_some();
        let record = Event::PolicyApplied {
            policy: change.after,
            before: change.before,
            catalog: wanted.catalog().digest(),
            by: caller.actor(),
            reason: question.reason.to_owned(),
            would_end: change.ended,
            consent,
        };
        self.record_before(caller, &record)?;
        // The record says that the policy was applied. If something fails from here on, a second record must say so.
        let not_applied = |why: &str| {
            self.context.ledger.defer(&Event::PolicyNotApplied { policy: change.after, why: why.to_owned() });
        };
        self.close_applied(caller, question, needed_people)
            .inspect_err(|refusal| not_applied(&refusal.text))?;
        kept.set_applied(change.after, change.before).map_err(|e| {
            not_applied("the daemon would not find the policy when it starts next");
            unwritten(e)
        })
    }
}

/// Returns the reason of a change for the policy history. If people approved the change, the text names the proposer and
/// the approvers.
fn reason_in_history(reason: &str, consent: Option<&ConsentRecord>) -> String {
    let Some(ConsentRecord { proposed_by, reason, approvals, .. }) = consent else {
        return reason.to_owned();
    };
    let mut approved: Vec<String> = approvals.iter().map(|a| format!("{}: {}", a.by, a.reason)).collect();
    approved.dedup();
    format!("{reason} (proposed by {proposed_by}; approved by {})", approved.join("; "))
}

/// Returns the rules that are new, gone or changed, by id.
fn rule_changes(before: &Engine, after: &Engine) -> Vec<RuleChange> {
    let texts = |engine: &Engine| -> BTreeMap<String, String> {
        engine.rules().filter_map(|rule| Some((rule.id.clone(), engine.rule_text(&rule.id)?))).collect()
    };
    let (before, mut after) = (texts(before), texts(after));
    let mut changes: Vec<RuleChange> = before
        .into_iter()
        .filter_map(|(id, before)| {
            let now = after.remove(&id);
            let is_same = now.as_ref() == Some(&before);
            (!is_same).then_some(RuleChange { id, before: Some(before), after: now })
        })
        .collect();
    changes.extend(after.into_iter().map(|(id, text)| RuleChange { id, before: None, after: Some(text) }));
    changes.sort_by(|a, b| a.id.cmp(&b.id));
    changes
}

/// Refuses a policy with mistakes.
fn unusable(lines: Vec<String>) -> Refusal {
    let text = format!("this policy has {} mistake(s)", lines.len());
    mistakes(Refusal::new(Reason::CatalogInvalid, text), &lines)
        .fix("nothing was changed: correct it, and run `leasehold policy check`")
}

fn mistakes(refusal: Refusal, lines: &[String]) -> Refusal {
    let shown = lines.iter().take(MISTAKES_SHOWN_MAX);
    let refusal = shown.fold(refusal, |refusal, line| refusal.with("mistake", line.clone()));
    match lines.len().checked_sub(MISTAKES_SHOWN_MAX) {
        Some(more) if more > 0 => refusal.with("mistake", format!("{more} more")),
        _ => refusal,
    }
}

fn no_such_policy(why: &str) -> Refusal {
    Refusal::new(Reason::StateConflict, why.to_owned()).fix("choose one of `leasehold policy history`")
}

//! Refused requests. The first of a kind in a minute is logged, and recorded if it is a denial. Further ones are counted.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use dashmap::DashMap;

use crate::{
    clock::{BootTime, Clock},
    ledger::{Actor, Event, Ledger},
    limits,
    name::{JobId, Outcome, SpiffeId},
    reason::{Reason, Refusal},
};

const MINUTE_MS: u64 = 60_000;
/// The number of kinds that the unknown identities of one trust domain share.
const UNKNOWN_KINDS: u64 = 16;

#[derive(Clone, PartialEq, Eq, Hash)]
struct DenialKind {
    by: String,
    rpc: String,
    reason: Reason,
}

struct DenialMinute {
    since: BootTime,
    more: u64,
    /// The caller, if all refused requests of this kind came from one caller.
    by: Option<String>,
    text: String,
    rules: Vec<String>,
}

/// The refused requests of the last minute, by kind.
pub struct Denials {
    minutes: DashMap<DenialKind, DenialMinute>,
    clock: Arc<dyn Clock>,
    ledger: Ledger,
}

impl Denials {
    pub(super) fn new(clock: Arc<dyn Clock>, ledger: Ledger) -> Self {
        Denials { minutes: DashMap::new(), clock, ledger }
    }

    /// Returns the kind of a refusal. A flood of refusals must not fill memory, log or ledger. If there are many kinds
    /// already, new refusals share one kind for each reason. Unknown identities always share a few kinds.
    fn kind(&self, by: &SpiffeId, rpc: &str, reason: Reason) -> DenialKind {
        if reason == Reason::PrincipalUnknown {
            let mut hasher = DefaultHasher::new();
            by.hash(&mut hasher);
            let group = hasher.finish() % UNKNOWN_KINDS;
            return DenialKind { by: format!("{} {group}", by.trust_domain()), rpc: String::new(), reason };
        }
        let kind = DenialKind { by: by.to_string(), rpc: rpc.to_owned(), reason };
        if self.minutes.len() < limits::REFUSAL_KINDS_MAX || self.minutes.contains_key(&kind) {
            kind
        } else {
            DenialKind { by: "(others)".into(), rpc: String::new(), reason }
        }
    }

    /// Counts a refused request. The first refusal of a kind in a minute is logged. If it is a denial, it is also
    /// recorded.
    pub fn count(&self, by: &SpiffeId, rpc: &str, refusal: &Refusal) {
        let reason = refusal.reason;
        metrics::counter!("leasehold_refused_total", "reason" => reason.code()).increment(1);
        let (now, kind) = (self.clock.now().boot, self.kind(by, rpc, reason));
        let rules = || refusal.facts.iter().filter(|(l, _)| l == "rule").map(|(_, v)| v.clone());
        let mut first = false;
        self.minutes
            .entry(kind)
            .and_modify(|m| {
                m.more = m.more.saturating_add(1);
                m.by.take_if(|one| *one != by.as_str());
            })
            .or_insert_with(|| {
                first = true;
                let (by, text) = (Some(by.to_string()), refusal.text.to_string());
                DenialMinute { since: now, more: 0, by, text, rules: rules().collect() }
            });
        if first {
            tracing::info!(%reason, %by, rpc, text = %refusal.text, "refused");
            if reason.is_denial() {
                let (by, rpc, text) = (by.to_string(), rpc.to_owned(), refusal.text.to_string());
                let rules = rules().collect();
                self.ledger.defer(&Event::Denied { by, rpc, reason, text, rules, count: 1 });
            }
        }
    }

    /// Whether `by` reports this outcome, which contradicts an earlier report about the job, for the first time in this
    /// minute. Such reports are counted and limited together with the denials.
    pub(super) fn is_first_conflict(&self, job: JobId, reported: Outcome, by: &Actor) -> bool {
        let Some(by) = by.spiffe_id().map(SpiffeId::to_string) else { return true };
        let kind = DenialKind { by, rpc: format!("{job} {reported}"), reason: Reason::StateConflict };
        if self.minutes.len() >= limits::REFUSAL_KINDS_MAX && !self.minutes.contains_key(&kind) {
            return false;
        }
        let mut first = false;
        let since = self.clock.now().boot;
        self.minutes.entry(kind).or_insert_with(|| {
            first = true;
            DenialMinute { since, more: 0, by: None, text: String::new(), rules: Vec::new() }
        });
        first
    }

    /// Logs and records the counts of minutes that are over.
    pub(super) fn flush(&self) {
        let now = self.clock.now().boot;
        let is_over = |m: &DenialMinute| now.0.saturating_sub(m.since.0) >= MINUTE_MS;
        let over: Vec<DenialKind> =
            self.minutes.iter().filter(|m| is_over(m)).map(|m| m.key().clone()).collect();
        for kind in over {
            let Some((DenialKind { by, rpc, reason }, m)) = self.minutes.remove(&kind) else { continue };
            if m.more == 0 {
                continue;
            }
            let by = m.by.unwrap_or_else(|| format!("several: {by}"));
            tracing::info!(%reason, by, rpc, more = m.more, text = m.text, "refused again in the last minute");
            if reason.is_denial() {
                let (text, rules, count) = (m.text, m.rules, m.more);
                self.ledger.defer(&Event::Denied { by, rpc, reason, text, rules, count });
            }
        }
    }
}

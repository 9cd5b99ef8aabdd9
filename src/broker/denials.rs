//! Refused requests in the ledger: the first of a kind in a minute alone, the rest of that minute as one with a count.

use dashmap::DashMap;

use super::Broker;
use crate::{
    clock::BootTime,
    ledger::{Actor, Event},
    name::{JobId, Outcome, SpiffeId},
    reason::{Reason, Refusal},
};

/// Kinds of refusal that are remembered at once. Past it, further kinds share one entry: a flood fills no memory.
const KINDS_MAX: usize = 10_000;
const MINUTE_MS: u64 = 60_000;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    by: String,
    rpc: String,
    reason: Reason,
}

struct Minute {
    since: BootTime,
    more: u64,
    text: String,
    rules: Vec<String>,
}

#[derive(Default)]
pub(super) struct Denials(DashMap<Kind, Minute>);

impl Broker {
    /// Remembers that a request was refused. What is the caller's typing error is no record; what was denied is.
    pub fn refused(&self, by: &SpiffeId, rpc: &str, refusal: &Refusal) {
        metrics::counter!("leasehold_refused_total", "reason" => refusal.reason.code()).increment(1);
        tracing::info!(reason = %refusal.reason, %by, rpc, text = %refusal.text, "refused");
        if !is_denial(refusal.reason) {
            return;
        }
        let now = self.clock.now().boot;
        let mut kind = Kind { by: by.to_string(), rpc: rpc.to_owned(), reason: refusal.reason };
        if self.denials.0.len() >= KINDS_MAX && !self.denials.0.contains_key(&kind) {
            kind = Kind { by: "(others)".into(), rpc: String::new(), reason: refusal.reason };
        }
        let rules: Vec<String> =
            refusal.facts.iter().filter(|(l, _)| l == "rule").map(|(_, v)| v.clone()).collect();
        let mut first = false;
        self.denials.0.entry(kind.clone()).and_modify(|m| m.more = m.more.saturating_add(1)).or_insert_with(
            || {
                first = true;
                Minute { since: now, more: 0, text: refusal.text.to_string(), rules: rules.clone() }
            },
        );
        if first {
            self.ledger.defer(&denied(kind, refusal.text.to_string(), rules, 1));
        }
    }

    /// Whether this is the first such report in its minute. Counted with the denials, and bounded with them.
    pub(super) fn is_first_conflict(&self, job: JobId, reported: Outcome, by: &Actor) -> bool {
        let by = match by {
            Actor::SpiffeId(id) => id.to_string(),
            Actor::Daemon(_) => return true,
        };
        let kind = Kind { by, rpc: format!("{job} {reported}"), reason: Reason::StateConflict };
        if self.denials.0.len() >= KINDS_MAX && !self.denials.0.contains_key(&kind) {
            return false;
        }
        let mut first = false;
        let since = self.clock.now().boot;
        self.denials.0.entry(kind).or_insert_with(|| {
            first = true;
            Minute { since, more: 0, text: String::new(), rules: Vec::new() }
        });
        first
    }

    /// Records the counts of minutes that are over.
    pub(super) fn flush_denials(&self) {
        let now = self.clock.now().boot;
        let over: Vec<Kind> = self
            .denials
            .0
            .iter()
            .filter(|m| now.0.saturating_sub(m.since.0) >= MINUTE_MS)
            .map(|m| m.key().clone())
            .collect();
        for kind in over {
            if let Some((kind, m)) = self.denials.0.remove(&kind)
                && m.more > 0
            {
                self.ledger.defer(&denied(kind, m.text, m.rules, m.more));
            }
        }
    }
}

fn denied(kind: Kind, text: String, rules: Vec<String>, count: u64) -> Event {
    Event::Denied { by: kind.by, rpc: kind.rpc, reason: kind.reason, text, rules, count }
}

fn is_denial(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PrincipalUnknown
            | Reason::KindNotAllowed
            | Reason::PolicyDenied
            | Reason::PolicyError
            | Reason::ApprovalRequired
            | Reason::Locked
            | Reason::ResourceNotFound
            | Reason::JobNotFound
            | Reason::LeaseNotFound
            | Reason::AudienceUnknown
            | Reason::PinMismatch
            | Reason::NotAMember
            | Reason::SessionMismatch
            | Reason::TicketRequired
            | Reason::IdentityBound
            | Reason::InstanceTaken
            | Reason::AttemptStale
            | Reason::QuotaExceeded
    )
}

//! The context of a decision, as one list of fields.

use cedar_policy::{Context, RestrictedExpression as Value};

use super::{
    Bundle, Call,
    context_cache::ContextCache,
    decision_cache::DecisionKey,
    entities::{CatalogEntities, Types, text, texts},
    slice::{Reads, Slice},
};
use crate::{
    clock::Wall,
    name::{HumanName, ImageDigest, ResourceName, TenantName},
};

/// One field of the context.
enum ContextField<'a> {
    Text(&'a str),
    Number(u64),
    Truth(bool),
    Words(Vec<&'a str>),
    /// Policies see whole seconds, rounded down.
    Moment(Wall),
    Tenant(&'a TenantName),
}

impl ContextField<'_> {
    fn add_to_key(&self, key: &mut DecisionKey) {
        match self {
            ContextField::Text(t) => key.add(t),
            ContextField::Number(n) => key.add_number(*n),
            ContextField::Truth(t) => key.add_number(u64::from(*t)),
            // Nothing to add here: the caller adds what rules can see of the time.
            ContextField::Moment(_) => {}
            ContextField::Tenant(t) => key.add(t.as_str()),
            ContextField::Words(words) => {
                key.add_number(words.len() as u64);
                words.iter().for_each(|w| key.add(w));
            }
        }
    }
}

/// The fields of `JobContext`, in the order of [`ContextFields::of_job`].
const JOB_FIELDS: [&str; 21] = [
    "spiffe_id",
    "job",
    "tenant",
    "attempt",
    "phase",
    "purpose",
    "why",
    "ticket",
    "rollback_to",
    "prompt_alternative",
    "image",
    "acting_for",
    "risk",
    "risk_reasons",
    "method",
    "ttl_seconds",
    "now",
    "approved",
    "waived",
    "own_checkpoint",
    "binding",
];

/// The set of `JobContext` fields that are read: one bit for each of [`JOB_FIELDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JobReads(u32);

impl JobReads {
    pub(super) fn of(reads: &Reads) -> Self {
        let bits = JOB_FIELDS.iter().enumerate().filter(|(_, field)| reads.of(field)).map(|(at, _)| 1 << at);
        JobReads(bits.fold(0, |all, bit: u32| all | bit))
    }

    #[must_use]
    pub(super) fn and(self, other: Self) -> Self {
        JobReads(self.0 | other.0)
    }

    fn has(self, at: usize) -> bool {
        self.0 >> at & 1 == 1
    }
}

/// All fields that the schema gives to the context of an action.
pub(super) struct ContextFields<'a>(Vec<(&'static str, ContextField<'a>)>);

impl<'a> ContextFields<'a> {
    /// Returns the fields of `JobContext`. `name` is the holder's SPIFFE ID, or the pattern of its entry. `waived` has
    /// the ids of rules that do not apply to this resource.
    pub(super) fn of_job(name: &'a str, b: &Bundle<'a>, waived: &[&'a str]) -> Self {
        // The TTL is rounded up, so that a TTL above a limit is never rounded to the limit.
        let ttl = b.ttl.as_secs().saturating_add(u64::from(b.ttl.subsec_nanos() > 0));
        ContextFields(vec![
            ("spiffe_id", ContextField::Text(name)),
            ("job", ContextField::Text(b.job)),
            ("tenant", ContextField::Tenant(b.tenant)),
            ("attempt", ContextField::Number(b.attempt)),
            ("phase", ContextField::Text(b.phase.as_str())),
            ("purpose", ContextField::Text(b.purpose)),
            ("why", ContextField::Text(b.facts.why)),
            ("ticket", ContextField::Text(b.facts.ticket)),
            ("rollback_to", ContextField::Text(b.facts.rollback_to.map_or("", ResourceName::as_str))),
            ("prompt_alternative", ContextField::Text(b.facts.prompt_alternative)),
            ("image", ContextField::Text(b.facts.image.map_or("", ImageDigest::as_str))),
            ("acting_for", ContextField::Text(b.facts.acting_for.map_or("", HumanName::as_str))),
            ("risk", ContextField::Number(b.risk.score().into())),
            ("risk_reasons", ContextField::Words(b.risk.reasons())),
            ("method", ContextField::Text(b.method.map_or("none", |m| m.as_str()))),
            ("ttl_seconds", ContextField::Number(ttl)),
            ("now", ContextField::Moment(b.now)),
            ("approved", ContextField::Words(b.approved.iter().map(String::as_str).collect())),
            ("waived", ContextField::Words(waived.to_vec())),
            ("own_checkpoint", ContextField::Truth(b.own_checkpoint)),
            ("binding", ContextField::Text(b.binding)),
        ])
    }

    /// Adds to a key all fields that the policies of some slices (see [`Slice`]) read, except the time.
    /// `reads` has one bit for each field of `JobContext`, in its order.
    pub(super) fn add_read_fields(&self, reads: JobReads, key: &mut DecisionKey) {
        for (at, (_, fact)) in self.0.iter().enumerate() {
            if reads.has(at) {
                fact.add_to_key(key);
            }
        }
    }

    /// Returns the fields of `CallContext`, or of `ChangeContext` without approvals.
    pub(super) fn of_call(call: &Call<'a>) -> Self {
        Self::of_change(call, &[])
    }

    /// Returns the fields of `ChangeContext` if the call changes the rules, otherwise of `CallContext`.
    pub(super) fn of_change(call: &Call<'a>, approved: &'a [String]) -> Self {
        let mut relation: Vec<&str> = call.relations.iter().map(|r| r.as_str()).collect();
        relation.sort_unstable();
        relation.dedup();
        let approved = approved.iter().map(String::as_str).collect();
        let approved = call.rpc.is_change().then_some(("approved", ContextField::Words(approved)));
        let mut fields = vec![
            ("spiffe_id", ContextField::Text(call.caller.as_str())),
            ("now", ContextField::Moment(call.now)),
            ("relation", ContextField::Words(relation)),
            ("reason", ContextField::Text(call.reason)),
            ("amr", ContextField::Words(call.amr.iter().map(String::as_str).collect())),
        ];
        fields.extend(approved);
        ContextFields(fields)
    }

    /// Adds to a key the fields that the policies of a slice read, so that a change in another field makes no new key.
    /// `retain_until` is the time until which the resource may be kept.
    pub(super) fn add_to_key(&self, reads: &Reads, retain_until: Option<Wall>, key: &mut DecisionKey) {
        for (_, fact) in self.0.iter().filter(|(field, _)| reads.of(field)) {
            fact.add_to_key(key);
            if let ContextField::Moment(now) = fact {
                reads.time().add_to_key(*now, retain_until, key);
            }
        }
    }

    /// Returns the context, with only the fields that a slice reads. It comes from the cache if an equal one was made before.
    pub(super) fn cached_context(
        &self,
        slice: &Slice,
        types: &Types,
        prepared: &CatalogEntities,
        cache: &ContextCache,
    ) -> Result<Context, String> {
        let reads = &slice.reads;
        let mut question = DecisionKey::new(256);
        question.add_number(slice.number);
        for (_, fact) in self.0.iter().filter(|(field, _)| reads.of(field)) {
            fact.add_to_key(&mut question);
            if let ContextField::Moment(now) = fact {
                cache.add_time(*now, reads.time().needs_seconds(), &mut question);
            }
        }
        cache.find_or_make(&question, || self.context(reads, types, prepared))
    }

    /// Returns the context, with only the fields that the policies of a slice read.
    pub(super) fn context(
        &self,
        reads: &Reads,
        types: &Types,
        prepared: &CatalogEntities,
    ) -> Result<Context, String> {
        let fields = self.0.iter().filter(|(field, _)| reads.of(field)).map(|(field, fact)| {
            let value = match fact {
                ContextField::Text(t) => text(t),
                ContextField::Number(n) => Value::new_long(i64::try_from(*n).unwrap_or(i64::MAX)),
                ContextField::Truth(t) => Value::new_bool(*t),
                ContextField::Words(words) => texts(words.iter().copied()),
                ContextField::Moment(now) => {
                    Value::new_datetime(Wall::from_seconds(now.seconds()).to_string())
                }
                ContextField::Tenant(t) => Value::new_entity_uid(prepared.tenant_uid(types, Some(t))),
            };
            ((*field).to_owned(), value)
        });
        Context::from_pairs(fields).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::{JobRisk, Phase, RequestFacts};

    // The bits of a set of read fields match the fields in the context.
    #[test]
    fn the_fields_of_a_job_have_their_places() {
        let (tenant, risk, approved) = ("acme".parse().unwrap(), JobRisk::default(), BTreeSet::new());
        let bundle = Bundle {
            job: "j",
            tenant: &tenant,
            attempt: 1,
            phase: Phase::Running,
            purpose: "p",
            facts: RequestFacts::default(),
            risk: &risk,
            method: None,
            ttl: std::time::Duration::from_secs(60),
            now: Wall(0),
            approved: &approved,
            own_checkpoint: true,
            binding: "",
            parts: &[],
        };
        let fields = ContextFields::of_job("name", &bundle, &[]);
        assert!(fields.0.iter().map(|(field, _)| *field).eq(JOB_FIELDS));
        assert_eq!(JobReads::of(&Reads::everything()), JobReads((1 << JOB_FIELDS.len()) - 1));
    }
}

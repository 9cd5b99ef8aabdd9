//! What a request brings with it: the context of a decision, as one list of facts.

use cedar_policy::{Context, RestrictedExpression as Value};

use super::{
    Bundle, Call,
    entities::{Prepared, Types, text, texts},
    memo::Question,
    slice::Reads,
};
use crate::{clock::Wall, name::TenantName};

/// One field of the context.
enum Fact<'a> {
    Text(&'a str),
    Number(u64),
    Truth(bool),
    Words(Vec<&'a str>),
    /// Whole seconds, rounded down: policies do not split them, and answers can be kept for one.
    Moment(Wall),
    Tenant(&'a TenantName),
}

/// All fields of the context that an action has by the schema.
pub(super) struct Facts<'a>(Vec<(&'static str, Fact<'a>)>);

impl<'a> Facts<'a> {
    /// `JobContext`. The name is the holder's SPIFFE ID, or the pattern of its entry.
    pub(super) fn of_job(name: &'a str, b: &Bundle<'a>) -> Self {
        // A fraction of a second is a second: a limit is not passed under by rounding.
        let ttl = b.ttl.as_secs().saturating_add(u64::from(b.ttl.subsec_nanos() > 0));
        Facts(vec![
            ("spiffe_id", Fact::Text(name)),
            ("job", Fact::Text(b.job)),
            ("tenant", Fact::Tenant(b.tenant)),
            ("attempt", Fact::Number(b.attempt)),
            ("phase", Fact::Text(b.phase.as_str())),
            ("purpose", Fact::Text(b.purpose)),
            ("method", Fact::Text(b.method.map_or("none", |m| m.as_str()))),
            ("ttl_seconds", Fact::Number(ttl)),
            ("now", Fact::Moment(b.now)),
            ("approved", Fact::Words(b.approved.iter().map(String::as_str).collect())),
            ("own_checkpoint", Fact::Truth(b.own_checkpoint)),
        ])
    }

    /// `CallContext`.
    pub(super) fn of_call(call: &Call<'a>) -> Self {
        let mut relation: Vec<&str> = call.relations.iter().map(|r| r.as_str()).collect();
        relation.sort_unstable();
        relation.dedup();
        Facts(vec![
            ("spiffe_id", Fact::Text(call.caller.as_str())),
            ("now", Fact::Moment(call.now)),
            ("relation", Fact::Words(relation)),
            ("reason", Fact::Text(call.reason)),
        ])
    }

    /// Adds what a slice reads to a question, so that what it does not read makes no new one.
    pub(super) fn ask(&self, reads: &Reads, question: &mut Question) {
        for (_, fact) in self.0.iter().filter(|(field, _)| reads.of(field)) {
            match fact {
                Fact::Text(t) => question.add(t),
                Fact::Number(n) => question.add_number(*n),
                Fact::Truth(t) => question.add_number(u64::from(*t)),
                Fact::Moment(now) => question.add_number(now.seconds()),
                Fact::Tenant(t) => question.add(t.as_str()),
                Fact::Words(words) => {
                    question.add_number(words.len() as u64);
                    words.iter().for_each(|w| question.add(w));
                }
            }
        }
    }

    /// The context, without what a slice does not read.
    pub(super) fn context(
        &self,
        reads: &Reads,
        types: &Types,
        prepared: &Prepared,
    ) -> Result<Context, String> {
        let fields = self.0.iter().filter(|(field, _)| reads.of(field)).map(|(field, fact)| {
            let value = match fact {
                Fact::Text(t) => text(t),
                Fact::Number(n) => Value::new_long(i64::try_from(*n).unwrap_or(i64::MAX)),
                Fact::Truth(t) => Value::new_bool(*t),
                Fact::Words(words) => texts(words.iter().copied()),
                Fact::Moment(now) => Value::new_datetime(Wall::from_seconds(now.seconds()).to_string()),
                Fact::Tenant(t) => Value::new_entity_uid(prepared.tenant_uid(types, Some(t))),
            };
            ((*field).to_owned(), value)
        });
        Context::from_pairs(fields).map_err(|e| e.to_string())
    }
}

//! A record of the ledger as one row, and whether it is about a name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Exit, Failure};
use crate::{clock::Wall, limits::AUDIT_FOLLOWED_MAX, name::ResourceName};

/// What stands around an event, which a row shows by itself or leaves out. `at` is the row's time again.
const LEFT_OUT: [&str; 14] = [
    "v",
    "index",
    "prev",
    "time",
    "epoch",
    "refused",
    "type",
    "hash",
    "at",
    "idempotency_key",
    "session",
    "ticket",
    "nonce",
    "spec_digest",
];

/// Moments in milliseconds since 1970.
const MOMENTS: [&str; 7] =
    ["ends", "until", "issued", "expires", "expires_at_latest", "reading_ends", "writing_ends"];

/// What a row begins with, in this order; the rest follows as it was written.
const FIRST: [&str; 8] = ["job", "attempt", "lease", "name", "instance", "member", "half", "scopes"];

/// What of a specification an auditor reads in a row; the rest is in the JSON.
const OF_SPEC: [&str; 6] = ["name", "tenant", "purpose", "why", "read", "write"];

/// What a short row leaves out too.
const IN_WIDE_ROWS: [&str; 8] =
    ["tenant", "audience", "policy", "catalog", "leases", "generation", "stood_at", "purpose"];

/// One row: index, time, type, and what the event says. Digests are cut short; `-o json` has all of them.
pub(super) fn row(index: u64, record: &Value) -> String {
    written(index, text(record, "time"), record, &said(record, &[]))
}

/// [`row`] with the time to the second and without what few people look for.
pub(super) fn short_row(index: u64, record: &Value) -> String {
    let time = text(record, "time");
    let seconds = time.split_once('.').map_or(time, |(seconds, _)| seconds);
    let left_out: Vec<&str> = IN_WIDE_ROWS.iter().chain(&MOMENTS).copied().collect();
    written(index, seconds, record, &said(record, &left_out))
}

/// When a record was written.
pub(super) fn time(record: &Value) -> Option<Wall> {
    let at = humantime::parse_rfc3339(record.get("time")?.as_str()?).ok()?;
    u64::try_from(at.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok().map(Wall)
}

fn text<'r>(record: &'r Value, key: &str) -> &'r str {
    record.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn written(index: u64, time: &str, record: &Value, said: &[String]) -> String {
    format!("{index:>8}  {time}  {:<18}  {}", text(record, "type"), said.join(" "))
}

/// Each `key=value` of an event, what people look for first.
fn said(record: &Value, left_out: &[&str]) -> Vec<String> {
    let mut said = Vec::new();
    let fields = record.as_object().into_iter().flatten();
    let mut fields: Vec<_> = fields
        .filter(|(key, _)| !LEFT_OUT.contains(&key.as_str()) && !left_out.contains(&key.as_str()))
        .collect();
    fields.sort_by_key(|(key, _)| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("spec", Value::Object(spec)) => {
                let kept = OF_SPEC.iter().filter(|key| !left_out.contains(key));
                let kept = kept.filter_map(|key| Some((*key, spec.get(*key)?)));
                kept.for_each(|(key, value)| say(key, value, &mut said));
            }
            // The rules are those that allowed it, one for each action: a denial has a record of its own.
            ("decision", Value::Object(decision)) => {
                say(key, decision.get("result").unwrap_or(&Value::Null), &mut said);
            }
            ("by", Value::Object(by)) => say(key, by.get("spiffe_id").unwrap_or(value), &mut said),
            ("ending", Value::Object(ending)) => {
                say("leases_ended", ending.get("behind").unwrap_or(&Value::Null), &mut said);
            }
            ("cause", Value::Object(cause)) => {
                let lowered = cause.get("lowered").and_then(|l| l.get("name"));
                say(key, lowered.unwrap_or(value), &mut said);
            }
            ("credential" | "inputs" | "outputs", _) => {}
            _ => say(key, value, &mut said),
        }
    }
    said
}

/// One `key=value`, quoted where it has blanks. Nothing where there is nothing.
fn say(key: &str, value: &Value, said: &mut Vec<String>) {
    let shown = match value {
        Value::Null => return,
        Value::Array(items) if items.is_empty() => return,
        Value::Object(fields) if fields.is_empty() => return,
        Value::Object(fields) if fields.len() == 1 && scalar(fields).is_some() => {
            scalar(fields).unwrap_or_default()
        }
        Value::Number(at) if MOMENTS.contains(&key) => {
            at.as_u64().map_or_else(|| at.to_string(), |ms| Wall(ms).to_string())
        }
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => plain(other),
    };
    match shown.is_empty() || shown.contains(char::is_whitespace) {
        true => said.push(format!("{key}={shown:?}")),
        false => said.push(format!("{key}={shown}")),
    }
}

/// `daemon: its deadline came`, of an object with one text.
fn scalar(fields: &Map<String, Value>) -> Option<String> {
    let (key, value) = fields.iter().next()?;
    Some(format!("{key}: {}", plain(value.as_str().map(|_| value)?)))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => short(text),
        Value::Object(fields) => match (fields.get("resource"), fields.get("actions")) {
            // A scope; its actions follow from the half.
            (Some(Value::String(resource)), Some(_)) => resource.clone(),
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

/// A digest by its first twelve digits.
fn short(text: &str) -> String {
    const KEPT: usize = "sha256:".len() + 12;
    match text.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 => format!("{}…", text.get(..KEPT).unwrap_or(text)),
        _ => text.to_owned(),
    }
}

/// The records about one name: those that say it, and what became of the jobs and leases that they name.
pub(super) struct About {
    /// As the name stands in records: whole, and without its kind where it is an id.
    words: Vec<String>,
    /// The tenant or human, which stands in a field of its own.
    field: Option<(&'static str, String)>,
    /// Jobs and live leases that are about it: at most [`AUDIT_FOLLOWED_MAX`].
    followed: BTreeSet<String>,
}

impl About {
    /// A name as `revoke` takes it.
    pub(super) fn new(name: &str) -> Self {
        let mut words = vec![name.to_owned()];
        let mut field = None;
        match name.split_once(':') {
            Some(("job" | "lease" | "identity", id)) => words.push(id.to_owned()),
            Some(("domain", domain)) => words.push(format!("spiffe://{domain}")),
            Some(("tenant", tenant)) => field = Some(("tenant", tenant.to_owned())),
            Some(("human", human)) => field = Some(("acting_for", human.to_owned())),
            _ => {}
        }
        About { words, field, followed: BTreeSet::new() }
    }

    /// Whether a record is about it. Records come in their order: a job is followed from its creation on.
    pub(super) fn takes(&mut self, record: &Value) -> Result<bool, Failure> {
        if !self.speaks_of(None, record) {
            return Ok(false);
        }
        let id = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned);
        match record.get("type").and_then(Value::as_str) {
            Some("job.created") => self.followed.extend(id("job")),
            Some("credential.issued") => self.followed.extend(id("lease")),
            Some("leases.ended") => {
                let ended = record.get("leases").and_then(Value::as_array).into_iter().flatten();
                for lease in ended.filter_map(Value::as_str) {
                    self.followed.remove(lease);
                }
            }
            _ => {}
        }
        if self.followed.len() > AUDIT_FOLLOWED_MAX {
            return Err(Failure::new(
                Exit::Failure,
                format!("more than {AUDIT_FOLLOWED_MAX} jobs and leases are about this name"),
            )
            .fix("ask for a narrower one, or for a part of the records by --from"));
        }
        Ok(true)
    }

    fn speaks_of(&self, key: Option<&str>, value: &Value) -> bool {
        match value {
            Value::String(text) => {
                self.followed.contains(text)
                    || self.words.iter().any(|word| says(text, word))
                    || self.field.as_ref().is_some_and(|(field, name)| {
                        key == Some(field) && text.rsplit(':').next() == Some(name)
                    })
            }
            Value::Array(items) => items.iter().any(|item| self.speaks_of(key, item)),
            Value::Object(fields) => fields.iter().any(|(key, value)| self.speaks_of(Some(key), value)),
            _ => false,
        }
    }
}

/// Whether a text is a name, lies below it, or says it among other words.
fn says(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.@/".contains(c);
    text.match_indices(name).any(|(at, _)| {
        let before = text.get(..at).and_then(|t| t.chars().next_back());
        let after = text.get(at.saturating_add(name.len())..).and_then(|t| t.chars().next());
        // All versions of a dataset stand below its name, and all of a domain's IDs below the domain.
        let below = match after {
            Some('@') => name.parse::<ResourceName>().is_ok(),
            Some('/') => name.starts_with("spiffe://") && !name.trim_start_matches("spiffe://").contains('/'),
            Some(c) => !is_part(c),
            None => true,
        };
        below && before.is_none_or(|c| !is_part(c))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_one_row_without_its_envelope() {
        let record = json!({
            "v": 1, "index": 7, "prev": "sha256:0", "time": "2026-11-20T10:02:11.402Z", "epoch": 3,
            "type": "revoked", "name": "job:j-1", "by": {"spiffe_id": "spiffe://td.example/op"}, "at": 1,
            "reason": "wrong\u{1b} data", "ending": {"seq": 4, "behind": 2}, "hash": "sha256:1", "acting_for": null,
        });
        assert_eq!(
            row(7, &record),
            "       7  2026-11-20T10:02:11.402Z  revoked             name=job:j-1 by=spiffe://td.example/op \
             reason=\"wrong\\u{1b} data\" leases_ended=2"
        );
        assert_eq!(
            short_row(7, &record),
            "       7  2026-11-20T10:02:11  revoked             name=job:j-1 by=spiffe://td.example/op \
             reason=\"wrong\\u{1b} data\" leases_ended=2"
        );
        assert_eq!(time(&record), Some(Wall(1_795_168_931_402)));
        let digest = format!("sha256:{}", "ab".repeat(32));
        let record = json!({
            "time": "t", "type": "leases.ended", "cause": {"lowered": {"name": "job:j-1", "seq": 4}},
            "leases": ["l-1", "l-2"], "by": {"daemon": "a deadline"}, "policy": digest, "expires": 1_795_148_000_000_u64,
        });
        assert_eq!(
            row(8, &record),
            "       8  t  leases.ended        cause=job:j-1 leases=l-1,l-2 by=\"daemon: a deadline\" \
             policy=sha256:abababababab… expires=2026-11-20T04:13:20.000Z"
        );
    }

    #[test]
    fn what_happened_with_a_dataset_is_its_jobs_its_leases_and_every_word_about_it() {
        let created =
            |job: &str, read: &str| json!({"type": "job.created", "job": job, "spec": {"read": [read]}});
        let records = [
            (true, created("j-1", "dataset:acme/tickets@v3")),
            (false, created("j-2", "dataset:acme/tickets-old@v3")),
            (true, json!({"type": "attempt.began", "job": "j-1"})),
            (false, json!({"type": "attempt.began", "job": "j-2"})),
            (true, json!({"type": "credential.issued", "job": "j-1", "lease": "l-1"})),
            (true, json!({"type": "denied", "text": "this job may not read dataset:acme/tickets@v1"})),
            (true, json!({"type": "lock.set", "name": "dataset:acme/tickets"})),
            (true, json!({"type": "leases.ended", "leases": ["l-9", "l-1"]})),
            (false, json!({"type": "leases.ended", "leases": ["l-9", "l-1"]})),
            (false, json!({"type": "lock.set", "name": "dataset:acme/ticket"})),
        ];
        let mut about = About::new("dataset:acme/tickets");
        for (taken, record) in records {
            assert_eq!(about.takes(&record).unwrap(), taken, "{record}");
        }
    }

    #[test]
    fn a_name_is_found_as_records_write_it() {
        let held = json!({
            "type": "x", "job": "j-1", "member": "spiffe://td.example/ns/a", "acting_for": "ada", "tenant": "acme",
            "scopes": [{"resource": "dataset:acme/t@v3"}],
        });
        for name in [
            "job:j-1",
            "identity:spiffe://td.example/ns/a",
            "domain:td.example",
            "human:ada",
            "tenant:acme",
            "dataset:acme/t",
            "dataset:acme/t@v3",
        ] {
            assert!(About::new(name).takes(&held).unwrap(), "{name}");
        }
        for name in [
            "job:j-11",
            "identity:spiffe://td.example/ns",
            "domain:td.exam",
            "human:acme",
            "tenant:ada",
            "dataset:acme/t@v",
        ] {
            assert!(!About::new(name).takes(&held).unwrap(), "{name}");
        }
    }
}

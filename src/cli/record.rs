//! Shows a record of the ledger as one row, and finds out whether a record is about a name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Exit, Failure};
use crate::{
    clock::Wall,
    limits::AUDIT_FOLLOWED_MAX,
    name::{FenceKind, FenceName, ResourceName},
};

/// The fields of a record that a row does not show as `key=value`. `at` repeats the time of the row.
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

/// Fields that contain a time in milliseconds since 1970.
const MOMENTS: [&str; 7] =
    ["ends", "until", "issued", "expires", "expires_at_latest", "reading_ends", "writing_ends"];

/// More fields with such a time. Rows do not convert them, because they repeat the time of the row, or are in records that people
/// seldom read.
const MORE_MOMENTS: [&str; 4] = ["at", "first", "last", "latest"];

/// The fields at the beginning of a row, in this order. The others follow in the order of the record.
const FIRST: [&str; 8] = ["job", "attempt", "lease", "name", "instance", "member", "half", "scopes"];

/// The fields of a job's specification that a row shows. The JSON has all of them.
const OF_SPEC: [&str; 7] = ["name", "tenant", "purpose", "why", "read", "read_checkpoints", "write"];

/// The fields that a short row leaves out, in addition to [`MOMENTS`].
const IN_WIDE_ROWS: [&str; 8] =
    ["tenant", "audience", "policy", "catalog", "leases", "generation", "stood_at", "purpose"];

/// Returns one row: index, time, type, and the fields of the event. Digests are shortened.
pub(super) fn row(index: u64, record: &Value) -> String {
    written(index, text(record, "time"), record, &said(record, &[]))
}

/// Returns a shorter row. Its time has no fractions of a second, and fields that few people look for are left out.
pub(super) fn short_row(index: u64, record: &Value) -> String {
    let time = text(record, "time");
    let seconds = time.split_once('.').map_or(time, |(seconds, _)| seconds);
    let left_out: Vec<&str> = IN_WIDE_ROWS.iter().chain(&MOMENTS).copied().collect();
    written(index, seconds, record, &said(record, &left_out))
}

/// Returns a record with each time in RFC 3339. The ledger has milliseconds since 1970, and seconds for the times in a token.
pub(super) fn with_times(record: &Value) -> Value {
    match record {
        Value::Array(items) => items.iter().map(with_times).collect(),
        Value::Object(fields) => {
            // Only the record of a token has this identifier.
            let unit = if fields.contains_key("jti") { 1_000 } else { 1 };
            let shown = |(key, value): (&String, &Value)| {
                let is_moment = MOMENTS.contains(&key.as_str()) || MORE_MOMENTS.contains(&key.as_str());
                let at = value.as_u64().filter(|_| is_moment).and_then(|at| at.checked_mul(unit));
                (key.clone(), at.map_or_else(|| with_times(value), |ms| Wall(ms).to_string().into()))
            };
            Value::Object(fields.iter().map(shown).collect())
        }
        other => other.clone(),
    }
}

/// Whether a record is of a type. The end of a revoked job or attempt also counts as `revoked`, because no other record reports
/// that revocation.
pub(super) fn is_of_type(record: &Value, wanted: &str) -> bool {
    let kind = text(record, "type");
    kind == wanted
        || wanted == "revoked"
            && matches!(kind, "job.closed" | "attempt.ended")
            && text(record, "outcome") == "revoked"
}

/// Returns when a record was written.
pub(super) fn time(record: &Value) -> Option<Wall> {
    let at = humantime::parse_rfc3339(record.get("time")?.as_str()?).ok()?;
    u64::try_from(at.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok().map(Wall)
}

fn text<'r>(record: &'r Value, key: &str) -> &'r str {
    record.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn written(index: u64, time: &str, record: &Value, said: &[String]) -> String {
    // A record in one tenant's part of the ledger has no index.
    let index = if index == 0 { "-".to_owned() } else { index.to_string() };
    format!("{index:>8}  {time}  {:<18}  {}", text(record, "type"), said.join(" "))
}

/// Returns each `key=value` of an event, with the most important first.
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
                kept.for_each(|(key, value)| push_field(key, value, &mut said));
            }
            // Leave out the rules that allowed the request. A denial has a different record.
            ("decision", Value::Object(decision)) => {
                push_field(key, decision.get("result").unwrap_or(&Value::Null), &mut said);
            }
            ("by", Value::Object(by)) => push_field(key, by.get("spiffe_id").unwrap_or(value), &mut said),
            ("ending", Value::Object(ending)) => {
                push_field("leases_ended", ending.get("behind").unwrap_or(&Value::Null), &mut said);
            }
            ("cause", Value::Object(cause)) => {
                let lowered = cause.get("lowered").and_then(|l| l.get("name"));
                push_field(key, lowered.unwrap_or(value), &mut said);
            }
            ("approvals", Value::Array(given)) => {
                let given = given
                    .iter()
                    .map(|a| format!("{} by {} ({})", text(a, "gate"), person(a), text(a, "reason")));
                push_field(key, &given.collect::<Vec<_>>().join("; ").into(), &mut said);
            }
            ("emergency", Value::Object(_)) => {
                let gates = value.get("gates").and_then(Value::as_array).into_iter().flatten();
                let gates: Vec<_> = gates.filter_map(Value::as_str).collect();
                let until = value
                    .get("until")
                    .and_then(Value::as_u64)
                    .map_or_else(String::new, |ms| Wall(ms).to_string());
                let (gates, by, why) = (gates.join(","), person(value), text(value, "reason"));
                push_field(key, &format!("{gates} by {by} until {until} ({why})").into(), &mut said);
            }
            ("consent", Value::Object(consent)) => {
                let given = consent.get("approvals").and_then(Value::as_array).into_iter().flatten();
                let approved: Vec<_> = given.map(person).collect();
                let proposed =
                    value.get("human").and_then(Value::as_str).map(|human| format!("human:{human}"));
                let proposed = proposed.unwrap_or_else(|| text(value, "proposed_by").to_owned());
                let why = text(value, "reason");
                let all = format!("proposed by {proposed} ({why}), approved by {}", approved.join(", "));
                push_field(key, &all.into(), &mut said);
            }
            ("waiting_for", Value::Array(gates)) => {
                let gates: Vec<_> = gates.iter().map(|gate| text(gate, "id")).collect();
                push_field(key, &gates.join(",").into(), &mut said);
            }
            ("credential" | "inputs" | "outputs", _) => {}
            _ => push_field(key, value, &mut said),
        }
    }
    said
}

/// Returns the person of an approval or an emergency, or the identity if the catalog did not say who it was.
fn person(value: &Value) -> String {
    match value.get("human").and_then(Value::as_str) {
        Some(human) => format!("human:{human}"),
        None => text(value, "by").to_owned(),
    }
}

/// Adds one `key=value`, with quotes if the value contains blanks. Adds nothing for an empty value.
fn push_field(key: &str, value: &Value, said: &mut Vec<String>) {
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

/// Returns a text such as `daemon: its deadline came` for an object with one text.
fn scalar(fields: &Map<String, Value>) -> Option<String> {
    let (key, value) = fields.iter().next()?;
    Some(format!("{key}: {}", plain(value.as_str().map(|_| value)?)))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => short(text),
        Value::Object(fields) => match (fields.get("resource"), fields.get("actions")) {
            // The value is a scope. Its actions follow from the half.
            (Some(Value::String(resource)), Some(_)) => resource.clone(),
            _ => with_times(value).to_string(),
        },
        other => other.to_string(),
    }
}

/// Shortens a digest to its first twelve digits.
fn short(text: &str) -> String {
    const KEPT: usize = "sha256:".len() + 12;
    match text.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 => format!("{}…", text.get(..KEPT).unwrap_or(text)),
        _ => text.to_owned(),
    }
}

/// The fields that name a person. `acting_for` is the person behind a job.
const OF_A_PERSON: [&str; 2] = ["human", "acting_for"];

/// The fields beside `human` that contain the identity of this person.
const IDENTITY_BESIDE_HUMAN: [&str; 4] = ["by", "spiffe_id", "person", "proposed_by"];

/// Selects the records about one name, and about the jobs and leases that depend on it.
pub(super) struct About {
    /// The forms in which records contain the name: the whole name, and an id without its kind.
    words: Vec<String>,
    /// The fields for a tenant or a person, and the name in them.
    fields: (&'static [&'static str], String),
    /// For an attempt or a member: the job, the attempt, and the instance of the member.
    run: Option<(String, u64, Option<String>)>,
    /// The jobs and live leases that depend on the name, and the identities of a person, at most [`AUDIT_FOLLOWED_MAX`].
    followed: BTreeSet<String>,
}

impl About {
    /// Takes a name in the form that `revoke` accepts.
    pub(super) fn new(name: &str) -> Self {
        let mut words = vec![name.to_owned()];
        let mut fields: (&[&str], String) = (&[], String::new());
        match name.split_once(':') {
            Some(("job" | "lease" | "identity" | "image", id)) => words.push(id.to_owned()),
            Some(("domain", domain)) => words.push(format!("spiffe://{domain}")),
            Some(("tenant", tenant)) => fields = (&["tenant"], tenant.to_owned()),
            Some(("human", human)) => fields = (&OF_A_PERSON, human.to_owned()),
            _ => {}
        }
        let run = match name.parse::<FenceName>().map(|name| name.kind()) {
            Ok(FenceKind::Attempt(job, attempt) | FenceKind::AttemptReading(job, attempt)) => {
                Some((job.to_string(), attempt.value(), None))
            }
            Ok(
                FenceKind::Member(job, attempt, instance) | FenceKind::MemberReading(job, attempt, instance),
            ) => Some((job.to_string(), attempt.value(), Some(instance.to_string()))),
            _ => None,
        };
        About { words, fields, run, followed: BTreeSet::new() }
    }

    /// Whether a record is about the name. Call it for each record in order, because a job is followed from its creation on.
    pub(super) fn matches(&mut self, record: &Value) -> Result<bool, Failure> {
        if !self.is_of_run(record) && !self.mentions(None, record) {
            return Ok(false);
        }
        self.follow_identities(record);
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
                format!("more than {AUDIT_FOLLOWED_MAX} jobs, leases and identities depend on this name"),
            )
            .fix("use a narrower name, or read a part of the records with --from"));
        }
        Ok(true)
    }

    /// Whether the name is an attempt or a member, and the record is about it.
    fn is_of_run(&self, record: &Value) -> bool {
        self.run.as_ref().is_some_and(|(job, attempt, instance)| {
            text(record, "job") == job
                && record.get("attempt").and_then(Value::as_u64) == Some(*attempt)
                && instance.as_ref().is_none_or(|instance| text(record, "instance") == instance)
        })
    }

    /// Follows the identities of a person, if the name is a person. Most records of what a person did have only an identity.
    fn follow_identities(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.follow_identities(item)),
            Value::Object(fields) => {
                if fields.get("human").and_then(Value::as_str).is_some_and(|h| self.is_in_field("human", h)) {
                    let beside = IDENTITY_BESIDE_HUMAN.iter().filter_map(|key| fields.get(*key)?.as_str());
                    self.followed.extend(beside.map(str::to_owned));
                }
                fields.values().for_each(|value| self.follow_identities(value));
            }
            _ => {}
        }
    }

    /// Whether a text in this field is the name of the tenant or the person.
    fn is_in_field(&self, key: &str, text: &str) -> bool {
        let (keys, name) = &self.fields;
        keys.contains(&key) && text.rsplit(':').next() == Some(name)
    }

    fn mentions(&self, key: Option<&str>, value: &Value) -> bool {
        match value {
            Value::String(text) => {
                self.followed.contains(text)
                    || self.words.iter().any(|word| contains_name(text, word))
                    || key.is_some_and(|key| self.is_in_field(key, text))
            }
            Value::Array(items) => items.iter().any(|item| self.mentions(key, item)),
            Value::Object(fields) => fields.iter().any(|(key, value)| self.mentions(Some(key), value)),
            _ => false,
        }
    }
}

/// Whether a text is the name, is below it, or contains it as a word.
fn contains_name(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.@/".contains(c);
    text.match_indices(name).any(|(at, _)| {
        let before = text.get(..at).and_then(|t| t.chars().next_back());
        let after = text.get(at.saturating_add(name.len())..).and_then(|t| t.chars().next());
        // All versions of a dataset are below its name, all IDs of a domain below the domain, and the halves of a run below the run.
        let below = match after {
            Some('@') => name.parse::<ResourceName>().is_ok(),
            Some('/') => {
                let is_domain = name.strip_prefix("spiffe://").is_some_and(|domain| !domain.contains('/'));
                is_domain || name.starts_with("attempt:") || name.starts_with("member:")
            }
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
    fn a_row_says_who_approved_what_and_when() {
        let given = |gate: &str, human: Value| {
            json!({"gate": gate, "group": "ops", "by": "spiffe://td/ada", "human": human, "at": 1_795_148_000_000_u64,
                "reason": "seen, CHG-7"})
        };
        let record = json!({
            "time": "t", "type": "job.approved", "job": "j-1",
            "approvals": [given("prod", json!("ada")), given("data", Value::Null)],
        });
        assert_eq!(
            row(60, &record),
            "      60  t  job.approved        job=j-1 approvals=\"prod by human:ada (seen, CHG-7); \
             data by spiffe://td/ada (seen, CHG-7)\""
        );
        let emergency = json!({
            "by": "spiffe://td/ada", "human": "ada", "gates": ["prod"], "reason": "INC-7",
            "at": 1_795_148_000_000_u64, "until": 1_795_148_060_000_u64,
        });
        let record = json!({ "time": "t", "type": "job.glass_broken", "job": "j-1", "emergency": emergency });
        assert_eq!(
            row(61, &record),
            "      61  t  job.glass_broken    job=j-1 emergency=\"prod by human:ada until 2026-11-20T04:14:20.000Z \
             (INC-7)\""
        );
        let gate = json!({ "id": "prod", "approver_group": "ops", "approvals_needed": 2, "explanation": "production" });
        let record =
            json!({ "time": "t", "type": "change.proposed", "call": "ApplyPolicy", "waiting_for": [gate] });
        assert_eq!(row(62, &record), "      62  t  change.proposed     call=ApplyPolicy waiting_for=prod");
    }

    #[test]
    fn all_times_of_a_record_have_one_form() {
        let record = json!({
            "time": "2026-11-20T04:13:20.000Z", "at": 1_795_148_000_000_u64, "count": 7, "seq": 1_795_148_000_000_u64,
            "issued": 1_795_148_000_000_u64, "credential": { "jti": "x", "expires": 1_795_148_000_u64 },
            "until": null, "spec": { "max_duration_ms": 3_600_000 },
            "uses": [{ "objects": 2, "first": 1_795_148_000_000_u64, "last": 1_795_148_000_000_u64 }],
        });
        let at = "2026-11-20T04:13:20.000Z";
        let wanted = json!({
            "time": at, "at": at, "count": 7, "seq": 1_795_148_000_000_u64, "issued": at,
            "credential": { "jti": "x", "expires": at }, "until": null, "spec": { "max_duration_ms": 3_600_000 },
            "uses": [{ "objects": 2, "first": at, "last": at }],
        });
        assert_eq!(with_times(&record), wanted);
    }

    #[test]
    fn a_revoked_job_is_of_the_type_revoked() {
        for (record, is) in [
            (json!({"type": "revoked"}), true),
            (json!({"type": "job.closed", "outcome": "revoked"}), true),
            (json!({"type": "attempt.ended", "outcome": "revoked"}), true),
            (json!({"type": "job.closed", "outcome": "failed"}), false),
            (json!({"type": "denied", "outcome": "revoked"}), false),
        ] {
            assert_eq!(is_of_type(&record, "revoked"), is, "{record}");
        }
        assert!(is_of_type(&json!({"type": "job.closed", "outcome": "revoked"}), "job.closed"));
    }

    #[test]
    fn a_dataset_is_followed_through_its_jobs_and_leases() {
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
            assert_eq!(about.matches(&record).unwrap(), taken, "{record}");
        }
    }

    #[test]
    fn a_person_is_found_by_what_they_decided() {
        let ada = "spiffe://td.example/people/ada";
        let given = |by: &str, human: &str| json!([{"gate": "g", "by": by, "human": human}]);
        let records = [
            (false, json!({"type": "denied", "by": ada})),
            (true, json!({"type": "job.approved", "job": "j-1", "approvals": given(ada, "ada")})),
            // From here on, records that have only the identity are about the person too.
            (true, json!({"type": "denied", "by": ada})),
            (true, json!({"type": "job.approval_withdrawn", "job": "j-1", "approver": ada})),
            (
                true,
                json!({"type": "change.closed", "proposed_by": ada, "by": {"spiffe_id": "spiffe://td.example/x"}}),
            ),
            (true, json!({"type": "job.created", "job": "j-2", "launcher": ada})),
            (true, json!({"type": "attempt.began", "job": "j-2", "attempt": 1})),
            (false, json!({"type": "attempt.began", "job": "j-1", "attempt": 1})),
            (
                false,
                json!({"type": "job.approved", "job": "j-3", "approvals": given("spiffe://td.example/x", "bob")}),
            ),
            (false, json!({"type": "denied", "by": "spiffe://td.example/x"})),
            (
                true,
                json!({"type": "job.closed", "by": {"spiffe_id": "spiffe://td.example/night/ada", "human": "ada"}}),
            ),
            (true, json!({"type": "revoked", "by": {"spiffe_id": "spiffe://td.example/night/ada"}})),
            (
                true,
                json!({"type": "person.logged_in", "person": "spiffe://td.example/h/ada", "human": "ada"}),
            ),
            (true, json!({"type": "denied", "by": "spiffe://td.example/h/ada"})),
            (true, json!({"type": "job.glass_broken", "emergency": {"by": ada, "human": "ada"}})),
            (true, json!({"type": "lock.set", "name": "human:ada"})),
            (false, json!({"type": "lock.set", "name": "human:adam"})),
        ];
        let mut about = About::new("human:ada");
        for (taken, record) in records {
            assert_eq!(about.matches(&record).unwrap(), taken, "{record}");
        }
    }

    #[test]
    fn a_run_and_an_image_are_found_too() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let member = json!({"type": "member.lost", "job": "j-00000000000000000000000001", "attempt": 2, "instance": "rank-0"});
        let began = json!({"type": "attempt.began", "job": "j-00000000000000000000000001", "attempt": 2});
        let created =
            json!({"type": "job.created", "job": "j-00000000000000000000000009", "spec": {"image": digest}});
        let lowered = json!({"type": "lowered", "name": "attempt:j-00000000000000000000000001/2/reading"});
        for (name, record, is) in [
            ("attempt:j-00000000000000000000000001/2", &member, true),
            ("attempt:j-00000000000000000000000001/2", &began, true),
            ("attempt:j-00000000000000000000000001/2/reading", &began, true),
            ("attempt:j-00000000000000000000000001/2", &lowered, true),
            ("attempt:j-00000000000000000000000001/1", &began, false),
            ("attempt:j-00000000000000000000000002/2", &began, false),
            ("member:j-00000000000000000000000001/2/rank-0", &member, true),
            ("member:j-00000000000000000000000001/2/rank-1", &member, false),
            ("member:j-00000000000000000000000001/2/rank-0", &began, false),
            (&format!("image:{digest}"), &created, true),
            (&format!("image:sha256:{}", "0b".repeat(32)), &created, false),
        ] {
            assert_eq!(About::new(name).matches(record).unwrap(), is, "{name} {record}");
        }
    }

    #[test]
    fn a_name_is_found_in_the_form_that_records_use() {
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
            assert!(About::new(name).matches(&held).unwrap(), "{name}");
        }
        for name in [
            "job:j-11",
            "identity:spiffe://td.example/ns",
            "domain:td.exam",
            "human:acme",
            "tenant:ada",
            "dataset:acme/t@v",
        ] {
            assert!(!About::new(name).matches(&held).unwrap(), "{name}");
        }
    }
}

//! Reading the fields of a request. A refusal names the field.

use std::time::Duration;

use crate::{
    clock::LeaseTime,
    limits,
    name::{AttemptNumber, JobId, NameError},
    reason::{Reason, Refusal},
    secret::looks_secret,
};

/// Reads a required name.
pub(super) fn read_name<T: std::str::FromStr<Err = NameError>>(
    field: &'static str,
    text: &str,
) -> Result<T, Refusal> {
    if text.is_empty() {
        return Err(Refusal::new(Reason::FieldMissing, format!("`{field}` is required")).with("field", field));
    }
    text.parse()
        .map_err(|e: NameError| Refusal::new(Reason::FieldInvalid, e.to_string()).with("field", field))
}

/// Reads a name that may be left empty.
pub(super) fn read_optional_name<T: std::str::FromStr<Err = NameError>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>, Refusal> {
    if text.is_empty() { Ok(None) } else { read_name(field, text).map(Some) }
}

pub(super) fn read_attempt_number(n: u64) -> Result<AttemptNumber, Refusal> {
    AttemptNumber::new(n).ok_or_else(|| {
        Refusal::new(Reason::FieldMissing, "`attempt` is required: attempts count from 1")
            .with("field", "attempt")
    })
}

/// Reads free text. It must be within its bound and without control characters.
pub(super) fn read_text(field: &'static str, text: &str, max: usize) -> Result<String, Refusal> {
    if text.len() > max {
        return Err(Refusal::new(Reason::FieldInvalid, format!("`{field}` is longer than {max} bytes"))
            .with("field", field));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(Refusal::new(Reason::FieldInvalid, format!("`{field}` has control characters in it"))
            .with("field", field));
    }
    if looks_secret(text) {
        return Err(Refusal::new(Reason::FieldInvalid, secret_in(field))
            .with("field", field)
            .fix("write it without the key or token, and revoke that: it has left your hands"));
    }
    Ok(text.to_owned())
}

/// Says that a free text has a key or a token in it, without showing it. Free texts are recorded, and many people read them.
pub(super) fn secret_in(field: &str) -> String {
    format!("`{field}` looks like a key, a token or a password: it is recorded, so it must hold none")
}

/// Reads a list of texts: at most `max` of them, each within its bound and without control characters.
pub(super) fn read_texts(
    field: &'static str,
    list: &[String],
    max: usize,
    bytes_max: usize,
) -> Result<Vec<String>, Refusal> {
    check_count(field, list.len(), max)?;
    list.iter().map(|text| read_text(field, text, bytes_max)).collect()
}

/// Refuses a list with too many entries.
pub(super) fn check_count(field: &'static str, count: usize, max: usize) -> Result<(), Refusal> {
    if count <= max {
        return Ok(());
    }
    let text = format!("`{field}` has {count} entries: at most {max}");
    Err(Refusal::new(Reason::FieldInvalid, text).with("field", field))
}

/// Reads free text that must not be empty.
pub(super) fn read_required_text(field: &'static str, value: &str, max: usize) -> Result<String, Refusal> {
    if value.trim().is_empty() {
        return Err(Refusal::new(Reason::FieldMissing, format!("`{field}` is required")).with("field", field));
    }
    read_text(field, value, max)
}

/// Reads a duration: at least a millisecond, and at most `max`.
pub(super) fn read_duration(
    field: &'static str,
    d: Option<&prost_types::Duration>,
    max: Duration,
) -> Result<Option<Duration>, Refusal> {
    let Some(d) = d else { return Ok(None) };
    let bad =
        |why: String| Err(Refusal::new(Reason::TtlInvalid, format!("`{field}` {why}")).with("field", field));
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(d.seconds), u32::try_from(d.nanos)) else {
        return bad("is below zero".into());
    };
    if nanos > 999_999_999 {
        return bad("has more than a second of nanoseconds".into());
    }
    let life = Duration::new(seconds, nanos);
    if life < Duration::from_millis(1) {
        return bad("is zero: say how long, or leave it out".into());
    }
    if life > max {
        return bad(format!("is longer than {} s, the longest that is allowed", max.as_secs()));
    }
    Ok(Some(life))
}

/// Reads the position of a page in a list of jobs.
pub(super) fn read_job_page(token: &str) -> Result<Option<(LeaseTime, JobId)>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    token
        .split_once('.')
        .and_then(|(t, id)| Some((LeaseTime(t.parse().ok()?), id.parse().ok()?)))
        .map(Some)
        .ok_or_else(|| {
            Refusal::new(Reason::FieldInvalid, "`page_token` is not from a response of this daemon")
                .with("field", "page_token")
        })
}

/// The number of entries on a page: as many as asked for, within the bound.
pub(super) fn page_size(asked: u32) -> usize {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => limits::PAGE_DEFAULT,
        n => n.min(limits::PAGE_MAX),
    }
}

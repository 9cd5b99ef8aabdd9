//! Reads the fields of a request. A refusal names the field.

use std::time::Duration;

use crate::{
    clock::LeaseTime,
    limits,
    name::{AttemptNumber, JobId, NameError},
    reason::{Reason, Refusal},
    secret::{as_read, holds_secret, looks_secret},
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
    if looks_secret(&as_read(text)) {
        return Err(secret_refused(field));
    }
    Ok(text.to_owned())
}

fn secret_refused(field: &'static str) -> Refusal {
    Refusal::new(Reason::FieldInvalid, secret_in(field)).with("field", field).fix(
        "write it without the key or token, and revoke the key or token, because others may have seen it",
    )
}

/// Reads a reason that a person wrote for other people. It must be within its bound, without control characters and
/// without secrets.
pub(super) fn read_reason(field: &'static str, text: &str) -> Result<String, Refusal> {
    // Check the length first: the search for a secret converts the text to plain letters, which may be many times as
    // long.
    let read = read_text(field, text, limits::TEXT_BYTES_MAX)?;
    if holds_secret(&read) { Err(secret_refused(field)) } else { Ok(read) }
}

/// Returns the message for a free text that contains a key or a token. The message does not show the secret. Free texts
/// are recorded, and many people read them.
pub(super) fn secret_in(field: &str) -> String {
    format!("`{field}` looks like a key, a token or a password: it is recorded, so it must not contain one")
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

/// Reads a reason that must not be empty.
pub(super) fn read_required_reason(field: &'static str, value: &str) -> Result<String, Refusal> {
    check_not_empty(field, value)?;
    read_reason(field, value)
}

/// Reads an idempotency key or an attempt key, which a program chose.
pub(super) fn read_key(field: &'static str, value: &str) -> Result<String, Refusal> {
    check_not_empty(field, value)?;
    read_text(field, value, limits::KEY_BYTES_MAX)
}

fn check_not_empty(field: &'static str, value: &str) -> Result<(), Refusal> {
    match value.trim().is_empty() {
        true => {
            Err(Refusal::new(Reason::FieldMissing, format!("`{field}` is required")).with("field", field))
        }
        false => Ok(()),
    }
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
        return bad("has `nanos` outside 0 to 999,999,999".into());
    }
    let life = Duration::new(seconds, nanos);
    if life < Duration::from_millis(1) {
        return bad("is zero: say how long, or leave it out".into());
    }
    if life > max {
        return bad(format!("is longer than the limit of {} s", max.as_secs()));
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

/// Returns the number of entries on a page: the requested number, within the bound.
pub(super) fn page_size(asked: u32) -> usize {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => limits::PAGE_DEFAULT,
        n => n.min(limits::PAGE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "4be1c0de93a75f2018cd6eb2907af34d4be1c0de93a75f2018cd6eb2907af34d";

    fn reason(text: &str) -> Result<String, Refusal> {
        read_required_reason("reason", text)
    }

    #[test]
    fn a_text_with_a_secret_is_refused_without_showing_it() {
        let (md5, sha1) = (&HEX[..32], &HEX[..40]);
        for text in [
            "password=hunter2hunter2",
            "token=abc123def456ghi789",
            &format!("api_key={md5}"),
            HEX,
            md5,
            &format!("use {HEX} for now"),
            &format!("the gateway has {sha1}"),
            "hvs.CAESIJ0p3kX9_cQ2m-Zr7bT5",
            "hvs.abcdef123456",
            "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "the password is hunter2",
            "password: correct-horse7",
            "the passwd=secret! of db1",
            "pwd='open sesame'",
            "secret=opensesame",
            "PGPASSWORD=hunter22",
            "client_secret: \"a1b2c3d4\"",
            "apiKey=abcdefgh",
            "access-key = AbCdEf123",
            "psql --password hunter2xyz",
            "run with --token=abcdefgh",
            "{\"token\":\"abc123def456\"}",
            "DB_PASS=hunter22",
            "https://acme.example/?access_token=abc123def",
            "sk-abcdefghijklmnop1234",
            "xoxb-1234-abcdef5678",
            "ghp_abcdef1234567890",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "4kx9cq2mzr7bt5wyv1lsnd8hfga0pq3e",
            "passphrase := correct-horse7",
        ] {
            let refused = reason(text).unwrap_err();
            assert_eq!(refused.reason, Reason::FieldInvalid, "{text}");
            assert!(!format!("{refused:?}").contains(text), "{text}");
        }
    }

    #[test]
    fn a_text_that_people_write_about_their_work_is_accepted() {
        let (md5, sha1) = (&HEX[..32], &HEX[..40]);
        for text in [
            "CHG-1412: weekly refresh",
            "job j-01k9zzzzzzzzzzzzzzzzzzzzzz was stuck",
            &format!("the digest was sha256:{HEX}"),
            &format!("built from commit {sha1}"),
            &format!("see https://git.acme.example/ml/repo/commit/{sha1}"),
            &format!("rolled back to repo@{sha1}"),
            &format!("hf-revision:{sha1} and manifest:{HEX}"),
            &format!("md5 {md5}, trace id {md5}"),
            "7f3c9a00-1111-4222-8333-444455556666",
            "the token of the gateway had leaked",
            "password: rotated by the platform team",
            "the API key was in the log: INC-7",
            "tokens=4096 and max_token=100000",
            "pad_token=<|endoftext|>",
            "eos_token=[EOS]",
            "token budget: 200000",
            "secret scanning found nothing",
            "the secret is rotated weekly",
            "the password is in CHG-1412",
            "password reset, asked for by ada@acme.example",
            "token=$TOKEN was empty",
            "password=<redacted>, token=********",
            "s3://acme-data/tickets/v3/ moved",
            "spiffe://k8s.acme.example/ns/ml/job/tuner left",
            "learning_rate=1e-4",
            "PWD=/home/ada/project",
            "pass=3 of 5",
            "access_key of ada is disabled",
            "the experiment support-tuning-of-October-2026-11-29-v2",
        ] {
            assert!(reason(text).is_ok(), "{text}: {:?}", reason(text));
        }
    }
}

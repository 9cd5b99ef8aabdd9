//! Parsers for the values of arguments: names, reasons, spans of time, roles.

use std::{path::PathBuf, time::Duration};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{
    contexts_file::{SvidFiles, SvidFrom},
    ids::{self, JobRef, LeaseRef},
};
use crate::{
    clock::Wall,
    identity::{Pick, WorkloadEndpoint},
    ledger::Event,
    limits::{JOB_DURATION_MAX, TEXT_BYTES_MAX, TTL_MIN},
    name::{
        FenceKind, FenceName, PrincipalKind, ResourceKind, ResourceName, SpiffeId, SpiffePattern, TrustDomain,
    },
    plain,
    proto::{convert::timestamp, v1},
    secret::looks_secret,
};

/// Parses a name that can be revoked: a name with its kind, or only the id of a job, a lease or a workload.
pub(super) fn ending_name(text: &str) -> Result<String, String> {
    let name = match () {
        () if text.parse::<JobRef>().is_ok() => format!("job:{text}"),
        () if text.parse::<LeaseRef>().is_ok() => format!("lease:{text}"),
        () if text.parse::<SpiffeId>().is_ok() => format!("identity:{text}"),
        () => text.to_owned(),
    };
    let is_short =
        |kind: &str, letter: &str| name.strip_prefix(kind).is_some_and(|id| ids::is_beginning(id, letter));
    if is_short("job:", "j-") || is_short("lease:", "l-") {
        // The beginning of an id is completed later by the daemon.
        return Ok(name);
    }
    let parsed: FenceName = name.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    match parsed.kind() {
        FenceKind::Epoch => Err("`epoch` cannot be revoked: stop the daemon to end all access".to_owned()),
        _ => Ok(name),
    }
}

/// Parses a name that can be locked: a name that can be revoked, all SPIFFE IDs below a path, or a launcher for its jobs.
pub(super) fn lock_name(text: &str) -> Result<String, String> {
    if let Some(id) = text.strip_prefix("launcher:") {
        return id.parse::<SpiffeId>().map(|_| text.to_owned()).map_err(|e| e.to_string());
    }
    let Some(prefix) = text.strip_prefix("identity-prefix:") else { return ending_name(text) };
    let below = prefix.strip_suffix('/').map(|p| format!("{p}/x"));
    match below.map(|id| id.parse::<SpiffeId>()) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err(format!(
            "`{}` is not a prefix: write identity-prefix:spiffe://DOMAIN/PATH/",
            plain::value(prefix)
        )),
    }
}

/// Parses a SPIFFE ID, or a pattern for several SPIFFE IDs.
pub(super) fn pattern(text: &str) -> Result<String, String> {
    text.parse::<SpiffePattern>().map(|p| p.to_string()).map_err(|e| e.to_string())
}

/// Parses a reason that people will read.
pub(super) fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty: write why, for the people who lose access and for auditors".to_owned());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("it has {} bytes: write at most {TEXT_BYTES_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("it has a control character: write one plain line".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses a span of time of at least a second.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if (TTL_MIN..=10 * JOB_DURATION_MAX).contains(&d) => Ok(d),
        Ok(_) => Err("it is out of bounds: write 1s to 300d".to_owned()),
        Err(_) => Err("it is not a span of time: write a number and a unit, such as 90s or 8h".to_owned()),
    }
}

/// A value of `job list --state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateFilter {
    State(v1::JobState),
    ClosedAs(v1::Outcome),
}

pub(super) fn job_state(text: &str) -> Result<StateFilter, String> {
    let wire = |prefix: &str| format!("{prefix}{}", text.to_ascii_uppercase().replace('-', "_"));
    let state = v1::JobState::from_str_name(&wire("JOB_STATE_")).map(StateFilter::State);
    let outcome = v1::Outcome::from_str_name(&wire("OUTCOME_")).map(StateFilter::ClosedAs);
    state.or(outcome).filter(|_| !["unspecified", "superseded"].contains(&text)).ok_or_else(|| {
        "it is not a state: write awaiting-approval, ready, running, closed, or an outcome such as failed or revoked".to_owned()
    })
}

/// Parses a dataset, with or without `dataset:`.
pub(super) fn dataset(text: &str) -> Result<ResourceName, String> {
    of_kind(ResourceKind::Dataset, "dataset:", text)
}

/// Parses a model, with or without `model:`.
pub(super) fn model(text: &str) -> Result<ResourceName, String> {
    of_kind(ResourceKind::Model, "model:", text)
}

fn of_kind(kind: ResourceKind, prefix: &str, text: &str) -> Result<ResourceName, String> {
    let whole = format!("{prefix}{}", text.strip_prefix(prefix).unwrap_or(text));
    let name: ResourceName = whole.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    if name.kind() == kind {
        Ok(name)
    } else {
        Err(format!("`{name}` is something else: write {prefix}TENANT/NAME"))
    }
}

/// A time, or a period before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    Moment(Wall),
    Ago(Duration),
}

impl Since {
    pub(super) fn wall(self, now: Wall) -> Wall {
        match self {
            Since::Moment(at) => at,
            Since::Ago(span) => {
                Wall(now.0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
            }
        }
    }

    pub(super) fn timestamp(self, now: Wall) -> prost_types::Timestamp {
        timestamp(self.wall(now))
    }
}

/// The longest span before now: ten years.
const SINCE_MAX: Duration = Duration::from_secs(3_660 * 24 * 3_600);

pub(super) fn since(text: &str) -> Result<Since, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        return match span <= SINCE_MAX {
            true => Ok(Since::Ago(span)),
            false => Err("it is more than ten years ago".to_owned()),
        };
    }
    let at = humantime::parse_rfc3339_weak(text).ok();
    let at = at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    at.and_then(|at| u64::try_from(at.as_millis()).ok()).map(|ms| Since::Moment(Wall(ms))).ok_or_else(|| {
        "it is not a span before now, such as 90s or 2h, and not a time in UTC, such as 2026-11-29T08:00:00Z"
            .to_owned()
    })
}

/// Parses `DOMAIN=FILE`. Makes the path absolute, because the contexts file is in another directory.
pub(super) fn bundle(text: &str) -> Result<(TrustDomain, PathBuf), String> {
    let (domain, file) = text.split_once('=').ok_or("write DOMAIN=FILE, such as acme.example=bundle.pem")?;
    let domain = domain.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    Ok((domain, absolute(file)?))
}

/// Parses `ROLE=CERT,KEY` or `ROLE=unix:///PATH`.
pub(super) fn identity(text: &str) -> Result<(PrincipalKind, SvidFrom), String> {
    let shape = "write ROLE=CERT,KEY or ROLE=unix:///PATH, such as operator=svid.pem,svid.key";
    let (role, from) = text.split_once('=').ok_or(shape)?;
    let role = role.parse::<PrincipalKind>().map_err(|e| e.to_string())?;
    if from.starts_with("unix:") || from.starts_with("tcp:") {
        let endpoint = from.parse::<WorkloadEndpoint>().map_err(|e| e.to_string())?;
        return Ok((role, SvidFrom::WorkloadApi { endpoint: Some(endpoint), pick: Pick::First }));
    }
    let (cert, key) = from.split_once(',').ok_or(shape)?;
    Ok((role, SvidFiles { cert: absolute(cert)?, key: absolute(key)? }.into()))
}

/// Parses `NAME=VALUE`.
pub(super) fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as learning_rate=1e-4")?;
    match name.trim().is_empty() {
        true => Err("the name before `=` is empty: write NAME=VALUE".to_owned()),
        false => Ok((name.to_owned(), value.to_owned())),
    }
}

/// Parses a path that a command may create. Refuses text that looks like a key or a token, because it would become a file name.
pub(super) fn new_path(text: &str) -> Result<PathBuf, String> {
    match looks_secret(text) {
        true => Err("it looks like a key or a token: write a path".to_owned()),
        false => Ok(text.into()),
    }
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|_| "it is not the path of a file".to_owned())
}

/// Parses a type of the ledger's records. The error lists all types.
pub(super) fn record_type(text: &str) -> Result<String, String> {
    match serde_json::from_value::<Event>(serde_json::json!({ "type": text })) {
        Err(e) if e.to_string().starts_with("unknown variant") => {
            Err(plain::message(&e.to_string()).into_owned())
        }
        // The type is known. Only the other fields of a record are missing here.
        _ => Ok(text.to_owned()),
    }
}

/// Returns the parser for a role.
pub(super) fn role() -> impl TypedValueParser<Value = PrincipalKind> {
    let words = PrincipalKind::ALL.iter().map(|k| k.as_str());
    PossibleValuesParser::new(words).try_map(|word| word.parse::<PrincipalKind>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_plain_words() {
        assert_eq!(job_state("awaiting-approval"), Ok(StateFilter::State(v1::JobState::AwaitingApproval)));
        assert_eq!(job_state("failed"), Ok(StateFilter::ClosedAs(v1::Outcome::Failed)));
        for bad in ["", "open", "superseded", "unspecified"] {
            assert!(job_state(bad).is_err(), "{bad}");
        }
        assert_eq!(dataset("acme/tickets@v3").unwrap().as_str(), "dataset:acme/tickets@v3");
        assert_eq!(dataset("dataset:acme/tickets").unwrap().as_str(), "dataset:acme/tickets");
        assert!(dataset("model:acme/base@1").is_err());
        assert_eq!(record_type("lock.set"), Ok("lock.set".to_owned()));
        assert!(record_type("lock").unwrap_err().contains("`lock.set`"), "it lists all types");
        assert!(!record_type("x\u{1b}[0m\nFAKE").unwrap_err().contains('\n'));
        let now = Wall(1_795_148_000_000);
        assert_eq!(since("2h").unwrap().wall(now), Wall(1_795_140_800_000));
        assert_eq!(since("2026-11-20T04:13:20Z").unwrap().wall(now), now);
        for bad in ["", "yesterday", "100y", "2h ago"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_by_itself_becomes_a_name() {
        let (j, l) = (crate::name::JobId(7), crate::name::LeaseId(9));
        for (text, name) in [
            (j.to_string(), format!("job:{j}")),
            (format!("job:{j}"), format!("job:{j}")),
            (l.to_string(), format!("lease:{l}")),
            ("spiffe://td.example/w".into(), "identity:spiffe://td.example/w".into()),
            ("dataset:acme/tickets@v3".into(), "dataset:acme/tickets@v3".into()),
            ("human:ada".into(), "human:ada".into()),
            ("j-0abc".into(), "job:j-0abc".into()),
            ("lease:l-0abcd".into(), "lease:l-0abcd".into()),
        ] {
            assert_eq!(ending_name(&text), Ok(name));
        }
        for bad in [
            "",
            "j-1",
            "job:j-0",
            "epoch",
            "job:",
            "tenant:../x",
            "volume:a",
            "identity-prefix:spiffe://td/a/",
        ] {
            assert!(ending_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_ends_in_a_slash_and_is_only_for_locks() {
        assert!(lock_name("identity-prefix:spiffe://td.example/ns/a/").is_ok());
        assert!(lock_name("tenant:acme").is_ok());
        assert!(lock_name("launcher:spiffe://td.example/ci").is_ok());
        assert!(lock_name("launcher:ci").is_err());
        for bad in
            ["identity-prefix:spiffe://td.example/ns/a", "identity-prefix:/", "identity-prefix:spiffe://td//"]
        {
            assert!(lock_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reason_is_one_line_and_a_span_has_bounds() {
        assert!(reason("leaked key, CHG-7").is_ok());
        for bad in ["", "  ", "a\nb", &"x".repeat(TEXT_BYTES_MAX + 1)] {
            assert!(reason(bad).is_err());
        }
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        for bad in ["0s", "100y", "5", "x"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}

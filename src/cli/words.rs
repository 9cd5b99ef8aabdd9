//! Words of the command line that become values: names, reasons, spans, roles.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::{
    limits::{JOB_DURATION_MAX, TEXT_BYTES_MAX, TTL_MIN},
    name::{FenceKind, FenceName, JobId, LeaseId, PrincipalKind, SpiffeId},
};

/// What can be revoked: a name of the fence grammar, or the bare id of a job, a lease or a workload.
pub(super) fn ending_name(text: &str) -> Result<String, String> {
    let name = match () {
        () if text.parse::<JobId>().is_ok() => format!("job:{text}"),
        () if text.parse::<LeaseId>().is_ok() => format!("lease:{text}"),
        () if text.parse::<SpiffeId>().is_ok() => format!("identity:{text}"),
        () => text.to_owned(),
    };
    let parsed: FenceName = name.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    match parsed.kind() {
        FenceKind::Epoch => Err("`epoch` is the daemon's own: stop the daemon to end everything".to_owned()),
        _ => Ok(name),
    }
}

/// What can be locked: the same, or all SPIFFE IDs below a path.
pub(super) fn lock_name(text: &str) -> Result<String, String> {
    let Some(prefix) = text.strip_prefix("identity-prefix:") else { return ending_name(text) };
    let below = prefix.strip_suffix('/').map(|p| format!("{p}/x"));
    match below.map(|id| id.parse::<SpiffeId>()) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err(format!(
            "`{}` is not a prefix: write identity-prefix:spiffe://DOMAIN/PATH/",
            prefix.escape_debug()
        )),
    }
}

/// A reason that people will read.
pub(super) fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty: say why, for those who are cut off and for the auditor".to_owned());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("it has {} bytes: write at most {TEXT_BYTES_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a control character: write one plain line".to_owned());
    }
    Ok(text.to_owned())
}

/// A span of time, at least a second.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if (TTL_MIN..=10 * JOB_DURATION_MAX).contains(&d) => Ok(d),
        Ok(_) => Err("it is out of bounds: write 1s to 300d".to_owned()),
        Err(_) => Err("it is not a span of time: write a number and a unit, as 90s or 8h".to_owned()),
    }
}

/// One of the kinds of principals.
pub(super) fn role() -> impl TypedValueParser<Value = PrincipalKind> {
    let words = PrincipalKind::ALL.iter().map(|k| k.as_str());
    PossibleValuesParser::new(words).try_map(|word| word.parse::<PrincipalKind>())
}

/// A span as the wire has it.
pub(super) fn wire(span: Duration) -> Option<prost_types::Duration> {
    span.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_id_is_the_name_of_what_it_is() {
        let (j, l) = (JobId(7), LeaseId(9));
        for (text, name) in [
            (j.to_string(), format!("job:{j}")),
            (format!("job:{j}"), format!("job:{j}")),
            (l.to_string(), format!("lease:{l}")),
            ("spiffe://td.example/w".into(), "identity:spiffe://td.example/w".into()),
            ("dataset:acme/tickets@v3".into(), "dataset:acme/tickets@v3".into()),
            ("human:ada".into(), "human:ada".into()),
        ] {
            assert_eq!(ending_name(&text), Ok(name));
        }
        for bad in ["", "j-1", "epoch", "job:", "tenant:../x", "volume:a", "identity-prefix:spiffe://td/a/"] {
            assert!(ending_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_ends_in_a_slash_and_is_for_locks_alone() {
        assert!(lock_name("identity-prefix:spiffe://td.example/ns/a/").is_ok());
        assert!(lock_name("tenant:acme").is_ok());
        for bad in
            ["identity-prefix:spiffe://td.example/ns/a", "identity-prefix:/", "identity-prefix:spiffe://td//"]
        {
            assert!(lock_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reason_is_one_line_and_a_span_has_its_bounds() {
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

//! Times in forms for people and for programs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{clock::Wall, proto::convert::wall};

/// Converts a time of the wire format, if it can be shown.
pub(super) fn moment(at: Option<&prost_types::Timestamp>) -> Option<Wall> {
    wall(at?)
}

/// Returns a text such as `in 4m 12s`, `3h 2m ago` or `now`.
pub(super) fn relative(at: Wall, now: Wall) -> String {
    let (later, span) = if at > now { (true, at.since(now)) } else { (false, now.since(at)) };
    match span.as_secs() {
        0 => "now".to_owned(),
        _ if later => format!("in {}", rough(span)),
        _ => format!("{} ago", rough(span)),
    }
}

/// Returns the two largest units of a span.
pub(super) fn rough(span: Duration) -> String {
    let s = span.as_secs();
    let units = [("d", s / 86_400), ("h", s / 3_600 % 24), ("m", s / 60 % 60), ("s", s % 60)];
    let first = units.iter().position(|(_, n)| *n > 0).unwrap_or(3);
    let shown = units.iter().skip(first).take(2).filter(|(_, n)| *n > 0);
    let shown: Vec<_> = shown.map(|(unit, n)| format!("{n}{unit}")).collect();
    if shown.is_empty() { "0s".to_owned() } else { shown.join(" ") }
}

/// Returns the relative time for a row, or `-`.
pub(super) fn short(at: Option<&prost_types::Timestamp>, now: Wall) -> String {
    moment(at).map_or_else(|| "-".to_owned(), |at| relative(at, now))
}

/// Returns the absolute and the relative time for a page. Empty if there is no time.
pub(super) fn both(at: Option<&prost_types::Timestamp>, now: Wall) -> String {
    moment(at).map_or_else(String::new, |at| format!("{at} ({})", relative(at, now)))
}

/// Returns the absolute time. Empty if it cannot be shown.
pub(super) fn whole(at: &prost_types::Timestamp) -> String {
    wall(at).map(|at| at.to_string()).unwrap_or_default()
}

/// Returns the value for programs: RFC 3339, and the seconds from now (negative in the past). Null if there is no time.
pub(super) fn value(at: Option<&prost_types::Timestamp>, now: Wall) -> Value {
    let Some(at) = moment(at) else { return Value::Null };
    let ms = i128::from(at.0) - i128::from(now.0);
    json!({ "at": at.to_string(), "from_now_s": i64::try_from(ms / 1_000).unwrap_or(i64::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_relative_to_now() {
        let now = Wall(1_795_148_000_000);
        let at = |s: i64| Some(prost_types::Timestamp { seconds: 1_795_148_000 + s, nanos: 0 });
        for (s, shown) in [
            (0, "now"),
            (12, "in 12s"),
            (252, "in 4m 12s"),
            (-3_600, "1h ago"),
            (-90_000, "1d 1h ago"),
            (86_401, "in 1d"),
        ] {
            assert_eq!(short(at(s).as_ref(), now), shown);
        }
        assert_eq!(short(None, now), "-");
        assert_eq!(value(at(-5).as_ref(), now), json!({"at": "2026-11-20T04:13:15.000Z", "from_now_s": -5}));
        assert_eq!(value(None, now), Value::Null);
        let before_1970 = prost_types::Timestamp { seconds: -1, nanos: 0 };
        assert_eq!(moment(Some(&before_1970)), None);
    }
}

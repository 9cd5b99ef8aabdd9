//! Durations and sizes in the form that people write: `5m`, `256MiB`.

use std::{ops::RangeInclusive, time::Duration};

use crate::plain;

/// Reads a duration within bounds.
pub(crate) fn span(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let (least, most) = (span_text(*bounds.start()), span_text(*bounds.end()));
    match humantime::parse_duration(text) {
        Ok(d) if bounds.contains(&d) => Ok(d),
        Ok(_) => Err(format!("`{}` is out of bounds: write {least} to {most}", plain::value(text))),
        Err(_) => Err(format!(
            "`{}` is not a span of time: write a number and a unit, as \"{least}\" to \"{most}\"",
            plain::value(text)
        )),
    }
}

/// Returns the text of a duration: `5m`, `1h 30m`, `25h`, `30d`. Only whole days are shown as days.
pub(crate) fn span_text(span: Duration) -> String {
    let (s, ms) = (span.as_secs(), u64::from(span.subsec_millis()));
    if ms == 0 && s > 0 && s.is_multiple_of(86_400) {
        return format!("{}d", s / 86_400);
    }
    let units = [("h", s / 3_600), ("m", s / 60 % 60), ("s", s % 60), ("ms", ms)];
    let shown: Vec<String> =
        units.iter().filter(|(_, n)| *n > 0).map(|(unit, n)| format!("{n}{unit}")).collect();
    if shown.is_empty() { "0s".to_owned() } else { shown.join(" ") }
}

const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads a size in bytes within bounds.
pub(crate) fn size(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let number = unit.and_then(|(number, bytes)| number.trim_end().parse::<u64>().ok()?.checked_mul(bytes));
    let (least, most) = (size_text(*bounds.start()), size_text(*bounds.end()));
    match number {
        Some(n) if bounds.contains(&n) => Ok(n),
        Some(_) => Err(format!("`{}` is out of bounds: write {least} to {most}", plain::value(text))),
        None => Err(format!(
            "`{}` is not a size: write a whole number and KiB, MiB, GiB or TiB, as \"{least}\"",
            plain::value(text)
        )),
    }
}

/// Returns the text of a size: `256MiB`.
pub(crate) fn size_text(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{}KiB", bytes.div_ceil(1 << 10)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for s in [1, 5, 90, 300, 3_600, 86_400 * 30] {
            let d = Duration::from_secs(s);
            assert_eq!(span(&span_text(d), Duration::ZERO..=Duration::MAX), Ok(d));
        }
        let shown = |s| span_text(Duration::from_secs(s));
        let all = [0, 90, 86_400, 90_000, 131_430].map(shown);
        assert_eq!(all, ["0s", "1m 30s", "1d", "25h", "36h 30m 30s"]);
        for b in [0, 1 << 10, 256 << 20, 5 << 30, 3 << 40] {
            assert_eq!(size(&size_text(b), 0..=u64::MAX), Ok(b));
        }
    }

    #[test]
    fn what_is_no_size_or_span_is_refused_with_what_to_write() {
        for t in ["", "5", "5 apples", "-1MiB", "1.5GiB", "99999999999TiB"] {
            let e = size(t, 1 << 20..=1 << 30).unwrap_err();
            assert!(e.contains("write"), "{e}");
        }
        let e = span("100y", Duration::from_secs(1)..=Duration::from_secs(900)).unwrap_err();
        assert_eq!(e, "`100y` is out of bounds: write 1s to 15m");
    }
}

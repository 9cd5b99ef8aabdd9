//! The table of figures in a page of the documentation. A run of the bench writes the table. A later run reads
//! the table, and fails if one of its ratios is below half of the ratio in the table.

use std::fmt::Write;

use super::{Figure, Machine};

const BEGIN: &str = "<!-- leasehold bench --page writes from here -->";
const END: &str = "<!-- to here -->";

/// A ratio that the page states for a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Floor {
    what: String,
    in_flight: usize,
    ratio: f64,
}

/// Returns the page with these figures instead of its old figures.
///
/// # Errors
///
/// Fails if the page does not have the two lines that mark the place of the figures.
pub fn with_figures(page: &str, machine: &Machine, date: &str, figures: &[Figure]) -> Result<String, String> {
    with_section(page, [BEGIN, END], &table(machine, date, figures))
}

/// Returns the page with this text between the two lines.
pub(super) fn with_section(page: &str, [begin, end]: [&str; 2], text: &str) -> Result<String, String> {
    let (before, rest) = page.split_once(begin).ok_or_else(|| format!("the page has no line `{begin}`"))?;
    let (_, after) = rest.split_once(end).ok_or_else(|| format!("the page has no line `{end}`"))?;
    Ok(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

/// Returns a line that describes the machine.
pub(super) fn machine_line(machine: &Machine, date: &str) -> String {
    format!(
        "Measured on {date}: {} cores, {}, Linux {}, load {} before; one `fdatasync` of a record took {:.0} µs, and \
         measuring takes {:.2} µs of a request.",
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.load,
        machine.disk_sync.as_secs_f64() * 1e6,
        machine.measuring.as_secs_f64() * 1e6,
    )
}

/// Returns the ratios in a page.
///
/// # Errors
///
/// Fails if the page contains no ratio.
pub fn floors(page: &str) -> Result<Vec<Floor>, String> {
    let table = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(table, _)| table);
    let floors: Vec<Floor> = table.unwrap_or_default().lines().filter_map(floor).collect();
    if floors.is_empty() {
        Err(format!("the page states no ratio after the line `{BEGIN}`"))
    } else {
        Ok(floors)
    }
}

/// Returns one line for each figure whose ratio is below half of the ratio in the page.
pub fn below(floors: &[Floor], figures: &[Figure]) -> Vec<String> {
    let low = |figure: &Figure| {
        let is_same = |f: &&Floor| f.what == figure.workload.as_str() && f.in_flight == figure.in_flight;
        let floor = floors.iter().find(is_same)?;
        (figure.ratio() < floor.ratio / 2.0).then(|| {
            format!(
                "{} with {} in flight reached {:.2} of its limit; the page states {:.2}",
                floor.what,
                floor.in_flight,
                figure.ratio(),
                floor.ratio,
            )
        })
    };
    figures.iter().filter_map(low).collect()
}

/// Reads a row of the table.
fn floor(line: &str) -> Option<Floor> {
    let mut cells = line.trim().strip_prefix('|')?.split('|').map(|cell| cell.trim().trim_matches('*'));
    let what = cells.next()?.to_owned();
    Some(Floor { what, in_flight: cells.next()?.parse().ok()?, ratio: cells.next()?.parse().ok()? })
}

fn table(machine: &Machine, date: &str, figures: &[Figure]) -> String {
    let microseconds = |time: std::time::Duration| time.as_secs_f64() * 1e6;
    let processor = |time: std::time::Duration| match time.is_zero() {
        true => String::new(),
        false => format!("{:.0}", microseconds(time)),
    };
    let mut out = String::from(
        "| | in flight | ratio | a second | limit | p50 µs | p99 µs | limit's p50 µs | processor µs | limit's |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for f in figures {
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "| {} | {} | **{:.2}** | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} | {} | {} |",
            f.workload.as_str(),
            f.in_flight,
            f.ratio(),
            f.ours.per_second,
            f.limit.per_second,
            microseconds(f.ours.p50),
            microseconds(f.ours.p99),
            microseconds(f.limit.p50),
            processor(f.ours.processor),
            processor(f.limit.processor),
        );
    }
    let _ = writeln!(out, "\n{}", machine_line(machine, date));
    let mut limits: Vec<String> = Vec::new();
    for f in figures {
        let line = format!("The limit of {} is {}.", f.workload.as_str(), f.workload.limit());
        if !limits.contains(&line) {
            limits.push(line);
        }
    }
    let _ = writeln!(out, "{}", limits.join(" "));
    out
}

#[cfg(test)]
pub(in crate::dev::bench) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dev::bench::{Measured, Workload};

    pub(in crate::dev::bench) fn figure(workload: Workload, in_flight: usize, ours: f64) -> Figure {
        let of = |per_second| Measured {
            calls: 1,
            per_second,
            p50: Duration::from_micros(3),
            p99: Duration::from_micros(9),
            longest: Duration::from_micros(9),
            processor: Duration::ZERO,
        };
        Figure { workload, in_flight, ours: of(ours), limit: of(100.0) }
    }

    pub(in crate::dev::bench) fn machine() -> Machine {
        Machine {
            cores: 2,
            processor: "a model".into(),
            kernel: "6.1".into(),
            load: "0.1".into(),
            disk_sync: Duration::from_micros(140),
            measuring: Duration::from_nanos(90),
        }
    }

    // The text of a page is kept, and the ratios in the page are read again.
    #[test]
    fn figures_in_a_page_are_the_floor_of_the_next_run() {
        let empty = format!("# Title\n\n{BEGIN}\nearlier figures\n{END}\n\nMore.\n");
        let first = [figure(Workload::Issue, 64, 80.0), figure(Workload::Check, 1, 50.0)];
        let page = with_figures(&empty, &machine(), "2026-11-30", &first).unwrap();
        assert!(page.starts_with("# Title\n") && page.ends_with(&format!("{END}\n\nMore.\n")), "{page}");
        assert!(!page.contains("earlier figures") && page.contains("| issue | 64 | **0.80** |"), "{page}");
        assert_eq!(with_figures(&page, &machine(), "2026-11-30", &first).unwrap(), page);

        let floors = floors(&page).unwrap();
        assert_eq!(below(&floors, &[figure(Workload::Issue, 64, 41.0)]), Vec::<String>::new());
        assert_eq!(below(&floors, &[figure(Workload::Issue, 256, 1.0)]), Vec::<String>::new(), "not stated");
        let slow = below(&floors, &[figure(Workload::Issue, 64, 39.0), figure(Workload::Check, 1, 24.0)]);
        assert_eq!(slow.len(), 2, "{slow:?}");
        assert!(slow[0].contains("issue with 64 in flight reached 0.39") && slow[0].contains("0.80"));
    }

    #[test]
    fn a_page_without_its_place_is_refused() {
        assert!(with_figures("# Title\n", &machine(), "2026-11-30", &[]).is_err());
        assert!(floors(&format!("{BEGIN}\n{END}\n")).is_err());
    }
}

//! The sections that a bench writes into a page of the documentation. A later run reads the section with the rates, and fails if
//! one of its ratios is below half of the ratio in the page.

use super::{Figure, Workload};

/// The name of the section with the rates.
const RATES: &str = Workload::Issue.section();

/// A ratio that the page states for a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Floor {
    what: String,
    in_flight: usize,
    ratio: f64,
}

/// Returns the two lines of a page that mark the beginning and the end of the section with this name.
fn marks(name: &str) -> [String; 2] {
    [format!("<!-- leasehold bench --page writes {name} from here -->"), format!("<!-- to here: {name} -->")]
}

/// Returns the page with this text in the section with this name, instead of the earlier text.
///
/// # Errors
///
/// Fails if the page does not have the two lines that mark the place of the section.
pub fn with_section(page: &str, name: &str, text: &str) -> Result<String, String> {
    let [begin, end] = marks(name);
    let (before, rest) = page.split_once(&begin).ok_or_else(|| format!("the page has no line `{begin}`"))?;
    let (_, after) = rest.split_once(&end).ok_or_else(|| format!("the page has no line `{end}`"))?;
    Ok(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

/// Returns the ratios in a page.
///
/// # Errors
///
/// Fails if the page contains no ratio.
pub fn floors(page: &str) -> Result<Vec<Floor>, String> {
    let [begin, end] = marks(RATES);
    let table = page.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map(|(table, _)| table);
    let floors: Vec<Floor> = table.unwrap_or_default().lines().filter_map(floor).collect();
    if floors.is_empty() {
        Err(format!("the page states no ratio after the line `{begin}`"))
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

    // The text of a page is kept, and the ratios in the page are read again.
    #[test]
    fn ratios_in_a_page_are_the_floor_of_the_next_run() {
        let [begin, end] = marks(RATES);
        let earlier = format!("# Title\n\n{begin}\nearlier figures\n{end}\n\nMore.\n");
        let table = "| WHAT | IN FLIGHT | RATIO |\n| --- | --- | --- |\n| issue | 64 | 0.80 |\n| check | 1 | 0.50 |\n";
        let page = with_section(&earlier, RATES, table).unwrap();
        assert!(page.starts_with("# Title\n") && page.ends_with(&format!("{end}\n\nMore.\n")), "{page}");
        assert!(!page.contains("earlier figures") && page.contains("| issue | 64 | 0.80 |"), "{page}");
        assert_eq!(with_section(&page, RATES, table).unwrap(), page);

        let floors = floors(&page).unwrap();
        assert_eq!(below(&floors, &[figure(Workload::Issue, 64, 41.0)]), Vec::<String>::new());
        assert_eq!(below(&floors, &[figure(Workload::Issue, 256, 1.0)]), Vec::<String>::new(), "not stated");
        let slow = below(&floors, &[figure(Workload::Issue, 64, 39.0), figure(Workload::Check, 1, 24.0)]);
        assert_eq!(slow.len(), 2, "{slow:?}");
        assert!(slow[0].contains("issue with 64 in flight reached 0.39") && slow[0].contains("0.80"));
    }

    #[test]
    fn a_page_without_its_place_is_refused() {
        assert!(with_section("# Title\n", RATES, "").is_err());
        assert!(floors(&marks(RATES).join("\n")).is_err());
    }
}

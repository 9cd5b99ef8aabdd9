//! The growth of a daemon as a table in a page of the documentation.

use std::{fmt::Write, time::Duration};

use super::{FeedFigure, GrowthFinding, GrowthStep};
use crate::dev::bench::{
    Machine,
    page::{machine_line, with_section},
};

const BEGIN: &str = "<!-- leasehold bench growth --page writes from here -->";
const END: &str = "<!-- to here: growth -->";

/// Returns the page with these findings instead of its old ones. `picture` is the path of the chart, relative to the page.
///
/// # Errors
///
/// Fails if the page does not have the two lines that mark the place of the findings.
pub fn with_growth(
    page: &str,
    machine: &Machine,
    date: &str,
    findings: &[GrowthFinding],
    picture: &str,
) -> Result<String, String> {
    with_section(page, [BEGIN, END], &section(machine, date, findings, picture))
}

fn section(machine: &Machine, date: &str, findings: &[GrowthFinding], picture: &str) -> String {
    let (mut steps, mut feeds, mut stops) = (String::new(), String::new(), String::new());
    for finding in findings {
        match finding {
            GrowthFinding::Progress { .. } => {}
            GrowthFinding::Step(step) => steps.push_str(&row_of_step(step)),
            GrowthFinding::Feed(feed) => feeds.push_str(&row_of_feed(feed)),
            GrowthFinding::Stopped(why) => {
                // Writing to a String does not fail.
                let _ = writeln!(stops, "\nStopped: {why}.");
            }
        }
    }
    format!(
        "| live leases | memory MiB | issue p50 ms | p99 ms | look-up p50 µs | revoke a job of | call ms | refused after ms | storm of | all removed after ms |\n|---|---|---|---|---|---|---|---|---|---|\n{steps}\n| verifiers | the last one hears of a revocation after ms, p50 | longest ms |\n|---|---|---|\n{feeds}{stops}\n![The same figures as curves]({picture})\n\n{}\n",
        machine_line(machine, date)
    )
}

fn row_of_step(step: &GrowthStep) -> String {
    let (storm, removed) = match &step.storm {
        Some(storm) => (storm.leases.to_string(), milliseconds(storm.ended_after)),
        None => (String::new(), String::new()),
    };
    format!(
        "| {} | {} | {} | {} | {:.0} | {} | {} | {} | {storm} | {removed} |\n",
        step.leases,
        step.memory >> 20,
        milliseconds(step.issue.p50),
        milliseconds(step.issue.p99),
        step.look_up.p50.as_secs_f64() * 1e6,
        step.revocation.leases,
        milliseconds(step.revocation.call),
        milliseconds(step.revocation.refused),
    )
}

fn row_of_feed(feed: &FeedFigure) -> String {
    format!(
        "| {} | {} | {} |\n",
        feed.verifiers,
        milliseconds(feed.heard.p50),
        milliseconds(feed.heard.longest)
    )
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::{super::chart::tests::findings, *};
    use crate::dev::bench::page::tests::machine;

    // A page can have the table of the rates too, between other lines.
    #[test]
    fn growth_in_a_page_replaces_the_growth_before() {
        let empty = format!("# Title\n\n{BEGIN}\nearlier figures\n{END}\n\nMore.\n");
        let write = |page: &str| with_growth(page, &machine(), "2026-12-01", &findings(), "img/growth.svg");
        let page = write(&empty).unwrap();
        assert!(page.starts_with("# Title\n") && page.ends_with(&format!("{END}\n\nMore.\n")), "{page}");
        assert!(!page.contains("earlier figures") && page.contains("| 1000 | 64 | 3.0 |"), "{page}");
        assert!(page.contains("| 100 | 3.0 | 9.0 |") && page.contains("Stopped: 5000 verifiers"), "{page}");
        assert!(page.contains("](img/growth.svg)"), "{page}");
        assert_eq!(write(&page).unwrap(), page);
        assert!(write("# Title\n").is_err());
    }
}

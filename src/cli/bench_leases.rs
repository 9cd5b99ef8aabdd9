//! The results of `leasehold bench revoke` and `leasehold bench storm`, as reports and as values for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{bench_report::BenchReport, bench_results::measured_json};
use crate::dev::bench::{RevokeFigure, StormFigure};

fn milliseconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

pub(super) fn revoke_report(figures: &[RevokeFigure]) -> BenchReport {
    let rows = figures.iter().map(|f| {
        vec![
            f.leases.to_string(),
            f.call.calls.to_string(),
            milliseconds(f.call.p50),
            milliseconds(f.call.p99),
            milliseconds(f.refused.p50),
            milliseconds(f.refused.p99),
        ]
    });
    let headings = [
        "LEASES OF THE JOB",
        "REVOKED",
        "CALL, P50 ms",
        "P99 ms",
        "UNTIL A SERVER REFUSES, P50 ms",
        "P99 ms",
    ];
    BenchReport::table(&headings, rows)
}

pub(super) fn storm_report(figures: &[StormFigure]) -> BenchReport {
    if figures.is_empty() {
        return BenchReport::default();
    }
    let rows = figures.iter().map(|f| {
        vec![
            f.leases.to_string(),
            milliseconds(f.within),
            milliseconds(f.ended_after),
            milliseconds(f.before.p50),
            milliseconds(f.before.p99),
            milliseconds(f.during.p50),
            milliseconds(f.during.p99),
        ]
    });
    let headings = [
        "LEASES THAT END TOGETHER",
        "WITHIN ms",
        "ALL REMOVED AFTER ms",
        "ISSUE BEFORE, P50 ms",
        "P99 ms",
        "MEANWHILE, P50 ms",
        "P99 ms",
    ];
    let (checks, asked) = figures.iter().fold((0_usize, 0_usize), |(checks, asked), f| {
        (checks.saturating_add(f.checks), asked.saturating_add(f.introspections))
    });
    let line = format!(
        "no token was accepted after its deadline: a verifier refused {checks}, the daemon refused {asked}"
    );
    BenchReport::table(&headings, rows).then(BenchReport::lines(vec![line]))
}

pub(super) fn revoke_json(figures: &[RevokeFigure]) -> Value {
    let each = figures.iter().map(|f| {
        json!({ "leases": f.leases, "call": measured_json(&f.call), "refused": measured_json(&f.refused) })
    });
    each.collect()
}

pub(super) fn storm_json(figures: &[StormFigure]) -> Value {
    figures.iter().map(one_storm_json).collect()
}

pub(super) fn one_storm_json(f: &StormFigure) -> Value {
    json!({
        "leases": f.leases, "within_seconds": f.within.as_secs_f64(),
        "ended_after_seconds": f.ended_after.as_secs_f64(),
        "issue_before": measured_json(&f.before), "issue_during": measured_json(&f.during),
        "checks_refused": f.checks, "introspections_refused": f.introspections,
    })
}

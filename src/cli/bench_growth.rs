//! The results of `leasehold bench growth`, as reports and as values for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{bench_leases::one_storm_json, bench_report::BenchReport, bench_results::measured_json};
use crate::dev::bench::{GrowthFinding, GrowthStep};

/// The line that shows the progress after a result of growth.
pub(super) fn progress(finding: &GrowthFinding) -> String {
    match finding {
        GrowthFinding::Progress { leases, wanted } => format!("growth: {leases} of {wanted} leases"),
        GrowthFinding::Step(step) => format!("growth to {} leases: measured", step.leases),
        GrowthFinding::Feed(feed) => format!("a feed with {} verifiers: measured", feed.verifiers),
        GrowthFinding::Stopped(why) => format!("growth stopped: {why}"),
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

pub(super) fn report(findings: &[GrowthFinding]) -> BenchReport {
    let (mut steps, mut feeds, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            GrowthFinding::Progress { .. } => {}
            GrowthFinding::Step(step) => steps.push(row_of_step(step)),
            GrowthFinding::Feed(feed) => feeds.push(vec![
                feed.verifiers.to_string(),
                feed.heard.calls.to_string(),
                milliseconds(feed.heard.p50),
                milliseconds(feed.heard.longest),
            ]),
            GrowthFinding::Stopped(why) => stops.push(format!("stopped: {why}")),
        }
    }
    let steps_headings = [
        "LEASES",
        "MEMORY MiB",
        "ISSUE P50 ms",
        "P99 ms",
        "LOOK-UP P50 ms",
        "REVOKE A JOB OF",
        "CALL ms",
        "REFUSED ms",
        "STORM OF",
        "REMOVED AFTER ms",
    ];
    let feed_headings = ["VERIFIERS", "REVOKED", "THE LAST ONE HEARS, P50 ms", "LONGEST ms"];
    let steps = BenchReport::table(&steps_headings, steps);
    steps.then(BenchReport::table(&feed_headings, feeds)).then(BenchReport::lines(stops))
}

fn row_of_step(step: &GrowthStep) -> Vec<String> {
    let (storm, removed) = match &step.storm {
        Some(storm) => (storm.leases.to_string(), milliseconds(storm.ended_after)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    vec![
        step.leases.to_string(),
        (step.memory >> 20).to_string(),
        milliseconds(step.issue.p50),
        milliseconds(step.issue.p99),
        milliseconds(step.look_up.p50),
        step.revocation.leases.to_string(),
        milliseconds(step.revocation.call),
        milliseconds(step.revocation.refused),
        storm,
        removed,
    ]
}

pub(super) fn to_json(findings: &[GrowthFinding]) -> Value {
    let (mut steps, mut feeds, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            GrowthFinding::Progress { .. } => {}
            GrowthFinding::Step(step) => steps.push(json!({
                "leases": step.leases, "memory_bytes": step.memory,
                "issue": measured_json(&step.issue), "look_up": measured_json(&step.look_up),
                "revocation": {
                    "leases": step.revocation.leases,
                    "call_seconds": step.revocation.call.as_secs_f64(),
                    "refused_seconds": step.revocation.refused.as_secs_f64(),
                },
                "storm": step.storm.as_ref().map(one_storm_json),
            })),
            GrowthFinding::Feed(feed) => {
                feeds.push(json!({ "verifiers": feed.verifiers, "heard": measured_json(&feed.heard) }));
            }
            GrowthFinding::Stopped(why) => stops.push(why.clone()),
        }
    }
    json!({ "steps": steps, "feeds": feeds, "stopped": stops })
}

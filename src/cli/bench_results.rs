//! The results of `leasehold bench`, as reports for people and as a value for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{bench_gateway, bench_growth, bench_leases, bench_report::BenchReport, bench_vault};
use crate::dev::bench::{
    BenchFinding, Delay, EchoWork, Figure, GatewayFinding, GrowthFinding, Machine, Measured, RevokeFigure,
    StageFigure, StormFigure, VaultFinding, Workload,
};

/// The results of one run.
#[derive(Default)]
pub(super) struct BenchResults {
    pub(super) figures: Vec<Figure>,
    pub(super) delays: Vec<Delay>,
    pub(super) revocations: Vec<RevokeFigure>,
    pub(super) storms: Vec<StormFigure>,
    pub(super) stages: Vec<StageFigure>,
    pub(super) gateway: Vec<GatewayFinding>,
    pub(super) growth: Vec<GrowthFinding>,
    pub(super) vault: Vec<VaultFinding>,
    pub(super) vault_version: String,
}

impl BenchResults {
    pub(super) fn add(&mut self, finding: BenchFinding) {
        match finding {
            BenchFinding::Rate(figure) => self.figures.push(figure),
            BenchFinding::Delay(delay) => self.delays.push(delay),
            BenchFinding::Revoke(figure) => self.revocations.push(figure),
            BenchFinding::Storm(figure) => self.storms.push(figure),
            BenchFinding::Stages(stages) => self.stages.extend(stages),
            BenchFinding::Gateway(finding) => self.gateway.push(finding),
            BenchFinding::Growth(GrowthFinding::Progress { .. }) => {}
            BenchFinding::Growth(finding) => self.growth.push(finding),
            BenchFinding::Vault(finding) => self.vault.push(finding),
        }
    }
}

impl BenchResults {
    /// Returns the reports of all results, each with the name of its section in a page. Leaves out empty reports.
    pub(super) fn reports(&self) -> Vec<(&'static str, BenchReport)> {
        let endings = bench_leases::revoke_report(&self.revocations)
            .then(bench_leases::storm_report(&self.storms))
            .then(end_report(&self.delays));
        let all = [
            (Workload::Issue, rate_report(&self.figures)),
            (Workload::Stages, stage_report(&self.stages)),
            (Workload::End, endings),
            (Workload::Growth, bench_growth::report(&self.growth)),
            (Workload::Gateway, bench_gateway::report(&self.gateway)),
            (Workload::Vault, bench_vault::report(&self.vault_version, &self.vault)),
        ];
        let measured = all.into_iter().filter(|(_, report)| !report.is_empty());
        measured.map(|(workload, report)| (workload.section(), report)).collect()
    }
}

/// Returns the line that shows the progress after a result.
pub(super) fn progress(finding: &BenchFinding) -> String {
    match finding {
        BenchFinding::Growth(finding) => bench_growth::progress(finding),
        other => format!("{}: measured", name_of(other)),
    }
}

/// Returns a short name of a result.
fn name_of(finding: &BenchFinding) -> String {
    match finding {
        BenchFinding::Rate(f) => format!("{} with {} in flight", f.workload.as_str(), f.in_flight),
        BenchFinding::Delay(d) => d.event.as_str().to_owned(),
        BenchFinding::Revoke(f) => format!("revoke with {} leases", f.leases),
        BenchFinding::Storm(f) => format!("storm of {} leases", f.leases),
        BenchFinding::Stages(_) => "stages".to_owned(),
        BenchFinding::Gateway(finding) => bench_gateway::name_of(finding),
        BenchFinding::Growth(_) => "growth".to_owned(),
        BenchFinding::Vault(finding) => bench_vault::name_of(finding),
    }
}

fn microseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}

/// Returns a line that describes the machine.
pub(super) fn machine_line(machine: &Machine) -> String {
    format!(
        "{} cores, {}, Linux {}, load {} before; one fdatasync of a record took {} µs, measuring a request takes {:.2} µs",
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.load,
        microseconds(machine.disk_sync),
        machine.measuring.as_secs_f64() * 1e6,
    )
}

fn rate_report(figures: &[Figure]) -> BenchReport {
    let rows = figures.iter().map(|f| {
        vec![
            f.workload.as_str().to_owned(),
            f.in_flight.to_string(),
            format!("{:.2}", f.ratio()),
            format!("{:.0}", f.ours.per_second),
            format!("{:.0}", f.limit.per_second),
            microseconds(f.ours.p50),
            microseconds(f.ours.p99),
            microseconds(f.limit.p50),
            microseconds(f.ours.processor),
            microseconds(f.limit.processor),
        ]
    });
    let headings = [
        "WHAT",
        "IN FLIGHT",
        "RATIO",
        "A SECOND",
        "LIMIT",
        "P50 µs",
        "P99 µs",
        "LIMIT'S P50 µs",
        "CPU µs",
        "LIMIT'S CPU µs",
    ];
    let mut limits: Vec<String> = Vec::new();
    for figure in figures {
        let line = format!("limit of {}: {}", figure.workload.as_str(), figure.workload.limit());
        if !limits.contains(&line) {
            limits.push(line);
        }
    }
    BenchReport::table(&headings, rows).then(BenchReport::lines(limits))
}

pub(super) fn measured_json(m: &Measured) -> Value {
    let seconds = |time: Duration| time.as_secs_f64();
    json!({
        "calls": m.calls, "per_second": m.per_second,
        "p50_seconds": seconds(m.p50), "p99_seconds": seconds(m.p99), "longest_seconds": seconds(m.longest),
        "processor_seconds": seconds(m.processor),
    })
}

fn end_report(delays: &[Delay]) -> BenchReport {
    let milliseconds = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    let rows = delays.iter().map(|d| {
        let Measured { calls, p50, longest, .. } = &d.times;
        vec![d.event.as_str().to_owned(), calls.to_string(), milliseconds(*p50), milliseconds(*longest)]
    });
    let headings = ["EVENT", "TIMES", "LAST ACCEPTED USE, P50 ms", "LONGEST ms"];
    BenchReport::table(&headings, rows)
}

fn stage_report(stages: &[StageFigure]) -> BenchReport {
    let limit_of = |stage: &StageFigure| {
        let is_limit = |s: &&StageFigure| {
            s.work == Some(EchoWork::Signature)
                && (s.workload, s.in_flight) == (stage.workload, stage.in_flight)
        };
        stages.iter().find(is_limit).map(|limit| limit.measured.per_second)
    };
    let rows = stages.iter().map(|s| {
        let ratio = limit_of(s).map(|limit| format!("{:.2}", s.measured.per_second / limit));
        vec![
            s.workload.as_str().to_owned(),
            s.adds().to_owned(),
            s.in_flight.to_string(),
            ratio.unwrap_or_else(|| "-".to_owned()),
            format!("{:.0}", s.measured.per_second),
            microseconds(s.measured.p50),
            microseconds(s.measured.processor),
        ]
    });
    let headings = ["WHAT", "EACH ROW ADDS", "IN FLIGHT", "RATIO", "A SECOND", "P50 µs", "CPU µs"];
    BenchReport::table(&headings, rows)
}

/// Returns the results as a value for programs.
pub(super) fn to_json(machine: &Machine, results: &BenchResults) -> Value {
    let seconds = |time: Duration| time.as_secs_f64();
    let figures: Vec<Value> = results
        .figures
        .iter()
        .map(|f| {
            json!({
                "what": f.workload.as_str(), "in_flight": f.in_flight, "ratio": f.ratio(),
                "ours": measured_json(&f.ours), "limit": measured_json(&f.limit), "limit_is": f.workload.limit(),
            })
        })
        .collect();
    let delays: Vec<Value> = results
        .delays
        .iter()
        .map(|d| {
            json!({
                "event": d.event.as_str(), "times": d.times.calls,
                "p50_seconds": seconds(d.times.p50), "longest_seconds": seconds(d.times.longest),
            })
        })
        .collect();
    let stages: Vec<Value> = results
        .stages
        .iter()
        .map(
            |s| json!({ "what": s.workload.as_str(), "adds": s.adds(), "in_flight": s.in_flight, "measured": measured_json(&s.measured) }),
        )
        .collect();
    let mut value = json!({
        "machine": {
            "cores": machine.cores, "processor": machine.processor, "kernel": machine.kernel,
            "load": machine.load, "disk_sync_seconds": seconds(machine.disk_sync),
            "measuring_seconds": seconds(machine.measuring),
        },
        "release": !cfg!(debug_assertions),
        "figures": figures,
        "delays": delays,
        "stages": stages,
        "revoke": bench_leases::revoke_json(&results.revocations),
        "storm": bench_leases::storm_json(&results.storms),
    });
    if let Value::Object(fields) = &mut value {
        if !results.gateway.is_empty() {
            fields.insert("gateway".to_owned(), bench_gateway::to_json(&results.gateway));
        }
        if !results.growth.is_empty() {
            fields.insert("growth".to_owned(), bench_growth::to_json(&results.growth));
        }
        if !results.vault.is_empty() {
            let vault = bench_vault::to_json(&results.vault_version, &results.vault);
            fields.insert("vault".to_owned(), vault);
        }
    }
    value
}

//! The results of `leasehold bench vault`, as reports and as values for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Failure, bench_report::BenchReport, bench_results::measured_json};
use crate::dev::bench::{
    ManyLeases, SWITCHED_OFF, VaultFigure, VaultFinding, VaultProgramError, VaultRevocation,
};

/// The failure of a command that cannot find Vault.
pub(super) fn without_vault(error: VaultProgramError) -> Failure {
    let cause = match &error {
        VaultProgramError::NotStarted { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    Failure::usage(cause).fix(
        "install Vault, or name the program with `--vault`; `tests/interop/vault/build` builds it and prints its path",
    )
}

/// A short name of a result, for the lines that show the progress.
pub(super) fn name_of(finding: &VaultFinding) -> String {
    match finding {
        VaultFinding::Rate(f) => format!("Vault ({}), {} in flight", f.storage.as_str(), f.in_flight),
        VaultFinding::Revocation(r) => {
            format!("revocation of {} leases, Vault ({})", r.vault.leases, r.storage.as_str())
        }
    }
}

pub(super) fn report(version: &str, findings: &[VaultFinding]) -> BenchReport {
    if findings.is_empty() {
        return BenchReport::default();
    }
    let (mut rates, mut revocations) = (Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            VaultFinding::Rate(figure) => rates.push(rate_row(figure)),
            VaultFinding::Revocation(revocation) => revocations.push(revocation_row(revocation)),
        }
    }
    let rate_headings = [
        "VAULT'S STORAGE",
        "IN FLIGHT",
        "RATIO",
        "TARGET",
        "A SECOND",
        "VAULT",
        "P50 µs",
        "P99 µs",
        "VAULT'S P50 µs",
        "VAULT'S P99 µs",
    ];
    let revocation_headings = [
        "VAULT'S STORAGE",
        "LEASES REVOKED",
        "TIMES FASTER",
        "CALL ms",
        "LAST TOKEN REFUSED ms",
        "VAULT'S CALL ms",
        "TIMES LESS MEMORY",
        "BYTES A LEASE",
        "VAULT'S",
    ];
    let lines =
        SWITCHED_OFF.iter().map(|what| format!("to its advantage, Vault {version} runs without {what}"));
    let rates = BenchReport::table(&rate_headings, rates);
    rates
        .then(BenchReport::table(&revocation_headings, revocations))
        .then(BenchReport::lines(lines.collect()))
}

fn rate_row(f: &VaultFigure) -> Vec<String> {
    let us = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e6);
    vec![
        f.storage.as_str().to_owned(),
        f.in_flight.to_string(),
        format!("{:.1}", f.ratio()),
        format!("{:.0}", f.storage.target()),
        format!("{:.0}", f.ours.per_second),
        format!("{:.0}", f.vault.per_second),
        us(f.ours.p50),
        us(f.ours.p99),
        us(f.vault.p50),
        us(f.vault.p99),
    ]
}

fn revocation_row(r: &VaultRevocation) -> Vec<String> {
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    vec![
        r.storage.as_str().to_owned(),
        r.ours.leases.to_string(),
        format!("{:.0}", r.times_faster()),
        ms(r.ours.call),
        r.ours.refused.map_or_else(|| "-".to_owned(), ms),
        ms(r.vault.call),
        r.times_smaller().map_or_else(|| "-".to_owned(), |times| format!("{times:.0}")),
        r.ours.bytes_a_lease().to_string(),
        r.vault.bytes_a_lease().to_string(),
    ]
}

pub(super) fn to_json(version: &str, findings: &[VaultFinding]) -> Value {
    let (mut figures, mut revocations) = (Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            VaultFinding::Rate(f) => figures.push(json!({
                "storage": f.storage.as_str(), "in_flight": f.in_flight, "ratio": f.ratio(),
                "target": f.storage.target(), "ours": measured_json(&f.ours), "vault": measured_json(&f.vault),
            })),
            VaultFinding::Revocation(r) => revocations.push(json!({
                "storage": r.storage.as_str(), "times_faster": r.times_faster(),
                "times_less_memory": r.times_smaller(), "ours": leases_json(&r.ours), "vault": leases_json(&r.vault),
            })),
        }
    }
    json!({
        "version": version, "switched_off": SWITCHED_OFF, "figures": figures, "revocations": revocations,
    })
}

fn leases_json(leases: &ManyLeases) -> Value {
    json!({
        "leases": leases.leases, "memory_bytes": leases.memory, "bytes_a_lease": leases.bytes_a_lease(),
        "call_seconds": leases.call.as_secs_f64(),
        "last_token_refused_seconds": leases.refused.map(|time| time.as_secs_f64()),
    })
}

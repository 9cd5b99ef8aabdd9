//! The results of `leasehold bench gateway`, as reports and as values for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::{bench_report::BenchReport, bench_results::measured_json};
use crate::dev::bench::{GatewayCuts, GatewayFigure, GatewayFinding, GatewayMemory};

/// A short name of a result, for the lines that show the progress.
pub(super) fn name_of(finding: &GatewayFinding) -> String {
    match finding {
        GatewayFinding::Rate(figure) => format!("{}, {} at once", figure.work.as_str(), figure.streams),
        GatewayFinding::Cuts(_) => "cuts after a revocation".to_owned(),
        GatewayFinding::Memory(memory) => format!("memory with {} streams", memory.streams),
    }
}

pub(super) fn report(findings: &[GatewayFinding]) -> BenchReport {
    let headings = [
        "WHAT",
        "STREAMS",
        "RATIO",
        "MiB/s",
        "LIMIT",
        "P50 ms",
        "P99 ms",
        "LIMIT'S P50 ms",
        "CPU µs/MiB",
        "LIMIT'S CPU µs/MiB",
    ];
    let (mut rows, mut limits, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            GatewayFinding::Rate(figure) => {
                rows.push(row_of(figure));
                let limit = format!("limit of `{}`: {}", figure.work.as_str(), figure.work.limit());
                if figure.limit.is_some() && !limits.contains(&limit) {
                    limits.push(limit);
                }
            }
            GatewayFinding::Cuts(cuts) => lines.push(line_of_cuts(cuts)),
            GatewayFinding::Memory(memory) => lines.push(line_of_memory(memory)),
        }
    }
    BenchReport::table(&headings, rows).then(BenchReport::lines(limits)).then(BenchReport::lines(lines))
}

fn row_of(figure: &GatewayFigure) -> Vec<String> {
    let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    #[expect(clippy::cast_precision_loss, reason = "a time is shown with three digits")]
    let mib = figure.bytes as f64 / f64::from(1_u32 << 20);
    let processor = |time: Duration| match time.is_zero() {
        true => "-".to_owned(),
        false => format!("{:.0}", time.as_secs_f64() * 1e6 / mib.max(f64::EPSILON)),
    };
    vec![
        figure.work.as_str().to_owned(),
        figure.streams.to_string(),
        or_dash(figure.ratio().map(|ratio| format!("{ratio:.2}"))),
        format!("{:.0}", figure.rate_of(&figure.ours)),
        or_dash(figure.limit.map(|limit| format!("{:.0}", figure.rate_of(&limit)))),
        ms(figure.ours.p50),
        ms(figure.ours.p99),
        or_dash(figure.limit.map(|limit| ms(limit.p50))),
        processor(figure.ours.processor),
        or_dash(figure.limit.map(|limit| processor(limit.processor))),
    ]
}

fn line_of_cuts(GatewayCuts { confirmed, cut }: &GatewayCuts) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!(
        "{} downloads were cut. From the call that revokes the lease to the cut: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms; the call itself took {:.2} ms, p99 {:.2} ms",
        cut.calls,
        ms(cut.p50),
        ms(cut.p99),
        ms(cut.longest),
        ms(confirmed.p50),
        ms(confirmed.p99),
    )
}

fn line_of_memory(memory: &GatewayMemory) -> String {
    let mib = |bytes: u64| bytes >> 20;
    format!(
        "the gateway had {} MiB of resident memory with {} streams, and {} MiB before",
        mib(memory.peak),
        memory.streams,
        mib(memory.before)
    )
}

pub(super) fn to_json(findings: &[GatewayFinding]) -> Value {
    let (mut figures, mut more) = (Vec::new(), serde_json::Map::new());
    for finding in findings {
        match finding {
            GatewayFinding::Rate(f) => figures.push(json!({
                "what": f.work.as_str(), "streams": f.streams, "bytes": f.bytes, "ratio": f.ratio(),
                "ours": measured_json(&f.ours), "limit": f.limit.as_ref().map(measured_json),
                "limit_is": f.work.limit(),
            })),
            GatewayFinding::Cuts(c) => {
                let cuts = json!({ "confirmed": measured_json(&c.confirmed), "cut": measured_json(&c.cut) });
                more.insert("cuts".to_owned(), cuts);
            }
            GatewayFinding::Memory(m) => {
                let memory = json!({ "streams": m.streams, "before_bytes": m.before, "peak_bytes": m.peak });
                more.insert("memory".to_owned(), memory);
            }
        }
    }
    more.insert("figures".to_owned(), figures.into());
    Value::Object(more)
}

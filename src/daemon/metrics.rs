//! Every metric with its help text. All metrics are exported from the start, with the value 0.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::reason::Reason;

use MetricKind::{Counter, CounterOf, Gauge};

/// The kind of a metric.
enum MetricKind {
    Counter,
    /// A counter with a label. The function returns the values of the label.
    CounterOf(&'static str, fn() -> Vec<&'static str>),
    Gauge,
}

/// Every metric of the daemon. A test compares the table with what the code counts.
const METRICS: &[(&str, MetricKind, &str)] = &[
    ("leasehold_approvals_total", Counter, "Approvals of jobs by people."),
    ("leasehold_attempts_begun_total", Counter, "Attempts that were begun."),
    ("leasehold_catalog_mistakes", Gauge, "Mistakes in the catalog files on disk, which are not in force."),
    ("leasehold_credentials_issued_total", Counter, "Credentials that were issued, without renewals."),
    (
        "leasehold_emergencies_total",
        Counter,
        "Jobs whose gates one person opened in an emergency. Raise an alarm for each.",
    ),
    ("leasehold_fence_feeds", Gauge, "Verifiers that follow the fence feed now."),
    ("leasehold_fences", Gauge, "Names that were lowered and are still remembered."),
    ("leasehold_gateway_read_bytes_total", Counter, "Bytes of objects that the S3 gateway sent."),
    (
        "leasehold_gateway_direct_refused_total",
        Counter,
        "Connections to the direct listener of the S3 gateway that were refused for lack of capacity.",
    ),
    (
        "leasehold_gateway_refused_total",
        CounterOf("reason", reasons),
        "Requests to the S3 gateway that the lease did not allow, by reason.",
    ),
    (
        "leasehold_gateway_transfers_total",
        CounterOf("end", transfer_ends),
        "Uploads and downloads of the S3 gateway, by how they ended.",
    ),
    ("leasehold_gateway_written_bytes_total", Counter, "Bytes of objects that the S3 gateway received."),
    (
        "leasehold_handshakes_failed_total",
        CounterOf("reason", reasons),
        "Connections that were refused before a request, by reason. NONE: the peer disconnected, or did not use TLS 1.3.",
    ),
    (
        "leasehold_identities_in_several_jobs_total",
        CounterOf("kind", identity_uses),
        "Joins by a SPIFFE ID that is a member of another job too.",
    ),
    ("leasehold_identity_good", Gauge, "1 while the source of the daemon's identity works."),
    ("leasehold_identity_origins_failing", Gauge, "Sources of SVIDs and bundles that fail now."),
    ("leasehold_issuing_held", Gauge, "1 while nothing is issued because the ledger's disk is nearly full."),
    ("leasehold_jobs_created_total", Counter, "Jobs that were created."),
    ("leasehold_leases_expired_total", Counter, "Leases that ended at their deadline."),
    ("leasehold_leases_live", Gauge, "Leases that are live now."),
    ("leasehold_leases_renewed_total", Counter, "Leases that were renewed."),
    ("leasehold_ledger_free_bytes", Gauge, "Free bytes on the ledger's disk."),
    ("leasehold_ledger_good", Gauge, "1 while the ledger can be written; 0 while its disk is full or fails."),
    (
        "leasehold_ledger_refusals_total",
        Counter,
        "Requests that were refused because their record could not be written.",
    ),
    (
        "leasehold_ledger_saved_bytes_total",
        Counter,
        "Bytes of disk that the compression of the ledger freed.",
    ),
    (
        "leasehold_ledger_segments_compressed_total",
        Counter,
        "Sealed segments of the ledger that were compressed.",
    ),
    (
        "leasehold_logins_refused_total",
        CounterOf("reason", reasons),
        "Logins of people that were refused, by reason.",
    ),
    ("leasehold_logins_total", Counter, "People who logged in."),
    (
        "leasehold_members_away_total",
        Counter,
        "Members that became away, because they sent no heartbeats or their stream ended.",
    ),
    (
        "leasehold_observed_total",
        Counter,
        "Actions that policy would have denied to jobs of observed tenants.",
    ),
    (
        "leasehold_notice_records_skipped_total",
        Counter,
        "Records without a notice to a webhook, because they were too old when the daemon started.",
    ),
    (
        "leasehold_notices_total",
        CounterOf("outcome", notice_outcomes),
        "Notices that were sent or dropped, and attempts to send one that failed.",
    ),
    ("leasehold_notices_waiting", Gauge, "Notices that wait for their receivers."),
    (
        "leasehold_rate_limited_total",
        Counter,
        "Requests that were refused because their caller or its tenant wrote too much.",
    ),
    ("leasehold_refused_total", CounterOf("reason", reasons), "Requests that were refused, by reason."),
    ("leasehold_reviews_due", Gauge, "Emergencies without a review."),
    ("leasehold_revocations_total", Counter, "Revocations and locks by operators."),
    ("leasehold_svid_remaining_seconds", Gauge, "Seconds until the daemon's own SVID ends."),
    ("leasehold_svid_rotation_late", Gauge, "1 while the daemon's SVID is past the time of its renewal."),
    (
        "leasehold_tenants_observed",
        Gauge,
        "Observed tenants now: policy decides about their jobs, but refuses nothing.",
    ),
    ("leasehold_svid_rotations_total", Counter, "Rotations of the daemon's SVID."),
];

fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.code()).chain(["NONE"]).collect()
}

fn transfer_ends() -> Vec<&'static str> {
    vec!["broken", "cut", "whole"]
}

fn notice_outcomes() -> Vec<&'static str> {
    vec!["sent", "failed_attempt", "dropped"]
}

fn identity_uses() -> Vec<&'static str> {
    vec!["job", "shared"]
}

/// Makes the recorder that counts, and describes every metric to it.
pub(super) fn install() -> Option<PrometheusHandle> {
    let handle = PrometheusBuilder::new().install_recorder().ok()?;
    for (name, kind, help) in METRICS {
        match kind {
            Counter => {
                metrics::describe_counter!(*name, *help);
                metrics::counter!(*name).increment(0);
            }
            CounterOf(label, values) => {
                metrics::describe_counter!(*name, *help);
                for value in values() {
                    metrics::counter!(*name, *label => value).increment(0);
                }
            }
            Gauge => {
                metrics::describe_gauge!(*name, *help);
                metrics::gauge!(*name).set(0.0);
            }
        }
    }
    Some(handle)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn counted(folder: &Path, found: &mut BTreeSet<String>) {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                counted(&path, found);
            } else if !path.ends_with("daemon/metrics.rs") && path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(path).unwrap();
                for macro_name in ["counter!(", "gauge!(", "histogram!("] {
                    let macro_call = format!("metrics::{macro_name}");
                    let calls = text.split(&macro_call).skip(1);
                    found.extend(calls.map(|call| call.split('"').nth(1).unwrap().to_owned()));
                }
            }
        }
    }

    #[test]
    fn every_metric_has_a_help_and_is_there_at_once() {
        let mut found = BTreeSet::new();
        counted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let listed: BTreeSet<_> = METRICS.iter().map(|(name, ..)| (*name).to_owned()).collect();
        assert_eq!(found, listed);
        let text = super::super::init_metrics().unwrap().render();
        for name in &listed {
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help in\n{text}");
        }
        // Its value is 0 only if no other test of this process was refused.
        assert!(text.contains("leasehold_refused_total{reason=\"POLICY_DENIED\"} "), "{text}");
    }
}

//! The section about the daemon's own identity and the trust domains that it accepts: `[identity]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{IdentityConfig, IdentityFrom, federation::Federated};
use crate::{
    identity::{ENDPOINT_VARIABLE, Pick, WorkloadEndpoint},
    limits::{IDENTITY_OUTAGE_MAX, IDENTITY_WAIT, JOB_DURATION_MAX, SVID_LIFE_MAX, TRUST_DOMAINS_MAX},
    name::{SpiffeId, TrustDomain},
    written::{Notes, Section, path, span, span_text},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn read(
    mut table: Section<'_>,
    federation: Option<Vec<Federated>>,
    folder: &Path,
    notes: &mut Notes,
) -> Option<IdentityConfig> {
    let has_files = table.has("cert") || table.has("key");
    let has_agent = table.has("workload_api");
    let from = match (has_files, has_agent) {
        (true, true) => {
            notes.problem(
                table.line_of("workload_api"),
                "identity.workload_api is set beside identity.cert and identity.key: an SVID has one source, remove one",
            );
            let _ = table.text("workload_api", notes, str::parse::<WorkloadEndpoint>);
            files(&mut table, folder, notes).and(None)
        }
        (true, false) => files(&mut table, folder, notes),
        (false, true) => workload_api(&mut table, notes),
        (false, false) => {
            let files =
                "\"svid.pem\" and key = \"svid.key\", or workload_api = \"unix:///PATH\" of a SPIFFE agent";
            table.missing("cert", files, notes);
            workload_api(&mut table, notes).and(None)
        }
    };
    let is_files = has_files || !has_agent;
    let bundles = table.section_if_there("bundles", notes).map(|t| bundles(t, folder, notes));
    let is_empty = bundles.as_ref().is_none_or(|b| b.as_ref().is_some_and(BTreeMap::is_empty));
    if is_empty && is_files {
        let what = "identity.bundles names no trust domain, so clients could not connect: write bundles = { \"example.org\" = \"bundle.pem\" }";
        notes.problem(table.line_of("bundles"), what);
    }
    let bundles = bundles.unwrap_or_else(|| Some(BTreeMap::new()));
    // The list has no bound in number, because it may also name domains whose roots a SPIFFE agent gives. The size of the file
    // bounds it.
    let listed = table.list("trust_domains", usize::MAX, notes, str::parse::<TrustDomain>);
    let domains: Option<BTreeSet<_>> =
        table.has("trust_domains").then(|| listed.into_iter().map(|domain| domain.value).collect());
    if let (Some(bundles), Some(federation)) = (&bundles, &federation) {
        check_bundles(bundles, federation, notes);
        if let Some(domains) = &domains {
            let line = table.line_of("trust_domains");
            check_domains(line, domains, bundles, federation, is_files, notes);
        }
    }
    let max_svid_ttl =
        table.or("max_svid_ttl", &span_text(SVID_LIFE_MAX), notes, |t| span(t, MINUTE..=JOB_DURATION_MAX));
    let wait = table.or("wait", &span_text(IDENTITY_WAIT), notes, |t| span(t, SECOND..=60 * MINUTE));
    let outage_max = table
        .or("outage_max", &span_text(IDENTITY_OUTAGE_MAX), notes, |t| span(t, MINUTE..=JOB_DURATION_MAX));
    table.finish(notes);
    Some(IdentityConfig {
        from: from?,
        bundles: bundles?,
        federation: federation?.into_iter().map(|federated| federated.endpoint).collect(),
        trust_domains: domains,
        max_svid_ttl: max_svid_ttl?,
        wait: wait?,
        outage_max: outage_max?,
    })
}

fn files(table: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<IdentityFrom> {
    let cert = table.need("cert", "\"svid.pem\"", notes, |t| path(t, folder));
    let key = table.need("key", "\"svid.key\"", notes, |t| path(t, folder));
    Some(IdentityFrom::Files { cert: cert?, key: key? })
}

fn workload_api(table: &mut Section<'_>, notes: &mut Notes) -> Option<IdentityFrom> {
    let endpoint = table.text("workload_api", notes, |t| match t.strip_prefix('$') {
        // The variable is read when the daemon starts.
        Some(ENDPOINT_VARIABLE) => Ok(None),
        _ => t.parse::<WorkloadEndpoint>().map(Some),
    });
    let hint = table.text("hint", notes, |t| match t {
        "" => Err("it is empty: write the hint of the registration entry"),
        hint => Ok(Pick::Hint(hint.to_owned())),
    });
    let id = table.text("spiffe_id", notes, |t| t.parse::<SpiffeId>().map(Pick::Id));
    if table.has("hint") && table.has("spiffe_id") {
        notes.problem(
            table.line_of("spiffe_id"),
            "identity.spiffe_id is set beside identity.hint: one of them picks the SVID, remove the other",
        );
    }
    Some(IdentityFrom::WorkloadApi { endpoint: endpoint?, pick: hint.or(id).unwrap_or_default() })
}

/// Checks that only one source gives the roots of each trust domain.
fn check_bundles(bundles: &BTreeMap<TrustDomain, PathBuf>, federation: &[Federated], notes: &mut Notes) {
    let mut seen = BTreeSet::new();
    for Federated { line, endpoint } in federation {
        let domain = &endpoint.trust_domain;
        if bundles.contains_key(domain) {
            notes.problem(
                *line,
                format!(
                    "federation: `{domain}` has a bundle in identity.bundles too: a trust domain may have only one source, remove one of the two"
                ),
            );
        } else if !seen.insert(domain) {
            notes.problem(
                *line,
                format!("federation: `{domain}` is listed twice: name each trust domain once"),
            );
        }
    }
}

/// Checks the list of trust domains. Every domain with roots must be listed. If all roots are from files, every listed
/// domain must have roots.
fn check_domains(
    line: usize,
    listed: &BTreeSet<TrustDomain>,
    bundles: &BTreeMap<TrustDomain, PathBuf>,
    federation: &[Federated],
    is_files: bool,
    notes: &mut Notes,
) {
    let federated: BTreeSet<_> = federation.iter().map(|f| &f.endpoint.trust_domain).collect();
    let has_roots = |domain: &TrustDomain| bundles.contains_key(domain) || federated.contains(domain);
    for lacking in listed.iter().filter(|d| is_files && !has_roots(d)) {
        notes.problem(
            line,
            format!("identity.trust_domains: `{lacking}` has no bundle: write one, or remove it"),
        );
    }
    for lacking in bundles.keys().chain(federated.iter().copied()).filter(|d| !listed.contains(d)) {
        notes.problem(line, format!("identity.trust_domains: `{lacking}` has a bundle and is not listed: list it, or remove trust_domains"));
    }
}

fn bundles(table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<BTreeMap<TrustDomain, PathBuf>> {
    let line = table.line();
    let entries = table.named_texts(notes);
    if entries.len() > TRUST_DOMAINS_MAX {
        notes.problem(
            line,
            format!("identity.bundles: {} entries: write at most {TRUST_DOMAINS_MAX}", entries.len()),
        );
        return None;
    }
    let mut good = !table.is_not_a_table();
    let mut out = BTreeMap::new();
    for (name, line, file) in entries {
        let read = name.parse::<TrustDomain>().map_err(|e| e.to_string());
        match read.and_then(|domain| Ok((domain, path(file, folder)?))) {
            Ok((domain, file)) => {
                out.insert(domain, file);
            }
            Err(why) => {
                good = false;
                notes.problem(line, format!("identity.bundles: {why}"));
            }
        }
    }
    good.then_some(out)
}

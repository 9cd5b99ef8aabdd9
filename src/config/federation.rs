//! The sections about bundle endpoints: `[[federation]]`.

use std::path::Path;

use crate::{
    identity::{BundleEndpoint, EndpointProfile, EndpointUrl},
    name::{SpiffeId, TrustDomain},
    plain,
    written::{Notes, Section, path},
};

/// A `[[federation]]` entry, and its line.
pub(super) struct Federated {
    pub(super) line: usize,
    pub(super) endpoint: BundleEndpoint,
}

pub(super) fn read(tables: Vec<Section<'_>>, folder: &Path, notes: &mut Notes) -> Option<Vec<Federated>> {
    let all: Vec<_> = tables.into_iter().map(|table| entry(table, folder, notes)).collect();
    all.into_iter().collect()
}

/// Reads an entry. URL, profile and trust domain are all required, because they cannot be derived from each other
/// (SPIFFE Federation, section 7.2).
fn entry(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<Federated> {
    let line = table.line();
    let trust_domain = table.need("trust_domain", "\"partner.example\"", notes, str::parse::<TrustDomain>);
    let url = table.need("url", "\"https://spire.partner.example/bundle\"", notes, |t| {
        t.parse::<EndpointUrl>().map_err(|why| format!("`{}` {why}", plain::value(t)))
    });
    let profile = table.need("profile", "\"https_spiffe\" or \"https_web\"", notes, |t| match t {
        "https_spiffe" => Ok(true),
        "https_web" => Ok(false),
        other => Err(format!("`{}` is not known: write one of https_spiffe, https_web", plain::value(other))),
    });
    let file = |t: &str| path(t, folder);
    let profile = match profile {
        Some(true) => {
            let id = table.need(
                "endpoint_id",
                "\"spiffe://partner.example/spire/server\"",
                notes,
                str::parse::<SpiffeId>,
            );
            let bundle =
                table.need("bundle", "\"partner.pem\", the roots of endpoint_id to begin with", notes, file);
            unwanted(&mut table, "ca", "https_web", notes);
            id.zip(bundle).map(|(id, bundle)| EndpointProfile::Spiffe { id, bundle })
        }
        Some(false) => {
            let ca = table.need(
                "ca",
                "\"/etc/ssl/certs/ca-certificates.crt\", the authorities that may certify the host's name",
                notes,
                file,
            );
            unwanted(&mut table, "endpoint_id", "https_spiffe", notes);
            unwanted(&mut table, "bundle", "https_spiffe", notes);
            ca.map(|ca| EndpointProfile::Web { ca })
        }
        None => {
            for key in ["endpoint_id", "bundle", "ca"] {
                let _ = table.text(key, notes, |_| Ok::<_, String>(()));
            }
            None
        }
    };
    table.finish(notes);
    Some(Federated {
        line,
        endpoint: BundleEndpoint { trust_domain: trust_domain?, url: url?, profile: profile? },
    })
}

fn unwanted(table: &mut Section<'_>, key: &'static str, profile: &str, notes: &mut Notes) {
    table.refuse(key, &format!("is for {profile}: remove it, or change the profile"), notes);
}

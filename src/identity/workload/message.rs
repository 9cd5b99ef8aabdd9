//! A message of the stream. It is a complete state and is accepted or discarded as a whole (SPIFFE Workload API,
//! section 5.2).

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use zeroize::Zeroize;

use super::wire::{X509svid, X509svidResponse};
use crate::{
    clock::Wall,
    identity::{
        bundle::{Roots, TrustBundles},
        load::LoadError,
        svid::X509Svid,
    },
    limits,
    name::{SpiffeId, TrustDomain},
    plain,
};

/// The choice of our own SVID among the SVIDs that the agent gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pick {
    /// The first SVID: the default of the standard.
    #[default]
    First,
    /// The first SVID with this hint.
    Hint(String),
    /// The SVID with this SPIFFE ID.
    Id(SpiffeId),
}

/// The state in a message.
pub(super) struct WorkloadState {
    /// Our own SVID. `None` if no SVID in the message is our own.
    pub(super) svid: Option<Arc<X509Svid>>,
    pub(super) bundles: TrustBundles,
    /// A line for each unusable foreign bundle.
    pub(super) left_out: Vec<String>,
    /// The SPIFFE IDs and hints in the message, for people.
    pub(super) given: Vec<String>,
}

/// The reasons for which a message is discarded. The previous state stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageFault {
    #[error("`{field}` is empty, but mandatory")]
    Empty { field: &'static str },
    #[error("it has {found} SVIDs, at most {} are read", limits::WORKLOAD_SVIDS_MAX)]
    TooMany { found: usize },
    #[error("the SVID of `{id}` cannot be used: {why}")]
    Svid { id: String, why: LoadError },
    #[error("an entry is for `{said}`, but its certificate is for `{certificate}`")]
    OtherId { said: String, certificate: SpiffeId },
    #[error("`{id}` is not a SPIFFE ID")]
    Id { id: String },
    #[error("the bundle of `{domain}` cannot be used: {why}")]
    Bundle { domain: TrustDomain, why: LoadError },
}

impl WorkloadState {
    /// Reads a message. A foreign bundle keeps only its usable roots, or none. All other faults discard the message.
    pub(super) fn read(
        mut message: X509svidResponse,
        pick: &Pick,
        svid_life_max: Duration,
        now: Wall,
    ) -> Result<Self, MessageFault> {
        let read = Self::read_whole(&message, pick, svid_life_max, now);
        for entry in &mut message.svids {
            entry.x509_svid_key.zeroize();
        }
        read
    }

    fn read_whole(
        message: &X509svidResponse,
        pick: &Pick,
        svid_life_max: Duration,
        now: Wall,
    ) -> Result<Self, MessageFault> {
        check_mandatory(message)?;
        // A repeated hint means the first SVID with it (section 5.2.1).
        let picked = message.svids.iter().position(|entry| pick.matches(entry));
        let svid = match picked.and_then(|at| message.svids.get(at)) {
            Some(entry) => Some(own(entry)?),
            None => None,
        };
        let mut state = WorkloadState {
            svid,
            bundles: TrustBundles::empty().with_svid_life_max(svid_life_max),
            left_out: Vec::new(),
            given: message.svids.iter().map(shown).collect(),
        };
        // Our own entry comes first. If two entries of one domain differ, the entry with our SVID counts.
        let first = picked.and_then(|at| message.svids.get(at));
        for entry in first.into_iter().chain(&message.svids) {
            let domain = domain_of(entry)?;
            if state.bundles.root_count(&domain).is_none() {
                state.own_bundle(domain, &entry.bundle, now)?;
            }
        }
        for (key, der) in &message.federated_bundles {
            state.foreign_bundle(key, der, now);
        }
        Ok(state)
    }

    fn own_bundle(&mut self, domain: TrustDomain, der: &[u8], now: Wall) -> Result<(), MessageFault> {
        let bad = |why| MessageFault::Bundle { domain: domain.clone(), why };
        let (roots, left_out) = Roots::from_der(domain.as_str(), der, now).map_err(bad)?;
        if roots.anchors.is_empty() {
            return Err(bad(roots.no_root_error(domain.as_str())));
        }
        self.left_out.extend(left_out);
        self.bundles.replace(domain, roots);
        Ok(())
    }

    /// Adds a foreign bundle to the state. Without a usable root, all SVIDs of the trust domain are invalid (Trust
    /// Domain and Bundle, section 4.1.3).
    fn foreign_bundle(&mut self, key: &str, der: &[u8], now: Wall) {
        let Some(domain) = key.strip_prefix("spiffe://").and_then(|d| d.parse::<TrustDomain>().ok()) else {
            let key = plain::value(key);
            self.left_out
                .push(format!("`{key}` is not the SPIFFE ID of a trust domain: its bundle is left out"));
            return;
        };
        if self.bundles.root_count(&domain).is_some() {
            self.left_out.push(format!(
                "`{domain}` is our own trust domain: its bundle among the foreign ones is left out"
            ));
            return;
        }
        if self.bundles.domains().count() >= limits::TRUST_DOMAINS_MAX {
            self.left_out.push(format!("`{domain}` is one trust domain too many: it is left out"));
            return;
        }
        let roots = match Roots::from_der(domain.as_str(), der, now) {
            Ok((roots, left_out)) => {
                self.left_out.extend(left_out);
                roots
            }
            Err(why) => {
                self.left_out.push(format!("{why}: no peer of that trust domain is trusted"));
                Roots::default()
            }
        };
        self.bundles.replace(domain, roots);
    }
}

fn check_mandatory(message: &X509svidResponse) -> Result<(), MessageFault> {
    let empty = |field| Err(MessageFault::Empty { field });
    if message.svids.is_empty() {
        return empty("svids");
    }
    if message.svids.len() > limits::WORKLOAD_SVIDS_MAX {
        return Err(MessageFault::TooMany { found: message.svids.len() });
    }
    for entry in &message.svids {
        match entry {
            X509svid { spiffe_id, .. } if spiffe_id.is_empty() => return empty("spiffe_id"),
            X509svid { x509_svid, .. } if x509_svid.is_empty() => return empty("x509_svid"),
            X509svid { x509_svid_key, .. } if x509_svid_key.is_empty() => return empty("x509_svid_key"),
            X509svid { bundle, .. } if bundle.is_empty() => return empty("bundle"),
            _ => {}
        }
    }
    Ok(())
}

fn own(entry: &X509svid) -> Result<Arc<X509Svid>, MessageFault> {
    let svid = X509Svid::from_der(&entry.x509_svid, &entry.x509_svid_key)
        .map_err(|why| MessageFault::Svid { id: shown(entry), why })?;
    if svid.spiffe_id().as_str() != entry.spiffe_id {
        return Err(MessageFault::OtherId { said: shown(entry), certificate: svid.spiffe_id().clone() });
    }
    Ok(Arc::new(svid))
}

fn domain_of(entry: &X509svid) -> Result<TrustDomain, MessageFault> {
    let id = entry.spiffe_id.parse::<SpiffeId>().map_err(|_| MessageFault::Id { id: shown(entry) })?;
    Ok(id.trust_domain())
}

fn shown(entry: &X509svid) -> String {
    match entry.hint.as_str() {
        "" => plain::value(&entry.spiffe_id),
        hint => format!("{} (hint {})", plain::value(&entry.spiffe_id), plain::value(hint)),
    }
}

impl Pick {
    fn matches(&self, entry: &X509svid) -> bool {
        match self {
            Pick::First => true,
            Pick::Hint(hint) => entry.hint == *hint,
            Pick::Id(id) => entry.spiffe_id == id.as_str(),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pick::First => f.write_str("any SVID"),
            Pick::Hint(hint) => write!(f, "an SVID with the hint `{}`", plain::value(hint)),
            Pick::Id(id) => write!(f, "an SVID of `{id}`"),
        }
    }
}

/// Lists IDs and hints without repetition.
pub(super) fn listed(given: &[String]) -> String {
    let mut seen = HashSet::new();
    given.iter().filter(|one| seen.insert(*one)).take(8).cloned().collect::<Vec<_>>().join(", ")
}

//! Where an identity comes from, as it is configured.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use super::{
    combined::CombinedSource,
    federation::{BundleEndpoint, BundleSource},
    file::{FileSource, IdentityFiles},
    load::LoadError,
    source::IdentitySource,
    workload::{Pick, WorkloadEndpoint, WorkloadOptions, WorkloadSource},
};
use crate::{clock::Clock, limits, name::TrustDomain};

/// Where our own SVID comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A chain, leaf first, and its key.
    Files { cert: PathBuf, key: PathBuf },
    /// The SPIFFE agent of this machine, with the bundles that it has.
    WorkloadApi { endpoint: WorkloadEndpoint, pick: Pick },
}

/// Where our own SVID and the roots come from.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    pub origin: Origin,
    /// Roots from files, of trust domains that the agent says nothing of.
    pub bundles: Vec<(TrustDomain, PathBuf)>,
    /// Bundle endpoints of foreign trust domains.
    pub federation: Vec<BundleEndpoint>,
    /// Of other trust domains nobody is trusted. `None`: all that there are roots of.
    pub allowed: Option<BTreeSet<TrustDomain>>,
    /// The longest life of an SVID that is accepted.
    pub svid_life_max: Duration,
    /// How long the last good SVID and roots are used while their source fails.
    pub outage_max: Duration,
}

impl IdentityOptions {
    /// With the bounds of `limits`.
    pub fn new(origin: Origin, bundles: Vec<(TrustDomain, PathBuf)>) -> Self {
        IdentityOptions {
            origin,
            bundles,
            federation: Vec::new(),
            allowed: None,
            svid_life_max: limits::SVID_LIFE_MAX,
            outage_max: limits::IDENTITY_OUTAGE_MAX,
        }
    }

    /// The source. Files are read now; everything else is asked once somebody follows it.
    pub fn open(self, clock: Arc<dyn Clock>) -> Result<Arc<dyn IdentitySource>, LoadError> {
        let files = |svid, bundles| {
            let files = IdentityFiles { svid, bundles };
            let source = FileSource::open_limited(files, self.svid_life_max, clock.clone())?;
            Ok::<_, LoadError>(Arc::new(source.with_outage_max(self.outage_max)))
        };
        let mut others: Vec<Arc<dyn IdentitySource>> = Vec::new();
        let first: Arc<dyn IdentitySource> = match self.origin {
            Origin::Files { cert, key } => files(Some((cert, key)), self.bundles)?,
            Origin::WorkloadApi { endpoint, pick } => {
                if !self.bundles.is_empty() {
                    others.push(files(None, self.bundles)?);
                }
                let (svid_life_max, outage_max) = (self.svid_life_max, self.outage_max);
                let options = WorkloadOptions { endpoint, pick, svid_life_max, outage_max };
                Arc::new(WorkloadSource::new(options, clock.clone()))
            }
        };
        for endpoint in self.federation {
            let (life, outage) = (self.svid_life_max, self.outage_max);
            others.push(Arc::new(BundleSource::open(endpoint, life, outage, clock.clone())?));
        }
        if others.is_empty() && self.allowed.is_none() {
            return Ok(first);
        }
        Ok(Arc::new(CombinedSource::new(first, others, self.allowed, self.svid_life_max)))
    }
}

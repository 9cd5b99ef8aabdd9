//! The configured origin of an identity.

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

/// The origin of our own SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Files with a chain, leaf first, and its key.
    Files {
        /// The chain as PEM.
        cert: PathBuf,
        /// The private key as PKCS#8 PEM.
        key: PathBuf,
    },
    /// The SPIFFE agent of this machine. The agent also gives bundles.
    WorkloadApi {
        /// The address of the agent.
        endpoint: WorkloadEndpoint,
        /// The choice of the SVID, if the agent gives several.
        pick: Pick,
    },
}

/// The configured origins of our own SVID and the roots.
#[derive(Clone, Debug)]
pub struct IdentityOptions {
    /// The origin of our own SVID.
    pub origin: Origin,
    /// Roots from files, for trust domains that the agent does not give.
    pub bundles: Vec<(TrustDomain, PathBuf)>,
    /// Bundle endpoints of foreign trust domains.
    pub federation: Vec<BundleEndpoint>,
    /// The only trust domains that are trusted. `None` if all domains with roots are trusted.
    pub allowed: Option<BTreeSet<TrustDomain>>,
    /// The longest accepted life of an SVID.
    pub svid_life_max: Duration,
    /// The time for which the last good SVID and roots are used while their origin fails.
    pub outage_max: Duration,
}

impl IdentityOptions {
    /// Makes options with the bounds from `limits`.
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

    /// Opens the source. Reads the files now, but uses no network: only [`IdentitySource::follow`] does.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used. The error names the file.
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

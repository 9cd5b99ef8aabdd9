//! The roots of each trust domain (SPIFFE Trust Domain and Bundle, sections 3 and 4).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, TrustAnchor};

use super::{
    document::{BundleDocument, is_json},
    handshake_cache::HandshakeCache,
    load::{self, LoadError, LoadFault},
    signing::{SigningLife, check_signature_algorithm},
    svid_error::SvidError,
};
use crate::{clock::Wall, limits, name::TrustDomain, secret::sha256};

/// The roots of trust domains. Roots are never merged: the roots of a domain vouch only for that domain.
#[derive(Clone)]
pub struct TrustBundles {
    revision: u64,
    svid_life_max: Duration,
    by_domain: BTreeMap<TrustDomain, Arc<Roots>>,
    /// The chains that were verified against these roots. The cache is empty again after each change.
    handshakes: HandshakeCache,
}

/// The roots of one trust domain.
#[derive(Default)]
pub(super) struct Roots {
    /// The roots in the form that webpki accepts.
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// The validity of each root, in the same order. webpki does not check the validity of roots.
    pub(super) lives: Vec<SigningLife>,
    /// The SHA-256 of each root, in the same order.
    digests: Vec<[u8; 32]>,
    /// The number of roots that were left out because they had expired.
    expired: usize,
    /// A line for each root that was left out because its signatures cannot be verified.
    left_out: Vec<String>,
    /// A line for each root that is used although its own signature cannot be verified.
    doubtful: Vec<String>,
    /// The sequence number of the publisher, if there is one.
    sequence: Option<u64>,
}

impl TrustBundles {
    /// Returns bundles without roots: no peer is trusted.
    pub fn empty() -> Self {
        TrustBundles {
            revision: 0,
            svid_life_max: limits::SVID_LIFE_MAX,
            by_domain: BTreeMap::new(),
            handshakes: HandshakeCache::default(),
        }
    }

    /// Adds the bundle of a trust domain from PEM. Errors call it `file`.
    ///
    /// Expired roots are left out.
    ///
    /// # Errors
    ///
    /// The text is not PEM, a root is not a CA or may not sign, no root is valid now, or the domain has a bundle
    /// already.
    pub fn with_pem(
        mut self,
        domain: TrustDomain,
        file: &str,
        pem: &[u8],
        now: Wall,
    ) -> Result<Self, LoadError> {
        let roots = Roots::from_pem(file, pem, now)?;
        self.insert(domain, file, Arc::new(roots))?;
        Ok(self)
    }

    /// Adds the bundle of a trust domain from the bytes of a file: PEM, or a SPIFFE bundle document.
    ///
    /// # Errors
    ///
    /// The errors of [`with_pem`](Self::with_pem), or of [`BundleDocument::parse`] if the file is JSON.
    pub fn with_file(
        mut self,
        domain: TrustDomain,
        file: &str,
        bytes: &[u8],
        now: Wall,
    ) -> Result<Self, LoadError> {
        let roots = Roots::from_file(file, bytes, &domain, now)?;
        self.insert(domain, file, Arc::new(roots))?;
        Ok(self)
    }

    /// Adds the bundle of a trust domain from a file.
    ///
    /// # Errors
    ///
    /// The errors of [`with_file`](Self::with_file), or the file cannot be read.
    pub fn with_file_at(self, domain: TrustDomain, path: &Path, now: Wall) -> Result<Self, LoadError> {
        self.with_file(domain, &path.display().to_string(), &load::read(path)?, now)
    }

    /// Adds the bundle of a trust domain from its document. Expired roots are left out. A bundle without roots is valid: it
    /// revokes every SVID of the trust domain.
    ///
    /// # Errors
    ///
    /// A root is not a CA or may not sign, or the domain has a bundle already.
    pub fn with_document(
        mut self,
        domain: TrustDomain,
        file: &str,
        document: &BundleDocument,
        now: Wall,
    ) -> Result<Self, LoadError> {
        let roots = Roots::from_document(file, document, now)?;
        self.insert(domain, file, Arc::new(roots))?;
        Ok(self)
    }

    pub(super) fn insert(
        &mut self,
        domain: TrustDomain,
        file: &str,
        roots: Arc<Roots>,
    ) -> Result<(), LoadError> {
        if self.by_domain.len() >= limits::TRUST_DOMAINS_MAX {
            return Err(LoadFault::TooManyDomains.in_file(file));
        }
        self.handshakes = HandshakeCache::default();
        match self.by_domain.entry(domain) {
            Entry::Vacant(place) => {
                place.insert(roots);
                Ok(())
            }
            Entry::Occupied(place) => {
                Err(LoadFault::DomainRepeated { domain: place.key().clone() }.in_file(file))
            }
        }
    }

    /// Sets the roots of a trust domain.
    pub(super) fn replace(&mut self, domain: TrustDomain, roots: Roots) {
        self.handshakes = HandshakeCache::default();
        self.by_domain.insert(domain, Arc::new(roots));
    }

    /// Adds the wanted trust domains that have no roots here yet, up to the limit.
    pub(super) fn add_missing(&mut self, others: &TrustBundles, wanted: impl Fn(&TrustDomain) -> bool) {
        self.handshakes = HandshakeCache::default();
        for (domain, roots) in others.by_domain.iter().filter(|(domain, _)| wanted(domain)) {
            if self.by_domain.len() < limits::TRUST_DOMAINS_MAX {
                self.by_domain.entry(domain.clone()).or_insert_with(|| roots.clone());
            }
        }
    }

    /// Sets the longest accepted life of an SVID. The default is [`limits::SVID_LIFE_MAX`].
    #[must_use]
    pub fn with_svid_life_max(mut self, life_max: Duration) -> Self {
        self.svid_life_max = life_max;
        self.handshakes = HandshakeCache::default();
        self
    }

    #[must_use]
    pub(super) fn with_revision(mut self, revision: u64) -> Self {
        self.revision = revision;
        self.handshakes = HandshakeCache::default();
        self
    }

    /// Returns a number that grows when the roots change. Connections are then verified again.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the trust domains that have a bundle.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.by_domain.keys()
    }

    /// Returns the number of roots of a trust domain. `None` if it has no bundle.
    pub fn root_count(&self, domain: &TrustDomain) -> Option<usize> {
        self.by_domain.get(domain).map(|roots| roots.anchors.len())
    }

    /// Returns a line for each root that cannot be used, for each root whose own signature cannot be verified, and for each
    /// trust domain without a root. SVIDs under an unusable root, and SVIDs of a domain without a root, are refused.
    pub fn warnings(&self) -> Vec<String> {
        self.by_domain.iter().flat_map(|(domain, roots)| roots.warnings(domain)).collect()
    }

    pub(super) fn roots(&self, domain: &TrustDomain) -> Option<&Arc<Roots>> {
        self.by_domain.get(domain)
    }

    /// Returns the verified chains of handshakes that have no `Peer` yet.
    pub(super) fn handshakes(&self) -> &HandshakeCache {
        &self.handshakes
    }

    pub(super) fn svid_life_max(&self) -> Duration {
        self.svid_life_max
    }

    /// Whether two sets of bundles trust the same roots for the same domains, and accept the same SVID life.
    pub(super) fn trusts_as(&self, other: &TrustBundles) -> bool {
        self.svid_life_max == other.svid_life_max
            && self.by_domain.len() == other.by_domain.len()
            && self.by_domain.iter().zip(&other.by_domain).all(|((domain, roots), (other_domain, others))| {
                domain == other_domain && roots.digests == others.digests && roots.sequence == others.sequence
            })
    }

    /// Returns a copy without the expired roots. `None` if no root has expired. A domain without roots stays in the
    /// copy, so that its SVIDs are refused because of their root and not because of an unknown domain.
    pub(super) fn without_expired(&self, now: Wall) -> Option<TrustBundles> {
        let expired = |roots: &Roots| roots.lives.iter().any(|life| now >= life.not_after);
        if !self.by_domain.values().any(|roots| expired(roots)) {
            return None;
        }
        let mut kept = self.clone();
        for roots in kept.by_domain.values_mut().filter(|roots| expired(roots)) {
            *roots = Arc::new(roots.without_expired(now));
        }
        Some(kept)
    }

    /// Returns the pairs of trust domains that have roots with the same key. Each domain of a pair can issue SVIDs of the other
    /// (section 6.2).
    pub(super) fn shared_roots(&self) -> BTreeSet<(&TrustDomain, &TrustDomain)> {
        let mut first: BTreeMap<&[u8], &TrustDomain> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for (domain, roots) in &self.by_domain {
            for anchor in &roots.anchors {
                let other = *first.entry(&anchor.subject_public_key_info).or_insert(domain);
                if other != domain {
                    shared.insert((other, domain));
                }
            }
        }
        shared
    }
}

impl Roots {
    /// Reads the roots of a file: PEM, or a SPIFFE bundle document.
    pub(super) fn from_file(
        file: &str,
        bytes: &[u8],
        domain: &TrustDomain,
        now: Wall,
    ) -> Result<Self, LoadError> {
        if is_json(bytes) {
            Self::from_document(file, &BundleDocument::parse(file, bytes, domain)?, now)
        } else {
            Self::from_pem(file, bytes, now)
        }
    }

    pub(super) fn from_document(file: &str, document: &BundleDocument, now: Wall) -> Result<Self, LoadError> {
        let mut roots = Roots { sequence: document.sequence, ..Roots::default() };
        for (der, number) in document.roots.iter().zip(1..) {
            roots.add(file, number, der, now)?;
        }
        roots.check_count(file)
    }

    /// Whether these roots are older than `shown`. The sequence of a publisher never goes back (section 4.1.1).
    pub(super) fn is_older_than(&self, shown: &Roots) -> bool {
        matches!((self.sequence, shown.sequence), (Some(new), Some(shown)) if new < shown)
    }

    fn from_pem(file: &str, pem: &[u8], now: Wall) -> Result<Self, LoadError> {
        let mut roots = Roots::default();
        for (der, number) in load::certificates(file, pem, limits::BUNDLE_CERTIFICATES_MAX)?.iter().zip(1..) {
            roots.add(file, number, der, now)?;
        }
        if roots.anchors.is_empty() {
            return Err(roots.no_root_error(file));
        }
        roots.check_count(file)
    }

    /// Reads the usable roots from a concatenation of DER, with a line for each unusable certificate. Expired roots are
    /// left out without a line, because issuers keep them in the bundle for a while.
    pub(super) fn from_der(what: &str, der: &[u8], now: Wall) -> Result<(Self, Vec<String>), LoadError> {
        let (mut roots, mut left_out) = (Roots::default(), Vec::new());
        for (der, number) in load::concatenated(what, der, limits::BUNDLE_CERTIFICATES_MAX)?.iter().zip(1..) {
            if let Err(why) = roots.add(what, number, der, now) {
                left_out.push(why.to_string());
            }
        }
        left_out.extend(roots.left_out.iter().cloned());
        Ok((roots.check_count(what)?, left_out))
    }

    /// Checks the number of roots. Expired roots do not count, because an issuer that rotates often leaves many of
    /// them.
    fn check_count(self, what: &str) -> Result<Self, LoadError> {
        let (found, max) = (self.anchors.len(), limits::BUNDLE_ROOTS_MAX);
        if found > max {
            return Err(LoadFault::TooManyCertificates { found, max }.in_file(what));
        }
        Ok(self)
    }

    /// Returns the error for a bundle without a usable root.
    pub(super) fn no_root_error(&self, what: &str) -> LoadError {
        LoadFault::NoRoot { expired: self.expired, left_out: self.left_out.clone() }.in_file(what)
    }

    /// Whether the bundle has no usable root. Expired roots count as usable here.
    pub(super) fn is_empty(&self) -> bool {
        self.anchors.is_empty() && self.expired == 0
    }

    pub(super) fn warnings(&self, domain: &TrustDomain) -> Vec<String> {
        let mut all: Vec<_> =
            self.left_out.iter().chain(&self.doubtful).map(|line| format!("`{domain}`: {line}")).collect();
        if self.anchors.is_empty() {
            let why = load::no_root_reason(self.expired, &self.left_out);
            all.push(format!(
                "`{domain}` has no usable root ({why}), so each of its SVIDs is refused (Trust Domain and Bundle section \
                 4.1.3): fetch its bundle again"
            ));
        }
        all
    }

    /// Adds a valid root, counts an expired root, or keeps a line about a root whose signatures cannot be verified.
    fn add(
        &mut self,
        file: &str,
        number: usize,
        der: &CertificateDer<'_>,
        now: Wall,
    ) -> Result<(), LoadError> {
        let broken = |why| LoadFault::Certificate { number, why }.in_file(file);
        let life = match SigningLife::parse(der) {
            Err(why @ (SvidError::KeyAlgorithm { .. } | SvidError::KeyTooShort { .. })) => {
                self.left_out.push(broken(why).to_string());
                return Ok(());
            }
            life => life.map_err(broken)?,
        };
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_| broken(SvidError::Malformed))?;
        if let Err(why) = check_signature_algorithm(der) {
            // The root is still used, but its issuer probably signs SVIDs with the same algorithm.
            self.doubtful.push(format!(
                "root {number} of `{file}` is signed by an algorithm that is refused in SVIDs: {why}"
            ));
        }
        let digest = sha256(der);
        if now >= life.not_after {
            self.expired = self.expired.saturating_add(1);
        } else if !self.digests.contains(&digest) {
            self.push(anchor.to_owned(), life, digest);
        }
        Ok(())
    }

    fn push(&mut self, anchor: TrustAnchor<'static>, life: SigningLife, digest: [u8; 32]) {
        self.anchors.push(anchor);
        self.lives.push(life);
        self.digests.push(digest);
    }

    fn without_expired(&self, now: Wall) -> Self {
        let mut kept = Roots {
            sequence: self.sequence,
            expired: self.expired,
            left_out: self.left_out.clone(),
            doubtful: self.doubtful.clone(),
            ..Roots::default()
        };
        for ((anchor, life), digest) in self.anchors.iter().zip(&self.lives).zip(&self.digests) {
            if now < life.not_after {
                kept.push(anchor.clone(), *life, *digest);
            } else {
                kept.expired = kept.expired.saturating_add(1);
            }
        }
        kept
    }

    /// Returns the validity of an anchor that webpki found. webpki returns a reference into `anchors`, so its address identifies
    /// the root.
    pub(super) fn life_of(&self, anchor: &TrustAnchor<'_>) -> Option<SigningLife> {
        let place = self.anchors.iter().position(|one| std::ptr::eq(one, anchor))?;
        self.lives.get(place).copied()
    }
}

/// Shows the trust domains, each with its number of roots.
impl fmt::Display for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (domain, roots)) in self.by_domain.iter().enumerate() {
            let (between, count) = (if i == 0 { "" } else { ", " }, roots.anchors.len());
            write!(f, "{between}{domain}: {count} root{}", if count == 1 { "" } else { "s" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundles(revision {}, {self})", self.revision)
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;

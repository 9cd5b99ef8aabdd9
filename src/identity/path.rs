//! The path from a leaf to a root of the leaf's trust domain (X509-SVID section 5.1, RFC 5280 section 6).

use std::{cell::RefCell, time::Duration};

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyUsage, VerifiedPath};

use super::{
    algorithm::algorithms,
    bundle::{Roots, TrustBundles},
    leaf::{Leaf, Side, VerifiedLeaf},
    signing::SigningLife,
    svid_error::SvidError,
};
use crate::{clock::Wall, limits, name::TrustDomain};

#[cfg(test)]
thread_local! {
    /// Counts the chains that this thread has verified.
    pub(super) static VERIFIED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Verifies a presented chain, leaf first, against the roots of the leaf's own trust domain and no others.
pub(super) fn verify(
    chain: &[CertificateDer<'_>],
    side: Side,
    now: Wall,
    bundles: &TrustBundles,
) -> Result<VerifiedLeaf, SvidError> {
    #[cfg(test)]
    VERIFIED.set(VERIFIED.get() + 1);
    let (first, above) = chain.split_first().ok_or(SvidError::NotPresented)?;
    if chain.len() > limits::CHAIN_MAX {
        return Err(SvidError::ChainTooLong { found: chain.len() });
    }
    if let Some(large) = chain.iter().find(|der| der.len() > limits::CERTIFICATE_BYTES_MAX) {
        return Err(SvidError::CertificateTooLarge { bytes: large.len() });
    }
    let leaf = Leaf::parse(first)?;
    let domain = leaf.spiffe_id.trust_domain();
    let Some(roots) = bundles.roots(&domain) else { return Err(SvidError::TrustDomainUnknown { domain }) };
    leaf.check_time(now)?;
    leaf.check_life(bundles.svid_life_max())?;
    if roots.is_empty() {
        return Err(SvidError::RootsAbsent { domain });
    }
    if !roots.lives.iter().any(|life| life.check_time(now).is_ok()) {
        return Err(SvidError::RootsExpired { domain });
    }
    let path_ends = match side {
        Side::Client => build(first, above, KeyUsage::client_auth(), now, roots, &domain)?,
        Side::Server => build(first, above, KeyUsage::server_auth(), now, roots, &domain)?,
    };
    Ok(VerifiedLeaf { ends: leaf.not_after.min(path_ends), leaf })
}

/// Finds a path on which every certificate satisfies all rules. Returns the earliest expiry of the certificates above
/// the leaf.
fn build(
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    usage: impl ExtendedKeyUsageValidator,
    now: Wall,
    roots: &Roots,
    domain: &TrustDomain,
) -> Result<Wall, SvidError> {
    let leaf = EndEntityCert::try_from(leaf).map_err(|e| refusal(e, domain))?;
    let at = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    let ends = RefCell::new(Wall(0));
    let broken = RefCell::new(None);
    // webpki calls this for each path that it accepts. If it fails, webpki looks for another path.
    let check = |path: &VerifiedPath<'_>| match check_signers(path, now, roots) {
        Ok(first_end) => {
            *ends.borrow_mut() = first_end;
            Ok(())
        }
        Err(why) => {
            broken.borrow_mut().get_or_insert(why);
            Err(webpki::Error::UnknownIssuer)
        }
    };
    let found = leaf.verify_for_usage(algorithms().all, &roots.anchors, above, at, usage, None, Some(&check));
    match found.map(drop) {
        Ok(()) => Ok(ends.into_inner()),
        Err(error) => Err(broken.into_inner().unwrap_or_else(|| refusal(error, domain))),
    }
}

/// Checks the rules about a path that webpki does not check: key usage, SPIFFE IDs of signers, the validity of the
/// root.
fn check_signers(path: &VerifiedPath<'_>, now: Wall, roots: &Roots) -> Result<Wall, SvidError> {
    let root = roots.life_of(path.anchor()).ok_or(SvidError::Malformed)?;
    root.check_time(now)?;
    let mut first_end = root.not_after;
    for signer in path.intermediate_certificates() {
        let life = SigningLife::parse(&signer.der())?;
        life.check_time(now)?;
        first_end = first_end.min(life.not_after);
    }
    Ok(first_end)
}

fn refusal(error: webpki::Error, domain: &TrustDomain) -> SvidError {
    use webpki::Error as W;
    let wall = |t: UnixTime| Wall::from_seconds(t.as_secs());
    match error {
        W::UnknownIssuer | W::CaUsedAsEndEntity => SvidError::IssuerUnknown { domain: domain.clone() },
        W::InvalidSignatureForPublicKey | W::SignatureAlgorithmMismatch => SvidError::SignatureWrong,
        W::UnsupportedSignatureAlgorithmContext(_)
        | W::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            SvidError::SignatureAlgorithm { found: "an algorithm".to_owned() }
        }
        W::EndEntityUsedAsCa => SvidError::SignerNotCa,
        W::CertExpired { not_after, .. } => SvidError::SignerExpired { not_after: wall(not_after) },
        W::CertNotValidYet { not_before, .. } => {
            SvidError::SignerNotYetValid { not_before: wall(not_before) }
        }
        W::PathLenConstraintViolated => SvidError::PathLength,
        W::MaximumPathBuildCallsExceeded
        | W::MaximumPathDepthExceeded
        | W::MaximumSignatureChecksExceeded
        | W::MaximumNameConstraintComparisonsExceeded => SvidError::PathTooDeep,
        W::NameConstraintViolation | W::MalformedNameConstraint => SvidError::NameConstrained,
        W::RequiredEkuNotFoundContext(_) | W::EmptyEkuExtension => SvidError::SignerPurpose,
        W::BadDer | W::BadDerTime => SvidError::Malformed,
        W::UnsupportedCriticalExtension => {
            SvidError::ExtensionUnknown { extension: "of a certificate above the leaf".to_owned() }
        }
        other => SvidError::PathInvalid { found: format!("{other:?}").chars().take(80).collect() },
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;

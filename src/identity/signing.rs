//! The rules for certificates that sign others: roots and intermediates (X509-SVID sections 3.2, 4.1 and 4.3). Only the
//! rules that webpki does not check are here.

use x509_parser::extensions::GeneralName;

use super::{
    algorithm::{check_key, check_signature},
    leaf::{alternative_names, is_ca, key_usage, parse_certificate, validity},
    svid_error::SvidError,
};
use crate::{clock::Wall, name::TrustDomain};

/// The validity of a signing certificate: from `not_before`, inclusive, to `not_after`, exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SigningLife {
    pub(super) not_before: Wall,
    pub(super) not_after: Wall,
}

impl SigningLife {
    /// Reads a signing certificate and checks every rule that does not need the time.
    pub(super) fn parse(der: &[u8]) -> Result<Self, SvidError> {
        let cert = parse_certificate(der)?;
        if is_ca(&cert)? != Some(true) {
            return Err(SvidError::SignerNotCa);
        }
        if !key_usage(&cert)?.is_some_and(|(usage, _)| usage.key_cert_sign()) {
            return Err(SvidError::SignerKeyUsage);
        }
        check_key(&cert)?;
        for name in alternative_names(&cert)?.map(|san| san.names).unwrap_or_default() {
            // A SPIFFE ID is optional here. It may name any trust domain, because the bundle that contains the root
            // determines the trust domain.
            if let GeneralName::URI(uri) = name
                && let Some(domain) = uri.strip_prefix("spiffe://")
                && domain.parse::<TrustDomain>().is_err()
            {
                return Err(SvidError::SignerHasPath);
            }
        }
        let (not_before, not_after) = validity(&cert);
        Ok(SigningLife { not_before, not_after })
    }

    pub(super) fn check_time(self, now: Wall) -> Result<(), SvidError> {
        if now < self.not_before {
            return Err(SvidError::SignerNotYetValid { not_before: self.not_before });
        }
        if now >= self.not_after {
            return Err(SvidError::SignerExpired { not_after: self.not_after });
        }
        Ok(())
    }
}

/// Checks that the signature on a certificate can be verified. The signature on a root is never verified, because
/// nothing depends on it.
pub(super) fn check_signature_algorithm(der: &[u8]) -> Result<(), SvidError> {
    check_signature(&parse_certificate(der)?)
}

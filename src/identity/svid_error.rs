//! Why the certificates of a peer do not prove an identity.

use std::{error::Error, io};

use rustls::{CertificateError, OtherError};

use crate::{
    clock::Wall,
    limits,
    name::{NameError, SpiffeId, TrustDomain},
    reason::Reason,
};

/// The rule that a presented chain breaks, with the standard and section that state it. It goes to the log of the side that
/// refuses; the refused side sees only a TLS alert.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    // ---------- the presentation ----------
    #[error("no certificate was presented (X509-SVID section 5): configure the peer with an X.509-SVID")]
    NotPresented,
    #[error(
        "{found} certificates were presented, at most {} are read: send the leaf and its intermediates only",
        limits::CHAIN_MAX
    )]
    ChainTooLong { found: usize },
    #[error(
        "a certificate of {bytes} bytes was presented, at most {} are read",
        limits::CERTIFICATE_BYTES_MAX
    )]
    CertificateTooLarge { bytes: usize },
    #[error("the peer does not have the private key of the leaf that it presented (RFC 8446 section 4.4.3)")]
    NotPossessed,

    // ---------- the certificate ----------
    #[error("a certificate is not DER (RFC 5280 section 4.1)")]
    Malformed,
    #[error("{bytes} bytes follow the certificate (RFC 5280 section 4.1)")]
    TrailingBytes { bytes: usize },
    #[error(
        "the certificate is not of X.509 version 3 (X509-SVID section 2: the SPIFFE ID is in an extension)"
    )]
    NotVersion3,
    #[error("the serial number is longer than 20 bytes (RFC 5280 section 4.1.2.2)")]
    SerialTooLong,
    #[error("the extension {extension} is repeated (RFC 5280 section 4.2)")]
    ExtensionRepeated { extension: String },
    #[error("the extension {extension} cannot be read (RFC 5280 section 4.2.1)")]
    ExtensionMalformed { extension: &'static str },
    #[error("the critical extension {extension} is not known (RFC 5280 section 4.2)")]
    ExtensionUnknown { extension: String },
    #[error("an RSA key of {bits} bits is too short: use at least 2048, or P-256")]
    KeyTooShort { bits: usize },
    #[error(
        "the key is of {found}, which cannot be verified here: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits"
    )]
    KeyAlgorithm { found: String },

    // ---------- the SPIFFE ID ----------
    #[error(
        "there is no subject alternative name (X509-SVID section 2): a SPIFFE ID is a URI there and nowhere else"
    )]
    SanAbsent,
    #[error(
        "a subject alternative name is not in the form of its kind (X509-SVID section 2, RFC 5280 section 4.2.1.6)"
    )]
    SanInvalid,
    #[error("the subject alternative name has more than {} names: register fewer", limits::SAN_NAMES_MAX)]
    SanTooLong,
    #[error(
        "the subject is empty and the subject alternative name not critical (X509-SVID section 3.1, RFC 5280 section 4.1.2.6)"
    )]
    SanNotCritical,
    #[error(
        "the subject alternative name has no URI (X509-SVID section 2): a SPIFFE ID is a URI there and nowhere else"
    )]
    UriAbsent,
    #[error("the subject alternative name has {found} URIs (X509-SVID section 2): an SVID has exactly one")]
    UriRepeated { found: usize },
    #[error(
        "the SPIFFE ID has no path (X509-SVID sections 3.1 and 5.2): it names a trust domain, not a workload"
    )]
    PathAbsent,
    #[error("the URI is not a SPIFFE ID (X509-SVID section 2): {0}")]
    NotASpiffeId(NameError),

    // ---------- what a leaf may be used for ----------
    #[error("there is no basic constraints extension (X509-SVID section 4.1): issue the SVID with cA false")]
    BasicConstraintsAbsent,
    #[error("the leaf is a CA (X509-SVID sections 4.1 and 5.2): a signing certificate is no identity")]
    LeafIsCa,
    #[error("there is no key usage extension (X509-SVID section 4.3)")]
    KeyUsageAbsent,
    #[error("the key usage extension is not critical (X509-SVID section 4.3)")]
    KeyUsageNotCritical,
    #[error("the key usage lacks digitalSignature (X509-SVID section 4.3)")]
    DigitalSignatureAbsent,
    #[error("the key usage of the leaf has keyCertSign (X509-SVID sections 4.3 and 5.2)")]
    LeafSignsCertificates,
    #[error("the key usage of the leaf has cRLSign (X509-SVID sections 4.3 and 5.2)")]
    LeafSignsCrls,
    #[error("the extended key usage lacks id-kp-clientAuth (X509-SVID section 4.4)")]
    ClientAuthAbsent,
    #[error("the extended key usage lacks id-kp-serverAuth (X509-SVID section 4.4)")]
    ServerAuthAbsent,

    // ---------- time ----------
    #[error("the SVID ended at {not_after} (RFC 5280 section 6.1.3)")]
    Expired { not_after: Wall },
    #[error("the SVID begins at {not_before} (RFC 5280 section 6.1.3): compare the clocks")]
    NotYetValid { not_before: Wall },
    #[error("the SVID lasts {seconds} s, at most {seconds_max} are accepted: issue shorter ones")]
    LifeTooLong { seconds: u64, seconds_max: u64 },

    // ---------- the path ----------
    #[error("no bundle for the trust domain `{domain}` (Trust Domain and Bundle section 3)")]
    TrustDomainUnknown { domain: TrustDomain },
    #[error(
        "the bundle of `{domain}` has no root that can be used, so no SVID of it is valid (Trust Domain and Bundle section 4.1.3): \
         publish its roots"
    )]
    RootsAbsent { domain: TrustDomain },
    #[error("no root of `{domain}` is valid now (Trust Domain and Bundle section 4.1.3): renew its bundle")]
    RootsExpired { domain: TrustDomain },
    #[error("no root of `{domain}` signed this chain (X509-SVID section 5.1)")]
    IssuerUnknown { domain: TrustDomain },
    #[error("a signature of the chain is wrong (X509-SVID section 5.1)")]
    SignatureWrong,
    #[error(
        "a signature of the chain is made by {found}, which cannot be verified here: sign by ECDSA with SHA-256 or SHA-384, \
         Ed25519, or RSA with SHA-256, SHA-384 or SHA-512 (RFC 5280 section 4.1.1.2)"
    )]
    SignatureAlgorithm { found: String },
    #[error("a certificate that signed another is no CA (X509-SVID sections 3.2 and 4.1)")]
    SignerNotCa,
    #[error("a certificate that signed another lacks keyCertSign (X509-SVID section 4.3)")]
    SignerKeyUsage,
    #[error("a certificate that signed another has a SPIFFE ID with a path (X509-SVID section 3.2)")]
    SignerHasPath,
    #[error("a certificate that signed another is not for TLS peers (X509-SVID section 4.4)")]
    SignerPurpose,
    #[error(
        "a certificate that signed another is not valid now: it ends at {not_after} (X509-SVID section 5.1)"
    )]
    SignerExpired { not_after: Wall },
    #[error("a certificate that signed another is not valid before {not_before} (X509-SVID section 5.1)")]
    SignerNotYetValid { not_before: Wall },
    #[error("a path length constraint is exceeded (X509-SVID section 4.1)")]
    PathLength,
    #[error("the search for a path from the leaf to a root took too many steps")]
    PathTooDeep,
    #[error(
        "a name constraint of a signer forbids a name of this chain, or constrains URIs, which cannot be verified here \
         (X509-SVID section 4.2): issue from a CA without that constraint"
    )]
    NameConstrained,
    #[error("the chain does not verify (X509-SVID section 5.1): {found}")]
    PathInvalid { found: String },

    // ---------- the other side ----------
    #[error(
        "the server is `{found}`, but `{wanted}` is configured: correct the address or the server's SPIFFE ID"
    )]
    OtherServer { wanted: SpiffeId, found: SpiffeId },
}

impl SvidError {
    /// The error's code in metrics, the log and the ledger.
    pub fn reason(&self) -> Reason {
        use SvidError as E;
        match self {
            E::NotPresented => Reason::NoClientCertificate,
            E::Expired { .. } | E::NotYetValid { .. } => Reason::SvidExpired,
            E::TrustDomainUnknown { .. } => Reason::TrustDomainUnknown,
            E::NotPossessed
            | E::RootsExpired { .. }
            | E::IssuerUnknown { .. }
            | E::SignatureWrong
            | E::SignatureAlgorithm { .. }
            | E::RootsAbsent { .. }
            | E::SignerNotCa
            | E::SignerKeyUsage
            | E::SignerHasPath
            | E::SignerPurpose
            | E::SignerExpired { .. }
            | E::SignerNotYetValid { .. }
            | E::PathLength
            | E::PathTooDeep
            | E::NameConstrained
            | E::PathInvalid { .. }
            | E::OtherServer { .. } => Reason::SvidUntrusted,
            E::ChainTooLong { .. }
            | E::CertificateTooLarge { .. }
            | E::Malformed
            | E::TrailingBytes { .. }
            | E::NotVersion3
            | E::SerialTooLong
            | E::ExtensionRepeated { .. }
            | E::ExtensionMalformed { .. }
            | E::ExtensionUnknown { .. }
            | E::KeyTooShort { .. }
            | E::KeyAlgorithm { .. }
            | E::SanAbsent
            | E::SanInvalid
            | E::SanTooLong
            | E::SanNotCritical
            | E::UriAbsent
            | E::UriRepeated { .. }
            | E::PathAbsent
            | E::NotASpiffeId(_)
            | E::BasicConstraintsAbsent
            | E::LeafIsCa
            | E::KeyUsageAbsent
            | E::KeyUsageNotCritical
            | E::DigitalSignatureAbsent
            | E::LeafSignsCertificates
            | E::LeafSignsCrls
            | E::ClientAuthAbsent
            | E::ServerAuthAbsent
            | E::LifeTooLong { .. } => Reason::SvidInvalid,
        }
    }

    /// Finds the broken rule in the error of a handshake by rustls, if there is one.
    pub fn in_tls(error: &rustls::Error) -> Option<SvidError> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(SvidError::NotPresented),
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<SvidError>().cloned()
            }
            // From CertificateVerify: all other certificate errors are our own.
            rustls::Error::InvalidCertificate(
                CertificateError::BadSignature
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
            ) => Some(SvidError::NotPossessed),
            _ => None,
        }
    }

    /// Finds the broken rule in the error of a handshake by tokio-rustls, if there is one.
    pub fn in_io(error: &io::Error) -> Option<SvidError> {
        let inner: &(dyn Error + Send + Sync) = error.get_ref()?;
        inner.downcast_ref::<rustls::Error>().and_then(Self::in_tls)
    }
}

/// Every rule about certificates becomes the alert `certificate_unknown`, so that a refusal does not show whom we trust. A
/// signature that does not match the certificate becomes `decrypt_error` (RFC 8446 section 4.4.3).
impl From<SvidError> for rustls::Error {
    fn from(error: SvidError) -> Self {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(error))))
    }
}

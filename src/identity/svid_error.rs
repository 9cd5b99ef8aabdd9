//! The reasons for which the certificates of a peer do not prove an identity.

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
    /// The peer presented no certificate in the handshake.
    #[error("no certificate was presented (X509-SVID section 5): configure the peer with an X.509-SVID")]
    NotPresented,
    /// More than [`limits::CHAIN_MAX`] certificates were presented.
    #[error(
        "{found} certificates were presented, at most {} are read: send the leaf and its intermediates only",
        limits::CHAIN_MAX
    )]
    ChainTooLong {
        /// The number of presented certificates.
        found: usize,
    },
    /// A certificate is longer than [`limits::CERTIFICATE_BYTES_MAX`]. It is not parsed.
    #[error(
        "a certificate of {bytes} bytes was presented, at most {} are read",
        limits::CERTIFICATE_BYTES_MAX
    )]
    CertificateTooLarge {
        /// The length of the certificate's DER.
        bytes: usize,
    },
    /// The signature of the handshake does not match the key of the leaf.
    #[error("the peer does not have the private key of the leaf that it presented (RFC 8446 section 4.4.3)")]
    NotPossessed,

    // ---------- the certificate ----------
    /// A certificate cannot be parsed.
    #[error("a certificate is not DER (RFC 5280 section 4.1)")]
    Malformed,
    /// Other bytes follow the DER of a certificate.
    #[error("{bytes} bytes follow the certificate (RFC 5280 section 4.1)")]
    TrailingBytes {
        /// The number of these bytes.
        bytes: usize,
    },
    /// The version of X.509 is 1 or 2, which have no extensions.
    #[error(
        "the certificate is not of X.509 version 3 (X509-SVID section 2: the SPIFFE ID is in an extension)"
    )]
    NotVersion3,
    /// The serial number has more than 20 octets.
    #[error("the serial number is longer than 20 bytes (RFC 5280 section 4.1.2.2)")]
    SerialTooLong,
    /// A certificate has two extensions of one kind.
    #[error("the extension {extension} is repeated (RFC 5280 section 4.2)")]
    ExtensionRepeated {
        /// The name of the extension, or its object identifier.
        extension: String,
    },
    /// The contents of an extension do not have the form that its kind requires.
    #[error("the extension {extension} cannot be read (RFC 5280 section 4.2.1)")]
    ExtensionMalformed {
        /// The name of the extension.
        extension: &'static str,
    },
    /// A critical extension has no meaning here, so the certificate must not be used.
    #[error("the critical extension {extension} is not known (RFC 5280 section 4.2)")]
    ExtensionUnknown {
        /// The object identifier of the extension, or the certificate that has it.
        extension: String,
    },
    /// The key is RSA of fewer than 2048 bits.
    #[error("an RSA key of {bits} bits is too short: use at least 2048, or P-256")]
    KeyTooShort {
        /// The length of the modulus.
        bits: usize,
    },
    /// The key is of an algorithm, a curve or a length that is not supported.
    #[error(
        "the key is of {found}, which cannot be verified here: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits"
    )]
    KeyAlgorithm {
        /// The algorithm and curve, or the object identifier.
        found: String,
    },

    // ---------- the SPIFFE ID ----------
    /// The leaf has no subject alternative name, so it has no SPIFFE ID.
    #[error(
        "there is no subject alternative name (X509-SVID section 2): a SPIFFE ID is a URI there and nowhere else"
    )]
    SanAbsent,
    /// A subject alternative name cannot be parsed.
    #[error(
        "a subject alternative name is not in the form of its kind (X509-SVID section 2, RFC 5280 section 4.2.1.6)"
    )]
    SanInvalid,
    /// There are more than [`limits::SAN_NAMES_MAX`] subject alternative names.
    #[error("the subject alternative name has more than {} names: register fewer", limits::SAN_NAMES_MAX)]
    SanTooLong,
    /// The subject is empty, and the extension that names the peer instead is not critical.
    #[error(
        "the subject is empty and the subject alternative name not critical (X509-SVID section 3.1, RFC 5280 section 4.1.2.6)"
    )]
    SanNotCritical,
    /// There are subject alternative names, but none is a URI.
    #[error(
        "the subject alternative name has no URI (X509-SVID section 2): a SPIFFE ID is a URI there and nowhere else"
    )]
    UriAbsent,
    /// There are several URIs, so it is not clear which one names the peer.
    #[error("the subject alternative name has {found} URIs (X509-SVID section 2): an SVID has exactly one")]
    UriRepeated {
        /// The number of URIs, including unreadable ones.
        found: usize,
    },
    /// The URI is the SPIFFE ID of a trust domain. Only certificates that sign others have such an ID.
    #[error(
        "the SPIFFE ID has no path (X509-SVID sections 3.1 and 5.2): it names a trust domain, not a workload"
    )]
    PathAbsent,
    /// The URI breaks a rule of SPIFFE-ID section 2.
    #[error("the URI is not a SPIFFE ID (X509-SVID section 2): {0}")]
    NotASpiffeId(NameError),

    // ---------- what a leaf may be used for ----------
    /// The leaf does not say that it is not a CA.
    #[error("there is no basic constraints extension (X509-SVID section 4.1): issue the SVID with cA false")]
    BasicConstraintsAbsent,
    /// The leaf has cA true, so it could issue SVIDs.
    #[error("the leaf is a CA (X509-SVID sections 4.1 and 5.2): a signing certificate is not an identity")]
    LeafIsCa,
    /// The leaf has no key usage.
    #[error("there is no key usage extension (X509-SVID section 4.3)")]
    KeyUsageAbsent,
    /// The leaf has a key usage that a verifier might ignore.
    #[error("the key usage extension is not critical (X509-SVID section 4.3)")]
    KeyUsageNotCritical,
    /// The leaf's key may not sign a handshake.
    #[error("the key usage lacks digitalSignature (X509-SVID section 4.3)")]
    DigitalSignatureAbsent,
    /// The leaf's key may sign certificates.
    #[error("the key usage of the leaf has keyCertSign (X509-SVID sections 4.3 and 5.2)")]
    LeafSignsCertificates,
    /// The leaf's key may sign revocation lists.
    #[error("the key usage of the leaf has cRLSign (X509-SVID sections 4.3 and 5.2)")]
    LeafSignsCrls,
    /// The extended key usage of the leaf does not allow TLS clients.
    #[error("the extended key usage lacks id-kp-clientAuth (X509-SVID section 4.4)")]
    ClientAuthAbsent,
    /// The extended key usage of the leaf does not allow TLS servers.
    #[error("the extended key usage lacks id-kp-serverAuth (X509-SVID section 4.4)")]
    ServerAuthAbsent,

    // ---------- time ----------
    /// The leaf's NotAfter has passed. There is no leeway.
    #[error("the SVID ended at {not_after} (RFC 5280 section 6.1.3)")]
    Expired {
        /// The leaf's NotAfter.
        not_after: Wall,
    },
    /// The leaf's NotBefore is in the future. There is no leeway.
    #[error("the SVID begins at {not_before} (RFC 5280 section 6.1.3): compare the clocks")]
    NotYetValid {
        /// The leaf's NotBefore.
        not_before: Wall,
    },
    /// The leaf is valid for longer than we accept, so that a stolen SVID is useful for a short time only.
    #[error(
        "the SVID is valid for {seconds} s, at most {seconds_max} are accepted: issue SVIDs with a shorter life"
    )]
    LifeTooLong {
        /// The time from NotBefore to NotAfter.
        seconds: u64,
        /// The longest accepted life.
        seconds_max: u64,
    },

    // ---------- the path ----------
    /// We have no bundle for the trust domain of the peer.
    #[error("no bundle for the trust domain `{domain}` (Trust Domain and Bundle section 3)")]
    TrustDomainUnknown {
        /// The trust domain of the peer's SPIFFE ID.
        domain: TrustDomain,
    },
    /// The bundle of the trust domain has no root that can be used, so all of its SVIDs are invalid.
    #[error(
        "the bundle of `{domain}` has no root that can be used, so no SVID of it is valid (Trust Domain and Bundle section 4.1.3): \
         publish its roots"
    )]
    RootsAbsent {
        /// The trust domain of the peer's SPIFFE ID.
        domain: TrustDomain,
    },
    /// All roots in the bundle of the trust domain have expired.
    #[error("no root of `{domain}` is valid now (Trust Domain and Bundle section 4.1.3): renew its bundle")]
    RootsExpired {
        /// The trust domain of the peer's SPIFFE ID.
        domain: TrustDomain,
    },
    /// No path leads from the leaf to a root of its trust domain.
    #[error("no root of `{domain}` signed this chain (X509-SVID section 5.1)")]
    IssuerUnknown {
        /// The trust domain of the peer's SPIFFE ID.
        domain: TrustDomain,
    },
    /// A certificate of the path was changed, or the key of another issuer signed it.
    #[error("a signature of the chain is wrong (X509-SVID section 5.1)")]
    SignatureWrong,
    /// A certificate of the path is signed by an algorithm that is not supported.
    #[error(
        "a signature of the chain is made by {found}, which cannot be verified here: sign by ECDSA with SHA-256 or SHA-384, \
         Ed25519, or RSA with SHA-256, SHA-384 or SHA-512 (RFC 5280 section 4.1.1.2)"
    )]
    SignatureAlgorithm {
        /// The name of the algorithm, or its object identifier.
        found: String,
    },
    /// An intermediate or a root does not have cA true.
    #[error("a certificate that signed another is not a CA (X509-SVID sections 3.2 and 4.1)")]
    SignerNotCa,
    /// The key usage of an intermediate or a root does not allow signing certificates.
    #[error("a certificate that signed another lacks keyCertSign (X509-SVID section 4.3)")]
    SignerKeyUsage,
    /// An intermediate or a root has the SPIFFE ID of a workload.
    #[error("a certificate that signed another has a SPIFFE ID with a path (X509-SVID section 3.2)")]
    SignerHasPath,
    /// The extended key usage of an intermediate lacks the purpose that the peer needs: TLS client or TLS server.
    #[error("a certificate that signed another is not for TLS peers (X509-SVID section 4.4)")]
    SignerPurpose,
    /// The NotAfter of an intermediate or a root has passed.
    #[error(
        "a certificate that signed another is not valid now: it ends at {not_after} (X509-SVID section 5.1)"
    )]
    SignerExpired {
        /// The NotAfter of the certificate.
        not_after: Wall,
    },
    /// The NotBefore of an intermediate or a root is in the future.
    #[error("a certificate that signed another is not valid before {not_before} (X509-SVID section 5.1)")]
    SignerNotYetValid {
        /// The NotBefore of the certificate.
        not_before: Wall,
    },
    /// A CA has more CAs below it than its basic constraints allow.
    #[error("a path length constraint is exceeded (X509-SVID section 4.1)")]
    PathLength,
    /// The search for a path was given up, because a hostile chain can make it long.
    #[error("the search for a path from the leaf to a root took too many steps")]
    PathTooDeep,
    /// A signer has a name constraint that the chain breaks or that cannot be checked.
    #[error(
        "a name constraint of a signer forbids a name of this chain, or constrains URIs, which cannot be verified here \
         (X509-SVID section 4.2): issue from a CA without that constraint"
    )]
    NameConstrained,
    /// The path is refused for a reason that has no variant here.
    #[error("the chain does not verify (X509-SVID section 5.1): {found}")]
    PathInvalid {
        /// The error of webpki, at most 80 characters.
        found: String,
    },

    // ---------- the other side ----------
    /// The server's SVID is valid, but belongs to another server.
    #[error(
        "the server is `{found}`, but `{wanted}` is configured: correct the address or the server's SPIFFE ID"
    )]
    OtherServer {
        /// The SPIFFE ID in the configuration of the client.
        wanted: SpiffeId,
        /// The SPIFFE ID of the server's SVID.
        found: SpiffeId,
    },
}

impl SvidError {
    /// Returns the code of the error in metrics, the log and the ledger.
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
            // This error is from CertificateVerify. All other certificate errors are our own.
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

/// Every broken rule about certificates becomes the alert `certificate_unknown`, so that a refusal does not show which
/// roots we trust. A signature that does not match the certificate becomes `decrypt_error` (RFC 8446 section 4.4.3).
impl From<SvidError> for rustls::Error {
    fn from(error: SvidError) -> Self {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(error))))
    }
}

//! Reads identity files, and defines their faults.

use std::{error::Error, fmt, fs::OpenOptions, io, io::Read, os::unix::fs::OpenOptionsExt, path::Path};

use nix::fcntl::OFlag;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::asn1_rs::{Any, FromDer};
use zeroize::Zeroizing;

use super::svid_error::SvidError;
use crate::{limits, name::TrustDomain, plain};

/// The file that cannot be used, and its fault. Never contains bytes of the file.
#[derive(Debug)]
pub struct LoadError {
    /// The path of the file. If the bytes came from memory, this says what they are.
    pub file: String,
    /// The fault of the file.
    pub fault: LoadFault,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", plain::path(Path::new(&self.file)), self.fault)
    }
}

/// `Display` shows the fault already, so the source of this error is the cause of the fault.
impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

/// The fault of an identity file.
#[derive(Debug, thiserror::Error)]
pub enum LoadFault {
    /// The operating system could not read the file.
    #[error("cannot be read: check that it exists and that this user may read it")]
    Unreadable(#[source] io::Error),
    /// There is no file at the path of a private key.
    #[error(
        "does not exist: configure the path of the private key file (the value is not shown, because it may be a pasted key)"
    )]
    KeyFileAbsent,
    /// The text begins with U+FEFF, which some editors write and PEM parsers refuse.
    #[error("begins with a byte order mark: save it as plain ASCII or UTF-8 without one")]
    ByteOrderMark,
    /// The path is a directory, a pipe or a device.
    #[error("is not a regular file: use a file, because it is read again after each rotation")]
    NotAFile,
    /// The file is longer than [`limits::PEM_BYTES_MAX`].
    #[error("is larger than {} bytes", limits::PEM_BYTES_MAX)]
    TooLarge,
    /// There is no PEM section, or a section is damaged.
    #[error("is not PEM: certificates and keys must be between BEGIN and END lines")]
    NotPem,
    /// The text is not UTF-8, is not JSON, or repeats a member.
    #[error("is not a SPIFFE bundle document, which is JSON: {why}")]
    NotJson {
        /// The fault, for people.
        why: String,
    },
    /// The JSON breaks a rule of Trust Domain and Bundle section 4.
    #[error("is not a SPIFFE bundle document: {why}")]
    NotABundle {
        /// The fault, for people.
        why: String,
    },
    /// A bundle map has a name that is not a trust domain (section 5.1.1).
    #[error("contains a name that is not a trust domain: {why}")]
    DomainName {
        /// The fault, for people.
        why: String,
    },
    /// A key of a bundle document has an `x5c` that is not one certificate.
    #[error("key {number} has a certificate that cannot be read: write base64 of its DER into `x5c`")]
    X5c {
        /// The number, counted from 1.
        number: usize,
    },
    /// Certificates that arrived as DER cannot be separated.
    #[error("is not a concatenation of DER certificates")]
    NotDer,
    /// The file of an SVID or a bundle is empty, or has only other sections.
    #[error("contains no certificate: write the SVID first, then its intermediates, as PEM")]
    NoCertificate,
    /// The file has more certificates than are read.
    #[error("contains {found} certificates, but at most {max} are read")]
    TooManyCertificates {
        /// The number of certificates.
        found: usize,
        /// The highest number of certificates.
        max: usize,
    },
    /// A certificate breaks a rule for its role: leaf, intermediate or root.
    #[error("certificate {number} cannot be used: {why}")]
    Certificate {
        /// The number, counted from 1.
        number: usize,
        /// The broken rule.
        why: SvidError,
    },
    /// The file has no PEM section with a private key.
    #[error("contains no private key: write it as PKCS#8 PEM")]
    NoKey,
    /// The private key needs a passphrase.
    #[error(
        "contains an encrypted key, and there is no way to enter a passphrase: decrypt it (openssl pkey -in FILE -out FILE)"
    )]
    KeyEncrypted,
    /// The private key is of an algorithm or a length that is not supported.
    #[error(
        "contains a private key of an unsupported kind: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits and more"
    )]
    KeyUnusable,
    /// The private key does not match the leaf.
    #[error("contains the key of another certificate: configure the key and the chain of the same SVID")]
    KeyOfAnother,
    /// A bundle has certificates, but none of them is a root that is valid now.
    #[error("contains no root that can be used now ({}): fetch the bundle again", no_root_reason(*.expired, .left_out))]
    NoRoot {
        /// The number of expired roots.
        expired: usize,
        /// A line for each root that is unusable for another reason.
        left_out: Vec<String>,
    },
    /// Two files are configured for one trust domain.
    #[error("is a second bundle of the trust domain `{domain}`: name each trust domain once")]
    DomainRepeated {
        /// The trust domain.
        domain: TrustDomain,
    },
    /// There are more than [`limits::TRUST_DOMAINS_MAX`] bundles.
    #[error("is left over: at most {} trust bundles can be configured", limits::TRUST_DOMAINS_MAX)]
    TooManyDomains,
}

/// Returns the reason for which a bundle has no root.
pub(super) fn no_root_reason(expired: usize, left_out: &[String]) -> String {
    let expired = (expired > 0).then(|| format!("{expired} have expired"));
    let all: Vec<_> = expired.into_iter().chain(left_out.iter().cloned()).collect();
    if all.is_empty() { "it lists none".to_owned() } else { all.join("; ") }
}

impl LoadFault {
    pub(super) fn not_a_bundle(why: &str) -> Self {
        LoadFault::NotABundle { why: why.to_owned() }
    }

    pub(super) fn in_file(self, file: &str) -> LoadError {
        LoadError { file: file.to_owned(), fault: self }
    }
}

/// Reads a small file. The bytes are wiped from memory on drop, because they may be a key.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let file = path.display().to_string();
    let unreadable = |e: io::Error| LoadFault::Unreadable(e).in_file(&file);
    // The buffer must not grow, because that would leave an unwiped copy in memory.
    let capacity = usize::try_from(limits::PEM_BYTES_MAX).unwrap_or(usize::MAX).saturating_add(1);
    // Without O_NONBLOCK, opening a pipe without a writer would block permanently.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(LoadFault::NotAFile.in_file(&file));
    }
    let expected = metadata.len();
    if expected > limits::PEM_BYTES_MAX {
        return Err(LoadFault::TooLarge.in_file(&file));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(expected).unwrap_or(capacity).saturating_add(1).min(capacity),
    ));
    opened.take(limits::PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limits::PEM_BYTES_MAX {
        return Err(LoadFault::TooLarge.in_file(&file));
    }
    if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| bytes.starts_with(mark)) {
        return Err(LoadFault::ByteOrderMark.in_file(&file));
    }
    Ok(bytes)
}

/// Reads the file of a private key. If it does not exist, the error does not show its path.
pub(super) fn read_key(path: &Path) -> Result<(String, Zeroizing<Vec<u8>>), LoadError> {
    if !matches!(path.try_exists(), Ok(true)) {
        return Err(LoadFault::KeyFileAbsent.in_file("private key"));
    }
    Ok((path.display().to_string(), read(path)?))
}

/// Returns the certificates of a PEM text, in order.
pub(super) fn certificates(
    file: &str,
    pem: &[u8],
    max: usize,
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let all = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| LoadFault::NotPem.in_file(file))?;
    if all.is_empty() {
        return Err(LoadFault::NoCertificate.in_file(file));
    }
    if all.len() > max {
        return Err(LoadFault::TooManyCertificates { found: all.len(), max }.in_file(file));
    }
    Ok(all)
}

/// Returns the certificates of a concatenation of DER, in order. Errors call it `what`.
pub(super) fn concatenated(
    what: &str,
    mut der: &[u8],
    max: usize,
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = Any::from_der(der).map_err(|_| LoadFault::NotDer.in_file(what))?;
        let one = der.len().checked_sub(rest.len()).and_then(|len| der.get(..len)).unwrap_or_default();
        if all.len() >= max {
            return Err(
                LoadFault::TooManyCertificates { found: all.len().saturating_add(1), max }.in_file(what)
            );
        }
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}

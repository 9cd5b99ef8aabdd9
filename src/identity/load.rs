//! Reading identity files, and what can be wrong with them.

use std::{error::Error, fmt, fs::OpenOptions, io, io::Read, os::unix::fs::OpenOptionsExt, path::Path};

use nix::fcntl::OFlag;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::asn1_rs::{Any, FromDer};
use zeroize::Zeroizing;

use super::svid_error::SvidError;
use crate::{limits, name::TrustDomain};

/// Which file cannot be used, and why. Never holds a byte of a file.
#[derive(Debug)]
pub struct LoadError {
    /// The path, or what the bytes are where they came from memory.
    pub file: String,
    /// What is wrong with it.
    pub fault: LoadFault,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.file, self.fault)
    }
}

/// The fault is in the line already: what lies below is its cause.
impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

/// What is wrong with an identity file.
#[derive(Debug, thiserror::Error)]
pub enum LoadFault {
    #[error("cannot be read: check that it exists and that this user may read it")]
    Unreadable(#[source] io::Error),
    #[error(
        "is not there: write the path of the private key's file (the value is not shown: a key may have been pasted)"
    )]
    KeyFileAbsent,
    #[error("begins with a byte order mark: save it as plain ASCII or UTF-8 without one")]
    ByteOrderMark,
    #[error("is no file: write what is read again and again into one, not into a pipe, a socket or a folder")]
    NotAFile,
    #[error("is larger than {} bytes", limits::PEM_BYTES_MAX)]
    TooLarge,
    #[error("is not PEM: write certificates and keys between BEGIN and END lines")]
    NotPem,
    #[error("is not a SPIFFE bundle document, which is JSON: {why}")]
    NotJson { why: String },
    #[error("is not a SPIFFE bundle document: {why}")]
    NotABundle { why: String },
    #[error("names what is no trust domain: {why}")]
    DomainName { why: String },
    #[error("key {number} has a certificate that cannot be read: write base64 of its DER into `x5c`")]
    X5c {
        /// Counted from 1.
        number: usize,
    },
    #[error("is not a concatenation of DER certificates")]
    NotDer,
    #[error("holds no certificate: write the SVID first, then its intermediates, as PEM")]
    NoCertificate,
    #[error("holds {found} certificates, at most {max} are read")]
    TooManyCertificates { found: usize, max: usize },
    #[error("certificate {number} cannot be used: {why}")]
    Certificate {
        /// Counted from 1.
        number: usize,
        why: SvidError,
    },
    #[error("holds no private key: write it as PKCS#8 PEM")]
    NoKey,
    #[error(
        "holds a key that is encrypted, and no passphrase can be asked for: decrypt it (openssl pkey -in FILE -out FILE)"
    )]
    KeyEncrypted,
    #[error(
        "holds a private key that cannot be used: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits and more"
    )]
    KeyUnusable,
    #[error("holds the key of another certificate: write the key and the chain of one SVID")]
    KeyOfAnother,
    #[error("holds no root that can be used now ({}): fetch the bundle again", why_none(*.expired, .left_out))]
    NoRoot {
        expired: usize,
        /// A line for each root that cannot be used for another reason.
        left_out: Vec<String>,
    },
    #[error("is a second bundle of the trust domain `{domain}`: name each trust domain once")]
    DomainRepeated { domain: TrustDomain },
    #[error("is one bundle more than the {} that are read", limits::TRUST_DOMAINS_MAX)]
    TooManyDomains,
}

/// Why a bundle has no root.
pub(super) fn why_none(expired: usize, left_out: &[String]) -> String {
    let expired = (expired > 0).then(|| format!("{expired} have expired"));
    let all: Vec<_> = expired.into_iter().chain(left_out.iter().cloned()).collect();
    if all.is_empty() { "it lists none".to_owned() } else { all.join("; ") }
}

impl LoadFault {
    pub(super) fn not_a_bundle(why: &str) -> Self {
        LoadFault::NotABundle { why: why.to_owned() }
    }

    pub(super) fn of(self, file: &str) -> LoadError {
        LoadError { file: file.to_owned(), fault: self }
    }
}

/// Reads a file that must be small. What is read is wiped when it goes: it may be a key.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, LoadError> {
    let file = path.display().to_string();
    let unreadable = |e: io::Error| LoadFault::Unreadable(e).of(&file);
    // Room for all of it from the start, so that no copy is left behind when the buffer grows.
    let capacity = usize::try_from(limits::PEM_BYTES_MAX).unwrap_or(usize::MAX).saturating_add(1);
    // A pipe that nobody writes to would be waited for, for ever.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(LoadFault::NotAFile.of(&file));
    }
    let expected = metadata.len();
    if expected > limits::PEM_BYTES_MAX {
        return Err(LoadFault::TooLarge.of(&file));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(expected).unwrap_or(capacity).saturating_add(1).min(capacity),
    ));
    opened.take(limits::PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limits::PEM_BYTES_MAX {
        return Err(LoadFault::TooLarge.of(&file));
    }
    if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| bytes.starts_with(mark)) {
        return Err(LoadFault::ByteOrderMark.of(&file));
    }
    Ok(bytes)
}

/// Reads the file of a private key. If there is none, the error does not show its path.
pub(super) fn read_key(path: &Path) -> Result<(String, Zeroizing<Vec<u8>>), LoadError> {
    if !matches!(path.try_exists(), Ok(true)) {
        return Err(LoadFault::KeyFileAbsent.of("private key"));
    }
    Ok((path.display().to_string(), read(path)?))
}

/// The certificates of a PEM text, in order.
pub(super) fn certificates(
    file: &str,
    pem: &[u8],
    max: usize,
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let all = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| LoadFault::NotPem.of(file))?;
    if all.is_empty() {
        return Err(LoadFault::NoCertificate.of(file));
    }
    if all.len() > max {
        return Err(LoadFault::TooManyCertificates { found: all.len(), max }.of(file));
    }
    Ok(all)
}

/// The certificates of a concatenation of DER, in order. `what` is what an error calls it.
pub(super) fn concatenated(
    what: &str,
    mut der: &[u8],
    max: usize,
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = Any::from_der(der).map_err(|_| LoadFault::NotDer.of(what))?;
        let one = der.len().checked_sub(rest.len()).and_then(|len| der.get(..len)).unwrap_or_default();
        if all.len() >= max {
            return Err(LoadFault::TooManyCertificates { found: all.len().saturating_add(1), max }.of(what));
        }
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}

//! The rules for the certificate of a workload (X509-SVID sections 2 to 5.2), except those about its path to a root.

use std::{collections::HashSet, time::Duration};

use x509_parser::{
    asn1_rs::{Any, Class, FromDer, Oid, Sequence, Tag},
    certificate::X509Certificate,
    extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension, X509Extension},
    oid_registry::{
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
        OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS,
        OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    x509::X509Version,
};

use super::{
    algorithm::{check_key, check_signature},
    svid_error::SvidError,
};
use crate::{clock::Wall, limits, name::SpiffeId, secret::sha256};

/// The facts of a leaf that satisfies all rules for leaves. The check of the path covers its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The only URI in the leaf's subject alternative name.
    pub spiffe_id: SpiffeId,
    /// The start of the validity, inclusive.
    pub not_before: Wall,
    /// The end of the validity, exclusive.
    pub not_after: Wall,
    /// SHA-256 of the certificate's DER: the `x5t#S256` of RFC 8705 section 3.1.
    pub x5t_s256: [u8; 32],
    /// The serial number in lower-case hex.
    pub serial: String,
}

impl Leaf {
    /// Reads a leaf from its DER and checks every rule that does not need the time or a root.
    ///
    /// # Errors
    ///
    /// The first broken rule.
    pub fn parse(der: &[u8]) -> Result<Leaf, SvidError> {
        let cert = parse_certificate(der)?;
        check_extensions(&cert)?;
        let spiffe_id = spiffe_id(&cert)?;
        check_basic_constraints(&cert)?;
        check_key_usage(&cert)?;
        check_extended_key_usage(&cert)?;
        check_key(&cert)?;
        check_signature(&cert)?;
        let (not_before, not_after) = validity(&cert);
        Ok(Leaf { spiffe_id, not_before, not_after, x5t_s256: sha256(der), serial: serial(&cert)? })
    }

    /// Checks that the leaf is valid now. There is no leeway, because issuers already set NotBefore a little into the
    /// past.
    ///
    /// # Errors
    ///
    /// [`SvidError::NotYetValid`] before NotBefore, [`SvidError::Expired`] from NotAfter on.
    pub fn check_time(&self, now: Wall) -> Result<(), SvidError> {
        if now < self.not_before {
            return Err(SvidError::NotYetValid { not_before: self.not_before });
        }
        if now >= self.not_after {
            return Err(SvidError::Expired { not_after: self.not_after });
        }
        Ok(())
    }

    /// Checks that the validity of the leaf is at most `life_max` long.
    ///
    /// # Errors
    ///
    /// [`SvidError::LifeTooLong`].
    pub fn check_life(&self, life_max: Duration) -> Result<(), SvidError> {
        let life = self.not_after.since(self.not_before);
        if life > life_max {
            return Err(SvidError::LifeTooLong { seconds: life.as_secs(), seconds_max: life_max.as_secs() });
        }
        Ok(())
    }
}

/// The role of the peer in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// A leaf whose chain was verified.
#[derive(Clone, Debug)]
pub(super) struct VerifiedLeaf {
    pub(super) leaf: Leaf,
    /// The earliest expiry of all certificates in the path.
    pub(super) ends: Wall,
}

/// Reads one certificate. Bytes after it are an error.
pub(super) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, SvidError> {
    if der.len() > limits::CERTIFICATE_BYTES_MAX {
        return Err(SvidError::CertificateTooLarge { bytes: der.len() });
    }
    let (rest, cert) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed)?;
    if !rest.is_empty() {
        return Err(SvidError::TrailingBytes { bytes: rest.len() });
    }
    if cert.version() != X509Version::V3 {
        return Err(SvidError::NotVersion3);
    }
    Ok(cert)
}

/// Returns NotBefore and NotAfter. Times before 1970 become 1970.
pub(super) fn validity(cert: &X509Certificate<'_>) -> (Wall, Wall) {
    let wall = |seconds: i64| Wall::from_seconds(u64::try_from(seconds).unwrap_or(0));
    (wall(cert.validity().not_before.timestamp()), wall(cert.validity().not_after.timestamp()))
}

/// Finds an extension. Fails if it occurs more than once. The caller checks that it was parsed.
pub(super) fn extension<'c, 'a>(
    cert: &'c X509Certificate<'a>,
    oid: &Oid<'_>,
    name: &'static str,
) -> Result<Option<&'c X509Extension<'a>>, SvidError> {
    cert.get_extension_unique(oid).map_err(|_| SvidError::ExtensionRepeated { extension: name.to_owned() })
}

/// Returns the key usage, and whether it is critical.
pub(super) fn key_usage<'c>(
    cert: &'c X509Certificate<'_>,
) -> Result<Option<(&'c KeyUsage, bool)>, SvidError> {
    match extension(cert, &OID_X509_EXT_KEY_USAGE, "key usage")? {
        None => Ok(None),
        Some(found) => match found.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => Ok(Some((usage, found.critical))),
            _ => Err(SvidError::ExtensionMalformed { extension: "key usage" }),
        },
    }
}

/// Returns the CA flag of the basic constraints. `None` if there is no such extension.
pub(super) fn is_ca(cert: &X509Certificate<'_>) -> Result<Option<bool>, SvidError> {
    match extension(cert, &OID_X509_EXT_BASIC_CONSTRAINTS, "basic constraints")? {
        None => Ok(None),
        Some(found) => match found.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => Ok(Some(constraints.ca)),
            _ => Err(SvidError::ExtensionMalformed { extension: "basic constraints" }),
        },
    }
}

/// Returns the subject alternative names, and whether the extension is critical.
pub(super) fn alternative_names<'c, 'a>(
    cert: &'c X509Certificate<'a>,
) -> Result<Option<AlternativeNames<'c, 'a>>, SvidError> {
    const NAME: &str = "subject alternative name";
    let Some(found) = extension(cert, &OID_X509_EXT_SUBJECT_ALT_NAME, NAME)? else { return Ok(None) };
    let ParsedExtension::SubjectAlternativeName(names) = found.parsed_extension() else {
        return Err(SvidError::ExtensionMalformed { extension: NAME });
    };
    Ok(Some(AlternativeNames {
        names: &names.general_names,
        uris: count_uris(found.value)?,
        critical: found.critical,
    }))
}

pub(super) struct AlternativeNames<'c, 'a> {
    pub(super) names: &'c [GeneralName<'a>],
    /// The number of names with the tag of a URI, readable or not.
    pub(super) uris: usize,
    critical: bool,
}

/// Counts the names with the tag of a URI in the raw extension. The parsers skip names that are not UTF-8, and an unreadable
/// second URI must not go unnoticed. The number of names of all kinds together is bounded.
fn count_uris(extension_value: &[u8]) -> Result<usize, SvidError> {
    const URI: Tag = Tag(6);
    let (rest, names) = Sequence::from_der(extension_value).map_err(|_| SvidError::SanInvalid)?;
    if !rest.is_empty() {
        return Err(SvidError::SanInvalid);
    }
    let mut names: &[u8] = &names.content;
    let (mut found, mut uris) = (0usize, 0);
    while !names.is_empty() {
        let (rest, name) = Any::from_der(names).map_err(|_| SvidError::SanInvalid)?;
        // otherName, x400Address, directoryName and ediPartyName are constructed; the other kinds are primitive.
        let must_be_constructed = matches!(name.tag().0, 0 | 3..=5);
        let header_bytes = names.len().saturating_sub(rest.len()).saturating_sub(name.data.len());
        let is_der = name.header.is_constructed() == must_be_constructed
            && header_bytes == header_len(name.data.len());
        if name.class() != Class::ContextSpecific || !is_der {
            return Err(SvidError::SanInvalid);
        }
        found += 1;
        if found > limits::SAN_NAMES_MAX {
            return Err(SvidError::SanTooLong);
        }
        uris += usize::from(name.tag() == URI);
        names = rest;
    }
    Ok(uris)
}

/// Returns the length of a DER header with a tag below 31 and the shortest form of the value's length. The parser also
/// accepts longer forms.
fn header_len(value_len: usize) -> usize {
    match value_len {
        0..=0x7f => 2,
        0x80..=0xff => 3,
        0x100..=0xffff => 4,
        _ => 5,
    }
}

fn spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let san = alternative_names(cert)?.ok_or(SvidError::SanAbsent)?;
    if san.uris > 1 {
        return Err(SvidError::UriRepeated { found: san.uris });
    }
    if san.names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(SvidError::SanInvalid);
    }
    let uri = san
        .names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .ok_or(SvidError::UriAbsent)?;
    if cert.subject().iter().next().is_none() && !san.critical {
        return Err(SvidError::SanNotCritical);
    }
    if uri.strip_prefix("spiffe://").is_some_and(|rest| !rest.contains('/')) {
        return Err(SvidError::PathAbsent);
    }
    uri.parse().map_err(SvidError::NotASpiffeId)
}

/// Checks that no extension is repeated, and that each critical extension is known here or to webpki.
fn check_extensions(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    let known = [
        OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS,
        OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    ];
    let mut seen = HashSet::new();
    for found in cert.extensions() {
        let oid_text = || found.oid.to_id_string().chars().take(64).collect();
        if !seen.insert(&found.oid) {
            return Err(SvidError::ExtensionRepeated { extension: oid_text() });
        }
        if found.critical && !known.contains(&found.oid) {
            return Err(SvidError::ExtensionUnknown { extension: oid_text() });
        }
    }
    Ok(())
}

fn check_basic_constraints(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    match is_ca(cert)? {
        None => Err(SvidError::BasicConstraintsAbsent),
        Some(true) => Err(SvidError::LeafIsCa),
        Some(false) => Ok(()),
    }
}

fn check_key_usage(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    let (usage, critical) = key_usage(cert)?.ok_or(SvidError::KeyUsageAbsent)?;
    if usage.key_cert_sign() {
        return Err(SvidError::LeafSignsCertificates);
    }
    if usage.crl_sign() {
        return Err(SvidError::LeafSignsCrls);
    }
    if !usage.digital_signature() {
        return Err(SvidError::DigitalSignatureAbsent);
    }
    if !critical {
        return Err(SvidError::KeyUsageNotCritical);
    }
    Ok(())
}

/// Checks the extended key usage. It may be absent; if present, it must have both purposes.
fn check_extended_key_usage(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    const NAME: &str = "extended key usage";
    let Some(found) = extension(cert, &OID_X509_EXT_EXTENDED_KEY_USAGE, NAME)? else { return Ok(()) };
    match found.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(ExtendedKeyUsage { client_auth: false, .. }) => {
            Err(SvidError::ClientAuthAbsent)
        }
        ParsedExtension::ExtendedKeyUsage(ExtendedKeyUsage { server_auth: false, .. }) => {
            Err(SvidError::ServerAuthAbsent)
        }
        ParsedExtension::ExtendedKeyUsage(_) => Ok(()),
        _ => Err(SvidError::ExtensionMalformed { extension: NAME }),
    }
}

fn serial(cert: &X509Certificate<'_>) -> Result<String, SvidError> {
    let raw = cert.raw_serial();
    // 20 bytes, and a leading zero that keeps the number positive.
    if raw.len() > 21 {
        return Err(SvidError::SerialTooLong);
    }
    Ok(raw.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[path = "leaf_tests.rs"]
mod tests;

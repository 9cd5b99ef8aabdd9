//! The authority that signs the SVIDs of people.

use std::{fmt, path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::key_request::KeyRequest;
use crate::{
    clock::Wall,
    identity::TrustBundles,
    limits::PEM_BYTES_MAX,
    name::{Digest, SpiffeId, TrustDomain},
    secret::random_u128,
    written::read_regular_text,
};

/// How long before now a certificate begins, as with SPIRE, because clocks differ a little.
const BACKDATE: Duration = Duration::from_secs(10);

/// The root of the people trust domain, with its key.
pub struct PeopleAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// All roots of the domain in PEM. The first root signs.
    bundle: String,
    not_after: Wall,
}

/// Why the authority cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityFault {
    /// The file of the certificate cannot be used.
    #[error("{0}")]
    Cert(String),
    /// The file of the key cannot be used.
    #[error("{0}")]
    Key(String),
}

/// The texts of the two files of a new authority.
pub struct AuthorityPem {
    /// The certificate of the root, in PEM.
    pub cert: String,
    /// The private key in PEM, as PKCS#8.
    pub key: Zeroizing<String>,
}

/// The SVID of a person.
pub struct PersonSvid {
    /// The certificate chain in PEM, with the leaf first.
    pub cert: String,
    /// The SHA-256 of the leaf's DER.
    pub digest: Digest,
    /// The serial number in lower-case hex.
    pub serial: String,
}

impl PeopleAuthority {
    /// Makes the root of a trust domain, valid for `life`.
    ///
    /// # Errors
    ///
    /// Fails if the domain cannot be written into a certificate, or no key could be made.
    pub fn generate(domain: &TrustDomain, now: Wall, life: Duration) -> Result<AuthorityPem, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("people of {domain}"));
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into()?)];
        (params.not_before, params.not_after) = (moment(back(now)), moment(now.plus(life)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?.pem();
        Ok(AuthorityPem { cert, key: Zeroizing::new(key.serialize_pem()) })
    }

    /// Reads the root and its key from PEM files. The first certificate signs. The others are only trusted.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, if the certificate may not sign for the domain or has expired, or if the key does not
    /// belong to the certificate.
    pub fn load(domain: &TrustDomain, cert: &Path, key: &Path, now: Wall) -> Result<Self, AuthorityFault> {
        let bundle = read_regular_text(cert, PEM_BYTES_MAX)
            .map_err(|why| AuthorityFault::Cert(format!("it {why}")))?;
        let key_pem =
            read_regular_text(key, PEM_BYTES_MAX).map_err(|why| AuthorityFault::Key(format!("it {why}")))?;
        let key_pem = Zeroizing::new(key_pem);
        let bad_cert = |why: &dyn fmt::Display| AuthorityFault::Cert(format!("it cannot sign SVIDs: {why}"));
        TrustBundles::empty()
            .with_pem(domain.clone(), "people.ca_cert", bundle.as_bytes(), now)
            .map_err(|e| bad_cert(&e))?;
        let der = CertificateDer::from_pem_slice(bundle.as_bytes()).map_err(|e| bad_cert(&e))?;
        let (_, root) = x509_parser::parse_x509_certificate(&der).map_err(|e| bad_cert(&e))?;
        let not_after = Wall::from_seconds(u64::try_from(root.validity().not_after.timestamp()).unwrap_or(0));
        if now >= not_after {
            return Err(bad_cert(&format!("its first certificate expired at {not_after}")));
        }
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|_| AuthorityFault::Key("it has no unencrypted private key in PEM".to_owned()))?;
        if root.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityFault::Key(
                "it is not the key of the first certificate in people.ca_cert".to_owned(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| bad_cert(&e))?;
        Ok(PeopleAuthority { issuer, bundle, not_after })
    }

    /// Returns the roots of the people trust domain in PEM.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// Returns when the root expires. No SVID is valid for longer.
    pub fn not_after(&self) -> Wall {
        self.not_after
    }

    /// Signs an SVID for the key of a request.
    ///
    /// # Errors
    ///
    /// Fails if the certificate cannot be made or signed.
    pub fn issue(
        &self,
        request: &KeyRequest,
        id: &SpiffeId,
        now: Wall,
        until: Wall,
    ) -> Result<PersonSvid, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = named("person");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        (params.not_before, params.not_after) = (moment(back(now)), moment(until));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(request.key(), &self.issuer)?;
        let leaf =
            crate::identity::Leaf::parse(cert.der()).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(PersonSvid { cert: cert.pem(), digest: Digest(leaf.x5t_s256), serial: leaf.serial })
    }
}

impl fmt::Debug for PeopleAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeopleAuthority(until {})", self.not_after)
    }
}

/// Draws a serial number that no other certificate has (RFC 5280, section 4.1.2.2): 16 octets, positive. Without this, rcgen
/// would derive the number from the key, which two certificates may share.
fn random_serial() -> Result<SerialNumber, rcgen::Error> {
    const SIGN: u128 = 1 << 127;
    const FIRST: u128 = 1 << 126;
    let drawn = random_u128().map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(SerialNumber::from_slice(&((drawn & !SIGN) | FIRST).to_be_bytes()))
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Leasehold");
    name.push(DnType::CommonName, common);
    name
}

fn back(now: Wall) -> Wall {
    Wall(now.0.saturating_sub(u64::try_from(BACKDATE.as_millis()).unwrap_or(0)))
}

fn moment(wall: Wall) -> OffsetDateTime {
    let seconds = i64::try_from(wall.seconds()).ok();
    seconds.and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

//! A trust domain that makes valid SVIDs, and each kind of invalid one.

use std::{sync::Arc, time::Duration};

use leasehold::{
    clock::Wall,
    identity::{StaticSource, TrustBundles, X509Svid},
    secret::sha256,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;

const HOUR: Duration = Duration::from_secs(3_600);

/// The root of one trust domain.
pub struct Authority {
    pub domain: String,
    params: CertificateParams,
    key: KeyPair,
    pub pem: String,
}

/// A certificate chain and its key, as PEM.
#[derive(Clone)]
pub struct Credentials {
    pub cert: String,
    pub key: String,
}

impl Authority {
    /// A root that is valid from a day before a time to thirty days after it.
    pub fn new(domain: &str, now: Wall) -> Self {
        let mut params = CertificateParams::default();
        params.not_before = at(back(now, 24 * HOUR));
        params.not_after = at(now.plus(30 * 24 * HOUR));
        params.distinguished_name = named(&format!("root of {domain}"));
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { domain: domain.to_owned(), params, key, pem }
    }

    /// The key of the root, as PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// An SVID that is valid from ten seconds before a time, for as long as the longest SVIDs of SPIRE.
    pub fn svid(&self, id: &str, now: Wall) -> Credentials {
        self.issue(id, now, |_| {})
    }

    /// A valid SVID with a change.
    pub fn issue(&self, id: &str, now: Wall, change: impl FnOnce(&mut CertificateParams)) -> Credentials {
        let mut params = CertificateParams::default();
        params.not_before = at(back(now, Duration::from_secs(10)));
        params.not_after = at(now.plus(24 * HOUR));
        params.distinguished_name = named("SPIRE");
        params.subject_alt_names = vec![uri(id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap().pem();
        Credentials { cert, key: key.serialize_pem() }
    }
}

impl Credentials {
    /// SHA-256 of the leaf, which a token that is bound to it contains.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap())
    }

    /// The TLS settings of a client that trusts only the daemon's domain.
    pub fn source(&self, trusted: &Authority, now: Wall) -> Arc<StaticSource> {
        let svid = X509Svid::from_pem(self.cert.as_bytes(), self.key.as_bytes()).unwrap();
        let bundles = TrustBundles::empty()
            .with_pem(trusted.domain.parse().unwrap(), "bundle", trusted.pem.as_bytes(), now)
            .unwrap();
        Arc::new(StaticSource::new(Some(Arc::new(svid)), bundles))
    }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn at(wall: Wall) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(wall.seconds()).unwrap()).unwrap()
}

fn back(wall: Wall, span: Duration) -> Wall {
    Wall(wall.0 - u64::try_from(span.as_millis()).unwrap())
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CountryName, "US");
    subject.push(DnType::OrganizationName, name);
    subject
}

//! A small certificate authority for tests: valid certificates, and each kind of invalid one.
//!
//! It uses only names and [`Wall`] of this crate, so that it can be moved to another crate.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{bundle::TrustBundles, svid::X509Svid};
use crate::{clock::Wall, name::TrustDomain};

/// 2026-11-20T04:13:20Z: the time at which the clocks of tests begin.
pub(crate) const NOW: Wall = Wall(1_795_148_000_000);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// A change that a test makes to a certificate before it is signed.
pub(crate) type CertificateChange<'a> = &'a dyn Fn(&mut CertificateParams);

/// The authority of a trust domain: a root, or an intermediate with the certificates above it.
pub(crate) struct TestCa {
    domain: TrustDomain,
    params: CertificateParams,
    key: KeyPair,
    /// The CA's own certificate.
    pub(crate) der: CertificateDer<'static>,
    /// The certificates that its leaves present in addition to themselves: none for a root.
    pub(crate) above: Vec<CertificateDer<'static>>,
}

/// A certificate, its key, and the certificates above it that its holder presents.
pub(crate) struct IssuedCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl TestCa {
    /// A root that is valid from an hour before [`NOW`] to ten days after.
    pub(crate) fn new(domain: &str) -> Self {
        Self::with(domain, &|_| {})
    }

    pub(crate) fn with(domain: &str, change: CertificateChange<'_>) -> Self {
        let mut params = ca_params(domain, &format!("root of {domain}"));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        TestCa { domain: domain.parse().unwrap(), params, key, der, above: Vec::new() }
    }

    /// Returns an intermediate authority of this authority.
    pub(crate) fn intermediate(&self, name: &str, change: CertificateChange<'_>) -> TestCa {
        let mut params = ca_params(self.domain.as_str(), name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer()).unwrap().der().clone();
        let above = std::iter::once(der.clone()).chain(self.above.clone()).collect();
        TestCa { domain: self.domain.clone(), params, key, der, above }
    }

    /// Another root with the same name and key-independent fields, but another key.
    pub(crate) fn impostor(&self) -> TestCa {
        let key = KeyPair::generate().unwrap();
        let der = self.params.self_signed(&key).unwrap().der().clone();
        TestCa { domain: self.domain.clone(), params: self.params.clone(), key, der, above: Vec::new() }
    }

    /// A valid SVID of this domain, from ten seconds before [`NOW`] to an hour after.
    pub(crate) fn svid(&self, path: &str) -> IssuedCertificate {
        self.issue(&format!("spiffe://{}{path}", self.domain), &|_| {})
    }

    /// A valid SVID with a change.
    pub(crate) fn issue(&self, id: &str, change: CertificateChange<'_>) -> IssuedCertificate {
        let mut params = leaf_params(id);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer()).unwrap().der().clone();
        IssuedCertificate { chain: std::iter::once(der).chain(self.above.clone()).collect(), key }
    }

    /// A valid SVID for a public key without a known private key.
    pub(crate) fn issue_for(&self, id: &str, key: &impl rcgen::PublicKeyData) -> CertificateDer<'static> {
        leaf_params(id).signed_by(key, &self.issuer()).unwrap().der().clone()
    }

    /// Returns another certificate for the name and key of an intermediate authority.
    pub(crate) fn intermediate_for(
        &self,
        lower: &TestCa,
        change: CertificateChange<'_>,
    ) -> CertificateDer<'static> {
        let mut params = lower.params.clone();
        change(&mut params);
        params.signed_by(&lower.key, &self.issuer()).unwrap().der().clone()
    }

    /// Returns a self-signed SVID.
    pub(crate) fn self_signed_leaf(&self, id: &str) -> IssuedCertificate {
        let key = KeyPair::generate().unwrap();
        let der = leaf_params(id).self_signed(&key).unwrap().der().clone();
        IssuedCertificate { chain: vec![der], key }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub(crate) fn domain(&self) -> TrustDomain {
        self.domain.clone()
    }

    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }
}

impl IssuedCertificate {
    pub(crate) fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    pub(crate) fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn svid(&self) -> X509Svid {
        X509Svid::from_pem(self.chain_pem().as_bytes(), self.key_pem().as_bytes()).unwrap()
    }
}

/// The bundles of these authorities, each for its own trust domain.
pub(crate) fn bundles(all: &[&TestCa]) -> TrustBundles {
    let mut domains: Vec<TrustDomain> = all.iter().map(|ca| ca.domain()).collect();
    domains.sort();
    domains.dedup();
    domains.into_iter().fold(TrustBundles::empty(), |bundles, domain| {
        let pem: String = all.iter().filter(|ca| ca.domain == domain).map(|ca| ca.pem()).collect();
        bundles.with_pem(domain, "bundle", pem.as_bytes(), NOW).unwrap()
    })
}

pub(crate) fn at(wall: Wall) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(wall.seconds()).unwrap()).unwrap()
}

pub(crate) fn before(wall: Wall, span: Duration) -> Wall {
    Wall(wall.0 - u64::try_from(span.as_millis()).unwrap())
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CountryName, "US");
    subject.push(DnType::OrganizationName, name);
    subject
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn ca_params(domain: &str, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(before(NOW, HOUR));
    params.not_after = at(NOW.plus(240 * HOUR));
    params.distinguished_name = named(name);
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(before(NOW, Duration::from_secs(10)));
    params.not_after = at(NOW.plus(HOUR));
    params.distinguished_name = named("SPIRE");
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// DER: a tag, a length, a value.
pub(crate) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match value.len() {
        short @ 0..=127 => out.push(u8::try_from(short).unwrap()),
        byte @ 128..=255 => out.extend([0x81, u8::try_from(byte).unwrap()]),
        long => {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(value);
    out
}

/// An extension of the family 2.5.29 with any value.
pub(crate) fn extension(id: u64, critical: bool, value: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, id], value);
    extension.set_criticality(critical);
    extension
}

/// A subject alternative name with these URIs, as bytes.
pub(crate) fn raw_san(uris: &[&[u8]]) -> CustomExtension {
    let names: Vec<u8> = uris.iter().flat_map(|uri| tlv(0x86, uri)).collect();
    extension(17, false, tlv(0x30, &names))
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

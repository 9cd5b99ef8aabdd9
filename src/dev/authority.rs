//! A certificate authority for one machine: the root of a trust domain, and the SVIDs that it issues.
//!
//! Only for `dev`, `demo` and `init`. In production SVIDs come from SPIRE or another SPIFFE implementation.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::{
    clock::Wall,
    name::{SpiffeId, TrustDomain},
};

/// The root of a trust domain.
pub struct Authority {
    domain: TrustDomain,
    params: CertificateParams,
    key: KeyPair,
    cert_pem: String,
}

/// An SVID in the form of its files.
pub struct SvidPem {
    /// Leaf first.
    pub cert: String,
    /// PKCS#8.
    pub key: String,
}

/// Certificates begin ten seconds before now, as those of SPIRE do, because clocks differ a little.
const BACKDATE: Duration = Duration::from_secs(10);

impl Authority {
    /// Makes a root that is valid for `life`.
    ///
    /// # Errors
    ///
    /// The domain cannot be written into a certificate, or no key could be made.
    pub fn generate(domain: TrustDomain, now: Wall, life: Duration) -> Result<Self, rcgen::Error> {
        let params = root_params(&domain, now, life)?;
        let key = KeyPair::generate()?;
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Authority { domain, params, key, cert_pem })
    }

    /// Loads a root from its certificate and key, both PEM. New SVIDs chain to this root.
    ///
    /// # Errors
    ///
    /// The key is not a private key as PEM.
    pub fn load(
        domain: TrustDomain,
        cert_pem: String,
        key_pem: &str,
        now: Wall,
        life: Duration,
    ) -> Result<Self, rcgen::Error> {
        let key = KeyPair::from_pem(key_pem)?;
        let params = root_params(&domain, now, life)?;
        Ok(Authority { domain, params, key, cert_pem })
    }

    /// Returns the bundle: the root's certificate as PEM.
    pub fn bundle(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the root's key as PKCS#8 PEM.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// Returns the SPIFFE ID of a path in this domain.
    ///
    /// # Errors
    ///
    /// The path breaks a rule for SPIFFE IDs.
    pub fn id(&self, path: &str) -> Result<SpiffeId, crate::name::NameError> {
        format!("spiffe://{}{path}", self.domain).parse()
    }

    /// Issues an SVID. `dns` adds host names, for clients that check them.
    ///
    /// # Errors
    ///
    /// A name cannot be written into a certificate, or no key could be made.
    pub fn issue(
        &self,
        id: &SpiffeId,
        dns: &[&str],
        now: Wall,
        life: Duration,
    ) -> Result<SvidPem, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("SVID");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        for name in dns {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        (params.not_before, params.not_after) = validity(now, life);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        Ok(SvidPem { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn root_params(domain: &TrustDomain, now: Wall, life: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("root of {domain}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into()?)];
    (params.not_before, params.not_after) = validity(now, life);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Leasehold dev");
    name.push(DnType::CommonName, common);
    name
}

fn validity(now: Wall, life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let at = |wall: Wall| {
        i64::try_from(wall.seconds())
            .ok()
            .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    let from = Wall(now.0.saturating_sub(u64::try_from(BACKDATE.as_millis()).unwrap_or(0)));
    (at(from), at(now.plus(life)))
}

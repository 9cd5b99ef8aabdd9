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

/// The root certificate of a trust domain and its key, which issue SVIDs.
pub struct Authority {
    domain: TrustDomain,
    params: CertificateParams,
    key: KeyPair,
    cert_pem: String,
}

/// The texts of the two files of an SVID.
pub struct SvidPem {
    /// The certificates in PEM, with the leaf first.
    pub cert: String,
    /// The private key in PEM, as PKCS#8.
    pub key: String,
}

/// How long before now a certificate begins, as with SPIRE, because clocks differ a little.
const BACKDATE: Duration = Duration::from_secs(10);

impl Authority {
    /// Makes a root that is valid for `life`.
    ///
    /// # Errors
    ///
    /// Fails if the domain cannot be written into a certificate, or no key could be made.
    pub fn generate(domain: TrustDomain, now: Wall, life: Duration) -> Result<Self, rcgen::Error> {
        let params = root_params(&domain, now, life)?;
        let key = KeyPair::generate()?;
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Authority { domain, params, key, cert_pem })
    }

    /// Loads a root from its certificate and key, both in PEM. The certificate is used unchanged: `now` and `life` do
    /// not affect it. New SVIDs chain to this root.
    ///
    /// # Errors
    ///
    /// Fails if the key is not a private key in PEM.
    pub fn from_pem(
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

    /// Returns the bundle: the root's certificate in PEM.
    pub fn bundle(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the root's private key in PEM, as PKCS#8.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// Returns the SPIFFE ID of a path in this domain.
    ///
    /// # Errors
    ///
    /// Fails if the path breaks a rule for SPIFFE IDs.
    pub fn id_at(&self, path: &str) -> Result<SpiffeId, crate::name::NameError> {
        format!("spiffe://{}{path}", self.domain).parse()
    }

    /// Issues an SVID. `dns` adds host names, for clients that check them.
    ///
    /// # Errors
    ///
    /// Fails if a name cannot be written into a certificate, or no key could be made.
    pub fn issue(
        &self,
        id: &SpiffeId,
        dns: &[&str],
        now: Wall,
        life: Duration,
    ) -> Result<SvidPem, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name("SVID");
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
    params.distinguished_name = distinguished_name(&format!("root of {domain}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into()?)];
    (params.not_before, params.not_after) = validity(now, life);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn distinguished_name(common: &str) -> DistinguishedName {
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

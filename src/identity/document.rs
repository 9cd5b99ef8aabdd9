//! Reads the X.509 roots of a SPIFFE bundle document (SPIFFE Trust Domain and Bundle, sections 4 and 5).

use std::{collections::BTreeMap, fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::CertificateDer;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use super::load::{LoadError, LoadFault};
use crate::{limits, name::TrustDomain, plain};

/// The bundle of one trust domain, with its keys for X.509-SVIDs. The roots are not parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleDocument {
    /// The certificates of the roots. If there are none, every SVID of the trust domain is invalid (section 4.1.3).
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// The sequence number. It grows with each change of the contents.
    pub sequence: Option<u64>,
    /// The polling interval that the publisher wants.
    pub refresh_hint: Option<Duration>,
}

impl BundleDocument {
    /// Returns the certificates of the roots as DER, in the order of the document.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Reads the document of a trust domain, or its entry in a bundle map. Errors call it `what`.
    ///
    /// As the standard requires, keys are ignored if they have another use or an unknown type, or lack a member that their use
    /// needs.
    ///
    /// # Errors
    ///
    /// The text is not JSON, repeats a member, lacks `keys`, has an unreadable certificate or too many certificates, or
    /// is a map without the trust domain.
    pub fn parse(what: &str, json: &[u8], domain: &TrustDomain) -> Result<Self, LoadError> {
        let fault = |fault: LoadFault| fault.in_file(what);
        let text = std::str::from_utf8(json)
            .map_err(|_| fault(LoadFault::NotJson { why: "it is not UTF-8".into() }))?;
        let json: Json =
            serde_json::from_str(text).map_err(|e| fault(LoadFault::NotJson { why: e.to_string() }))?;
        let Json::Object(mut members) = json else {
            return Err(fault(LoadFault::not_a_bundle("it is not an object")));
        };
        if !members.contains_key("keys")
            && let Some(map) = members.remove("trust_domains")
        {
            return Self::of_map(map, domain).map_err(fault);
        }
        Self::of(&members).map_err(fault)
    }

    /// Reads the entry of a trust domain in a bundle map. Every name in the map must be a trust domain (section 5.1.1).
    fn of_map(map: Json, wanted: &TrustDomain) -> Result<Self, LoadFault> {
        let Json::Object(map) = map else {
            return Err(LoadFault::not_a_bundle("`trust_domains` is not an object"));
        };
        let mut found = None;
        for (name, bundle) in map {
            let domain: TrustDomain =
                name.parse().map_err(|e| LoadFault::DomainName { why: format!("{e}") })?;
            let Json::Object(members) = bundle else {
                return Err(LoadFault::not_a_bundle("an entry of `trust_domains` is not an object"));
            };
            if domain == *wanted {
                found = Some(Self::of(&members)?);
            }
        }
        found.ok_or_else(|| LoadFault::not_a_bundle("it is a bundle map without this trust domain"))
    }

    fn of(members: &BTreeMap<String, Json>) -> Result<Self, LoadFault> {
        let keys = match members.get("keys") {
            Some(Json::List(keys)) => keys,
            Some(_) => return Err(LoadFault::not_a_bundle("`keys` is not a list")),
            None => return Err(LoadFault::not_a_bundle("`keys` is missing")),
        };
        let number = |name: &'static str| match members.get(name) {
            None => Ok(None),
            Some(Json::Whole(n)) => Ok(Some(*n)),
            Some(_) => {
                Err(LoadFault::not_a_bundle(&format!("`{name}` is not a whole number of at most 64 bits")))
            }
        };
        let (sequence, hint) = (number("spiffe_sequence")?, number("spiffe_refresh_hint")?);
        let mut roots = Vec::new();
        for (key, at) in keys.iter().zip(1..) {
            let Some(root) = x509_root(key) else { continue };
            let der = root.ok_or(LoadFault::X5c { number: at })?;
            if roots.len() >= limits::BUNDLE_CERTIFICATES_MAX {
                let found = keys.len();
                return Err(LoadFault::TooManyCertificates { found, max: limits::BUNDLE_CERTIFICATES_MAX });
            }
            roots.push(der);
        }
        Ok(BundleDocument { roots, sequence, refresh_hint: hint.map(Duration::from_secs) })
    }
}

/// Returns the certificate of a key for X.509-SVIDs: `None` if the key is ignored, `Some(None)` if its certificate cannot be
/// read.
#[expect(clippy::option_option, reason = "ignored, unreadable and readable are three outcomes")]
fn x509_root(key: &Json) -> Option<Option<CertificateDer<'static>>> {
    let Json::Object(key) = key else { return None };
    let text = |name: &str| match key.get(name) {
        Some(Json::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    // Names and values are case-sensitive: `X509-SVID` is another use (section 4.2.2).
    if text("use") != Some("x509-svid") || !matches!(text("kty"), Some("RSA" | "EC" | "OKP")) {
        return None;
    }
    // The first value is the root; the rest must be ignored (X509-SVID, section 6.2).
    let Some(Json::List(chain)) = key.get("x5c") else { return None };
    let first = chain.first()?;
    let Json::Text(first) = first else { return Some(None) };
    Some(STANDARD.decode(first).ok().filter(|der| !der.is_empty()).map(CertificateDer::from))
}

/// Whether a file is JSON rather than PEM.
pub(super) fn is_json(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{")
}

/// JSON without repeated members. If a member is repeated, `serde_json` would keep the last value, and another reader
/// might keep the first.
enum Json {
    Nothing,
    Whole(u64),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Nothing)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Nothing)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Nothing)
    }

    fn visit_u64<E>(self, n: u64) -> Result<Json, E> {
        Ok(Json::Whole(n))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = BTreeMap::new();
        while let Some((name, value)) = members.next_entry::<String, Json>()? {
            if object.contains_key(&name) {
                let name = plain::value(&name);
                return Err(de::Error::custom(format_args!("`{name}` is repeated")));
            }
            object.insert(name, value);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;

//! Compares our parsers of hostile input with other parsers. Each function takes any bytes. It panics if our parser accepts
//! what the other refuses, reads another value, or does not write again what it read.
//!
//! libFuzzer runs them for hours (`fuzz_targets/`). A normal test runs them briefly (`tests/fuzz_smoke.rs`, which includes
//! this file).

use std::{collections::BTreeSet, fmt, str::FromStr, sync::OnceLock, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use leasehold::{
    clock::Wall,
    identity::{BundleDocument, Leaf, TrustBundles, X509Svid},
    name::{
        Action, AttemptNumber, Digest, FenceName, Half, HumanName, InstanceName, JobId, LeaseId, NameError,
        Pin, PrincipalKind, ResourceName, Scope, SpiffeId, SpiffePattern, TenantName, TrustDomain,
    },
    token::{self, AuthorizationDetail, Claims, Expected, KeySet, LeaseClaims, Presenter, SigningKey},
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;

/// A fuzz target with its seed inputs.
pub struct Target {
    pub name: &'static str,
    /// Returns whether our parser accepted the bytes: a fuzzer that sees only refusals proves little.
    pub run: fn(&[u8]) -> bool,
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 6] = [
    Target { name: "spiffe_id", run: spiffe_id, seeds: spiffe_id_seeds },
    Target { name: "svid", run: svid, seeds: svid_seeds },
    Target { name: "bundle", run: bundle, seeds: bundle_seeds },
    Target { name: "document", run: document, seeds: document_seeds },
    Target { name: "token", run: token, seeds: token_seeds },
    Target { name: "names", run: names, seeds: name_seeds },
];

/// 2026-11-20T04:13:20Z.
const NOW: Wall = Wall(1_795_148_000_000);

// ---------- the SPIFFE ID ----------

/// Compares with the `spiffe` crate and `url`.
pub fn spiffe_id(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let theirs = spiffe::SpiffeId::new(text);
    let ours = text.parse::<SpiffeId>();
    let accepted = ours.is_ok();
    match ours {
        Ok(ours) => {
            assert_eq!(ours.as_str(), text, "nothing is normalised");
            let theirs = theirs.unwrap_or_else(|e| panic!("we accept `{text}`, spiffe does not: {e}"));
            assert_eq!(theirs.to_string(), text);
            assert_eq!(theirs.trust_domain().to_string(), ours.trust_domain().as_str());
            assert_eq!(theirs.path(), ours.path());
            assert_eq!(format!("/{}", ours.segments().collect::<Vec<_>>().join("/")), ours.path());
            let url =
                url::Url::parse(text).unwrap_or_else(|e| panic!("we accept `{text}`, url does not: {e}"));
            assert_eq!(url.host_str(), Some(ours.trust_domain().as_str()));
            assert_eq!((url.path(), url.query(), url.fragment()), (ours.path(), None, None));
            assert!(url.username().is_empty() && url.password().is_none() && url.port().is_none());
        }
        // The crate lower-cases scheme and trust domain, and accepts IDs without a path and of any length.
        Err(_) => {
            if let Ok(theirs) = theirs {
                let normalised = theirs.to_string() != text;
                assert!(
                    normalised || theirs.path().is_empty() || text.len() > 2048,
                    "spiffe accepts `{text}`, we do not"
                );
            }
        }
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        assert_eq!(spiffe::TrustDomain::new(text).map(|t| t.to_string()).ok().as_deref(), Some(text));
        assert!(format!("spiffe://{text}/a").parse::<SpiffeId>().is_ok());
    }
    accepted
}

fn spiffe_id_seeds() -> Vec<Vec<u8>> {
    [
        "spiffe://example.org/a",
        "spiffe://example.org/ns/x/sa/y",
        "spiffe://10.0.0.1/.a/..b/...",
        "spiffe://td:8080/u@x?q#f/%41",
        "SPIFFE://TD//a/./../",
        "spiffe://a_b-c.9",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

// ---------- the SVID ----------

/// Compares with x509-parser, webpki and the `spiffe` crate.
pub fn svid(data: &[u8]) -> bool {
    let Ok(leaf) = Leaf::parse(data) else { return false };
    let (rest, cert) = x509_parser::certificate::X509Certificate::from_der(data).expect("we read it");
    assert!(rest.is_empty());
    let seconds = |wall: Wall| i64::try_from(wall.seconds()).unwrap_or(i64::MAX);
    assert_eq!(seconds(leaf.not_after), cert.validity().not_after.timestamp().max(0));
    assert_eq!(seconds(leaf.not_before), cert.validity().not_before.timestamp().max(0));
    assert_eq!(leaf.serial, cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect::<String>());
    assert!(!cert.is_ca());
    let theirs = spiffe::cert::spiffe_id_from_der(data)
        .unwrap_or_else(|e| panic!("we read {}, spiffe does not: {e}", leaf.spiffe_id));
    assert_eq!(theirs.to_string(), leaf.spiffe_id.as_str());
    // A certificate that webpki cannot read has no path to a root. One that it reads has only this URI.
    let der = rustls_pki_types::CertificateDer::from(data);
    if let Ok(cert) = webpki::EndEntityCert::try_from(&der) {
        assert_eq!(cert.valid_uri_names().collect::<Vec<_>>(), [leaf.spiffe_id.as_str()]);
    }
    assert_eq!(Leaf::parse(data).as_ref(), Ok(&leaf), "the same bytes are the same leaf");
    true
}

struct Made {
    root: rcgen::Certificate,
    leaf: rcgen::Certificate,
    key: KeyPair,
}

fn made() -> Made {
    let date =
        |wall: Wall| time::OffsetDateTime::from_unix_timestamp(wall.seconds().cast_signed()).expect("a date");
    let mut ca = CertificateParams::default();
    ca.not_before = date(NOW);
    ca.not_after = date(NOW.plus(Duration::from_secs(86_400)));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.subject_alt_names = vec![SanType::URI("spiffe://td".try_into().expect("ASCII"))];
    let mut params = CertificateParams::default();
    params.not_before = date(NOW);
    params.not_after = date(NOW.plus(Duration::from_secs(3_600)));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![
        SanType::URI("spiffe://td/a/b".try_into().expect("ASCII")),
        SanType::DnsName("localhost".try_into().expect("ASCII")),
    ];
    let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let root = ca.self_signed(&ca_key).expect("a root");
    let leaf = params.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).expect("a leaf");
    Made { root, leaf, key }
}

fn svid_seeds() -> Vec<Vec<u8>> {
    let made = made();
    vec![made.leaf.der().to_vec(), made.root.der().to_vec()]
}

// ---------- the bundle ----------

/// Compares with a second PEM parser of our own.
pub fn bundle(data: &[u8]) -> bool {
    let domain = || "td".parse::<TrustDomain>().expect("a trust domain");
    let load = || TrustBundles::empty().with_pem(domain(), "bundle", data, NOW);
    // No input makes a chain without a key, or a key without a chain.
    if let Ok(svid) = X509Svid::from_pem(data, data) {
        assert!(svid.leaf().not_after >= svid.leaf().not_before);
    }
    let Ok(bundles) = load() else { return false };
    let roots = bundles.root_count(&domain()).expect("it has a bundle");
    let text = String::from_utf8_lossy(data);
    let blocks = text.matches("-----BEGIN CERTIFICATE-----").count();
    assert!((1..=blocks).contains(&roots), "{roots} roots of {blocks} blocks");
    assert_eq!(load().ok().and_then(|again| again.root_count(&domain())), Some(roots));
    assert!(load().expect("it loaded").with_pem(domain(), "bundle", data, NOW).is_err(), "no two are merged");
    let end = Wall(u64::MAX);
    assert!(TrustBundles::empty().with_pem(domain(), "bundle", data, end).is_err(), "all have ended by then");
    true
}

fn bundle_seeds() -> Vec<Vec<u8>> {
    let (one, two) = (made(), made());
    vec![
        one.root.pem().into_bytes(),
        format!("{}{}", one.root.pem(), two.root.pem()).into_bytes(),
        format!("{}{}", one.leaf.pem(), one.key.serialize_pem()).into_bytes(),
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode([0x30, 0]))
            .into_bytes(),
    ]
}

// ---------- the bundle document ----------

/// What a simple reader takes from a bundle document: the first certificate of each key for X.509-SVIDs, and two numbers.
#[derive(Debug, PartialEq)]
struct Naive {
    roots: Vec<Vec<u8>>,
    sequence: Option<u64>,
    refresh_hint: Option<u64>,
}

impl Naive {
    /// `None` if the document is malformed. Of a repeated member it keeps the last, as `serde_json` does.
    fn read(data: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(data).ok()?;
        let top = json.as_object()?;
        let Some(map) = top.get("trust_domains").filter(|_| !top.contains_key("keys")) else {
            return Self::of(top);
        };
        let map = map.as_object()?;
        let known = |name: &String| spiffe::TrustDomain::new(name).is_ok_and(|td| td.to_string() == *name);
        if !map.keys().all(known) || !map.values().all(Value::is_object) {
            return None;
        }
        Self::of(map.get("td")?.as_object()?)
    }

    fn of(bundle: &serde_json::Map<String, Value>) -> Option<Self> {
        let number = |name: &str| match bundle.get(name) {
            None => Some(None),
            Some(n) => n.as_u64().map(Some),
        };
        let roots = bundle.get("keys")?.as_array()?.iter().filter_map(|key| {
            let wanted =
                key["use"] == "x509-svid" && ["RSA", "EC", "OKP"].iter().any(|&kty| key["kty"] == kty);
            let first = key["x5c"].as_array()?.first().filter(|_| wanted)?;
            let der = first.as_str().and_then(|text| STANDARD.decode(text).ok());
            Some(der.filter(|der| !der.is_empty()))
        });
        Some(Naive {
            roots: roots.collect::<Option<_>>()?,
            sequence: number("spiffe_sequence")?,
            refresh_hint: number("spiffe_refresh_hint")?,
        })
    }

    /// Writes the document in its usual form.
    fn to_json(&self) -> String {
        let keys: Vec<Value> = self
            .roots
            .iter()
            .map(|der| json!({"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(der)]}))
            .collect();
        let mut document = json!({ "keys": keys });
        for (name, n) in [("spiffe_sequence", self.sequence), ("spiffe_refresh_hint", self.refresh_hint)] {
            if let Some(n) = n {
                document[name] = json!(n);
            }
        }
        document.to_string()
    }

    /// The roots that are valid at [`NOW`], without repetition; `None` if one is not a CA certificate.
    fn usable(&self) -> Option<BTreeSet<&[u8]>> {
        let mut usable = BTreeSet::new();
        for der in &self.roots {
            let (rest, cert) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
            let signs = cert.key_usage().ok()?.is_some_and(|usage| usage.value.key_cert_sign());
            if !rest.is_empty() || !cert.is_ca() || !signs {
                return None;
            }
            if i64::try_from(NOW.seconds()).ok()? < cert.validity().not_after.timestamp() {
                usable.insert(der.as_slice());
            }
        }
        Some(usable)
    }
}

/// Whether every verifier can use the public key of a certificate: an uncompressed point of P-256.
fn has_usual_key(der: &[u8]) -> bool {
    let Ok((_, cert)) = x509_parser::certificate::X509Certificate::from_der(der) else { return false };
    let key = cert.public_key();
    // `as_oid` reads an INTEGER with the same bytes, so the tag is checked here.
    let curve =
        key.algorithm.parameters.as_ref().filter(|p| p.tag() == x509_parser::der_parser::asn1_rs::Tag::Oid);
    let curve = curve.and_then(|p| p.as_oid().ok());
    curve.is_some_and(|oid| oid.to_id_string() == "1.2.840.10045.3.1.7")
        && matches!(key.parsed(), Ok(x509_parser::public_key::PublicKey::EC(point)) if point.data().len() == 65)
}

/// Compares JSON with `serde_json` and x509-parser: equal roots, numbers and usable roots, also after the document is written
/// again.
pub fn document(data: &[u8]) -> bool {
    let domain: TrustDomain = "td".parse().expect("a trust domain");
    let theirs = Naive::read(data);
    let ours = match BundleDocument::parse("document", data, &domain) {
        Ok(ours) => ours,
        Err(why) => {
            let line = why.to_string();
            assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
            // Only repeated members may differ: serde_json accepts them, and another reader would keep the first.
            assert!(theirs.is_none() || line.contains("is repeated"), "{line}, but: {theirs:?}");
            return false;
        }
    };
    let naive = Naive {
        roots: ours.roots().iter().map(|der| der.to_vec()).collect(),
        sequence: ours.sequence,
        refresh_hint: ours.refresh_hint.map(|hint| hint.as_secs()),
    };
    assert_eq!(theirs.as_ref(), Some(&naive));
    let again = BundleDocument::parse("document", naive.to_json().as_bytes(), &domain);
    assert_eq!(again.ok().as_ref(), Some(&ours), "what was read is written and read again");
    let load = TrustBundles::empty().with_document(domain.clone(), "document", &ours, NOW);
    if let Ok(bundles) = load {
        let usable = naive.usable().expect("no root that cannot vouch is taken");
        let taken = bundles.root_count(&domain).expect("the domain is there");
        // A root with a key that cannot be checked is left out.
        let kept = usable.iter().filter(|der| has_usual_key(der)).count();
        assert!(
            (kept..=usable.len()).contains(&taken),
            "{taken} of {}, {kept} with a usual key",
            usable.len()
        );
        assert!(bundles.with_document(domain, "document", &ours, NOW).is_err(), "no two are merged");
    }
    true
}

fn document_seeds() -> Vec<Vec<u8>> {
    let made = made();
    let (root, leaf) = (STANDARD.encode(made.root.der()), STANDARD.encode(made.leaf.der()));
    let key = json!({"kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "AA", "y": "AA", "x5c": [root]});
    [
        json!({"spiffe_sequence": 7, "spiffe_refresh_hint": 300, "keys": [key, {"kty": "EC", "use": "jwt-svid"}]}),
        json!({"keys": [key, key, {"kty": "RSA", "use": "x509-svid", "x5c": [root, leaf]}]}),
        json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [leaf]}]}),
        json!({"trust_domains": {"td": {"keys": [key]}, "b.example": {"keys": []}}}),
        json!({"spiffe_sequence": 18_446_744_073_709_551_615u64, "keys": []}),
        json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": []}, {"use": "x509-svid", "kty": "oct"}, 1, null]}),
    ]
    .map(|document| document.to_string().into_bytes())
    .to_vec()
}

// ---------- the token ----------

/// A token of this process, with what is needed to check it.
struct Issued {
    keys: KeySet,
    claims: Claims,
    text: String,
    theirs: jsonwebtoken::DecodingKey,
}

fn issued() -> &'static Issued {
    static ISSUED: OnceLock<Issued> = OnceLock::new();
    ISSUED.get_or_init(|| {
        let key = SigningKey::generate(3, 1).expect("a key");
        let holder: SpiffeId = "spiffe://td/worker".parse().expect("an ID");
        let (job, scope) = (JobId(2), Scope::whole("dataset:acme/d@v1".parse().expect("a name")));
        let mut claims = Claims {
            iss: "https://leasehold.example".into(),
            sub: holder,
            aud: "spiffe://td/gateway".parse().expect("an ID"),
            exp: NOW.seconds() + 300,
            nbf: NOW.seconds(),
            iat: NOW.seconds(),
            jti: "x".into(),
            client_id: job,
            authorization_details: AuthorizationDetail::of_scopes([&scope], job),
            lh: LeaseClaims {
                epoch: 3,
                stood_at: 7,
                lease: LeaseId(1),
                generation: 0,
                job,
                attempt: AttemptNumber::FIRST,
                tenant: "acme".parse().expect("a name"),
                fences: Default::default(),
                others: String::new(),
            },
            cnf: None,
        };
        let key_of_tags = key.fence_key(&claims.aud);
        claims.set_fences(std::iter::empty(), &key_of_tags).expect("claims of names");
        let text = token::mint(&key, &claims).expect("a token").expose().to_owned();
        let keys = key.public().clone();
        let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&keys.to_jwks()).expect("a JWK set");
        let theirs = jsonwebtoken::DecodingKey::from_jwk(&jwks.keys[0]).expect("a key");
        Issued { keys, claims, text, theirs }
    })
}

fn check(text: &str) -> Option<Claims> {
    let Issued { keys, claims, .. } = issued();
    let presenter = Presenter::Svid { id: &claims.sub, x5t_s256: None };
    let expected = Expected { issuer: &claims.iss, audience: &claims.aud, presenter };
    token::check(text, keys, expected, NOW).ok()
}

/// Compares with jsonwebtoken. The bytes are read as a token, as a key set, and as changes of a good token: pairs of a position
/// and a value to xor.
pub fn token(data: &[u8]) -> bool {
    let issued = issued();
    let mut key_set = false;
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(check(text).is_none() || text == issued.text, "a token that nobody signed: {text}");
        if let Some(kid) = token::peek_key_id(text) {
            assert!(kid.len() <= text.len());
        }
        if let Ok(keys) = KeySet::from_jwks(text) {
            key_set = true;
            let again = KeySet::from_jwks(&keys.to_jwks()).expect("what we write we read");
            assert_eq!((again.len(), again.to_jwks()), (keys.len(), keys.to_jwks()));
        }
    }
    let mut changed = issued.text.clone().into_bytes();
    for change in data.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([change[0], change[1]])) % changed.len();
        changed[place] ^= change[2];
    }
    let Ok(text) = String::from_utf8(changed) else { return key_set };
    let ours = check(&text);
    assert_eq!(ours.is_some(), text == issued.text, "one token has one spelling: {text}");
    let Some(ours) = ours else { return key_set };
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    rules.validate_exp = false; // by its own clock
    rules.set_audience(&[ours.aud.as_str()]);
    rules.set_issuer(&[&ours.iss]);
    let theirs = jsonwebtoken::decode::<Claims>(&text, &issued.theirs, &rules).expect("we accept it");
    assert_eq!((&theirs.claims, &ours), (&ours, &issued.claims));
    assert_eq!(theirs.header.kid, token::peek_key_id(&text));
    true
}

fn token_seeds() -> Vec<Vec<u8>> {
    let issued = issued();
    vec![
        issued.text.clone().into_bytes(),
        issued.keys.to_jwks().into_bytes(),
        vec![0, 5, 0],
        vec![0, 5, 1, 1, 40, 2],
        br#"{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"a","x":"AA","y":"AA"}]}"#
            .to_vec(),
    ]
}

// ---------- the names ----------

/// Each name has one text form: writing returns what was read, and serde reads the same as `FromStr`.
pub fn names(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let forms = [
        one_form::<Action>(text),
        one_form::<Digest>(text),
        one_form::<FenceName>(text),
        one_form::<Half>(text),
        one_form::<HumanName>(text),
        one_form::<InstanceName>(text),
        one_form::<JobId>(text),
        one_form::<LeaseId>(text),
        one_form::<Pin>(text),
        one_form::<PrincipalKind>(text),
        one_form::<ResourceName>(text),
        one_form::<SpiffeId>(text),
        one_form::<SpiffePattern>(text),
        one_form::<TenantName>(text),
        one_form::<TrustDomain>(text),
    ];
    // A pattern without a wildcard matches only its own ID. A pattern with one matches its example ID.
    if let Ok(pattern) = text.parse::<SpiffePattern>() {
        assert!(pattern.matches(&pattern.example()) && pattern.overlaps(&pattern));
        assert_eq!(pattern.exact(), text.parse::<SpiffeId>().ok());
    }
    if let Ok(resource) = text.parse::<ResourceName>() {
        let whole = resource.unversioned();
        assert_eq!(whole.unversioned(), whole);
        assert!(text.starts_with(&whole.to_string()), "{whole} of {text}");
    }
    forms.contains(&true)
}

fn one_form<T>(text: &str) -> bool
where
    T: FromStr<Err = NameError> + fmt::Display + serde::de::DeserializeOwned + PartialEq + fmt::Debug,
{
    let json = serde_json::Value::String(text.to_owned());
    let by_serde = serde_json::from_value::<T>(json).ok();
    match text.parse::<T>() {
        Ok(name) => {
            assert_eq!(name.to_string(), text, "a second spelling of one {}", std::any::type_name::<T>());
            assert_eq!(by_serde.as_ref(), Some(&name));
            true
        }
        Err(why) => {
            assert!(by_serde.is_none(), "serde takes `{text}`");
            let line = why.to_string();
            assert!(line.len() < 1_200 && !line.contains(|c: char| c.is_control()), "{line:?}");
            false
        }
    }
}

fn name_seeds() -> Vec<Vec<u8>> {
    let mut all = [
        "dataset:acme/tickets@v3",
        "model:acme/base-7b@2026.10",
        "checkpoint:acme/support-lora",
        "read-dataset",
        "reading",
        "human:ada",
        "ada",
        "acme",
        "rank-0",
        "workload",
        "7",
        "epoch",
        "domain:example.org",
        "tenant:acme",
        "identity:spiffe://td/a",
        "spiffe://td/tenant/*/**",
        "sha256:4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de",
        "hf-revision:4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de",
    ]
    .map(str::to_owned)
    .to_vec();
    all.push(JobId(2).to_string());
    all.push(LeaseId(3).to_string());
    all.push(FenceName::attempt(JobId(2), AttemptNumber::FIRST).to_string());
    all.push(FenceName::lease(LeaseId(3)).to_string());
    all.into_iter().map(String::into_bytes).collect()
}

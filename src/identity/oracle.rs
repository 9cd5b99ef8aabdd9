//! Compares our verifier with the verifier of the `spiffe-rustls` crate, on generated chains. Each difference has its
//! reason in [`STRICTER`] or [`LAXER`].
//!
//! Each side is a server in a whole TLS 1.3 handshake. The crate gets its bundles from a Workload API, so this test
//! serves a small Workload API on a socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::{
    collection::vec,
    prelude::any,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose as Purpose, IsCa,
    KeyUsagePurpose as Usage, SanType,
};
use rustls::ServerConfig;

use super::{
    bundle::TrustBundles,
    judge::{SetTime, judged, own, presenting, shaken},
    svid_error::SvidError,
    testing::{HOUR, IssuedCertificate, NOW, TestCa, at, before, extension, pem, raw_san, tlv, uri},
};
use crate::clock::Wall;

/// Rules that the oracle does not have: it accepts chains that we refuse by these rules.
const STRICTER: [(&str, &str); 17] = [
    (
        "NotASpiffeId",
        "A03, A04: it puts scheme and trust domain into lower case; two spellings are two IDs here",
    ),
    ("UriRepeated", "B13: it counts the URIs that can be read, not the entries"),
    ("SanInvalid", "B13: it leaves out names that cannot be read"),
    ("SanTooLong", "item 5 of the issue: names have a bound here"),
    ("SanNotCritical", "B08: webpki does not check it"),
    ("KeyUsageNotCritical", "B23: its source says that it does not check this"),
    ("ServerAuthAbsent", "B06: the standard requires both purposes if there is one"),
    ("LifeTooLong", "B29: only we have this limit"),
    ("SerialTooLong", "RFC 5280 section 4.1.2.2, which no other library checks"),
    ("Expired", "NotAfter is exclusive here, inclusive in webpki"),
    ("SignerHasPath", "C06: no library checks the ID of a signer"),
    ("SignerKeyUsage", "C05: it accepts a signer without a key usage"),
    ("SignerExpired", "C09: webpki never checks the life of an anchor; and an end is exclusive here"),
    ("RootsExpired", "C09: webpki never checks the life of an anchor, and no other root is left"),
    ("TrustDomainUnknown", "C10: no bundle is loaded here with a root that may not sign"),
    ("ExtensionRepeated", "B14: of extensions that webpki does not read"),
    ("ChainTooLong", "C12: more certificates than are read here"),
];

/// Chains that the oracle refuses and we accept, with their unusual property.
const LAXER: [(&str, &str); 0] = [];

// ---------- what chains are made of ----------

type ParamsChange = fn(&mut CertificateParams);

fn san(p: &mut CertificateParams, names: &[Vec<u8>]) {
    p.subject_alt_names.clear();
    p.custom_extensions.push(extension(17, false, tlv(0x30, &names.concat())));
}

fn one_uri(p: &mut CertificateParams, text: &str) {
    p.subject_alt_names = vec![uri(text)];
}

/// The faults of a leaf, and changes that look like a fault but are allowed.
const LEAVES: [(&str, ParamsChange); 44] = [
    ("as it should be", |_| {}),
    ("names of other kinds", |p| p.subject_alt_names.push(SanType::DnsName("localhost".try_into().unwrap()))),
    ("an address", |p| p.subject_alt_names.insert(0, SanType::IpAddress([127, 0, 0, 1].into()))),
    ("65 names", |p| {
        let names = (0..64).map(|n| SanType::DnsName(format!("h{n}").try_into().unwrap()));
        p.subject_alt_names.extend(names);
    }),
    ("two IDs", |p| p.subject_alt_names.push(uri("spiffe://good.example/b"))),
    ("an ID and a URL", |p| p.subject_alt_names.push(uri("https://good.example/b"))),
    ("a second URI that is not UTF-8", |p| {
        san(p, &[tlv(0x86, b"spiffe://good.example/a"), tlv(0x86, b"spiffe://b/\xff")]);
    }),
    ("a DNS name that is not UTF-8", |p| {
        san(p, &[tlv(0x86, b"spiffe://good.example/a"), tlv(0x82, b"\xff")]);
    }),
    ("no name", |p| p.subject_alt_names.clear()),
    ("only a DNS name", |p| p.subject_alt_names = vec![SanType::DnsName("a".try_into().unwrap())]),
    ("another scheme", |p| one_uri(p, "https://good.example/a")),
    ("the scheme in upper case", |p| one_uri(p, "SPIFFE://good.example/a")),
    ("the domain in upper case", |p| one_uri(p, "spiffe://GOOD.example/a")),
    ("no path", |p| one_uri(p, "spiffe://good.example")),
    ("a slash at the end", |p| one_uri(p, "spiffe://good.example/a/")),
    ("an empty segment", |p| one_uri(p, "spiffe://good.example/a//b")),
    ("dots", |p| one_uri(p, "spiffe://good.example/a/../b")),
    ("an escape", |p| one_uri(p, "spiffe://good.example/%41")),
    ("a port", |p| one_uri(p, "spiffe://good.example:1/a")),
    ("a user", |p| one_uri(p, "spiffe://u@good.example/a")),
    ("a query", |p| one_uri(p, "spiffe://good.example/a?b")),
    ("a fragment", |p| one_uri(p, "spiffe://good.example/a#b")),
    ("an ID of 2049 bytes", |p| one_uri(p, &format!("spiffe://good.example/{}", "a".repeat(2027)))),
    ("an ID of another domain", |p| one_uri(p, "spiffe://pair.example/a")),
    ("an ID of no domain that is known", |p| one_uri(p, "spiffe://unknown.example/a")),
    ("a CA", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ("no basic constraints", |p| p.is_ca = IsCa::NoCa),
    ("basic constraints that are not DER", |p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(extension(19, true, vec![4, 1, 0xff]));
    }),
    ("the key usages of SPIRE", |p| {
        p.key_usages = vec![Usage::DigitalSignature, Usage::KeyEncipherment, Usage::KeyAgreement];
    }),
    ("keyCertSign", |p| p.key_usages.push(Usage::KeyCertSign)),
    ("cRLSign", |p| p.key_usages.push(Usage::CrlSign)),
    ("no key usage", |p| p.key_usages.clear()),
    ("no digitalSignature", |p| p.key_usages = vec![Usage::KeyEncipherment]),
    ("a key usage that is not critical", |p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(15, false, vec![3, 2, 7, 0x80]));
    }),
    ("no extended key usage", |p| p.extended_key_usages.clear()),
    ("serverAuth alone", |p| p.extended_key_usages = vec![Purpose::ServerAuth]),
    ("clientAuth alone", |p| p.extended_key_usages = vec![Purpose::ClientAuth]),
    ("an empty subject, critical", |p| p.distinguished_name = DistinguishedName::new()),
    ("an empty subject, not critical", |p| {
        p.distinguished_name = DistinguishedName::new();
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_san(&[b"spiffe://good.example/a"]));
    }),
    ("an unknown critical extension", |p| p.custom_extensions.push(extension(99, true, vec![5, 0]))),
    ("an extension twice", |p| {
        p.custom_extensions.push(extension(99, false, vec![5, 0]));
        p.custom_extensions.push(extension(99, false, vec![5, 0]));
    }),
    ("a life of two days", |p| p.not_after = at(NOW.plus(48 * HOUR))),
    ("over", |p| p.not_after = at(before(NOW, Duration::from_secs(1)))),
    ("a serial of 22 bytes", |p| p.serial_number = Some(vec![0x7f; 22].into())),
];

type Above = fn(&TestCa) -> TestCa;

/// The certificates between the leaf and its root.
const BETWEEN: [(&str, Option<Above>); 14] = [
    ("nothing", None),
    ("an authority", Some(|root| root.intermediate("upper", &|_| {}))),
    ("two authorities", Some(|root| root.intermediate("upper", &|_| {}).intermediate("lower", &|_| {}))),
    (
        "seven authorities",
        Some(|root| {
            (0..6).fold(root.intermediate("0", &|_| {}), |upper, n| {
                upper.intermediate(&format!("b{n}"), &|_| {})
            })
        }),
    ),
    (
        "an authority that is not a CA",
        Some(|root| root.intermediate("upper", &|p| p.is_ca = IsCa::ExplicitNoCa)),
    ),
    (
        "an authority without keyCertSign",
        Some(|root| root.intermediate("upper", &|p| p.key_usages = vec![Usage::CrlSign])),
    ),
    ("an authority without key usage", Some(|root| root.intermediate("upper", &|p| p.key_usages.clear()))),
    (
        "an authority whose ID has a path",
        Some(|root| {
            root.intermediate("upper", &|p| p.subject_alt_names = vec![uri("spiffe://good.example/ca")])
        }),
    ),
    (
        "an authority with an ID of another domain",
        Some(|root| {
            root.intermediate("upper", &|p| p.subject_alt_names = vec![uri("spiffe://other.example")])
        }),
    ),
    (
        "a path that is too long",
        Some(|root| {
            let one = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            root.intermediate("upper", &one).intermediate("lower", &|_| {})
        }),
    ),
    (
        "an authority that is over",
        Some(|root| root.intermediate("upper", &|p| p.not_after = at(before(NOW, Duration::from_secs(1))))),
    ),
    (
        "an authority with an unknown critical extension",
        Some(|root| {
            root.intermediate("upper", &|p| p.custom_extensions.push(extension(99, true, vec![5, 0])))
        }),
    ),
    (
        "an authority with a constraint on URIs",
        Some(|root| {
            let subtree = tlv(0x30, &tlv(0x86, b"good.example"));
            let constraints = tlv(0x30, &tlv(0xa0, &subtree));
            root.intermediate("upper", &|p| {
                p.custom_extensions.push(extension(30, true, constraints.clone()));
            })
        }),
    ),
    (
        "an authority for other purposes",
        Some(|root| root.intermediate("upper", &|p| p.extended_key_usages = vec![Purpose::CodeSigning])),
    ),
];

type Presented = fn(&mut IssuedCertificate, &TestCa);

/// The ways to present a chain.
const PRESENTED: [(&str, Presented); 7] = [
    ("in order", |_, _| {}),
    ("with its root", |issued, root| issued.chain.push(root.der.clone())),
    ("the other way round", |issued, _| issued.chain[1..].reverse()),
    ("without what is above the leaf", |issued, _| issued.chain.truncate(1)),
    ("with a bit of its signature turned", |issued, _| {
        let mut der = issued.leaf().to_vec();
        *der.last_mut().unwrap() ^= 1;
        issued.chain[0] = der.into();
    }),
    ("with a byte behind the leaf", |issued, _| {
        issued.chain[0] = [issued.leaf().as_ref(), &[0]].concat().into();
    }),
    ("with nine roots behind it", |issued, root| issued.chain.extend(vec![root.der.clone(); 9])),
];

/// The roots that sign, named by the domain whose bundle has the root.
const ROOTS: [&str; 8] = [
    "good.example",
    // The second of two roots of one bundle.
    "pair.example",
    // The second of two roots of one bundle. It ends within the half hour.
    "pair-ends.example",
    // A root that ends within the half hour.
    "ends.example",
    // A root that is not a CA, and a root that may not sign certificates. We do not accept such bundles.
    "no-ca.example",
    "no-sign.example",
    // The name of a root, with another key.
    "impostor.example",
    // A root that is in no bundle.
    "unknown.example",
];

/// The times at which a chain is judged.
const TIMES: [(&str, Wall); 4] = [
    ("now", NOW),
    ("at the last second of the leaf and in its last root", Wall(NOW.0 + 3_600_000)),
    ("after the end of the root that ends", Wall(NOW.0 + 1_801_000)),
    ("before it began", Wall(NOW.0 - 11_000)),
];

/// A chain, given by its unusual properties as indexes into the lists above.
#[derive(Clone, Debug, Default)]
struct Recipe {
    leaf: Vec<usize>,
    between: usize,
    presented: usize,
    root: usize,
    time: usize,
}

impl Recipe {
    /// Returns chains with one unusual property each, for all entries of all lists.
    fn singles() -> Vec<Recipe> {
        let mut all: Vec<Recipe> =
            (0..LEAVES.len()).map(|n| Recipe { leaf: vec![n], ..Recipe::default() }).collect();
        all.extend((0..BETWEEN.len()).map(|between| Recipe { between, ..Recipe::default() }));
        all.extend((0..PRESENTED.len()).map(|presented| Recipe {
            presented,
            between: 2,
            ..Recipe::default()
        }));
        all.extend((0..TIMES.len()).map(|time| Recipe { time, ..Recipe::default() }));
        for root in 0..ROOTS.len() {
            all.extend((0..TIMES.len()).map(|time| Recipe { root, time, ..Recipe::default() }));
        }
        all
    }

    fn words(&self) -> String {
        let leaf: Vec<&str> = self.leaf.iter().map(|n| LEAVES[*n].0).collect();
        format!(
            "leaf: {}; between: {}; presented {}; root of {}; judged {}",
            leaf.join(", "),
            BETWEEN[self.between].0,
            PRESENTED[self.presented].0,
            ROOTS[self.root],
            TIMES[self.time].0
        )
    }

    fn chain(&self, roots: &OracleRoots) -> IssuedCertificate {
        let domain = ROOTS[self.root];
        let root = &roots.signers[domain];
        let above = BETWEEN[self.between].1.map(|make| make(root));
        let change = |p: &mut CertificateParams| self.leaf.iter().for_each(|n| (LEAVES[*n].1)(p));
        let mut issued = above.as_ref().unwrap_or(root).issue(&format!("spiffe://{domain}/a"), &change);
        (PRESENTED[self.presented].1)(&mut issued, root);
        issued
    }
}

/// The authorities, and the bundles of each side.
struct OracleRoots {
    signers: BTreeMap<&'static str, TestCa>,
    bundles: BTreeMap<&'static str, Vec<u8>>,
    ours: TrustBundles,
}

impl OracleRoots {
    fn new() -> Self {
        let mut signers: BTreeMap<&'static str, TestCa> = BTreeMap::new();
        let mut bundles: BTreeMap<&'static str, Vec<u8>> = BTreeMap::new();
        let mut ours = TrustBundles::empty();
        for domain in ROOTS {
            let ca = TestCa::with(domain, &|p| match domain {
                "ends.example" | "pair-ends.example" => p.not_after = at(NOW.plus(HOUR / 2)),
                "no-ca.example" => p.is_ca = IsCa::ExplicitNoCa,
                "no-sign.example" => p.key_usages = vec![Usage::CrlSign],
                _ => {}
            });
            let first = if domain.starts_with("pair") { vec![TestCa::new(domain)] } else { Vec::new() };
            let in_bundle: Vec<&TestCa> = first.iter().chain([&ca]).collect();
            let text: String = in_bundle.iter().map(|ca| pem("CERTIFICATE", &ca.der)).collect();
            if domain != "unknown.example" {
                bundles.insert(domain, in_bundle.iter().flat_map(|ca| ca.der.to_vec()).collect());
                let with = ours.clone().with_pem(ca.domain(), domain, text.as_bytes(), NOW);
                assert_eq!(with.is_err(), domain.starts_with("no-"), "{domain}");
                ours = with.unwrap_or(ours);
            }
            let signer = if domain == "impostor.example" { ca.impostor() } else { ca };
            signers.insert(domain, signer);
        }
        OracleRoots { signers, bundles, ours }
    }
}

// ---------- the oracle ----------

/// The messages of the Workload API that matter here (SPIFFE Workload API section 5.2).
#[derive(Clone, PartialEq, Message)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<SvidMessage>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: std::collections::HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct SvidMessage {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// Serves these bundles on a socket until its runtime ends.
fn serve_workload_api(socket: &std::path::Path, roots: &OracleRoots) {
    let (ca, svid) = own();
    let answer = X509SvidResponse {
        svids: vec![SvidMessage {
            spiffe_id: svid.svid().spiffe_id().to_string(),
            x509_svid: svid.leaf().to_vec(),
            x509_svid_key: svid.key.serialize_der(),
            bundle: ca.der.to_vec(),
        }],
        federated_bundles: roots
            .bundles
            .iter()
            .map(|(domain, der)| (format!("spiffe://{domain}"), der.clone()))
            .collect(),
    }
    .encode_to_vec();
    let mut message = BytesMut::new();
    message.put_u8(0); // not compressed
    message.put_u32(u32::try_from(answer.len()).unwrap());
    message.extend_from_slice(&answer);
    let message = message.freeze();
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let message = message.clone();
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                let first = stream::iter([Ok::<Frame<Bytes>, Infallible>(Frame::data(message.clone()))]);
                let mut response = Response::new(StreamBody::new(first.chain(stream::pending())));
                *response.headers_mut() = HeaderMap::from_iter([(
                    http::header::CONTENT_TYPE,
                    HeaderValue::from_static("application/grpc"),
                )]);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(connection), service),
            );
        }
    });
}

struct Oracle {
    roots: OracleRoots,
    server: Arc<ServerConfig>,
    time: Arc<SetTime>,
    _runtime: tokio::runtime::Runtime,
}

impl Oracle {
    fn start() -> Self {
        let roots = OracleRoots::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let time = Arc::new(SetTime::default());
        let its_time = time.clone();
        let server = runtime.block_on(async {
            serve_workload_api(&socket, &roots);
            let endpoint = format!("unix://{}", socket.display());
            let source = spiffe::X509Source::builder()
                .endpoint(endpoint)
                .initial_sync_timeout(Duration::from_secs(10))
                .build()
                .await
                .unwrap();
            spiffe_rustls::mtls_server(source)
                .with_config_customizer(|config| config.time_provider = its_time)
                .build()
                .unwrap()
        });
        Oracle { roots, server: Arc::new(server), time, _runtime: runtime }
    }

    /// Returns the answers of both verifiers for a chain: our refusal if there is one, and whether the oracle accepts.
    fn ask(&self, recipe: &Recipe) -> (Option<SvidError>, Result<(), rustls::Error>) {
        let issued = recipe.chain(&self.roots);
        let now = TIMES[recipe.time].1;
        self.time.set(now);
        let ours = judged(&issued, &self.roots.ours, now).err();
        (ours, shaken(self.server.clone(), presenting(&issued)).map(drop))
    }

    /// Returns the rule by which the two verifiers differ on a chain, if they differ. Panics if the rule is missing in
    /// both lists.
    fn difference(&self, recipe: &Recipe) -> Option<String> {
        let (ours, theirs) = self.ask(recipe);
        let words = recipe.words();
        match (ours, theirs) {
            (None, Ok(())) | (Some(_), Err(_)) => None,
            (Some(why), Ok(())) => {
                let shown = format!("{why:?}");
                let rule = shown.split([' ', '(']).next().unwrap_or_default().to_owned();
                let listed = STRICTER.iter().any(|(known, _)| *known == rule);
                assert!(listed, "the oracle accepts, we refuse by {rule}: {why}\n  {words}");
                Some(rule)
            }
            (None, Err(why)) => {
                let listed = LAXER.iter().find(|(known, _)| words.contains(known));
                let (known, _) =
                    listed.unwrap_or_else(|| panic!("we accept, the oracle refuses: {why}\n  {words}"));
                Some((*known).to_owned())
            }
        }
    }
}

#[test]
fn the_oracle_differs_where_it_is_said_to_and_nowhere_else() {
    let oracle = Oracle::start();
    assert!(matches!(oracle.ask(&Recipe::default()), (None, Ok(()))), "the plain chain is good to both");
    let seen: BTreeSet<String> =
        Recipe::singles().iter().filter_map(|recipe| oracle.difference(recipe)).collect();
    let listed: BTreeSet<String> =
        STRICTER.iter().chain(&LAXER).map(|(rule, _)| (*rule).to_owned()).collect();
    assert_eq!(seen, listed, "the lists hold what is seen and nothing that is not");

    // Chains with several faults. They are the same in every run.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, b"leaves, intermediates and roots.");
    let mut runner = TestRunner::new_with_rng(Config { cases: 256, ..Config::default() }, rng);
    let strategy = (
        vec(0..LEAVES.len(), 0..3),
        0..BETWEEN.len() * 2,
        0..PRESENTED.len() * 3,
        0..ROOTS.len() * 3,
        (0..TIMES.len() * 2, any::<bool>()),
    );
    runner
        .run(&strategy, |(leaf, between, presented, root, (time, plain_leaf))| {
            // Most parts of a generated chain are valid, so that the verification reaches the faults.
            let or_plain = |drawn: usize, of: usize| if drawn < of { drawn } else { 0 };
            oracle.difference(&Recipe {
                leaf: if plain_leaf { Vec::new() } else { leaf },
                between: or_plain(between, BETWEEN.len()),
                presented: or_plain(presented, PRESENTED.len()),
                root: or_plain(root, ROOTS.len()),
                time: or_plain(time, TIMES.len()),
            });
            Ok(())
        })
        .unwrap();
}

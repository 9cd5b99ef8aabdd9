//! Refused catalogs, and the answers of a valid catalog.

use std::{fs, path::Path};

use super::*;
use crate::{
    catalog::{Catalog, Checks, Enforcement, Presenter},
    clock::Wall,
    name::{HumanName, Pin, SpiffeId},
};

const GATEWAY: &str = "spiffe://k8s.acme.example/ns/data/sa/gateway";

/// A catalog of these files, loaded from disk.
fn load(files: &[(&str, &str)]) -> Result<Catalog, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    Catalog::load(dir.path()).map_err(|e| e.iter().map(ToString::to_string).collect())
}

/// The mistakes of one file, acme.toml, that begins with a valid head.
fn mistakes(rest: &str) -> Vec<String> {
    let text = format!("[tenant.acme]\n{rest}");
    load(&[("acme.toml", &text)]).err().unwrap_or_default()
}

fn dataset(name: &str, more: &str) -> String {
    format!(
        "[[dataset]]\nname = \"{name}\"\nlocation = \"s3://b/d/\"\naudience = \"{GATEWAY}\"\npin = \"none\"\n\
         classification = \"internal\"\ndata_classes = []\nsource_trust = \"curated\"\npurposes = [\"p\"]\n\
         owner = \"o@x\"\n{more}\n"
    )
}

fn audience() -> String {
    format!(
        "[[audience]]\nname = \"{GATEWAY}\"\nverifiers = [\"{GATEWAY}\"]\nchecks = \"feed\"\npresenter = \"mtls\"\n"
    )
}

fn has(found: &[String], line: &str, what: &str) -> bool {
    found.iter().any(|f| f.starts_with(line) && f.contains(what))
}

fn shipped() -> Catalog {
    Catalog::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config/catalog.d")).unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

#[test]
fn the_shipped_catalog_is_read_and_answers_by_name() {
    let c = shipped();
    let counts = c.counts();
    assert_eq!((counts.tenants, counts.datasets, counts.models, counts.checkpoints), (3, 7, 3, 3));
    assert!(c.warnings().is_empty(), "{:?}", c.warnings());
    let tickets = c.dataset(&"dataset:acme/tickets@v3".parse().unwrap()).unwrap();
    assert_eq!(tickets.owner, "data-tickets@acme.example");
    assert!(matches!(tickets.pin, Pin::Manifest(_)));
    assert_eq!(tickets.dataset().unwrap().retain_until, Wall::parse("2027-06-30T00:00:00Z"));
    let corpus = c.dataset(&"dataset:acme/corpus@2026-10".parse().unwrap()).unwrap();
    assert_eq!(corpus.enforced, Enforcement::Advisory);
    assert!(
        corpus.visible_to(&"globex".parse().unwrap()) && !corpus.visible_to(&"platform".parse().unwrap())
    );
    let line = c.checkpoint(&"checkpoint:globex/sentiment-lora".parse().unwrap()).unwrap();
    assert_eq!(line.checkpoint().unwrap().model.as_str(), "model:acme/base-1b@2026.04");
    assert!(c.model(&"dataset:acme/tickets@v3".parse().unwrap()).is_none());
    let files = c.audience(&id("spiffe://k8s.globex.example/ns/data/sa/files")).unwrap();
    assert_eq!((files.checks, files.presenter), (Checks::Jwt, Presenter::None));
}

#[test]
fn the_first_match_wins_and_no_match_has_no_entry() {
    let c = shipped();
    let p = c.principal(&id("spiffe://people.acme.example/u/ada")).unwrap();
    assert_eq!((p.kind, p.tenant.as_str()), (PrincipalKind::Operator, "acme"));
    assert_eq!(p.human(&id("spiffe://people.acme.example/u/ada")).unwrap().as_str(), "ada");
    assert!(p.declared_at.starts_with("acme.toml:"));
    assert!(c.principal(&id("spiffe://people.acme.example/u/ada/x")).is_none());
    assert!(c.principal(&id("spiffe://elsewhere.example/u/ada")).is_none());
    let two = load(&[(
        "acme.toml",
        "[tenant.acme]\n[[principal]]\nmatch = \"spiffe://a/w/*\"\nkind = \"workload\"\nroles = [\"one\"]\n\
         [[principal]]\nmatch = \"spiffe://a/w/x\"\nkind = \"workload\"\nroles = [\"two\"]\n\
         [[principal]]\nmatch = \"spiffe://a/**\"\nkind = \"auditor\"\n",
    )])
    .unwrap();
    assert!(two.principal(&id("spiffe://a/w/x")).unwrap().roles.contains("one"));
    assert_eq!(two.principal(&id("spiffe://a/q")).unwrap().kind, PrincipalKind::Auditor);
    assert_eq!(two.principals_overlapping(&"spiffe://a/w/x".parse().unwrap()).count(), 3);
    assert_eq!(two.principals_overlapping(&"spiffe://a/q".parse().unwrap()).count(), 1);
}

#[test]
fn only_a_launcher_may_act_for_people_and_only_for_known_ones() {
    let c = load(&[(
        "acme.toml",
        "[tenant.acme]\n[[principal]]\nmatch = \"spiffe://a/l\"\nkind = \"launcher\"\nmay_act_for = [\"human:ada\"]\n",
    )])
    .unwrap();
    let p = c.principal(&id("spiffe://a/l")).unwrap();
    let human = |t: &str| t.parse::<HumanName>().unwrap();
    assert!(p.may_act_for(&human("ada")) && !p.may_act_for(&human("bob")));
    let found = mistakes(
        "[[principal]]\nmatch = \"spiffe://a/w\"\nkind = \"workload\"\nmay_act_for = [\"human:*\"]\n",
    );
    assert!(has(&found, "acme.toml:5: ", "only a launcher"), "{found:?}");
}

#[test]
fn a_verifier_needs_no_entry_and_is_no_other_kind() {
    let c = shipped();
    let gateway = c.principal(&id(GATEWAY)).unwrap();
    assert_eq!((gateway.kind, gateway.tenant.as_str()), (PrincipalKind::Verifier, "acme"));
    assert_eq!(c.audiences_of_verifier(&id(GATEWAY)).count(), 1);
    // Its feed must also cover the tenants whose leases reach it because something there is shared with them.
    let reached: Vec<_> =
        c.audience(&id(GATEWAY)).unwrap().reached_by.iter().map(ToString::to_string).collect();
    assert_eq!(reached, ["acme", "globex"]);
    let found =
        mistakes(&format!("[[principal]]\nmatch = \"{GATEWAY}\"\nkind = \"workload\"\n{}", audience()));
    assert!(has(&found, "acme.toml:6: ", "is declared as a workload at acme.toml:2"), "{found:?}");
}

#[test]
fn an_empty_directory_has_no_entries_and_a_warning() {
    let c = load(&[]).unwrap();
    assert_eq!(c.counts(), crate::catalog::index::Counts::default());
    assert_eq!(c.warnings().len(), 1);
    assert_eq!(c.digest(), Catalog::empty().digest());
    assert!(c.principal(&id("spiffe://a/b")).is_none());
    assert!(Catalog::load(Path::new("/nowhere/at/all")).is_err());
}

#[test]
fn the_digest_follows_every_byte_and_every_name() {
    let one = load(&[("acme.toml", "[tenant.acme]\n")]).unwrap().digest();
    let spaced = load(&[("acme.toml", "[tenant.acme]\n\n")]).unwrap().digest();
    let named = load(&[("acmf.toml", "[tenant.acmf]\n")]).unwrap().digest();
    assert!(one != spaced && one != named && one != Catalog::empty().digest());
    assert_eq!(one, load(&[("acme.toml", "[tenant.acme]\n")]).unwrap().digest());
}

#[test]
fn all_mistakes_come_at_once_each_with_its_line_and_the_way_out() {
    let found = mistakes(
        "kontakt = \"x\"\n\
         [[principal]]\nmatch = \"spiffe://a/w*\"\nkind = \"robot\"\n\
         [[dataset]]\nname = \"d\"\nclassification = \"secret\"\nlokation = 1\n\
         [[modell]]\nname = \"m@1\"\n",
    );
    for (line, what) in [
        ("acme.toml:2: ", "kontakt is not a key: write `contact`"),
        ("acme.toml:4: ", "`*` stands for a whole segment"),
        ("acme.toml:5: ", "`robot` is not a kind of principal"),
        ("acme.toml:6: ", "dataset `d`: owner is missing: write owner = "),
        ("acme.toml:6: ", "dataset `d`: pin is missing: write pin = { kind = "),
        ("acme.toml:7: ", "`d` has no version, as in NAME@VERSION"),
        ("acme.toml:8: ", "public internal confidential restricted"),
        ("acme.toml:9: ", "dataset `d`: lokation is not a key: write `location`"),
        ("acme.toml:10: ", "modell is not a key: write `model`"),
    ] {
        assert!(has(&found, line, what), "{line}{what}: {found:#?}");
    }
}

#[test]
fn a_broken_document_names_every_broken_line() {
    let found = mistakes("a = \nb = 1\nb = 2\n");
    assert!(has(&found, "acme.toml:2: ", "not TOML"), "{found:?}");
    assert!(has(&found, "acme.toml:4: ", "not TOML"), "{found:?}");
}

#[test]
fn half_a_pin_is_no_pin() {
    for (pin, what) in [
        ("{ kind = \"manifest\", sha256 = \"4b\" }", "64 hexadecimal digits"),
        ("{ kind = \"manifest\" }", "has no `sha256`"),
        ("{ kind = \"hf-revision\", sha256 = \"aa\" }", "not `sha256`"),
        ("{ kind = \"git\", id = \"x\" }", "is not one of manifest"),
        ("{ sha1 = \"x\" }", "it has no `kind`"),
        ("\"latest\"", "is not a pin"),
        ("7", "it is a whole number"),
    ] {
        let text = audience() + &dataset("d@1", "").replace("pin = \"none\"", &format!("pin = {pin}"));
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{pin}: {found:?}");
        assert!(has(&found, "acme.toml:11: ", what), "{pin}: {found:?}");
    }
}

#[test]
fn a_location_is_a_plain_folder() {
    for (location, what) in [
        ("s3://b/d", "ends in `/`"),
        ("s3://user:pw@b/d/", "before `@`"),
        ("s3://b/../d/", "`.` or `..`"),
        ("/data/d/", "not a URL"),
        ("s3:///d/", "no bucket"),
        ("https://h/d/?x=/", "a query"),
        ("s3://b//d/", "empty segment"),
    ] {
        let text = audience() + &dataset("d@1", "").replace("s3://b/d/", location);
        let found = mistakes(&text);
        assert!(found.len() == 1 && has(&found, "acme.toml:9: ", what), "{location}: {found:?}");
    }
}

#[test]
fn names_stand_once_and_have_no_twin_in_other_case() {
    let text = audience() + &dataset("d@1", "") + &dataset("d@1", "");
    assert!(has(&mistakes(&text), "acme.toml:19: ", "declared twice"));
    let text = audience() + &dataset("d@1", "") + &dataset("D@2", "");
    assert!(has(&mistakes(&text), "acme.toml:19: ", "upper and lower case"));
    let text = audience() + &dataset("d@v1", "") + &dataset("d@V1", "");
    assert!(has(&mistakes(&text), "acme.toml:19: ", "upper and lower case"));
    let p = "[[principal]]\nmatch = \"spiffe://a/w\"\nkind = \"workload\"\n";
    assert!(has(&mistakes(&format!("{p}{p}")), "acme.toml:6: ", "matched twice, first at acme.toml:2"));
}

#[test]
fn one_identity_is_never_of_two_tenants() {
    let file = |tenant: &str, pattern: &str| {
        format!("[tenant.{tenant}]\n[[principal]]\nmatch = \"{pattern}\"\nkind = \"workload\"\n")
    };
    for (a, b) in [
        ("spiffe://t/a/*", "spiffe://t/*/b"),
        ("spiffe://t/**", "spiffe://t/a/b"),
        ("spiffe://t/a/b", "spiffe://t/**"),
        ("spiffe://t/a", "spiffe://t/a"),
    ] {
        let found = load(&[("acme.toml", &file("acme", a)), ("beta.toml", &file("beta", b))]).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(has(&found, "beta.toml:3: ", "acme.toml:2"), "{found:?}");
    }
    assert!(
        load(&[
            ("acme.toml", &file("acme", "spiffe://t/a/*")),
            ("beta.toml", &file("beta", "spiffe://t/b/*"))
        ])
        .is_ok()
    );
}

#[test]
fn an_s3_endpoint_is_an_address_of_the_audience_itself() {
    let with = |more: &str| mistakes(&format!("{}{more}\n", audience()));
    assert_eq!(with("s3_endpoint = \"gateway.acme.example:8447\""), Vec::<String>::new());
    let found = with("s3_endpoint = \"https://gateway.acme.example\"");
    assert!(has(&found, "acme.toml:7", "write HOST:PORT"), "{found:?}");
    let other = audience()
        .replace(&format!("verifiers = [\"{GATEWAY}\"]"), "verifiers = [\"spiffe://k8s.acme.example/x\"]");
    let found = mistakes(&format!("{other}s3_endpoint = \"g:1\"\n"));
    assert!(has(&found, "acme.toml:7", "to verifiers"), "{found:?}");
    let with_id = format!("{other}s3_endpoint = \"g:1\"\ns3_server_id = \"spiffe://k8s.acme.example/x\"\n");
    assert_eq!(mistakes(&with_id), Vec::<String>::new());
    let unseen = audience().replace("\"mtls\"", "\"none\"");
    let found = mistakes(&format!("{unseen}s3_endpoint = \"g:1\"\n"));
    assert!(has(&found, "acme.toml:7", "write presenter"), "{found:?}");
}

#[test]
fn references_lead_somewhere() {
    let found = mistakes(&dataset("d@1", "shared_with = [\"beta\", \"acme\"]"));
    assert!(has(&found, "acme.toml:5: ", "is not declared"), "{found:?}");
    assert!(has(&found, "acme.toml:12: ", "`beta`, which has no file"), "{found:?}");
    assert!(has(&found, "acme.toml:12: ", "its own tenant"), "{found:?}");
    let line = format!(
        "{}[[checkpoint]]\nname = \"c\"\nmodel = \"m@1\"\nlocation = \"s3://b/c/\"\naudience = \"{GATEWAY}\"\nowner = \"o\"\n",
        audience()
    );
    assert!(has(&mistakes(&line), "acme.toml:9: ", "model `model:acme/m@1`"));
    // A tenant cannot use an audience just by naming it.
    let beta = format!("[tenant.beta]\n{}", dataset("d@1", ""));
    let found = load(&[("acme.toml", &format!("[tenant.acme]\n{}", audience())), ("beta.toml", &beta)]);
    assert!(has(
        &found.unwrap_err(),
        "beta.toml:5: ",
        "does not serve tenant `beta`; add `beta` to its `serves`"
    ));
}

#[test]
fn a_file_is_named_like_its_tenant_and_speaks_of_no_other() {
    let found = load(&[("beta.toml", "[tenant.acme]\n")]).unwrap_err();
    assert!(has(&found, "beta.toml:1: ", "tenant `acme` in the file of another"), "{found:?}");
    let found = load(&[("Acme.toml", "[tenant.acme]\n")]).unwrap_err();
    assert!(has(&found, "Acme.toml: ", "not a tenant name"), "{found:?}");
    let found = mistakes(&(audience() + &dataset("dataset:beta/d@1", "")));
    assert!(has(&found, "acme.toml:8: ", "of tenant `beta`"), "{found:?}");
    let found = load(&[("acme.toml", "")]).unwrap_err();
    assert!(has(&found, "acme.toml:1: ", "does not say whose it is"), "{found:?}");
}

#[test]
fn a_moment_has_a_zone_and_a_date_is_its_beginning() {
    let until = |value: &str| {
        let text =
            format!("[tenant.acme]\n{}{}", audience(), dataset("d@1", &format!("retain_until = {value}")));
        load(&[("acme.toml", &text)]).map(|c| {
            let name = "dataset:acme/d@1".parse().unwrap();
            c.dataset(&name).unwrap().dataset().unwrap().retain_until.unwrap().to_string()
        })
    };
    assert_eq!(until("2027-06-30").unwrap(), "2027-06-30T00:00:00.000Z");
    assert_eq!(until("2027-06-30T12:00:00+02:00").unwrap(), "2027-06-30T10:00:00.000Z");
    assert!(until("2027-06-30T12:00:00").unwrap_err()[0].contains("in which zone"));
    assert!(until("\"2027-06-30\"").unwrap_err()[0].contains("not a date without quotes"));
}

#[test]
fn other_files_are_warned_of_and_not_read() {
    let c = load(&[("acme.toml", "[tenant.acme]\n"), ("acme.toml.bak", "x"), (".hidden", "x")]).unwrap();
    assert_eq!(c.warnings().len(), 1, "{:?}", c.warnings());
    assert!(c.warnings()[0].contains("acme.toml.bak"));
}

proptest::proptest! {
    /// The naive model returns the first entry of the list whose pattern matches.
    #[test]
    fn the_entry_found_is_the_first_that_matches(
        patterns in proptest::collection::btree_set("(/(a|b|spire|\\*)){1,3}(/\\*\\*)?", 1..12),
        ids in proptest::collection::vec("(/(a|b|c|spire)){1,4}", 1..12),
        backwards in proptest::bool::ANY,
    ) {
        let mut patterns: Vec<&String> = patterns.iter().collect();
        if backwards { patterns.reverse(); }
        let mut text = "[tenant.acme]\n".to_owned();
        for p in &patterns {
            text += &format!("[[principal]]\nmatch = \"spiffe://t{p}\"\nkind = \"workload\"\n");
        }
        let c = load(&[("acme.toml", &text)]).unwrap();
        for i in &ids {
            let id = id(&format!("spiffe://t{i}"));
            let naive = c.principals().find(|p| p.pattern.matches(&id)).map(|p| &p.pattern);
            proptest::prop_assert_eq!(c.principal(&id).map(|p| &p.pattern), naive);
        }
    }
}

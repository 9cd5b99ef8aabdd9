//! Kept rules decide again, are bounded, and are refused if their file was changed.

use super::*;
use crate::policy::PolicySource;

const OPEN: &str = "@id(\"open\") permit (principal is Leasehold::Workload, action, resource);\n";

fn rules(policy: &str, tenant: &str) -> Rules {
    let name: TenantName = tenant.parse().unwrap();
    let catalog = Catalog::of_texts([(name, format!("[tenant.{tenant}]\n").into())]).unwrap();
    let texts = vec![PolicyText { file: "a.cedar".into(), text: policy.into() }];
    let engine = Engine::load(&PolicySource::Texts(texts), &catalog, Explain::Requester).unwrap();
    Rules { engine, signed: None }
}

fn at(seconds: u64) -> BroughtBy {
    BroughtBy { since: Wall::from_seconds(seconds), by: "ada".into(), reason: "a test".into() }
}

#[test]
fn kept_rules_make_the_same_engine_again() {
    let folder = tempfile::tempdir().unwrap();
    let kept = KeptRules::at(folder.path());
    let before = rules(OPEN, "acme");
    kept.keep(&before, &at(5)).unwrap();
    let (policy, catalog) = (before.engine.digest(), before.catalog().digest());
    let again = kept.engine(policy, catalog, Explain::Requester).unwrap();
    assert_eq!((again.digest(), again.catalog().digest()), (policy, catalog));
    assert_eq!(again.texts(), before.engine.texts());
    let absent = kept.engine(Digest::of(b"x"), catalog, Explain::Requester).err().unwrap();
    assert!(matches!(absent, NotKept::Absent { .. }), "{absent}");
    assert_eq!(kept.policies()[0].reason, "a test");
}

#[test]
fn a_changed_file_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let kept = KeptRules::at(folder.path());
    let before = rules(OPEN, "acme");
    kept.keep(&before, &at(5)).unwrap();
    let (policy, catalog) = (before.engine.digest(), before.catalog().digest());
    let path = kept.path(POLICY, policy);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("Workload", "Launcher")).unwrap();
    let refused = kept.engine(policy, catalog, Explain::Requester).err().unwrap();
    assert!(matches!(refused, NotKept::Damaged { .. }), "{refused}");
    fs::write(&path, "{").unwrap();
    let refused = kept.engine(policy, catalog, Explain::Requester).err().unwrap();
    assert!(matches!(refused, NotKept::Damaged { .. }), "{refused}");
}

#[test]
fn the_oldest_files_make_room_but_never_those_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let kept = KeptRules::at(folder.path());
    let first = rules(OPEN, "acme");
    kept.keep(&first, &at(1)).unwrap();
    // The daemon went back to its first policy, so the file in force is the oldest.
    for n in 0..=KEPT_RULES_MAX as u64 {
        let later = rules(&format!("// {n}\n{OPEN}"), "acme");
        kept.keep_policy(&later, &at(n + 2)).unwrap();
    }
    kept.make_room([first.engine.digest(), first.catalog().digest()]).unwrap();
    let left = kept.policies();
    assert!(left.len() <= KEPT_RULES_MAX + 1, "{}", left.len());
    assert!(left.iter().any(|p| p.digest == first.engine.digest()));
    assert_eq!(left[0].since, Wall::from_seconds(KEPT_RULES_MAX as u64 + 2), "the last one is there");
}

#[test]
fn what_was_applied_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let kept = KeptRules::at(folder.path());
    assert_eq!(kept.applied().unwrap(), None);
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    kept.set_applied(b, a).unwrap();
    assert_eq!(kept.applied().unwrap(), Some(AppliedPolicy { digest: b, before: Some(a) }));
    fs::write(folder.path().join("policies/applied.json"), "x").unwrap();
    assert!(kept.applied().is_err());
}

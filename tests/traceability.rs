//! A test proves each law of `laws.txt` and each case of `identity-cases.txt`.
//!
//! A comment above the test names what it proves: `// Proves law 15, case B13.`
#![allow(clippy::restriction, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The ids of a list, each with its words.
fn listed(file: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for line in fs::read_to_string(root().join("tests").join(file)).unwrap().lines() {
        if line.starts_with('#') {
            continue;
        }
        let (id, words) = line.split_once(' ').unwrap_or_else(|| panic!("{file}: `{line}` has no words"));
        let words = words.trim().to_owned();
        assert!(!words.is_empty(), "{file}: {id} has no words");
        assert!(all.insert(id.to_lowercase(), words).is_none(), "{file}: {id} is there twice");
    }
    all
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// A test, and the lines above it.
struct Test {
    name: String,
    path: PathBuf,
    /// The rest of its `// Proves` line: `law 15, case B13`.
    proves: Option<String>,
}

/// All functions that are tests.
fn tests() -> Vec<Test> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        rust_files(&root().join(folder), &mut files);
    }
    let mut all = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let (mut is_test, mut proves) = (false, None);
        for line in text.lines().map(str::trim) {
            if let Some(ids) = line.strip_prefix("// Proves ") {
                proves = Some(ids.trim_end_matches('.').to_owned());
            }
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            if line.starts_with("#[") || line.starts_with("//") {
                continue;
            }
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = function.and_then(|f| f.split_once('('))
                && is_test
            {
                all.push(Test { name: name.to_owned(), path: path.clone(), proves: proves.take() });
            }
            (is_test, proves) = (false, None);
        }
    }
    all
}

/// The ids of one kind in a `// Proves` line: of `law 09, case B13`, the kind `law` has `09`.
fn ids(proves: &str, kind: &str) -> Vec<String> {
    let items = proves.split(", ").map(|item| item.split_once(' ').unwrap_or((item, "")));
    items.filter(|(k, _)| *k == kind).map(|(_, id)| id.to_lowercase()).collect()
}

/// Every id of the list has a test, and every test's id is in a list.
fn traced(file: &str, kind: &str, known_elsewhere: impl Fn(&str) -> bool) {
    let listed = listed(file);
    let mut tested = BTreeSet::new();
    for Test { name, path, proves } in tests() {
        for id in ids(proves.as_deref().unwrap_or_default(), kind) {
            let known = listed.get(&id);
            assert!(known.is_some() || known_elsewhere(&id), "{}: {name}: no {id} in {file}", path.display());
            tested.insert(id);
        }
    }
    let missing: Vec<_> = listed
        .iter()
        .filter(|(id, words)| !words.starts_with("later") && !tested.contains(*id))
        .map(|(id, words)| format!("{id}  {words}"))
        .collect();
    assert!(missing.is_empty(), "no test proves these of {file}:\n{}", missing.join("\n"));
    let early: Vec<_> =
        listed.iter().filter(|(id, w)| w.starts_with("later") && tested.contains(*id)).collect();
    assert!(early.is_empty(), "these have tests and are in force: {early:?}");
}

#[test]
fn every_law_of_leases_has_a_test() {
    traced("laws.txt", "law", |_| false);
}

/// The sections of the checklist, each with the number of its cases: from 01, without a gap.
const CHECKLIST: [(&str, u32); 7] =
    [("a", 24), ("b", 31), ("c", 13), ("d", 13), ("e", 11), ("f", 9), ("h", 8)];
/// The sections of which every case is listed and tested.
const IN_FORCE: &str = "abcdefh";
/// The mistakes of other projects, at the end of the checklist: 6.1 to 6.10.
const MISTAKES: u32 = 10;

/// The ids of these sections of the checklist.
fn checklist(wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let sections = CHECKLIST.iter().filter(|(section, _)| wanted(section));
    sections.flat_map(|(section, cases)| (1..=*cases).map(move |n| format!("{section}{n:02}"))).collect()
}

#[test]
fn every_case_of_attesting_a_peer_has_a_test() {
    let not_yet = checklist(|section| !IN_FORCE.contains(section));
    traced("identity-cases.txt", "case", |id| not_yet.contains(id));
}

#[test]
fn every_case_of_the_checklist_is_in_the_list_and_no_other() {
    let listed: BTreeSet<String> = listed("identity-cases.txt").into_keys().collect();
    let mistakes: BTreeSet<String> = (1..=MISTAKES).map(|n| format!("6.{n}")).collect();
    let in_force = &checklist(|section| IN_FORCE.contains(section)) | &mistakes;
    let missing: Vec<_> = in_force.difference(&listed).collect();
    assert!(missing.is_empty(), "identity-cases.txt lacks {missing:?}");
    let known = &checklist(|_| true) | &mistakes;
    let unknown: Vec<_> = listed.difference(&known).collect();
    assert!(unknown.is_empty(), "no checklist has {unknown:?}");
}

#[test]
fn every_name_of_a_test_has_at_most_60_letters() {
    let long: Vec<_> = tests().into_iter().map(|t| t.name).filter(|name| name.len() > 60).collect();
    assert!(long.is_empty(), "say it in fewer words: {long:#?}");
}

#[test]
fn every_proves_line_names_laws_or_cases() {
    for Test { name, proves, .. } in tests() {
        let Some(proves) = proves else { continue };
        for item in proves.split(", ") {
            let is_known = matches!(item.split_once(' '), Some(("law" | "case", id)) if !id.contains(' '));
            assert!(is_known, "{name}: `{item}` is not `law 09` or `case B13`");
        }
    }
}

#[test]
fn ids_are_read_from_the_proves_line() {
    assert_eq!(ids("law 09", "law"), ["09"]);
    assert_eq!(ids("law 39b, law 05, case B13", "law"), ["39b", "05"]);
    assert_eq!(ids("case B13, case 6.10", "case"), ["b13", "6.10"]);
    assert_eq!(ids("", "law"), [""; 0]);
    let proved = tests().into_iter().filter(|t| t.proves.is_some()).count();
    assert!(proved > 100, "{proved} tests have a `// Proves` line");
}

/// Clients in Python, Node and Java want a DNS name in the daemon's certificate.
#[test]
fn each_page_that_begins_a_client_wants_a_dns_name() {
    for (file, beginning, before) in [
        ("docs/integrate.md", "## Resource servers in Python and other languages", "### A feed of your own"),
        ("docs/tutorial.md", "# ", "\0"),
        ("docs/spire.md", "# ", "\0"),
        ("src/proto.rs", "//!", "pub mod convert"),
        ("examples/python/README.md", "# ", "\0"),
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let (_, part) = text.split_once(beginning).unwrap_or_else(|| panic!("{file} has no `{beginning}`"));
        let part = part.split(before).next().unwrap();
        let words = part.replace("//!", "").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            (words.contains("DNS name") || words.contains("DNS SAN")) && words.contains("host name"),
            "{file} does not say so"
        );
    }
}

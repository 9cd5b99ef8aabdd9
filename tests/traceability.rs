//! Each law of `laws.txt` and each case of `identity-cases.txt` stands in the name of a test.
//!
//! A name begins with the ids that it is of: `law_09_…`, `law_15_law_19_…`, `identity_b13_…`, `identity_a05_a06_…`,
//! `identity_6_5_…`.
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

/// The names of all functions that are tests, with the file of each.
fn tests() -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        rust_files(&root().join(folder), &mut files);
    }
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[") {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                continue;
            }
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = function.and_then(|f| f.split_once('('))
                && is_test
            {
                all.push((name.to_owned(), file.clone()));
            }
            is_test &= line.starts_with("//");
        }
    }
    all
}

/// The ids at the head of a name: `law_09_…` has `09`, and a name of something else has none.
fn ids(name: &str, head: &str) -> Vec<String> {
    let is_id = |word: &&str| {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_lowercase() && head == "identity");
        digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut words = name.split('_').peekable();
    if words.next() != Some(head) {
        return Vec::new();
    }
    let mut found = Vec::new();
    while let Some(id) = words.next_if(is_id) {
        match words.next_if(|word| id == "6" && head == "identity" && is_id(word)) {
            Some(mistake) => found.push(format!("6.{mistake}")),
            None => found.push(id.to_owned()),
        }
        // Each law says so: the number of what follows is otherwise part of the sentence.
        if head == "law" && words.next_if_eq(&head).is_none() {
            break;
        }
    }
    found
}

/// Every id of the list has a test, and every test's id is in a list.
fn traced(file: &str, head: &str, known_elsewhere: impl Fn(&str) -> bool) {
    let listed = listed(file);
    let mut tested = BTreeSet::new();
    for (name, path) in tests() {
        for id in ids(&name, head) {
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
    assert!(missing.is_empty(), "no test is named after these of {file}:\n{}", missing.join("\n"));
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
/// The mistakes that others made, at the end of the checklist: 6.1 to 6.10.
const MISTAKES: u32 = 10;

/// The ids of the checklist, of the sections that are wanted.
fn checklist(wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let sections = CHECKLIST.iter().filter(|(section, _)| wanted(section));
    sections.flat_map(|(section, cases)| (1..=*cases).map(move |n| format!("{section}{n:02}"))).collect()
}

#[test]
fn every_case_of_attesting_a_peer_has_a_test() {
    let not_yet = checklist(|section| !IN_FORCE.contains(section));
    traced("identity-cases.txt", "identity", |id| not_yet.contains(id));
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
fn an_id_is_read_from_the_head_of_a_name_and_from_nowhere_else() {
    assert_eq!(ids("law_09_a_check", "law"), ["09"]);
    assert_eq!(ids("law_15_law_19_a_renewal", "law"), ["15", "19"]);
    assert_eq!(ids("law_39b_law_05_10_records", "law"), ["39b", "05"]);
    assert_eq!(ids("law_9_unpadded", "law"), ["9"], "and it is in no list");
    assert_eq!(ids("identity_a05_a06_a07_an_authority", "identity"), ["a05", "a06", "a07"]);
    assert_eq!(ids("identity_6_10_believing", "identity"), ["6.10"]);
    assert_eq!(ids("identity_b13_6_3_counting", "identity"), ["b13", "6.3"]);
    assert_eq!(ids("identity_changed", "identity"), [""; 0]);
    assert_eq!(ids("a_law_09_in_a_sentence", "law"), [""; 0]);
    assert!(tests().iter().any(|(name, _)| name.starts_with("an_id_is_read_from")));
}

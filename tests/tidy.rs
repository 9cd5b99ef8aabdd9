//! The order of the crate: which module may use which, and what must not be in the tree.
#![allow(clippy::restriction, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Floor 0: every module may use it.
const GROUND: [&str; 9] =
    ["backoff", "clock", "secret", "limits", "log_budget", "reason", "sync", "written", "plain"];

/// What each module may use, in addition to floor 0 and, from floor 2 on, `name`.
const FLOORS: [(&str, &[&str]); 27] = [
    ("name", &[]),
    ("proto", &[]),
    ("fence", &[]),
    ("identity", &[]),
    ("catalog", &["identity"]),
    ("job", &[]),
    ("link", &["identity"]),
    ("policy", &["fence", "catalog", "job", "identity"]),
    ("people", &["identity"]),
    ("lease", &["policy", "fence"]),
    ("token", &[]),
    ("ledger", &[]),
    ("state", &["fence", "job", "policy", "ledger"]),
    ("verify", &["fence", "identity", "link", "token", "proto"]),
    ("notify", &["identity", "job", "ledger", "state"]),
    ("broker", &BELOW_BROKER),
    ("api", &BELOW_THE_EDGES),
    ("gateway", &BELOW_THE_EDGES),
    ("console", &BELOW_THE_EDGES),
    ("agent", &["link", "identity", "proto"]),
    ("slurm", &["proto"]),
    ("config", &BELOW_CONFIG),
    ("daemon", &BELOW_DAEMON),
    ("dev", &BELOW_DEV),
    ("cli", &BELOW_CLI),
    ("lib", &[]),
    ("main", &["internals"]),
];

const BELOW_BROKER: [&str; 12] = [
    "fence", "identity", "catalog", "job", "link", "people", "policy", "lease", "token", "ledger", "state",
    "verify",
];
const BELOW_CONFIG: [&str; 14] = [
    "fence", "identity", "catalog", "job", "link", "people", "policy", "lease", "token", "ledger", "state",
    "verify", "gateway", "notify",
];
const BELOW_THE_EDGES: [&str; 14] = [
    "fence", "identity", "catalog", "job", "link", "people", "policy", "lease", "token", "ledger", "state",
    "verify", "broker", "proto",
];
const BELOW_DAEMON: [&str; 17] = [
    "fence", "identity", "catalog", "job", "link", "people", "policy", "lease", "token", "ledger", "state",
    "verify", "broker", "api", "gateway", "config", "notify",
];
const BELOW_DEV: [&str; 19] = [
    "fence", "identity", "catalog", "job", "link", "people", "policy", "lease", "token", "ledger", "state",
    "verify", "broker", "api", "gateway", "agent", "config", "daemon", "proto",
];
const BELOW_CLI: [&str; 21] = [
    "fence", "identity", "catalog", "job", "link", "people", "policy", "lease", "token", "ledger", "state",
    "verify", "broker", "api", "gateway", "agent", "slurm", "config", "daemon", "proto", "dev",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// All files below a folder, with one of these endings.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if path.extension().is_some_and(|e| endings.iter().any(|x| e == *x)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

// ---------- reading Rust ----------

/// A word, or one character of punctuation; `::` is one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Mark(char),
    Path,
}

/// The tokens of a source, without comments; texts are separate, so that nothing in them counts as code.
fn tokens(source: &str) -> Vec<Token> {
    let c: Vec<char> = source.chars().collect();
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    let (mut i, mut out) = (0, Vec::new());
    while i < c.len() {
        match c[i] {
            '/' if at(i + 1) == '/' => {
                while i < c.len() && c[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        ('\0', _) => break,
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            'r' | 'b' if is_raw(&c, i) => {
                while at(i) != '#' && at(i) != '"' {
                    i += 1;
                }
                let hashes = c[i..].iter().take_while(|x| **x == '#').count();
                i += hashes + 1;
                let start = i;
                while i < c.len()
                    && !(c[i] == '"'
                        && c[i + 1..].iter().take(hashes).filter(|x| **x == '#').count() == hashes)
                {
                    i += 1;
                }
                out.push(Token::Text(c[start..i.min(c.len())].iter().collect()));
                i += hashes + 1;
            }
            '"' => {
                let start = i + 1;
                i += 1;
                while i < c.len() && c[i] != '"' {
                    i += if c[i] == '\\' { 2 } else { 1 };
                }
                out.push(Token::Text(c[start..i.min(c.len())].iter().collect()));
                i += 1;
            }
            // A character, not a lifetime.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i += 1;
                while i < c.len() && c[i] != '\'' {
                    i += if c[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            ':' if at(i + 1) == ':' => {
                out.push(Token::Path);
                i += 2;
            }
            x if x.is_alphanumeric() || x == '_' => {
                let start = i;
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
                out.push(Token::Word(c[start..i].iter().collect()));
            }
            x if x.is_whitespace() => i += 1,
            x => {
                out.push(Token::Mark(x));
                i += 1;
            }
        }
    }
    out
}

fn is_raw(c: &[char], i: usize) -> bool {
    if i > 0 && (c[i - 1].is_alphanumeric() || c[i - 1] == '_') {
        return false;
    }
    let rest: String = c[i..].iter().take(12).collect();
    let rest = rest.strip_prefix('b').unwrap_or(&rest);
    rest.strip_prefix('r').is_some_and(|r| r.trim_start_matches('#').starts_with('"'))
        || (rest.starts_with('"') && c[i] == 'b')
}

/// One file, and the path of its module from the crate's root.
struct Module {
    file: PathBuf,
    path: Vec<String>,
    tokens: Vec<Token>,
}

/// Follows every `mod` from a root file, through `#[path]` too.
fn modules(file: &Path, path: Vec<String>, folder: &Path) -> Vec<Module> {
    let source = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let tokens = tokens(&source);
    let mut all = Vec::new();
    for i in 0..tokens.len() {
        let [Token::Word(word), Token::Word(name), Token::Mark(';')] = &tokens[i..(i + 3).min(tokens.len())]
        else {
            continue;
        };
        if word != "mod" {
            continue;
        }
        let child: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
        // The attribute stands before `pub` or `pub(super)`.
        let visibility = match &tokens[..i] {
            [.., Token::Word(key), Token::Mark('('), _, Token::Mark(')')] if key == "pub" => 4,
            [.., Token::Word(key)] if key == "pub" => 1,
            _ => 0,
        };
        let declared = i - visibility;
        let before = &tokens[declared.saturating_sub(6)..declared];
        let elsewhere = before.windows(3).find_map(|w| match w {
            [Token::Word(key), Token::Mark('='), Token::Text(to)] if key == "path" => Some(to.clone()),
            _ => None,
        });
        let (found, inside) = match elsewhere {
            Some(to) => (file.parent().unwrap().join(to), folder.join(name)),
            None if folder.join(name).join("mod.rs").exists() => {
                (folder.join(name).join("mod.rs"), folder.join(name))
            }
            None => (folder.join(format!("{name}.rs")), folder.join(name)),
        };
        all.extend(modules(&found, child, &inside));
    }
    all.push(Module { file: file.to_owned(), path, tokens });
    all
}

fn house() -> Vec<Module> {
    let src = root().join("src");
    let mut all = modules(&src.join("lib.rs"), Vec::new(), &src);
    all.extend(modules(&src.join("main.rs"), vec!["main".into()], &src));
    all
}

/// The modules at the root of the crate that a source names, by `crate::`, `leasehold::`, `super::` and in groups.
fn named(module: &[String], tokens: &[Token]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // The inline modules that we are in, each with the depth of its braces.
    let (mut inline, mut depth): (Vec<(String, usize)>, usize) = (Vec::new(), 0);
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i] {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth = depth.saturating_sub(1);
                inline.retain(|(_, at)| *at <= depth);
            }
            Token::Word(word) if word == "mod" => {
                if let (Some(Token::Word(name)), Some(Token::Mark('{'))) =
                    (tokens.get(i + 1), tokens.get(i + 2))
                {
                    inline.push((name.clone(), depth + 1));
                }
            }
            Token::Word(word)
                if tokens.get(i + 1) == Some(&Token::Path)
                    && i.checked_sub(1).and_then(|b| tokens.get(b)) != Some(&Token::Path) =>
            {
                let here: Vec<String> =
                    module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect();
                let base = match word.as_str() {
                    "crate" | "leasehold" => Some(Vec::new()),
                    "super" => Some(here[..here.len().saturating_sub(1)].to_vec()),
                    _ => None,
                };
                if let Some(base) = base {
                    follow(base, tokens, i + 2, &mut found);
                }
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// The modules at the root that a path names, from one of its segments on: a word, `super`, or a group of them.
fn follow(base: Vec<String>, tokens: &[Token], mut i: usize, found: &mut BTreeSet<String>) {
    match tokens.get(i) {
        Some(Token::Word(word)) if word == "super" && tokens.get(i + 1) == Some(&Token::Path) => {
            follow(base[..base.len().saturating_sub(1)].to_vec(), tokens, i + 2, found);
        }
        Some(Token::Word(word)) if word == "self" => {
            found.extend(base.first().cloned());
        }
        Some(Token::Word(word)) => {
            found.insert(base.first().unwrap_or(word).clone());
        }
        Some(Token::Mark('*')) => {
            found.insert(base.first().cloned().unwrap_or_else(|| "*".into()));
        }
        Some(Token::Mark('{')) => {
            let mut depth = 1;
            i += 1;
            follow(base.clone(), tokens, i, found);
            while depth > 0 && i < tokens.len() {
                match &tokens[i] {
                    Token::Mark('{') => depth += 1,
                    Token::Mark('}') => depth -= 1,
                    Token::Mark(',') if depth == 1 => follow(base.clone(), tokens, i + 1, found),
                    _ => {}
                }
                i += 1;
            }
        }
        _ => {}
    }
}

// ---------- the floors ----------

/// What a module may use, with floor 0 and `name`.
fn allowed(floor: &str) -> BTreeSet<&'static str> {
    let mut all: BTreeSet<&str> = GROUND.into_iter().collect();
    if !GROUND.contains(&floor) {
        let (_, more) = FLOORS
            .iter()
            .find(|(f, _)| *f == floor)
            .unwrap_or_else(|| panic!("`{floor}` has no line in FLOORS"));
        all.extend(more.iter());
        all.insert("name");
    }
    all
}

#[test]
fn each_floor_uses_only_those_that_its_line_lists() {
    let house = house();
    let roots: BTreeSet<String> = house.iter().filter_map(|m| m.path.first().cloned()).collect();
    let mut wrong = Vec::new();
    for module in &house {
        let floor = module.path.first().map_or("lib", String::as_str);
        if floor == "lib" || floor == "internals" {
            continue; // they name every floor
        }
        let allowed = allowed(floor);
        for used in named(&module.path, &module.tokens) {
            let known = roots.contains(&used) || used == "*";
            if known && used != floor && !allowed.contains(used.as_str()) {
                wrong.push(format!("{}: {floor} uses {used}", shown(&module.file)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_source_file_is_a_module_of_the_house() {
    let known: BTreeSet<PathBuf> = house().into_iter().map(|m| m.file.canonicalize().unwrap()).collect();
    let lost: Vec<String> = files(&root().join("src"), &["rs"])
        .into_iter()
        .filter(|f| !known.contains(&f.canonicalize().unwrap()))
        .map(|f| shown(&f))
        .collect();
    assert!(lost.is_empty(), "these files have no `mod`: {lost:?}");
}

/// The reader of paths finds what a person would.
#[test]
fn paths_are_found_however_they_are_written() {
    let of = |module: &[&str], source: &str| -> Vec<String> {
        let module: Vec<String> = module.iter().map(|m| (*m).to_owned()).collect();
        named(&module, &tokens(source)).into_iter().collect()
    };
    assert_eq!(of(&["job"], "use crate::broker::X;"), ["broker"]);
    assert_eq!(
        of(&["job"], "use crate::{clock::Now, broker::{self, Y}, state};"),
        ["broker", "clock", "state"]
    );
    assert_eq!(of(&["job", "moves"], "use super::super::api::Z; fn f() { super::g() }"), ["api", "job"]);
    assert_eq!(of(&["job", "moves"], "use super::{super::{api, cli::W}, State};"), ["api", "cli", "job"]);
    assert_eq!(
        of(&["job", "moves"], "mod tests { use super::*; use super::super::super::api; } use super::x;"),
        ["api", "job"]
    );
    assert_eq!(of(&["job"], "fn f() -> crate::lease::Lease { leasehold::dev::g() }"), ["dev", "lease"]);
    assert_eq!(of(&["job"], "use crate::*;"), ["*"]);
    assert_eq!(
        of(
            &["job"],
            "// crate::api\n/* crate::cli /* x */ crate::dev */ let s = \"crate::api\"; r#\"crate::\"x\"#"
        ),
        [""; 0]
    );
    assert_eq!(of(&["job"], "let c = '\"'; use crate::api; let d: &'a str = \"x\";"), ["api"]);
    assert_eq!(of(&["job"], "macro_rules! m { () => { $crate::ledger::X } }"), ["ledger"]);
}

// ---------- what must not be there ----------

#[test]
fn one_tls_library_and_nothing_that_needs_another_compiler() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for bad in ["aws-lc-rs", "aws-lc-sys", "openssl-sys", "openssl", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{bad}\"\n")), "{bad} is in Cargo.lock");
    }
}

#[test]
fn main_is_short() {
    let lines = fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count();
    assert!(lines <= 40, "src/main.rs has {lines} lines");
}

/// The sources of the crate, without files of tests.
fn sources() -> Vec<PathBuf> {
    let is_test =
        |file: &PathBuf| file.file_name().is_some_and(|name| name.to_str().unwrap().ends_with("tests.rs"));
    files(&root().join("src"), &["rs"]).into_iter().filter(|file| !is_test(file)).collect()
}

/// The types that a file declares. Types in modules of tests and associated types do not count.
fn types(tokens: &[Token]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut depth, mut tests_from) = (0, None);
    for window in tokens.windows(3) {
        match window {
            [Token::Mark('{'), ..] => depth += 1,
            [Token::Mark('}'), ..] => {
                depth -= 1;
                tests_from = tests_from.filter(|from| *from < depth);
            }
            [Token::Word(key), Token::Word(name), Token::Mark('{')]
                if key == "mod" && name.ends_with("tests") =>
            {
                tests_from = tests_from.or(Some(depth));
            }
            [Token::Word(key), Token::Word(name), _]
                if tests_from.is_none()
                    && (matches!(key.as_str(), "struct" | "enum" | "trait")
                        || (key == "type" && depth == 0)) =>
            {
                found.push(name.clone());
            }
            _ => {}
        }
    }
    found
}

#[test]
fn no_two_types_share_a_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources() {
        for name in types(&tokens(&fs::read_to_string(&file).unwrap())) {
            places.entry(name).or_default().push(shown(&file));
        }
    }
    assert!(places.len() > 500);
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "types that share a name: {places:#?}");
}

#[test]
fn no_function_is_longer_than_80_lines() {
    let mut long = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let begins = code.split_whitespace().take(5).any(|word| word == "fn");
            if !begins || code.starts_with("//") || code.ends_with([';', '}']) {
                continue;
            }
            // rustfmt ends a function with a brace, or a bare declaration with a parenthesis, below its first character.
            let indent = &line[..line.len() - code.len()];
            let ends = |line: &str| {
                line.strip_prefix(indent)
                    .is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
            };
            let length = lines[i..].iter().position(|line| ends(line)).map_or(0, |n| n + 1);
            if length > 80 {
                long.push(format!("{}:{}: {length} lines", shown(&file), i + 1));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn no_file_names_a_machine_of_its_makers() {
    // Put together here, so that this file does not name them either.
    let bad = [
        ["/", "work", "/"].concat(),
        ["/tmp", "/wt/"].concat(),
        ["shared", "/checklists"].concat(),
        ["shared", "/examples"].concat(),
    ];
    let mut wrong = Vec::new();
    for folder in ["src", "proto", "config", "deploy", "tests", "examples"] {
        for file in files(
            &root().join(folder),
            &["rs", "proto", "toml", "cedar", "cedarschema", "md", "sh", "py", "txt", "yaml"],
        ) {
            let text = fs::read_to_string(&file).unwrap();
            wrong.extend(
                bad.iter().filter(|b| text.contains(b.as_str())).map(|b| format!("{}: {b}", shown(&file))),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_bound_says_what_it_is_for() {
    let text = fs::read_to_string(root().join("src/limits.rs")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut bounds = 0;
    for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.trim_start().starts_with("pub const")) {
        bounds += 1;
        assert!(lines[i - 1].trim_start().starts_with("///"), "limits.rs:{}: {line}", i + 1);
    }
    assert!(bounds > 50);
}

#[test]
fn a_test_that_is_left_out_says_why() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests"] {
        for file in files(&root().join(folder), &["rs"]) {
            let tokens = tokens(&fs::read_to_string(&file).unwrap());
            let bare = tokens.windows(4).any(|w| {
                matches!(w, [Token::Mark('#'), Token::Mark('['), Token::Word(word), Token::Mark(']')] if word == "ignore")
            });
            if bare {
                wrong.push(shown(&file));
            }
        }
    }
    assert!(wrong.is_empty(), "`#[ignore]` without a reason in {wrong:?}");
}

// The log has words and numbers for people to read, and no Rust types.
#[test]
fn no_line_of_the_log_shows_a_rust_type() {
    let mut wrong = Vec::new();
    for module in house() {
        let tokens = &module.tokens;
        for (at, call) in tokens.windows(5).enumerate() {
            let [Token::Word(tracing), Token::Path, Token::Word(level), Token::Mark('!'), Token::Mark('(')] =
                call
            else {
                continue;
            };
            if tracing != "tracing" || !["error", "warn", "info"].contains(&level.as_str()) {
                continue;
            }
            let (mut depth, mut i) = (1, at + 5);
            while depth > 0 && i < tokens.len() {
                match &tokens[i] {
                    Token::Mark('(') => depth += 1,
                    Token::Mark(')') => depth -= 1,
                    Token::Text(text) if text.contains(":?") => {
                        wrong.push(format!("{}: {text}", shown(&module.file)));
                    }
                    // `?value` or `name = ?value`; a `?` behind an expression is another thing.
                    Token::Mark('?') if matches!(tokens[i - 1], Token::Mark('(' | ',' | '=')) => {
                        wrong.push(format!("{}: a value with `?`", shown(&module.file)));
                    }
                    _ => {}
                }
                i += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "the log would show Debug output: {wrong:?}");
}

#[test]
fn clocks_are_read_in_one_place() {
    let wrong: Vec<String> = house()
        .into_iter()
        .filter(|m| m.path.first().is_some_and(|f| f != "clock"))
        // They measure how long claims and requests took; nothing is decided by it.
        .filter(|m| {
            !m.file.ends_with("dev/demo/watch.rs") && !m.path.starts_with(&["dev".into(), "bench".into()])
        })
        .filter(|m| {
            m.tokens.windows(3).any(|w| {
                matches!(w, [Token::Word(t), Token::Path, Token::Word(f)]
                    if (t == "SystemTime" || t == "Instant") && f == "now")
            })
        })
        .map(|m| shown(&m.file))
        .collect();
    assert!(wrong.is_empty(), "ask the Clock instead: {wrong:?}");
}

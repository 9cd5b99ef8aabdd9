//! Every file that is shipped is read by what reads it in earnest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use leasehold::{
    catalog::Catalog,
    config::Config,
    policy::{Engine, Explain, PolicySource},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|e| e.unwrap().path()) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Who reads a shipped file. A file that nobody reads has no business here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reader {
    Daemon,
    Job,
    Catalog,
    Policy,
    Contexts,
    /// A shell.
    Script,
    /// Not ours: an editor, systemd, a person.
    Other,
}

fn reader(path: &Path) -> Option<Reader> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent()?.file_name()?.to_str()?;
    Some(match (folder, name) {
        ("catalog.d", n) if n.ends_with(".toml") => Reader::Catalog,
        ("policy", n) if n.ends_with(".cedar") || n.ends_with(".cedarschema") || n == "tests.toml" => {
            Reader::Policy
        }
        (_, n) if n.starts_with("leasehold") && n.ends_with(".toml") => Reader::Daemon,
        (_, n) if n.starts_with("contexts") && n.ends_with(".toml") => Reader::Contexts,
        (_, n) if n.ends_with(".sh") || n.ends_with(".sbatch") => Reader::Script,
        ("slurm", n) if n.ends_with(".conf") => Reader::Other,
        (_, n) if n.starts_with("job") && (n.ends_with(".toml") || n.ends_with(".json")) => Reader::Job,
        (_, n)
            if [".md", ".service", ".socket", ".yaml", ".yml", ".json", "Dockerfile", "Containerfile"]
                .iter()
                .any(|e| n.ends_with(e)) =>
        {
            Reader::Other
        }
        _ => return None,
    })
}

fn shipped() -> Vec<PathBuf> {
    [root().join("config"), root().join("deploy"), root().join("examples")]
        .iter()
        .flat_map(|f| files(f))
        .collect()
}

fn read_by(who: Reader) -> Vec<PathBuf> {
    shipped().into_iter().filter(|f| reader(f) == Some(who)).collect()
}

#[test]
fn every_shipped_file_is_for_somebody() {
    let files = shipped();
    assert!(files.len() >= 6, "{files:?}");
    let orphans: Vec<_> =
        files.iter().filter(|f| f.extension().is_none_or(|e| e != "rs") && reader(f).is_none()).collect();
    assert!(orphans.is_empty(), "say in tests/examples.rs who reads {orphans:?}");
}

#[test]
fn every_daemon_configuration_is_read() {
    let all = read_by(Reader::Daemon);
    assert!(!all.is_empty());
    for file in all {
        if let Err(why) = Config::load(&file) {
            panic!("{}: {why}", file.display());
        }
    }
}

#[test]
fn the_shipped_catalog_and_policy_are_read_without_a_warning() {
    let catalog = Catalog::load(&root().join("config/catalog.d")).unwrap();
    assert!(catalog.warnings().is_empty(), "{:?}", catalog.warnings());
    let policy = PolicySource::Dir(root().join("config/policy"));
    let engine = Engine::load(&policy, &catalog, Explain::Requester).unwrap();
    assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
    assert_eq!(read_by(Reader::Catalog).len(), catalog.counts().tenants);
    assert!(read_by(Reader::Policy).iter().any(|f| f.ends_with("leasehold.cedar")));
}

#[cfg(feature = "cli")]
#[test]
fn every_job_file_is_read() {
    for file in read_by(Reader::Job) {
        if let Err(why) = leasehold::agent::RunSpec::load(&file) {
            panic!("{}: {why}", file.display());
        }
    }
}

#[cfg(feature = "cli")]
#[test]
fn every_contexts_file_is_read() {
    for file in read_by(Reader::Contexts) {
        if let Err(why) = leasehold::cli::Contexts::load(&file) {
            panic!("{}: {why}", file.display());
        }
    }
}

#[test]
fn every_script_is_one_and_may_be_executed() {
    use std::os::unix::fs::PermissionsExt;
    for file in read_by(Reader::Script) {
        let text = fs::read_to_string(&file).unwrap();
        let shell =
            text.lines().next().and_then(|l| l.strip_prefix("#!")).expect("a line that says what runs it");
        let checked = std::process::Command::new(shell).arg("-n").arg(&file).status().unwrap();
        assert!(checked.success(), "{} is no script of {shell}", file.display());
        let is_batch = file.extension().is_some_and(|e| e == "sbatch");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert!(is_batch || mode & 0o111 == 0o111, "{} cannot be executed", file.display());
    }
}

/// Slurm gives its scripts no PATH, requeues a job whose prolog fails, and drains a node whose epilog does.
#[test]
fn slurms_scripts_fail_for_nothing_and_name_every_command_by_its_path() {
    let folder = root().join("deploy/slurm");
    let scripts: Vec<_> = read_by(Reader::Script)
        .into_iter()
        .filter(|f| f.starts_with(&folder) && f.extension().is_some_and(|e| e == "sh"))
        .collect();
    assert_eq!(scripts.len(), 3, "{scripts:?}");
    for file in scripts {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<_> = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        assert_eq!(lines.last(), Some(&"exit 0"), "{}", file.display());
        for line in &lines[..lines.len() - 1] {
            for command in line.split('|').map(str::trim) {
                assert!(
                    command.starts_with('/') || command.starts_with("export "),
                    "{}: `{command}` is on no path",
                    file.display()
                );
            }
        }
        // And in earnest: with nothing installed where it looks, it still succeeds.
        let run = std::process::Command::new("/bin/sh").arg(&file).env_clear().output().unwrap();
        assert!(run.status.success(), "{}", file.display());
    }
}

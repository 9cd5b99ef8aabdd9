//! The README's console blocks, run as a newcomer would: in an empty home, in their order, with their exit codes compared.
//!
//! A block is `console`, with what it means behind the word: `stays` keeps its command running while the later blocks run, and
//! `ends N` says what it exits with when something ended it. A line's `# exit N` says what it exits with; else 0.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test says what is wrong by failing"
)]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

struct Block {
    stays: bool,
    ends: Option<i32>,
    commands: Vec<(String, i32)>,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```console") else { continue };
        let words: Vec<&str> = info.split_whitespace().collect();
        let ends = words.iter().position(|w| *w == "ends").and_then(|i| words.get(i + 1)?.parse().ok());
        let commands = lines
            .by_ref()
            .take_while(|l| !l.starts_with("```"))
            .map(|l| {
                let command = l.strip_prefix("$ ").unwrap_or_else(|| panic!("not a command: {l}"));
                let (command, exit) = command.split_once("# exit ").unwrap_or((command, "0"));
                (command.trim().to_owned(), exit.trim().parse().expect("an exit code"))
            })
            .collect();
        blocks.push(Block { stays: words.contains(&"stays"), ends, commands });
    }
    blocks
}

fn shell(command: &str, home: &Path) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_leasehold"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    // Without the environment of whoever runs the tests: what a newcomer has is a home and a path.
    shell.env_clear().env("HOME", home).env("PATH", path).env("LEASEHOLD_DEV_PORT", "0");
    shell.args(["-c", &format!("exec 2>&1; {command}")]).current_dir(home).stdin(Stdio::null());
    shell
}

/// Ends a whole group of processes that this test started.
struct Running {
    child: Child,
    ends: Option<i32>,
    command: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn every_console_block_of_the_readme_does_what_it_says_in_an_empty_home() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut running: Vec<Running> = Vec::new();
    let mut ran = 0;
    for block in blocks(&readme) {
        for (command, exit) in block.commands {
            // Installing is what cargo did for this test; testing is what runs it.
            if command.starts_with("cargo ") {
                continue;
            }
            ran += 1;
            if block.stays {
                // The shell gives way to the command, so that a signal reaches it.
                let child = shell(&format!("exec {command}"), home).spawn().unwrap();
                running.push(Running { child, ends: block.ends, command: command.clone() });
                if command.starts_with("leasehold dev") {
                    wait_until("the daemon", || {
                        shell("leasehold whoami", home).output().unwrap().status.success()
                    });
                } else {
                    wait_until("the job's leases", || {
                        let list = shell("leasehold lease list -o json", home).output().unwrap();
                        let shown = String::from_utf8_lossy(&list.stdout).into_owned();
                        list.status.success() && shown.contains("\"live\"") && shown.contains("\"writing\"")
                    });
                }
                continue;
            }
            let done = shell(&command, home).output().unwrap();
            assert_eq!(
                done.status.code(),
                Some(exit),
                "`{command}` printed:\n{}",
                String::from_utf8_lossy(&done.stdout)
            );
        }
        // What a block ended from outside has ended by the time the next one begins.
        for r in &mut running {
            if let Some(ends) = r.ends
                && let Ok(Some(status)) = r.child.try_wait()
            {
                assert_eq!(status.code(), Some(ends), "`{}`", r.command);
            }
        }
    }
    assert!(ran > 15, "only {ran} commands were found");
    for r in &mut running {
        if let Some(ends) = r.ends {
            assert_eq!(r.child.wait().unwrap().code(), Some(ends), "`{}`", r.command);
        }
    }
}

#[test]
fn every_test_that_the_readme_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let table = readme.split("## What it promises").nth(1).unwrap().split("\n## ").next().unwrap();
    let named: Vec<&str> =
        table.lines().filter(|l| l.starts_with("| ")).filter_map(|l| l.rsplit('`').nth(1)).collect();
    assert!(named.len() >= 10, "{named:?}");
    let mut sources = String::new();
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    for name in named {
        assert!(sources.contains(&format!("fn {name}(")), "no test is called {name}");
    }
}

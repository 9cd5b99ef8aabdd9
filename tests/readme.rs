//! README.md and the pages of `docs/` are true: their commands run, their links lead somewhere, the tests that they name exist.
//!
//! Each page runs in an empty home, from top to bottom:
//!
//! - A `console` block has one command a line. Each must exit with 0, or with N if the line ends in `# exit N`.
//! - `console stays` keeps its command running while the later blocks run. With `ends N`, a later block ends it, and it exits with N.
//! - A block with `file=PATH` behind its language is written to that file.
//! - All other blocks are for reading.
//!
//! Ports 8443 to 8445 of a page become free ones.

#![allow(clippy::restriction, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use leasehold::{internals::cli::Exit, reason::Reason};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and every page of `docs/`, by their paths from the root.
fn pages() -> Vec<PathBuf> {
    let names = fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().file_name());
    let mut pages: Vec<_> = names.map(|name| Path::new("docs").join(name)).collect();
    pages.retain(|page| page.extension().is_some_and(|e| e == "md"));
    pages.push("README.md".into());
    pages.sort();
    pages
}

fn text(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap()
}

enum Block {
    Console { stays: bool, ends: Option<i32>, commands: Vec<(String, i32)> },
    File { path: String, text: String },
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|l| !l.starts_with("```")).collect();
        let words: Vec<&str> = info.split_whitespace().collect();
        if let Some(path) = words.iter().find_map(|w| w.strip_prefix("file=")) {
            blocks.push(Block::File { path: path.to_owned(), text: body.join("\n") + "\n" });
        } else if words.first() == Some(&"console") {
            let ends = words.iter().position(|w| *w == "ends").and_then(|i| words.get(i + 1)?.parse().ok());
            blocks.push(Block::Console { stays: words.contains(&"stays"), ends, commands: commands(&body) });
        }
    }
    blocks
}

/// The commands of a block, each with its exit code. A line that ends in a backslash goes on in the next one.
fn commands(body: &[&str]) -> Vec<(String, i32)> {
    let whole = body.join("\n").replace("\\\n", "");
    let command = |line: &str| {
        let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("not a command: {line}"));
        let (command, exit) = command.split_once("# exit ").unwrap_or((command, "0"));
        (command.trim().to_owned(), exit.trim().parse().expect("an exit code"))
    };
    whole.lines().map(command).collect()
}

/// The first of five neighbouring ports that are free, below those that the system assigns as free ports.
fn free_ports() -> u16 {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let offset = u16::try_from(std::process::id() % 1_800).unwrap() * 5;
    (0..1_800).map(|i| 20_000 + (offset + 5 * i) % 9_000).find(|p| (*p..p + 5).all(is_free)).unwrap()
}

/// An empty home, and the processes that run in it.
struct Home {
    folder: tempfile::TempDir,
    running: Vec<Running>,
}

struct Running {
    child: Child,
    command: String,
    ends: Option<i32>,
}

impl Home {
    fn new() -> Self {
        Home { folder: tempfile::tempdir().unwrap(), running: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Without the environment of the person who runs the tests, because a newcomer has only a home and a path.
    fn shell(&self, command: &str) -> Command {
        let programs = Path::new(env!("CARGO_BIN_EXE_leasehold")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.env_clear().env("HOME", self.folder.path()).env("PATH", path).env("LEASEHOLD_DEV_PORT", "0");
        shell.args(["-c", &format!("exec 2>&1; {command}")]).current_dir(self.folder.path());
        shell.stdin(Stdio::null());
        shell
    }

    fn run(&self, command: &str, exit: i32) {
        let done = self.shell(command).output().unwrap();
        let printed = String::from_utf8_lossy(&done.stdout);
        assert_eq!(done.status.code(), Some(exit), "`{command}` printed:\n{printed}");
    }

    /// Starts a command, and waits until a daemon serves or a job holds both of its leases.
    fn start(&mut self, command: String, ends: Option<i32>) {
        let log = self.path(&format!(".log-{}", self.running.len()));
        // The command replaces the shell, so that a signal reaches it.
        let mut shell = self.shell(&format!("exec {command}"));
        let mut child = shell.stdout(File::create(&log).unwrap()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(240);
        let printed = || fs::read_to_string(&log).unwrap_or_default();
        loop {
            let is_there = if command.starts_with("leasehold run") {
                let list = self.shell("leasehold lease list -o json").output().unwrap();
                let shown = String::from_utf8_lossy(&list.stdout).into_owned();
                list.status.success() && shown.contains("\"live\"") && shown.contains("\"writing\"")
            } else {
                printed().split_whitespace().any(|word| word.trim_end_matches('.') == "ready")
            };
            if is_there {
                break;
            }
            let has_ended = child.try_wait().unwrap();
            assert!(has_ended.is_none(), "`{command}` ended: {has_ended:?}\n{}", printed());
            assert!(Instant::now() < deadline, "`{command}` does not get ready:\n{}", printed());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.running.push(Running { child, command, ends });
    }
}

/// Ends what still runs, the youngest first.
impl Drop for Home {
    fn drop(&mut self) {
        for running in self.running.iter_mut().rev() {
            if let Ok(None) = running.child.try_wait() {
                let _ = kill(Pid::from_raw(i32::try_from(running.child.id()).unwrap()), Signal::SIGTERM);
                let _ = running.child.wait();
            }
        }
    }
}

/// Runs a page and says how many commands it has.
fn run(page: &Path) -> usize {
    let port = free_ports();
    let text =
        (0..3).fold(text(page), |text, i| text.replace(&(8_443 + i).to_string(), &(port + i).to_string()));
    let mut home = Home::new();
    let mut ran = 0;
    for block in blocks(&text) {
        match block {
            Block::File { path, text } => {
                let path = home.path(&path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Block::Console { stays, ends, commands } => {
                // cargo has built the program for this test, and runs it.
                for (command, exit) in commands.into_iter().filter(|(c, _)| !c.starts_with("cargo ")) {
                    ran += 1;
                    if stays { home.start(command, ends) } else { home.run(&command, exit) }
                }
            }
        }
    }
    for running in &mut home.running {
        if let Some(ends) = running.ends {
            assert_eq!(running.child.wait().unwrap().code(), Some(ends), "`{}`", running.command);
        }
    }
    ran
}

#[test]
fn every_console_block_does_what_it_says_in_an_empty_home() {
    let has_openssl = Command::new("openssl").arg("version").output().is_ok_and(|o| o.status.success());
    let mut ran = 0;
    for page in pages() {
        if text(&page).contains("\n$ openssl ") && !has_openssl {
            eprintln!("not run: {} needs openssl", page.display());
            continue;
        }
        eprintln!("{}", page.display());
        ran += run(&page);
    }
    assert!(ran > 20, "only {ran} commands were found");
}

/// The promises that docs/security.md makes.
#[test]
fn every_test_that_a_promise_names_exists() {
    let text = text(Path::new("docs/security.md"));
    let promises = text.split("\n## Promises").nth(1).unwrap().split("\n## ").next().unwrap();
    let is_test = |word: &&str| word.matches('_').count() >= 4 && !word.contains([' ', '/', '.']);
    let rows = promises.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| Promise |"));
    let mut sources = String::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                sources.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    // The controls name tests in the same way.
    let controls: toml::Table =
        fs::read_to_string(root().join("docs/controls.toml")).unwrap().parse().unwrap();
    for control in controls["control"].as_array().unwrap() {
        for name in control.get("tests").and_then(|t| t.as_array()).into_iter().flatten() {
            let name = name.as_str().unwrap();
            assert!(
                sources.contains(&format!("fn {name}(")),
                "control {}: no test {name}",
                control["number"]
            );
        }
    }
    let mut promised = 0;
    for row in rows {
        let named: Vec<&str> = row.split('`').filter(is_test).collect();
        assert!(!named.is_empty(), "this promise names no test: {row}");
        for name in named {
            assert!(sources.contains(&format!("fn {name}(")), "no test is called {name}");
        }
        promised += 1;
    }
    assert!(promised >= 30, "only {promised} promises were found");
}

/// The fragment of a heading's link on GitHub.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    let others = ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/decisions/README.md"];
    for page in pages().into_iter().chain(others.map(PathBuf::from)) {
        for link in text(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = root().join(&page).parent().unwrap().join(file);
            let target = if file.is_empty() { root().join(&page) } else { target };
            let has_heading = || {
                let text = fs::read_to_string(&target).unwrap_or_default();
                text.lines().any(|l| l.starts_with('#') && anchor(l.trim_start_matches('#')) == fragment)
            };
            if !target.exists() || !fragment.is_empty() && !has_heading() {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn every_reason_has_a_row_with_its_exit_code() {
    let page = text(Path::new("docs/reasons.md"));
    for reason in Reason::ALL {
        let row = page.lines().find(|l| l.starts_with('|') && l.contains(&format!("`{reason}`")));
        let row = row.unwrap_or_else(|| panic!("docs/reasons.md has no {reason}"));
        let exit = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        assert_eq!(exit, Exit::of(*reason).code().to_string(), "{row}");
    }
}

#[test]
fn every_metric_has_a_row() {
    let source = fs::read_to_string(root().join("src/daemon/metrics.rs")).unwrap();
    let page = text(Path::new("docs/operate.md"));
    let is_name = |c: char| c == '_' || c.is_ascii_lowercase();
    let names: Vec<&str> =
        source.split('"').filter(|w| w.starts_with("leasehold_") && w.chars().all(is_name)).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(page.contains(name), "docs/operate.md has no {name}");
    }
}

/// The reference also contains what `config check` says of each key that a file leaves out.
#[test]
fn every_default_is_in_the_reference() {
    let home = Home::new();
    home.run("leasehold init lh --port 8443", 0);
    let checked =
        home.shell("leasehold config check lh/leasehold.toml -o json 2>/dev/null").output().unwrap();
    let checked: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let reference = text(Path::new("docs/configure.md"));
    let defaults = checked["defaults"].as_array().unwrap();
    assert!(defaults.len() > 15, "{defaults:?}");
    for default in defaults {
        let key = default["key"].as_str().unwrap().rsplit('.').next().unwrap();
        let value = default["value"].as_str().unwrap().trim_matches('"');
        let row = reference.lines().find(|l| l.starts_with(&format!("| `{key}`")));
        let row = row.unwrap_or_else(|| panic!("docs/configure.md has no row of {key}"));
        assert!(row.contains(value), "{key} is {value} by default, and the reference says {row}");
    }
}

#[test]
fn the_readme_is_a_front_door() {
    let text = text(Path::new("README.md"));
    let (lines, words) = (text.lines().count(), text.split_whitespace().count());
    assert!(lines <= 150 && words <= 1_400, "{lines} lines, {words} words: move something into docs/");
}

//! No command shows a token or a key that was pasted in place of one of its values, and none lets a value control the terminal.
//! The values are found in the command line's own description, so a new flag is tested without a line here.

use std::{
    io::Read,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Arg, ArgAction, CommandFactory};
use leasehold::internals::cli::Cli;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::harness::*;

/// What people have in their clipboard. None is real.
const JWT: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJpc3MiOiJodHRwczovL2EuZXhhbXBsZSJ9.\
    c2lnbmF0dXJlLW9mLXNldmVyYWwtYnl0ZXMtMDEyMzQ1Njc4OQ";
const TOKENS: [&str; 6] = [
    "lh_4kX9cQ2mZr7bT5wYv1LsNd8HfGa0Pq3E",
    "hvs.CAESIJ0p3kX9cQ2mZr7bT5wYv1LsNd8HfGa4",
    "ghp_0123456789abcdefABCDEF0123456789abcd",
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYz9Q2kLpe8T",
    "postgres://ml:hunter2-and-more@db.acme.example/features",
];
const TURNS: &str = "dataset:acme/x\u{202e}txt\u{2066}\u{1b}[2J";
/// How long a command may run if it waits for a daemon that is not there.
const LONGEST: Duration = Duration::from_secs(2);

/// A private key, and 24 characters of it that must not be seen.
fn pem() -> (String, String) {
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let body = pem.lines().nth(1).unwrap()[8..32].to_owned();
    (pem, body)
}

/// A folder with a context whose daemon is not there, and a job file.
fn scene() -> World {
    let world = World::prepared(|_| {});
    world.write(
        "contexts.toml",
        &format!(
            "current = \"it\"\n[context.it]\nserver = \"127.0.0.1:1\"\nserver_id = \"{DAEMON}\"\n\
             bundles = {{ \"leasehold.example\" = \"leasehold.example.pem\" }}\n\
             [context.it.identity.workload]\ncert = \"svid.pem\"\nkey = \"svid.key\"\n\
             [context.it.identity.operator]\ncert = \"svid.pem\"\nkey = \"svid.key\"\n"
        ),
    );
    world.write("job.toml", &job_toml("", ""));
    std::fs::set_permissions(world.file("svid.key"), PermissionsExt::from_mode(0o600)).unwrap();
    world
}

/// Runs the program, and returns all that it printed until it exited or was killed.
fn printed(world: &World, args: &[String], variables: &[(&str, &str)]) -> String {
    let home = world.file("home");
    std::fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.args(args).current_dir(&home).process_group(0);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["LEASEHOLD_", "SLURM_", "SPIFFE_", "XDG_"].iter().any(|p| name.starts_with(p)) {
            command.env_remove(name.as_ref());
        }
    }
    command.env("HOME", &home).env("LEASEHOLD_CONTEXTS", world.file("contexts.toml"));
    command.envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let reading = |mut pipe: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let (out, err) =
        (reading(Box::new(child.stdout.take().unwrap())), reading(Box::new(child.stderr.take().unwrap())));
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > LONGEST {
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
    format!("{}{}", out.join().unwrap(), err.join().unwrap())
}

/// A valid value for an argument, while another argument is tested.
fn good(arg: &Arg) -> String {
    if let Some(value) = arg.get_possible_values().first() {
        return value.get_name().to_owned();
    }
    let names = arg.get_value_names().unwrap_or_default();
    match (names.first().map(clap::builder::Str::as_str).unwrap_or_default(), arg.get_id().as_str()) {
        ("ID", _) | (_, "job") => "j-01jd3m8tzzzzzzzzzzzzzzzzzz",
        ("SPIFFE ID", _) => "spiffe://a.example/w",
        ("ROLE=FROM", _) => "operator=c.pem,c.key",
        ("HOST:PORT", _) => "localhost:1",
        ("SPAN", _) => "10m",
        ("N", _) => "1",
        ("OUTCOME", _) => "failed",
        ("RESOURCE/PATH", _) => "dataset:dev/data@v1/a",
        ("FILE", "spec") => "../job.toml",
        ("CMD", _) => "true",
        (_, "reason") => "why",
        ("NAME", _) => "dataset:acme/x",
        _ => "x",
    }
    .to_owned()
}

/// The words of a command with its required arguments, and `tested` with a value.
fn words(path: &[String], command: &clap::Command, tested: &Arg, value: &str) -> Vec<String> {
    let mut words = path.to_vec();
    let mut last = Vec::new();
    let needed = |arg: &Arg| arg.is_required_set() && arg.get_id() != tested.get_id();
    let others = command.get_arguments().filter(|arg| needed(arg)).map(|arg| (arg, good(arg)));
    for (arg, value) in others.chain([(tested, value.to_owned())]) {
        match (arg.get_long(), arg.get_short()) {
            (Some(long), _) => words.extend([format!("--{long}"), value]),
            (None, Some(short)) => words.extend([format!("-{short}"), value]),
            (None, None) if arg.is_last_set() => last = vec!["--".to_owned(), value],
            (None, None) => words.push(value),
        }
    }
    // A job file is needed in place of a job's id, which clap does not count as required.
    if let Some(spec) = command.get_arguments().find(|arg| arg.get_id() == "spec")
        && !spec.is_required_set()
        && !words.iter().any(|word| word == "--spec" || word == "--job")
    {
        words.extend(["--spec".to_owned(), "../job.toml".to_owned()]);
    }
    if let Some(cmd) = command.get_arguments().find(|arg| arg.is_last_set())
        && last.is_empty()
    {
        last = vec!["--".to_owned(), good(cmd)];
    }
    words.into_iter().chain(last).collect()
}

/// Every command line of the program with one value to be tested, by `value`.
fn command_lines(value: &mut impl FnMut(usize) -> String) -> Vec<(Vec<String>, String)> {
    fn walk(
        command: &clap::Command,
        path: &[String],
        value: &mut impl FnMut(usize) -> String,
        lines: &mut Vec<(Vec<String>, String)>,
    ) {
        for arg in command.get_arguments() {
            let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
            // The flags of all commands are tested once, on `lease list`.
            let is_elsewhere = arg.is_global_set() && path.join(" ") != "lease list";
            if takes_value && !is_elsewhere && !(command.has_subcommands() && path.is_empty()) {
                let value = value(lines.len());
                lines.push((words(path, command, arg, &value), value));
            }
        }
        for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
            walk(below, &[path, &[below.get_name().to_owned()]].concat(), value, lines);
        }
    }
    let mut root = Cli::command();
    root.build();
    let mut lines = Vec::new();
    walk(&root, &[], value, &mut lines);
    lines
}

/// Whether a text is free of the secret, and of characters that a terminal obeys.
fn is_safe(said: &str, secret: &str) -> bool {
    let has_secret = !secret.is_empty() && said.contains(secret);
    !has_secret && said.chars().all(|c| c == '\n' || leasehold::internals::plain::is_plain(c))
}

fn assert_safe(what: &str, said: &str, secret: &str) {
    assert!(is_safe(said, secret), "{what}: {said:?}");
}

#[test]
fn no_command_shows_a_pasted_token_or_obeys_a_value() {
    let world = scene();
    let (pem, body) = pem();
    let values = |number: usize| {
        let token = TOKENS[number % TOKENS.len()];
        [(JWT, JWT), (token, token), (&pem, &body), (TURNS, "")].map(|(v, s)| (v.to_owned(), s.to_owned()))
    };
    let lines: Vec<_> = (0..4)
        .flat_map(|round| {
            let mut secrets = Vec::new();
            let lines = command_lines(&mut |number| {
                let (value, secret) = values(number)[round].clone();
                secrets.push(secret);
                value
            });
            lines.into_iter().zip(secrets).collect::<Vec<_>>()
        })
        .collect();
    assert!(lines.len() > 300, "{} command lines", lines.len());
    // Most of the time they wait for a daemon that is not there.
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                while let Some(((args, value), secret)) = lines.get(next.fetch_add(1, Relaxed)) {
                    let said = printed(&world, args, &[]);
                    if !is_safe(&said, secret) {
                        let shown = args.join(" ").replace(value, "VALUE");
                        wrong.lock().unwrap().push(format!("{shown}\n    {said:.200}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} command lines:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_command_shows_a_token_in_a_variable() {
    let world = scene();
    let (pem, body) = pem();
    let all: [(&str, &[&str]); 12] = [
        ("LEASEHOLD_CONTEXT", &["whoami"]),
        ("LEASEHOLD_CONTEXT", &["doctor", "-o", "json"]),
        ("LEASEHOLD_CONTEXTS", &["whoami"]),
        ("LEASEHOLD_CONTEXTS", &["context", "list"]),
        ("LEASEHOLD_CONTEXTS", &["doctor"]),
        ("LEASEHOLD_IDENTITY_WAIT", &["whoami"]),
        ("LEASEHOLD_IDENTITY_WAIT", &["whoami", "-o", "json"]),
        ("LEASEHOLD_ATTEMPT_KEY", &["run", "--spec", "../job.toml", "--", "true"]),
        ("LEASEHOLD_CONFIG", &["serve"]),
        ("LEASEHOLD_DEV_PORT", &["dev"]),
        ("LEASEHOLD_CREDENTIALS", &["dev", "fetch", "dataset:dev/data@v1/a"]),
        ("SPIFFE_ENDPOINT_SOCKET", &["lease", "list", "--workload-api", "unix:"]),
    ];
    for (name, args) in all {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        for value in TOKENS.iter().chain(&[JWT, TURNS]) {
            let said = printed(&world, &args, &[(name, value)]);
            assert_safe(name, &said, if *value == TURNS { "" } else { value });
        }
        assert_safe(name, &printed(&world, &args, &[(name, &pem)]), &body);
    }
    for (name, value) in [("SLURM_JOB_COMMENT", "leasehold:"), ("SLURM_JOB_ID", ""), ("SLURM_JOB_USER", "")] {
        for token in TOKENS {
            let value = format!("{value}{token}");
            let variables = [("SLURM_JOB_ID", "7"), (name, value.as_str())];
            for args in [&["slurm", "key"][..], &["slurm", "prolog"], &["slurm", "epilog"]] {
                let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
                assert_safe(name, &printed(&world, &args, &variables), token);
            }
        }
    }
}

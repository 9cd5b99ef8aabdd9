//! Every file that is shipped is read by the program that reads it in use.
#![allow(clippy::restriction, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use leasehold::internals::{
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

/// The program that reads a shipped file. Every file has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reader {
    Daemon,
    Job,
    Catalog,
    Policy,
    Contexts,
    /// A shell
    Script,
    /// Another reader: an editor, systemd, a person.
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
        ("jobs", n) if n.ends_with(".toml") => Reader::Job,
        (_, n) if n.starts_with("job") && (n.ends_with(".toml") || n.ends_with(".json")) => Reader::Job,
        (_, n)
            if [
                ".md",
                ".py",
                "requirements.txt",
                ".service",
                ".socket",
                ".yaml",
                ".yml",
                ".json",
                "Dockerfile",
                "Containerfile",
            ]
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
fn every_shipped_file_has_a_reader() {
    let files = shipped();
    assert!(files.len() >= 6, "{files:?}");
    let orphans: Vec<_> =
        files.iter().filter(|f| f.extension().is_none_or(|e| e != "rs") && reader(f).is_none()).collect();
    assert!(orphans.is_empty(), "say in tests/examples.rs who reads {orphans:?}");
}

#[test]
fn every_daemon_configuration_can_be_read() {
    let all = read_by(Reader::Daemon);
    assert!(!all.is_empty());
    for file in all {
        if let Err(why) = Config::load(&file) {
            panic!("{}: {why}", file.display());
        }
    }
}

#[test]
fn the_shipped_catalog_and_policy_have_one_warning() {
    let catalog = Catalog::load(&root().join("config/catalog.d")).unwrap();
    assert!(catalog.warnings().is_empty(), "{:?}", catalog.warnings());
    let policy = PolicySource::Dir(root().join("config/policy"));
    let engine = Engine::load(&policy, &catalog, Explain::Requester).unwrap();
    assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
    // This entry is an example.
    let gaps = engine.gaps();
    assert!(gaps.len() == 1 && gaps[0].contains("/ns/etl/sa/*"), "{gaps:?}");
    assert_eq!(read_by(Reader::Catalog).len(), catalog.counts().tenants);
    assert!(read_by(Reader::Policy).iter().any(|f| f.ends_with("leasehold.cedar")));
}

#[cfg(feature = "cli")]
#[test]
fn every_job_file_can_be_read() {
    for file in read_by(Reader::Job) {
        if let Err(why) = leasehold::internals::agent::RunSpec::load(&file) {
            panic!("{}: {why}", file.display());
        }
    }
}

#[cfg(feature = "cli")]
#[test]
fn every_contexts_file_can_be_read() {
    for file in read_by(Reader::Contexts) {
        if let Err(why) = leasehold::internals::cli::Contexts::load(&file) {
            panic!("{}: {why}", file.display());
        }
    }
}

#[test]
fn every_script_has_a_shebang_and_is_executable() {
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

/// The SPIFFE ID of the daemon in all samples.
const DAEMON: &str = "spiffe://hpc.acme.example/leasehold";

#[cfg(feature = "cli")]
#[test]
fn the_samples_name_the_same_daemon() {
    for file in read_by(Reader::Contexts) {
        for (name, context) in leasehold::internals::cli::Contexts::load(&file).unwrap().contexts {
            assert_eq!(context.server_id.as_str(), DAEMON, "{}: {name}", file.display());
        }
    }
    let entries = fs::read_to_string(root().join("deploy/spire/entries.json")).unwrap();
    let entries: serde_json::Value = serde_json::from_str(&entries).unwrap();
    let daemon = entries["entries"].as_array().unwrap().iter().find(|e| e["entry_id"] == "leasehold-daemon");
    assert_eq!(daemon.unwrap()["spiffe_id"], DAEMON);
    let guide = fs::read_to_string(root().join("deploy/spire/README.md")).unwrap();
    assert!(guide.contains(&format!("server_id = \"{DAEMON}\"")));
}

/// SPIRE gives these identities, so the sample catalog must know each of them except the daemon's, and the sample daemon must
/// have roots of its trust domain.
#[cfg(feature = "server")]
#[test]
fn the_sample_catalog_knows_every_spire_entry() {
    let catalog = Catalog::load(&root().join("config/catalog.d")).unwrap();
    let entries = fs::read_to_string(root().join("deploy/spire/entries.json")).unwrap();
    let entries: serde_json::Value = serde_json::from_str(&entries).unwrap();
    let config = fs::read_to_string(root().join("config/leasehold.toml")).unwrap();
    for entry in entries["entries"].as_array().unwrap() {
        let id: leasehold::name::SpiffeId = entry["spiffe_id"].as_str().unwrap().parse().unwrap();
        let known = catalog.principal(&id).map(|p| p.kind.as_str());
        let wanted = match entry["entry_id"].as_str().unwrap() {
            "leasehold-daemon" => None,
            "leasehold-slurm-controller" => Some("scheduler"),
            "leasehold-data-gateway" => Some("verifier"),
            other => panic!("which kind is {other}?"),
        };
        assert_eq!(known, wanted, "{id}");
        assert!(config.contains(id.trust_domain().as_str()), "config/leasehold.toml has no roots for {id}");
    }
}

#[test]
fn the_sample_daemon_trusts_every_sample_domain() {
    let yaml = fs::read_to_string(root().join("deploy/spire/kubernetes.yaml")).unwrap();
    let wanted = yaml.lines().filter_map(|l| l.trim().strip_prefix("federatesWith: [")).flat_map(|list| {
        list.trim_end_matches(']')
            .split(", ")
            .map(|domain| domain.trim_matches('\'').to_owned())
            .collect::<Vec<_>>()
    });
    for domain in wanted {
        assert!(
            yaml.contains(&format!("\n  trustDomain: {domain}\n")),
            "nothing fetches the bundle of {domain}"
        );
    }
}

/// A daemon with the sample configuration, catalog and policies, and this test's paths, ports and CA. Dropping it stops it.
#[cfg(feature = "cli")]
struct Served {
    dir: tempfile::TempDir,
    process: std::process::Child,
}

#[cfg(feature = "cli")]
impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path).display().to_string();
        fs::create_dir(at("run")).unwrap();
        let text = fs::read_to_string(root().join("config/leasehold.toml")).unwrap();
        let text = text
            .replace("0.0.0.0:8443", "127.0.0.1:0")
            .replace("127.0.0.1:8445", "127.0.0.1:0")
            .replace("0.0.0.0:8444", "127.0.0.1:0")
            .replace("/var/lib/leasehold", &at("state"))
            .replace("/run/leasehold", &at("run"))
            .replace("/etc/leasehold/policy", &root().join("config/policy").display().to_string())
            .replace("/etc/leasehold/catalog.d", &root().join("config/catalog.d").display().to_string())
            .replace("/etc/leasehold/", &format!("{}/", at("run")))
            .replace("/etc/ssl/certs/ca-certificates.crt", &at("run/partner.json"))
            .replace("5GiB", "1MiB");
        fs::write(at("leasehold.toml"), text).unwrap();
        let hpc = Self::authority(&dir, "hpc.acme.example", "hpc.pem");
        let k8s = Self::authority(&dir, "k8s.acme.example", "k8s.pem");
        for (domain, file) in [
            ("people.acme.example", "people.pem"),
            ("k8s.globex.example", "globex-k8s.pem"),
            ("people.globex.example", "globex-people.pem"),
            ("partner.example", "partner.json"),
        ] {
            Self::authority(&dir, domain, file);
        }
        Self::issue(&dir, &hpc, DAEMON, "svid");
        Self::issue(&dir, &hpc, DAEMON, "issuer");
        Self::issue(&dir, &hpc, "spiffe://hpc.acme.example/slurm/ml-support/ada", "ada");
        Self::issue(&dir, &k8s, "spiffe://k8s.acme.example/ns/ci/sa/launcher", "launcher");
        Self::secret(&dir, "notify.secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
        Self::secret(&dir, "slack.url", "https://hooks.slack.example/services/x\n");
        let checked = Self::leasehold(&dir, &["config", "check", &at("leasehold.toml")]);
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let process = std::process::Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .args(["serve", "--config", &at("leasehold.toml")])
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let served = Served { dir, process };
        let grpc = served.address();
        let identity = |role: &str, name: &str| {
            format!("[context.s.identity.{role}]\ncert = \"run/{name}.pem\"\nkey = \"run/{name}.key\"\n")
        };
        let contexts = format!(
            "current = \"s\"\n[context.s]\nserver = \"{grpc}\"\nserver_id = \"{DAEMON}\"\n\
             bundles = {{ \"hpc.acme.example\" = \"run/hpc.pem\" }}\n{}{}",
            identity("workload", "ada"),
            identity("launcher", "launcher")
        );
        fs::write(served.dir.path().join("contexts.toml"), contexts).unwrap();
        served
    }

    fn authority(dir: &tempfile::TempDir, domain: &str, file: &str) -> leasehold::internals::dev::Authority {
        use leasehold::{clock::Clock, internals::dev::Authority};
        let now = leasehold::clock::SystemClock::new().now().wall;
        let life = std::time::Duration::from_secs(3_600);
        let authority = Authority::generate(domain.parse().unwrap(), now, life).unwrap();
        fs::write(dir.path().join("run").join(file), authority.bundle()).unwrap();
        authority
    }

    fn issue(dir: &tempfile::TempDir, by: &leasehold::internals::dev::Authority, id: &str, name: &str) {
        use std::os::unix::fs::PermissionsExt;

        use leasehold::clock::Clock;
        let now = leasehold::clock::SystemClock::new().now().wall;
        let life = std::time::Duration::from_secs(3_000);
        let pem = by.issue(&id.parse().unwrap(), &["localhost"], now, life).unwrap();
        let file = |end: &str| dir.path().join(format!("run/{name}.{end}"));
        fs::write(file("pem"), pem.cert).unwrap();
        fs::write(file("key"), pem.key).unwrap();
        fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes a file that only its owner reads.
    fn secret(dir: &tempfile::TempDir, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let file = dir.path().join("run").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn leasehold(dir: &tempfile::TempDir, args: &[&str]) -> std::process::Output {
        std::process::Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .args(args)
            .env("LEASEHOLD_CONTEXTS", dir.path().join("contexts.toml"))
            .output()
            .unwrap()
    }

    /// Returns the gRPC address, from the line `ready` of the log.
    fn address(&self) -> String {
        for _ in 0..600 {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
            let ready = log
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .find(|line| line["fields"]["message"] == "ready");
            if let Some(ready) = ready {
                return ready["fields"]["grpc"].as_str().unwrap().to_owned();
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("it is not ready:\n{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
    }
}

#[cfg(feature = "cli")]
impl Drop for Served {
    fn drop(&mut self) {
        drop((self.process.kill(), self.process.wait()));
    }
}

#[cfg(feature = "cli")]
#[test]
fn the_jobs_of_a_deployment_run_on_the_served_samples() {
    let served = Served::start();
    // `it::samples` runs the jobs of `config/jobs`, and the suite `finetune` the job of its example.
    let jobs = read_by(Reader::Job).into_iter().filter(|file| file.starts_with(root().join("deploy")));
    let jobs: Vec<_> = jobs.collect();
    assert!(!jobs.is_empty());
    for file in jobs {
        let spec = file.to_str().unwrap();
        let made = Served::leasehold(&served.dir, &["job", "create", "--spec", spec, "--as", "launcher"]);
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{spec}: {said}");
        let job = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let run = [
            "run",
            "--spec",
            spec,
            "--job",
            &job,
            "--attempt-key",
            "one",
            "--instance",
            "n1",
            "--as",
            "workload",
        ];
        let ran = Served::leasehold(
            &served.dir,
            &[&run[..], &["--", "sh", "-c", "test -s \"$LEASEHOLD_CREDENTIALS\""]].concat(),
        );
        assert!(ran.status.success(), "{spec}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

/// Slurm runs its scripts without a PATH. It requeues a job if its prolog fails, and drains a node if its epilog fails.
#[test]
fn slurm_scripts_always_succeed_and_use_absolute_paths() {
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
        // It succeeds even if nothing is installed at these paths.
        let run = std::process::Command::new("/bin/sh").arg(&file).env_clear().output().unwrap();
        assert!(run.status.success(), "{}", file.display());
    }
}

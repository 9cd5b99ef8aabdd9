//! The place where the controls are tried: a folder with a daemon, the shipped samples, and an SVID for each identity that the
//! commands use.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::process::{Child, Command};

use super::list::ControlList;
use crate::{
    clock::{Clock, Wall},
    dev::{
        Authority, Ports, SVID_LIFE,
        deployment::{Exists, make_dir, write, write_svid},
    },
    name::{PrincipalKind, SpiffeId, TrustDomain},
};

/// The shipped catalogs and policy, by their paths in the lab.
const SAMPLES: [(&str, &str); 5] = [
    ("catalog.d/acme.toml", include_str!("../../../config/catalog.d/acme.toml")),
    ("catalog.d/globex.toml", include_str!("../../../config/catalog.d/globex.toml")),
    ("catalog.d/platform.toml", include_str!("../../../config/catalog.d/platform.toml")),
    ("policy/leasehold.cedar", include_str!("../../../config/policy/leasehold.cedar")),
    ("policy/tests.toml", include_str!("../../../config/policy/tests.toml")),
];

/// The SPIFFE ID of the daemon in the samples.
const DAEMON: &str = "spiffe://hpc.acme.example/leasehold";
/// The trust domains of the samples that the daemon accepts.
const DOMAINS: [&str; 5] = [
    "k8s.acme.example",
    "hpc.acme.example",
    "people.acme.example",
    "k8s.globex.example",
    "people.globex.example",
];
/// The beginning of the SPIFFE ID of the job that a control's commands run. The number of the control follows.
const JOBS: &str = "spiffe://k8s.acme.example/ns/ml/job";
/// How long the start of the daemon may take.
const START: Duration = Duration::from_secs(20);

/// The folder of a run, and the daemon in it.
pub struct Lab {
    pub root: PathBuf,
    pub ports: Ports,
    pub people: Vec<LabPerson>,
    clock: Arc<dyn Clock>,
    daemon: Option<Child>,
}

/// A person or workload that takes steps.
#[derive(Clone, Debug)]
pub struct LabPerson {
    /// The name of the context.
    pub name: String,
    pub kind: PrincipalKind,
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Lab {
    /// Writes everything that the daemon and the steps need into a folder.
    ///
    /// # Errors
    /// Fails if a file cannot be written, or if a name of the list is not valid.
    pub fn set_up(
        root: &Path,
        list: &ControlList,
        ports: Ports,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let now = clock.now().wall;
        for dir in ["svid", "catalog.d", "policy", "state"] {
            make_dir(&root.join(dir)).map_err(text)?;
        }
        let mut lab =
            Lab { root: root.canonicalize().map_err(text)?, ports, people: Vec::new(), clock, daemon: None };
        lab.write_samples(list)?;
        let mut authorities = BTreeMap::new();
        for domain in DOMAINS {
            lab.bundle(&mut authorities, &domain.parse().map_err(text)?, now)?;
        }
        let daemon: SpiffeId = DAEMON.parse().map_err(text)?;
        lab.mint(&mut authorities, "daemon", daemon, PrincipalKind::Verifier, now)?;
        lab.people.clear();
        for who in &list.who {
            lab.mint(&mut authorities, &who.name, who.id.clone(), who.kind()?, now)?;
        }
        for control in &list.control {
            let n = control.number;
            let id = format!("{JOBS}/{n}").parse().map_err(text)?;
            lab.mint(&mut authorities, &format!("job-{n}"), id, PrincipalKind::Workload, now)?;
            let folder = lab.folder(n);
            make_dir(&folder).map_err(text)?;
            for (name, content) in &list.file {
                fs::write(folder.join(name), content.replace("${n}", &n.to_string())).map_err(text)?;
            }
        }
        write(&lab.root.join("leasehold.toml"), &lab.config(), 0o600, Exists::Replace).map_err(text)?;
        Ok(lab)
    }

    /// Returns the folder in which the steps of a control are taken.
    pub fn folder(&self, control: u32) -> PathBuf {
        self.root.join(format!("control-{control}"))
    }

    /// Returns the path of the contexts file for the steps.
    pub fn contexts(&self) -> PathBuf {
        self.root.join("contexts.toml")
    }

    /// Returns the SPIFFE ID of the daemon.
    pub fn daemon_id(&self) -> &'static str {
        DAEMON
    }

    /// Returns the file with the roots that vouch for the daemon.
    pub fn daemon_bundle(&self) -> PathBuf {
        self.root.join("hpc.acme.example.pem")
    }

    /// Writes the samples. Each catalog file also gets the additions of the list.
    fn write_samples(&self, list: &ControlList) -> Result<(), String> {
        for (name, content) in SAMPLES {
            let tenant = name.strip_prefix("catalog.d/").and_then(|name| name.strip_suffix(".toml"));
            let more = tenant.and_then(|tenant| list.catalog.get(tenant)).map_or("", String::as_str);
            write(&self.root.join(name), &format!("{content}\n{more}"), 0o600, Exists::Replace)
                .map_err(text)?;
        }
        Ok(())
    }

    fn bundle(
        &self,
        authorities: &mut BTreeMap<TrustDomain, Authority>,
        domain: &TrustDomain,
        now: Wall,
    ) -> Result<(), String> {
        let authority = Authority::generate(domain.clone(), now, SVID_LIFE).map_err(text)?;
        let file = self.root.join(format!("{domain}.pem"));
        write(&file, authority.bundle(), 0o644, Exists::Replace).map_err(text)?;
        authorities.insert(domain.clone(), authority);
        Ok(())
    }

    /// Issues an SVID. A trust domain that the daemon does not accept gets an authority too, so that a step can try such an SVID.
    fn mint(
        &mut self,
        authorities: &mut BTreeMap<TrustDomain, Authority>,
        name: &str,
        id: SpiffeId,
        kind: PrincipalKind,
        now: Wall,
    ) -> Result<(), String> {
        let domain = id.trust_domain();
        if !authorities.contains_key(&domain) {
            self.bundle(authorities, &domain, now)?;
        }
        let authority = authorities.get(&domain).ok_or("there is no authority")?;
        let pem = authority.issue(&id, &["localhost"], now, SVID_LIFE).map_err(text)?;
        let cert = self.root.join(format!("svid/{name}.pem"));
        let key = self.root.join(format!("svid/{name}.key"));
        write_svid(&pem, &cert, &key, Exists::Replace).map_err(text)?;
        self.people.push(LabPerson { name: name.to_owned(), kind, cert, key });
        Ok(())
    }

    fn config(&self) -> String {
        let Ports { grpc, issuer, probe, .. } = self.ports;
        let bundles: Vec<String> = DOMAINS.iter().map(|d| format!("\"{d}\" = \"{d}.pem\"")).collect();
        format!(
            "[server]\ngrpc = \"127.0.0.1:{grpc}\"\nprobe = \"127.0.0.1:{probe}\"\nstate = \"state\"\n\
             [issuer]\nurl = \"http://localhost:{issuer}\"\nlisten = \"127.0.0.1:{issuer}\"\n\
             [identity]\ncert = \"svid/daemon.pem\"\nkey = \"svid/daemon.key\"\nbundles = {{ {} }}\n\
             [policy]\ndir = \"policy\"\ncatalog = \"catalog.d\"\nsource = \"applied\"\n\
             [lease]\nbeat = \"1s\"\n\
             [ledger]\nfree_space_stop = \"16MiB\"\n",
            bundles.join(", ")
        )
    }

    /// Starts the daemon, and waits until it answers a person of the lab.
    ///
    /// # Errors
    /// Fails if the daemon ended, or did not answer in time.
    pub async fn start(&mut self, program: &Path, asker: &str) -> Result<(), String> {
        let log = fs::File::create(self.root.join("daemon.log")).map_err(text)?;
        let daemon = Command::new(program)
            .args(["serve", "--config"])
            .arg(self.root.join("leasehold.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(text)?;
        let daemon = self.daemon.insert(daemon);
        let began = self.clock.now().boot;
        loop {
            let asked = Command::new(program)
                .env("LEASEHOLD_CONTEXTS", self.root.join("contexts.toml"))
                .args(["--context", asker, "whoami"])
                .stdin(Stdio::null())
                .output()
                .await
                .map_err(text)?;
            if asked.status.success() {
                return Ok(());
            }
            let log = || fs::read_to_string(self.root.join("daemon.log")).unwrap_or_default();
            if let Ok(Some(status)) = daemon.try_wait() {
                return Err(format!("the daemon ended with {status}: {}", log()));
            }
            if self.clock.now().boot.since(began) > START {
                let said = String::from_utf8_lossy(&asked.stderr).into_owned();
                return Err(format!("the daemon did not answer in time: {said}{}", log()));
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the daemon.
    ///
    /// # Errors
    /// Fails if the daemon did not stop in order.
    pub async fn stop(&mut self) -> Result<(), String> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        if let Some(id) = daemon.id().and_then(|id| i32::try_from(id).ok()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM)
                .map_err(text)?;
        }
        let status = tokio::time::timeout(START, daemon.wait()).await;
        let status = status.map_err(|_| "the daemon did not stop")?.map_err(text)?;
        if status.success() { Ok(()) } else { Err(format!("the daemon stopped with {status}")) }
    }
}

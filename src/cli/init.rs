//! Implements `leasehold init`.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{
    Contexts, Exit, Failure, Session, SvidFiles,
    contexts_file::Context,
    output::{Page, note, print},
    parse,
};
use crate::{
    dev::{Role, Starter},
    name::{PrincipalKind, TenantName, TrustDomain},
    plain,
};

/// Writes the files of a new daemon: configuration, catalog, policy, and certificates to try it.
#[derive(Debug, Args)]
#[command(after_help = "\
The files are yours to change, and `leasehold serve` starts with them as they are. The
certificates come from a small CA in the folder and last one day; `leasehold svid mint` issues
more. In production, let a SPIFFE agent issue them.

Examples:
  leasehold init ./leasehold
  leasehold init /etc/leasehold --trust-domain acme.example --tenant acme")]
pub struct InitArgs {
    /// An empty or new directory
    #[arg(value_name = "DIR", value_parser = parse::new_path)]
    dir: PathBuf,
    /// The trust domain: the part after spiffe://
    #[arg(long, value_name = "NAME", default_value = "leasehold.test")]
    trust_domain: TrustDomain,
    /// The name of your team, for its catalog file
    #[arg(long, value_name = "NAME", default_value = "demo")]
    tenant: TenantName,
    /// The daemon's port on localhost; the keys and the probes use the next two
    #[arg(long, value_name = "N", default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..=65_533))]
    port: u16,
}

impl InitArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let shown = plain::path(&self.dir);
        if fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Failure::new(Exit::Failure, format!("`{shown}` is not empty"))
                .fix("name an empty or new directory"));
        }
        if self.tenant.as_str() == "platform" {
            return Err(Failure::usage("the name `platform` is reserved for the operators")
                .fix("choose another name with --tenant"));
        }
        let starter =
            Starter { domain: self.trust_domain.clone(), tenant: self.tenant.clone(), port: self.port };
        let failed = |what: &str, e: &dyn std::error::Error| {
            let cause = e.source().map(|e| format!(": {e}")).unwrap_or_default();
            Failure::new(Exit::Failure, format!("{what}: {e}{cause}"))
                .fix("name a directory that you may write")
        };
        let started = starter
            .write(&self.dir, session.now().wall)
            .map_err(|e| failed("the files could not be written", &e))?;
        let root = started.root;
        let svid = |role: Role| {
            let file = |ending: &str| root.join(format!("svid/{}.{ending}", role.as_str()));
            SvidFiles { cert: file("pem"), key: file("key") }.into()
        };
        let context = Context {
            server: format!("localhost:{}", self.port),
            server_id: started.server_id,
            bundles: [(self.trust_domain, root.join("ca/bundle.pem"))].into(),
            issuer: None,
            login: None,
            identities: [
                (PrincipalKind::Workload, svid(Role::Trainer)),
                (PrincipalKind::Launcher, svid(Role::Launcher)),
                (PrincipalKind::Operator, svid(Role::Operator)),
            ]
            .into(),
        };
        let contexts = root.join("contexts.toml");
        Contexts::with("init", context)
            .save(&contexts)
            .map_err(|e| failed("the contexts file could not be written", &e))?;
        let at = |name: &str| root.join(name).display().to_string();
        if session.for_programs() {
            session.print_value(&json!({
                "folder": root.display().to_string(), "config": at("leasehold.toml"), "catalog": at("catalog.d"),
                "policy": at("policy"), "contexts": at("contexts.toml"), "authority": at("ca"), "job": at("job.toml"),
            }))?;
            return Ok(Exit::Ok);
        }
        print(&Page::lines([
            format!("leasehold serve --config {}", at("leasehold.toml")),
            format!("export LEASEHOLD_CONTEXTS={}", at("contexts.toml")),
            "leasehold doctor".to_owned(),
            format!("JOB=$(leasehold job create --spec {})", at("job.toml")),
            "leasehold run --job \"$JOB\" -- env".to_owned(),
        ]))?;
        note(&format!(
            "{shown} has all files that these commands need. Its certificates last one day; after that, `leasehold doctor` and `leasehold \
             config check` name the command that issues each again."
        ));
        Ok(Exit::Ok)
    }
}

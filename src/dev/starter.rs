//! The files that a deployment begins with: a configuration, a catalog, the policy, and a certificate authority for trials.
//!
//! `leasehold init` writes them once, for people to change. Nothing that is there is overwritten.

use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    Authority, Role, SVID_LIFE, SetupError,
    household::{Exists, ROOT_LIFE, authority, canonical, make_dir, write},
};
use crate::{
    clock::Wall,
    name::{SpiffeId, TenantName, TrustDomain},
};

/// What a deployment is made of.
#[derive(Clone, Debug)]
pub struct Starter {
    pub domain: TrustDomain,
    /// The team that owns the first catalog file.
    pub tenant: TenantName,
    /// The port of gRPC; the two after it serve the keys and the probes.
    pub port: u16,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Started {
    pub root: PathBuf,
    pub server_id: SpiffeId,
}

/// The roles whose SVIDs are issued.
const ROLES: [Role; 4] = [Role::Daemon, Role::Trainer, Role::Launcher, Role::Operator];

impl Starter {
    /// Writes everything into a directory that is empty or does not exist yet.
    pub fn write(&self, root: &Path, now: Wall) -> Result<Started, SetupError> {
        for dir in ["", "ca", "svid", "catalog.d", "policy", "state"] {
            make_dir(&root.join(dir))?;
        }
        let root = canonical(root)?;
        let authority = authority(self.domain.clone(), &root.join("ca"), now)?;
        let put = |name: &str, text: &str, mode| write(&root.join(name), text, mode, Exists::Keep);
        put("ca/bundle.pem", authority.bundle(), 0o644)?;
        for role in ROLES {
            let pem = authority.issue(&authority.id(role.path())?, role.dns(), now, SVID_LIFE)?;
            put(&format!("svid/{}.key", role.as_str()), &pem.key, 0o600)?;
            put(&format!("svid/{}.pem", role.as_str()), &pem.cert, 0o644)?;
        }
        put("leasehold.toml", &self.configuration(), 0o600)?;
        put("policy/leasehold.cedar", include_str!("../../config/policy/leasehold.cedar"), 0o644)?;
        put("catalog.d/platform.toml", &self.platform(), 0o644)?;
        put(&format!("catalog.d/{}.toml", self.tenant), &self.catalog(), 0o644)?;
        put("job.toml", &self.job(), 0o644)?;
        Ok(Started { server_id: authority.id(Role::Daemon.path())?, root })
    }

    fn configuration(&self) -> String {
        let Starter { domain, port, .. } = self;
        let (issuer, probe) = (port.saturating_add(1), port.saturating_add(2));
        format!(
            r#"# The daemon's configuration. `leasehold config check` reads it; config/leasehold.toml of the package has every key.
[server]
grpc  = "127.0.0.1:{port}"
probe = "127.0.0.1:{probe}"
state = "state"

[issuer]
url    = "http://localhost:{issuer}"
listen = "127.0.0.1:{issuer}"

# For trials: an SVID from `ca`, which `leasehold svid mint` renews. In earnest: workload_api = "unix:///PATH" of a SPIFFE agent.
[identity]
cert    = "svid/daemon.pem"
key     = "svid/daemon.key"
bundles = {{ "{domain}" = "ca/bundle.pem" }}

[policy]
dir     = "policy"
catalog = "catalog.d"
"#
        )
    }

    fn platform(&self) -> String {
        let Starter { domain, tenant, .. } = self;
        format!(
            r#"# The operators of this daemon: they see and end access in every tenant.
[tenant.platform]
contact = "you"

# Which SPIFFE IDs the file of each other tenant may name.
[[claim]]
tenant = "{tenant}"
match  = ["spiffe://{domain}/**"]

[[principal]]
match  = "spiffe://{domain}/people/*"
kind   = "operator"
human  = "segment:2"
groups = ["platform-operators"]
"#
        )
    }

    fn catalog(&self) -> String {
        let Starter { domain, tenant, .. } = self;
        format!(
            r#"# The catalog of one tenant, owned by that team: who may come, and what there is to open. `leasehold catalog check` reads it.
[tenant.{tenant}]
contact = "you"

[[principal]]
match = "spiffe://{domain}/trainer"
kind  = "workload"
roles = ["trainer"]

[[principal]]
match = "spiffe://{domain}/launcher"
kind  = "launcher"

# The server that holds the data and checks the tokens.
[[audience]]
name      = "spiffe://{domain}/files"
verifiers = ["spiffe://{domain}/files"]
checks    = "feed"
presenter = "mtls"

[[dataset]]
name           = "data@v1"
location       = "https://files.example/data/v1/"
audience       = "spiffe://{domain}/files"
pin            = "none"
classification = "internal"
data_classes   = []
source_trust   = "curated"
purposes       = ["trying-out"]
owner          = "you"

[[model]]
name        = "base@1"
location    = "https://files.example/base/1/"
audience    = "spiffe://{domain}/files"
pin         = "none"
tier        = "lab"
environment = "development"
risk        = "low"
tool_access = "none"
owner       = "you"

[[checkpoint]]
name     = "tuned"
model    = "base@1"
location = "https://files.example/tuned/"
audience = "spiffe://{domain}/files"
owner    = "you"
"#
        )
    }

    fn job(&self) -> String {
        let Starter { domain, tenant, .. } = self;
        format!(
            r#"# What a run needs: nothing here is secret. `leasehold job check` says what would be decided.
name         = "try-it"
purpose      = "trying-out"            # a purpose that every dataset below allows
max_duration = "1h"                    # the hard end of all access

[tune]
method = "lora"

[[read]]
resource = "dataset:{tenant}/data@v1"
[[read]]
resource = "model:{tenant}/base@1"

[[write]]
resource = "checkpoint:{tenant}/tuned"

[members]
join  = ["spiffe://{domain}/trainer"]
start = ["spiffe://{domain}/trainer"]
"#
        )
    }
}

/// Issues one SVID from the authority in a folder that `init` or `dev` wrote.
pub fn mint(
    ca: &Path,
    id: &SpiffeId,
    dns: &[&str],
    life: std::time::Duration,
    now: Wall,
) -> Result<super::SvidPem, SetupError> {
    let read = |name: &str| {
        let path = ca.join(name);
        std::fs::read_to_string(&path).map_err(|source| SetupError::Read { path, source })
    };
    let (cert, key) = (read("root.pem")?, read("root.key")?);
    if !names_domain(&cert, &id.trust_domain()) {
        return Err(SetupError::OtherDomain { ca: ca.to_owned(), domain: id.trust_domain() });
    }
    let authority = Authority::load(id.trust_domain(), cert, &key, now, ROOT_LIFE)?;
    Ok(authority.issue(id, dns, now, life)?)
}

/// Whether a root certificate has the URI of a trust domain among its names: X.509 writes a URI as 0x86, its length, its text.
fn names_domain(pem: &str, domain: &TrustDomain) -> bool {
    let uri = format!("spiffe://{domain}");
    let Ok(len) = u8::try_from(uri.len()) else { return false };
    let mut name = if len < 128 { vec![0x86, len] } else { vec![0x86, 0x81, len] };
    name.extend_from_slice(uri.as_bytes());
    CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|der| der.windows(name.len()).any(|window| window == name))
}

/// Writes an SVID, the key first: a reader that looks between the two finds that they do not fit, and looks again.
pub fn write_svid(svid: &super::SvidPem, cert: &Path, key: &Path) -> Result<(), SetupError> {
    write(key, &svid.key, 0o600, Exists::Replace)?;
    write(cert, &svid.cert, 0o644, Exists::Replace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock as _, config::Config, identity::X509Svid};

    fn starter() -> Starter {
        Starter { domain: "acme.example".parse().unwrap(), tenant: "acme".parse().unwrap(), port: 18_443 }
    }

    #[test]
    fn what_was_written_loads_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::clock::SystemClock::new().now().wall;
        let root = folder.path().join("new");
        starter().write(&root, now).unwrap();
        let config = Config::load(&root.join("leasehold.toml")).unwrap().config;
        assert!(config.paths().iter().all(|path| path.check().is_ok()));
        crate::catalog::Catalog::load(&root.join("catalog.d")).unwrap();
        std::fs::write(root.join("job.toml"), "mine").unwrap();
        starter().write(&root, now).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("job.toml")).unwrap(), "mine");
    }

    #[test]
    fn an_authority_mints_for_its_own_domain_only() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::clock::SystemClock::new().now().wall;
        starter().write(folder.path(), now).unwrap();
        let ca = folder.path().join("ca");
        let life = std::time::Duration::from_secs(3_600);
        let mint = |id: &str| mint(&ca, &id.parse().unwrap(), &[], life, now);
        let svid = mint("spiffe://acme.example/ns/ada").unwrap();
        let svid = X509Svid::from_pem(svid.cert.as_bytes(), svid.key.as_bytes()).unwrap();
        assert_eq!(svid.spiffe_id().as_str(), "spiffe://acme.example/ns/ada");
        for other in ["spiffe://acme.exampl/x", "spiffe://acme.example.org/x", "spiffe://other/x"] {
            assert!(matches!(mint(other), Err(SetupError::OtherDomain { .. })), "{other}");
        }
    }
}

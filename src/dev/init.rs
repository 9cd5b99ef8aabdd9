//! The files of a new deployment: configuration, catalog, policy, and a certificate authority to try it.
//!
//! `leasehold init` writes them once, for people to change. Existing files are not overwritten.

use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    Authority, Ports, Role, SVID_LIFE, SetupError,
    deployment::{Exists, ROOT_LIFE, canonical, load_or_create_authority, make_dir, write},
    sample::{POLICY, SampleFiles, svid_path},
};
use crate::{
    clock::Wall,
    name::{SpiffeId, TenantName, TrustDomain},
};

/// The values from which the files of a new deployment are made.
#[derive(Clone, Debug)]
pub struct Starter {
    pub domain: TrustDomain,
    /// The team that owns the catalog file.
    pub tenant: TenantName,
    /// The port of gRPC. The next two ports serve the issuer's public keys and the probes.
    pub port: u16,
}

/// The result of writing the files of a new deployment.
#[derive(Clone, Debug)]
pub struct Started {
    pub root: PathBuf,
    pub server_id: SpiffeId,
}

/// The roles that get an SVID.
const ROLES: [Role; 4] = [Role::Daemon, Role::Trainer, Role::Launcher, Role::Operator];

impl Starter {
    /// Writes all files into a directory that is empty or does not exist.
    pub fn write(&self, root: &Path, now: Wall) -> Result<Started, SetupError> {
        for dir in ["", "ca", "svid", "catalog.d", "policy", "state"] {
            make_dir(&root.join(dir))?;
        }
        let root = canonical(root)?;
        let authority = load_or_create_authority(self.domain.clone(), &root.join("ca"), now)?;
        let put = |name: &str, text: &str, mode| write(&root.join(name), text, mode, Exists::Keep);
        put("ca/bundle.pem", authority.bundle(), 0o644)?;
        for role in ROLES {
            let pem = authority.issue(&authority.id_at(role.path())?, role.dns(), now, SVID_LIFE)?;
            let [cert, key] = ["pem", "key"].map(|ending| root.join(svid_path(role, ending)));
            super::deployment::write_svid(&pem, &cert, &key, Exists::Keep)?;
        }
        let Starter { domain, tenant, port } = self;
        let [issuer, probe, files, s3] = [1, 2, 3, 4].map(|n| port.saturating_add(n));
        let ports = Ports { grpc: *port, issuer, probe, files, s3 };
        let sample = SampleFiles { domain, tenant, ports, file_server: "https://files.example" };
        let header = "The daemon's configuration. `leasehold config check` reads it. config/leasehold.toml of the package has every key.";
        let break_glass = format!(
            "# An identity that can lift every lock, so that no mistake shuts all operators out. Issue it by `leasehold svid mint`, and keep its\n\
             # key elsewhere.\n# break_glass = [\"spiffe://{domain}/break-glass\"]\n"
        );
        put("leasehold.toml", &sample.config(header, &break_glass), 0o600)?;
        put("policy/leasehold.cedar", POLICY, 0o644)?;
        put("catalog.d/platform.toml", &sample.platform(), 0o644)?;
        let header = "The catalog of one team: who may ask, and the data that a job may name. `leasehold catalog check` reads it.";
        put(&format!("catalog.d/{tenant}.toml"), &sample.catalog(header, "", ""), 0o644)?;
        let trainer = authority.id_at(Role::Trainer.path())?;
        let members = format!("\n[members]\njoin  = [\"{trainer}\"]\nstart = [\"{trainer}\"]\n");
        put("job.toml", &sample.job("", &members), 0o644)?;
        Ok(Started { server_id: authority.id_at(Role::Daemon.path())?, root })
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
    let authority = Authority::from_pem(id.trust_domain(), cert, &key, now, ROOT_LIFE)?;
    Ok(authority.issue(id, dns, now, life)?)
}

/// Whether a root certificate contains the URI of a trust domain as a name. X.509 encodes a URI as 0x86, its length, and its
/// text.
fn names_domain(pem: &str, domain: &TrustDomain) -> bool {
    let uri = format!("spiffe://{domain}");
    let Ok(len) = u8::try_from(uri.len()) else { return false };
    let mut name = if len < 128 { vec![0x86, len] } else { vec![0x86, 0x81, len] };
    name.extend_from_slice(uri.as_bytes());
    CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|der| der.windows(name.len()).any(|window| window == name))
}

/// Writes an SVID. Replaces existing files.
pub fn write_svid(svid: &super::SvidPem, cert: &Path, key: &Path) -> Result<(), SetupError> {
    super::deployment::write_svid(svid, cert, key, Exists::Replace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock as _, config::Config, identity::X509Svid};

    fn starter() -> Starter {
        Starter { domain: "acme.example".parse().unwrap(), tenant: "acme".parse().unwrap(), port: 18_443 }
    }

    #[test]
    fn the_files_load_and_are_not_overwritten() {
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
    fn an_authority_issues_only_for_its_own_domain() {
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

//! The paths in a configuration.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{Config, GatewayConfig, IdentityConfig, IdentityFrom, IssuerListen};
use crate::{
    gateway::{BucketSettings, GatewaySettings, KeptIn},
    identity::{BundleEndpoint, EndpointProfile, WorkloadEndpoint},
    notify::UrlFrom,
    plain,
    written::shown_key_path,
};

/// A path in a configuration, and its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredPath {
    /// The key of the path in the file, for example `identity.key`.
    pub key: String,
    pub path: PathBuf,
    pub wanted: PathUse,
}

/// The use of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathUse {
    /// A file that is read.
    File,
    /// A file that is read, and that other users must not read.
    PrivateFile,
    /// A directory that is read.
    Directory,
    /// A directory that is written. It is made if it is missing.
    State,
    /// A file that is written, in a directory that exists.
    Kept,
    /// A socket that another program serves.
    Socket,
}

/// A mistake in a path, and the correction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    #[error("cannot be read ({why}): write the path of a file that this user may read")]
    Unreadable { why: String },
    #[error("is not a file: write the path of a file")]
    NotAFile,
    #[error("is not a socket: write the path of the SPIFFE agent's socket")]
    NotASocket,
    #[error("is not a directory: write the path of a directory, or make it")]
    NotADirectory,
    #[error("may be read by others (mode {mode:04o}): chmod 600 it")]
    OpenToOthers { mode: u32 },
    #[error("cannot be written ({why}): make the user that the daemon runs as its owner")]
    Unwritable { why: String },
    #[error("cannot be made: {parent} does not exist; make it first")]
    NoParent { parent: String },
}

impl Config {
    /// Returns all paths, in the order of the file.
    pub fn paths(&self) -> Vec<ConfiguredPath> {
        let mut out = vec![one("server.state", &self.server.state, PathUse::State)];
        if let Some(copy) = &self.ledger.head_copy {
            out.push(one("ledger.head_copy", copy, PathUse::Kept));
        }
        if let IssuerListen::Tls { cert, key, .. } = &self.issuer.listen {
            out.push(one("issuer.cert", cert, PathUse::File));
            out.push(one("issuer.key", key, PathUse::PrivateFile));
        }
        out.extend(identity_paths(&self.identity));
        if let Some(people) = &self.people {
            out.push(one("people.ca_cert", &people.ca_cert, PathUse::File));
            out.push(one("people.ca_key", &people.ca_key, PathUse::PrivateFile));
            if let Some(ca) = &people.provider_ca {
                out.push(one("people.issuer_ca", ca, PathUse::File));
            }
        }
        for webhook in &self.notify {
            let key = |key: &str| format!("notify.\"{}\".{key}", webhook.name);
            if let UrlFrom::File(path) = &webhook.url {
                out.push(one(&key("url_file"), path, PathUse::PrivateFile));
            }
            if let Some(path) = &webhook.secret {
                out.push(one(&key("secret_file"), path, PathUse::PrivateFile));
            }
            if let Some(path) = &webhook.ca {
                out.push(one(&key("ca"), path, PathUse::File));
            }
        }
        out.push(one("policy.dir", &self.policy.dir, PathUse::Directory));
        let keys = self.policy.trusted_keys.iter();
        out.extend(keys.map(|key| one("policy.trusted_keys", key, PathUse::File)));
        out.push(one("policy.catalog", &self.policy.catalog, PathUse::Directory));
        out.extend(self.gateway.iter().flat_map(store_paths));
        out
    }
}

impl GatewayConfig {
    /// Returns all paths, in the order of the file.
    pub fn paths(&self) -> Vec<ConfiguredPath> {
        let mut out = identity_paths(&self.identity);
        out.push(one("gateway.catalog", &self.catalog, PathUse::Directory));
        out.extend(store_paths(&self.gateway));
        out
    }
}

fn one(key: &str, path: &Path, wanted: PathUse) -> ConfiguredPath {
    ConfiguredPath { key: key.to_owned(), path: path.to_owned(), wanted }
}

fn identity_paths(identity: &IdentityConfig) -> Vec<ConfiguredPath> {
    let mut out = Vec::new();
    match &identity.from {
        IdentityFrom::Files { cert, key } => {
            out.push(one("identity.cert", cert, PathUse::File));
            out.push(one("identity.key", key, PathUse::PrivateFile));
        }
        IdentityFrom::WorkloadApi { endpoint: Some(WorkloadEndpoint::Unix(path)), .. } => {
            out.push(one("identity.workload_api", path, PathUse::Socket));
        }
        IdentityFrom::WorkloadApi { .. } => {}
    }
    for (domain, path) in &identity.bundles {
        out.push(one(&format!("identity.bundles.\"{domain}\""), path, PathUse::File));
    }
    for BundleEndpoint { trust_domain, profile, .. } in &identity.federation {
        match profile {
            EndpointProfile::Spiffe { bundle, .. } => {
                out.push(one(&format!("federation.\"{trust_domain}\".bundle"), bundle, PathUse::File));
            }
            EndpointProfile::Web { ca } => {
                out.push(one(&format!("federation.\"{trust_domain}\".ca"), ca, PathUse::File));
            }
        }
    }
    out
}

fn store_paths(gateway: &GatewaySettings) -> Vec<ConfiguredPath> {
    let manifests = gateway.manifests.iter();
    let mut out: Vec<_> =
        manifests.map(|folder| one("gateway.manifests", folder, PathUse::Directory)).collect();
    if let Some(direct) = &gateway.direct {
        out.push(one("gateway.direct_cert", &direct.certificate.cert, PathUse::File));
        out.push(one("gateway.direct_key", &direct.certificate.key, PathUse::PrivateFile));
    }
    for store in &gateway.stores {
        let key = |key: &str| format!("gateway.store.\"{}\".{key}", store.location);
        match &store.kept_in {
            KeptIn::Directory(directory) => {
                out.push(one(&key("directory"), directory, PathUse::Directory));
            }
            KeptIn::Bucket(BucketSettings::S3(s3)) => {
                out.push(one(&key("access_key_file"), &s3.access_key_file, PathUse::PrivateFile));
                out.push(one(&key("secret_key_file"), &s3.secret_key_file, PathUse::PrivateFile));
            }
            KeptIn::Bucket(BucketSettings::Google { service_account_file: file }) => {
                out.push(one(&key("service_account_file"), file, PathUse::PrivateFile));
            }
            KeptIn::Bucket(BucketSettings::Azure { access_key_file: file, .. }) => {
                out.push(one(&key("access_key_file"), file, PathUse::PrivateFile));
            }
        }
    }
    out
}

/// Whether a mode is too open, by the rule of PostgreSQL. Other users may not read the file. Its group may read it only
/// if root owns the file.
fn is_open(mode: u32, owner: u32) -> bool {
    let beyond = if owner == 0 { 0o037 } else { 0o077 };
    mode & beyond != 0
}

/// Checks that this user can create files in a directory. Leaves no file behind.
fn writable(directory: &Path) -> Result<(), PathFault> {
    tempfile::tempfile_in(directory).map(drop).map_err(|e| PathFault::Unwritable { why: e.to_string() })
}

impl ConfiguredPath {
    /// Returns the whole path for messages. The path of a private key is not shown if there is no such file, because
    /// the user may have written the key itself.
    pub fn shown(&self) -> String {
        match self.wanted {
            PathUse::PrivateFile if !matches!(self.path.try_exists(), Ok(true)) => shown_key_path(&self.path),
            _ => std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()).display().to_string(),
        }
    }

    /// Checks that the path has the right kind, without reading the file.
    pub fn check(&self) -> Result<(), PathFault> {
        let unreadable = |e: std::io::Error| PathFault::Unreadable { why: e.to_string() };
        match self.wanted {
            PathUse::File | PathUse::PrivateFile => {
                let seen = File::open(&self.path).and_then(|f| f.metadata()).map_err(unreadable)?;
                let mode = seen.permissions().mode() & 0o7777;
                if !seen.is_file() {
                    Err(PathFault::NotAFile)
                } else if self.wanted == PathUse::PrivateFile && is_open(mode, seen.uid()) {
                    Err(PathFault::OpenToOthers { mode })
                } else {
                    Ok(())
                }
            }
            PathUse::Socket => {
                let seen = fs::metadata(&self.path).map_err(unreadable)?;
                if seen.file_type().is_socket() { Ok(()) } else { Err(PathFault::NotASocket) }
            }
            PathUse::Directory => fs::read_dir(&self.path).map_err(|_| PathFault::NotADirectory).map(drop),
            PathUse::Kept if self.path.is_dir() => Err(PathFault::NotAFile),
            PathUse::State if self.path.exists() => {
                fs::read_dir(&self.path).map_err(|_| PathFault::NotADirectory)?;
                writable(&self.path)
            }
            PathUse::State | PathUse::Kept => match self.path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => writable(Path::new(".")),
                Some(parent) if parent.is_dir() => writable(parent),
                parent => Err(PathFault::NoParent { parent: parent.map(plain::path).unwrap_or_default() }),
            },
        }
    }
}

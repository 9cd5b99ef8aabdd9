//! The folder of `dev` and `demo`: a trust domain, identities, catalog, policies and sample data.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Authority, SvidPem,
    sample::{POLICY, SampleFiles, svid_path},
};
use crate::{
    clock::{Clock, Wall},
    config::Config,
    identity::{FileSource, IdentityFiles, IdentitySource, LoadError},
    name::{SpiffeId, TrustDomain},
    plain,
    written::Problems,
};

/// The trust domain of `dev` and `demo`.
pub const TRUST_DOMAIN: &str = "dev.leasehold";
/// The tenant that owns the sample data.
pub const TENANT: &str = "dev";
pub(super) const ROOT_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long SVIDs are valid. They are issued again at each start, and when half of this time is over.
pub const SVID_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The identities of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The daemon itself.
    Daemon,
    /// The identity that runs jobs.
    Trainer,
    /// The identity that creates jobs for others.
    Launcher,
    /// The identity that revokes and locks.
    Operator,
    /// The file server. It is an audience, and the verifier of the tokens for this audience.
    Files,
    /// The S3 gateway. It is an audience, and the verifier of the tokens for this audience.
    S3,
}

impl Role {
    /// All roles. Each role gets an SVID.
    pub const ALL: [Role; 6] =
        [Role::Daemon, Role::Trainer, Role::Launcher, Role::Operator, Role::Files, Role::S3];

    /// Returns the word in the names of the role's files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Daemon => "daemon",
            Role::Trainer => "trainer",
            Role::Launcher => "launcher",
            Role::Operator => "operator",
            Role::Files => "files",
            Role::S3 => "s3",
        }
    }

    /// Returns the path of the role's SPIFFE ID.
    pub const fn path(self) -> &'static str {
        match self {
            Role::Daemon => "/daemon",
            Role::Trainer => "/trainer",
            Role::Launcher => "/launcher",
            Role::Operator => "/people/you",
            Role::Files => "/files",
            Role::S3 => "/s3",
        }
    }

    /// Returns the role's host names, for clients that check host names instead of the SPIFFE ID.
    pub(super) fn dns(self) -> &'static [&'static str] {
        match self {
            Role::Daemon | Role::Files | Role::S3 => &["localhost"],
            Role::Trainer | Role::Launcher | Role::Operator => &[],
        }
    }
}

/// Why a deployment could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{} cannot be written", plain::path(path))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} cannot be read", plain::path(path))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a directory", plain::path(path))]
    NoDirectory { path: PathBuf },
    /// The authority belongs to a trust domain other than the SVID's.
    #[error("the CA in {} does not belong to the trust domain {domain}", plain::path(ca))]
    OtherDomain { ca: PathBuf, domain: TrustDomain },
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Identity(#[from] LoadError),
    #[error("a name could not be made: {0}")]
    Name(#[from] crate::name::NameError),
}

/// The ports on localhost.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub grpc: u16,
    pub issuer: u16,
    pub probe: u16,
    pub files: u16,
    pub s3: u16,
}

/// The times after which a member counts as lost, and after which a draining member stops reading.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub beat: Duration,
    pub lost_after: u32,
    pub drain_read: Duration,
}

impl Pace {
    /// Returns how long a member may be silent.
    pub fn window(&self) -> Duration {
        self.beat.saturating_mul(self.lost_after)
    }
}

/// The folder of a deployment. Existing files are kept, except SVIDs, which are issued again at each start.
pub struct DevDeployment {
    root: PathBuf,
    authority: Authority,
    clock: Arc<dyn Clock>,
    /// The folder that is served as `dataset:dev/data@v1`.
    pub data: PathBuf,
    /// The ports on localhost.
    pub ports: Ports,
}

impl DevDeployment {
    /// Writes the files that are missing in the folder.
    ///
    /// # Errors
    ///
    /// Fails if the data path is not a directory, or if a file cannot be read, written or used.
    pub fn set_up(
        root: &Path,
        data: Option<&Path>,
        ports: Ports,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SetupError> {
        for dir in
            ["", "ca", "svid", "catalog.d", "policy", "data", "models/base", "checkpoints", "s3/out", "state"]
        {
            make_dir(&root.join(dir))?;
        }
        let root = canonical(root)?;
        let data = match data {
            None => root.join("data"),
            Some(dir) if dir.is_dir() => canonical(dir)?,
            Some(dir) => return Err(SetupError::NoDirectory { path: dir.to_owned() }),
        };
        let authority = load_or_create_authority(TRUST_DOMAIN.parse()?, &root.join("ca"), clock.now().wall)?;
        let deployment = DevDeployment { root, authority, clock, data, ports };
        deployment.issue_svids()?;
        deployment.write_files()?;
        Ok(deployment)
    }

    /// Returns the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a file in the folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Returns the file with the roots of the trust domain, in PEM.
    pub fn bundle(&self) -> PathBuf {
        self.path("ca/bundle.pem")
    }

    /// Returns the file with the certificate chain of a role's SVID, in PEM.
    pub fn cert(&self, role: Role) -> PathBuf {
        self.path(&svid_path(role, "pem"))
    }

    /// Returns the file with the private key of a role's SVID, in PEM.
    pub fn key(&self, role: Role) -> PathBuf {
        self.path(&svid_path(role, "key"))
    }

    /// Returns the folder that is served as the checkpoint line.
    pub fn checkpoints(&self) -> PathBuf {
        self.path("checkpoints")
    }

    /// Returns the authority that issued the SVIDs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the SPIFFE ID of a role.
    ///
    /// # Errors
    ///
    /// It does not fail, because the names are valid constants.
    pub fn id(&self, role: Role) -> Result<SpiffeId, SetupError> {
        Ok(self.authority.id_at(role.path())?)
    }

    /// Returns the trust domain: [`TRUST_DOMAIN`].
    ///
    /// # Errors
    ///
    /// It does not fail, because the name is a valid constant.
    pub fn domain(&self) -> Result<TrustDomain, SetupError> {
        Ok(TRUST_DOMAIN.parse()?)
    }

    /// Returns the source of a role's SVID, with the bundle of the domain. The source follows rotations.
    ///
    /// # Errors
    ///
    /// Fails if a file of the SVID or the bundle cannot be read or used.
    pub fn source(&self, role: Role) -> Result<Arc<FileSource>, SetupError> {
        let files = IdentityFiles {
            svid: Some((self.cert(role), self.key(role))),
            bundles: vec![(self.domain()?, self.bundle())],
        };
        Ok(Arc::new(FileSource::open(files, self.clock.clone())?))
    }

    /// Returns [`source`](Self::source) as a trait object, for connectors.
    ///
    /// # Errors
    ///
    /// Fails if [`source`](Self::source) fails.
    pub fn identity(&self, role: Role) -> Result<Arc<dyn IdentitySource>, SetupError> {
        Ok(self.source(role)?)
    }

    /// Issues all SVIDs again, and replaces the old SVIDs.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be written.
    pub fn issue_svids(&self) -> Result<(), SetupError> {
        let now = self.clock.now().wall;
        for role in Role::ALL {
            let pem = self.authority.issue(&self.id(role)?, role.dns(), now, SVID_LIFE)?;
            write_svid(&pem, &self.cert(role), &self.key(role), Exists::Replace)?;
        }
        Ok(())
    }

    /// Sets another pace for the next start of the daemon.
    ///
    /// # Errors
    ///
    /// Fails if the daemon's configuration cannot be read or written.
    pub fn set_pace(&self, pace: &Pace) -> Result<(), SetupError> {
        let file = self.path("leasehold.toml");
        let text =
            fs::read_to_string(&file).map_err(|source| SetupError::Read { path: file.clone(), source })?;
        let span = humantime::format_duration;
        let lease = format!(
            "\n[lease]\nbeat = \"{}\"\nlost_after = {}\ndrain_read = \"{}\"\n",
            span(pace.beat),
            pace.lost_after,
            span(pace.drain_read)
        );
        write(&file, &(text + &lease), 0o600, Exists::Replace)
    }

    /// Reads the daemon's configuration.
    ///
    /// # Errors
    ///
    /// Fails if the file was changed and now has mistakes.
    pub fn config(&self) -> Result<Config, SetupError> {
        Ok(Config::load(&self.path("leasehold.toml"))?.config)
    }

    fn write_files(&self) -> Result<(), SetupError> {
        let (domain, tenant) = (self.domain()?, TENANT.parse()?);
        let file_server = format!("https://localhost:{}", self.ports.files);
        let sample =
            SampleFiles { domain: &domain, tenant: &tenant, ports: self.ports, file_server: &file_server };
        let replace = |name: &str, text: &str| write(&self.path(name), text, 0o600, Exists::Replace);
        let keep = |name: &str, text: &str| write(&self.path(name), text, 0o600, Exists::Keep);
        write(&self.bundle(), self.authority.bundle(), 0o644, Exists::Replace)?;
        let operator = format!(
            "break_glass = [\"{}\"]\n\n[ledger]\nfree_space_stop = \"16MiB\"\n",
            self.id(Role::Operator)?
        );
        let header = "`leasehold dev` writes this file at each start. config/leasehold.toml of the package has every key.";
        replace("leasehold.toml", &sample.config(header, &operator))?;
        keep("policy/leasehold.cedar", POLICY)?;
        replace("policy/dev.cedar", include_str!("dev.cedar"))?;
        keep("catalog.d/platform.toml", &sample.platform())?;
        let header = "`leasehold dev` writes this file at each start. config/catalog.d of the package explains the keys.";
        let more = sample.dataset("people@v1", "confidential", "[\"pii\"]") + &sample.s3_resources();
        replace("catalog.d/dev.toml", &sample.catalog(header, "may_act_for = [\"human:*\"]\n", &more))?;
        let params = "params = \"params.yaml\"                 # its digest is recorded\n";
        keep("job.toml", &sample.job(params, ""))?;
        keep("s3-job.toml", &sample.s3_job())?;
        keep("params.yaml", "learning_rate: 0.0002\nepochs: 3\n")?;
        keep("data/tickets-0001.jsonl", SAMPLE_DATA)?;
        keep("models/base/config.json", "{\"architectures\": [\"Sample\"], \"hidden_size\": 8}\n")
    }
}

const SAMPLE_DATA: &str = r#"{"id": 1, "text": "the lamp in room 4 flickers", "label": "facilities"}
{"id": 2, "text": "my invoice has two lines for one item", "label": "billing"}
{"id": 3, "text": "the door opens only from inside", "label": "facilities"}
"#;

/// Loads the authority in a folder, or creates it there.
pub(super) fn load_or_create_authority(
    domain: TrustDomain,
    ca: &Path,
    now: Wall,
) -> Result<Authority, SetupError> {
    let (cert, key) = (ca.join("root.pem"), ca.join("root.key"));
    if cert.exists() && key.exists() {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })
        };
        return Ok(Authority::from_pem(domain, read(&cert)?, &read(&key)?, now, ROOT_LIFE)?);
    }
    let authority = Authority::generate(domain, now, ROOT_LIFE)?;
    write(&key, &authority.key(), 0o600, Exists::Replace)?;
    write(&cert, authority.bundle(), 0o644, Exists::Replace)?;
    Ok(authority)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exists {
    Keep,
    Replace,
}

/// Writes a file as a whole, or not at all.
pub(super) fn write(path: &Path, text: &str, mode: u32, exists: Exists) -> Result<(), SetupError> {
    let failed = |source| SetupError::Write { path: path.to_owned(), source };
    if exists == Exists::Keep && path.exists() {
        return Ok(());
    }
    let draft = path.with_extension("draft");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&draft)
        .map_err(failed)?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}

/// Writes an SVID, the key first. If a reader looks between the two writes, the files do not match, and the reader looks again.
pub(super) fn write_svid(svid: &SvidPem, cert: &Path, key: &Path, exists: Exists) -> Result<(), SetupError> {
    write(key, &svid.key, 0o600, exists)?;
    write(cert, &svid.cert, 0o644, exists)
}

pub(super) fn make_dir(path: &Path) -> Result<(), SetupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| SetupError::Write { path: path.to_owned(), source })
}

pub(super) fn canonical(path: &Path) -> Result<PathBuf, SetupError> {
    path.canonicalize().map_err(|source| SetupError::Read { path: path.to_owned(), source })
}

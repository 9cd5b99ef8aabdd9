//! The contexts file: the daemons that the user knows, and the user's identities at each daemon.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    identity::{ENDPOINT_VARIABLE, Pick, WorkloadEndpoint},
    link::Endpoint,
    name::{InstanceName, PrincipalKind, SpiffeId, TrustDomain},
    plain,
    written::{Notes, Problems, Section, parse_toml, path, read_document, read_file},
};

/// The content of the contexts file: `current = "dev"` and a `[context.NAME]` for each daemon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contexts {
    /// The context that is used if no other is named.
    pub current: Option<String>,
    /// The contexts without mistakes, by name.
    pub contexts: BTreeMap<String, Context>,
    /// Contexts with mistakes. The others can still be used.
    pub broken: BTreeMap<String, BrokenContext>,
}

/// A context with mistakes.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokenContext {
    pub problems: Problems,
    /// The context's text, which is kept when the file is written again.
    table: toml::Table,
}

/// One daemon, and our identities for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// `HOST:PORT` of the daemon's gRPC listener.
    pub server: String,
    /// The identity that the daemon must show.
    pub server_id: SpiffeId,
    /// The bundle files of the daemon's trust domain and of other trust domains.
    pub bundles: BTreeMap<TrustDomain, PathBuf>,
    /// The `iss` of the daemon's tokens, if known.
    pub issuer: Option<String>,
    /// `HOST:PORT` of the daemon's listener for logins, if people log in to it.
    pub login: Option<String>,
    /// Our SVIDs by role.
    pub identities: BTreeMap<PrincipalKind, SvidFrom>,
}

/// The source of an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SvidFrom {
    Files(SvidFiles),
    /// The SPIFFE Workload API, which also provides bundles. If the endpoint is `None`, the variable `SPIFFE_ENDPOINT_SOCKET`
    /// names the socket.
    WorkloadApi {
        endpoint: Option<WorkloadEndpoint>,
        pick: Pick,
    },
}

/// The files of one SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidFiles {
    /// The certificate chain in PEM, with the leaf first.
    pub cert: PathBuf,
    /// The private key of the leaf, as PKCS#8 in PEM.
    pub key: PathBuf,
}

/// The path of the contexts file is unknown: `LEASEHOLD_CONTEXTS`, `XDG_CONFIG_HOME` and `HOME` are all unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path of the contexts file is not known: set LEASEHOLD_CONTEXTS to a file, or set HOME")]
pub struct NoPlace;

impl Contexts {
    /// Makes contexts with one context, which is the current context.
    pub fn with(name: &str, context: Context) -> Self {
        let contexts = BTreeMap::from([(name.to_owned(), context)]);
        Contexts { current: Some(name.to_owned()), contexts, broken: BTreeMap::new() }
    }

    /// Returns `$LEASEHOLD_CONTEXTS`, or else `leasehold/contexts.toml` in `$XDG_CONFIG_HOME` or `~/.config`.
    ///
    /// # Errors
    ///
    /// Fails if the environment names no directory.
    pub fn default_path() -> Result<PathBuf, NoPlace> {
        let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        var("LEASEHOLD_CONTEXTS")
            .or_else(|| {
                let folder = var("XDG_CONFIG_HOME").or_else(|| Some(var("HOME")?.join(".config")))?;
                Some(folder.join("leasehold/contexts.toml"))
            })
            .ok_or(NoPlace)
    }

    /// Reads a file. If the file does not exist, there are no contexts. Relative paths in the file are relative to its
    /// directory.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, or has mistakes outside of its contexts.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        if !path.exists() {
            return Ok(Contexts::default());
        }
        Self::read(path, &read_file(path)?)
    }

    fn read(path: &Path, text: &str) -> Result<Self, Problems> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let written = text.parse::<toml::Table>().unwrap_or_default();
        let (contexts, _) =
            read_document(path, parse_toml(text), |root, notes| read_root(root, folder, &written, notes))?;
        Ok(contexts)
    }

    /// Writes the whole file, or leaves the old file. Only this user can read it (mode 0600). A new directory has mode 0700.
    ///
    /// # Errors
    ///
    /// Fails if the directory or the file cannot be written. The old file stays.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut draft = tempfile::Builder::new()
            .prefix(".contexts-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)?;
        draft.write_all(self.to_string().as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(path)?;
        Ok(())
    }
}

fn read_root(
    root: &mut Section<'_>,
    folder: &Path,
    written: &toml::Table,
    notes: &mut Notes,
) -> Option<Contexts> {
    let current_line = root.line_of("current");
    let current = root.text("current", notes, |t| Ok::<_, String>(t.to_owned()));
    let (mut contexts, mut broken) = (BTreeMap::new(), BTreeMap::new());
    if let Some(named) = root.section_if_there("context", notes) {
        for (name, table) in named.named_sections(notes) {
            let (read, problems) = notes.apart(|notes| named_context(name, table, folder, notes));
            match (read, problems) {
                (Some(context), None) => {
                    contexts.insert(name.to_owned(), context);
                }
                (_, Some(problems)) => {
                    let table = written.get("context").and_then(|all| all.get(name)?.as_table()).cloned();
                    broken.insert(
                        name.to_owned(),
                        BrokenContext { problems, table: table.unwrap_or_default() },
                    );
                }
                (None, None) => {}
            }
        }
    }
    let is_there = |name: &String| contexts.contains_key(name) || broken.contains_key(name);
    if let Some(current) = current.as_ref().filter(|c| !is_there(c)) {
        notes.problem(
            current_line,
            format!(
                "current: there is no [context.{}]: write the name of a context in this file",
                plain::value(current)
            ),
        );
    }
    Some(Contexts { current, contexts, broken })
}

fn named_context(name: &str, table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<Context> {
    if name.parse::<InstanceName>().is_err() {
        let why = format!(
            "`{}` cannot be the name of a context: use letters, digits, `.`, `_` and `-`",
            plain::value(name)
        );
        notes.problem(table.line(), why);
    }
    context(table, folder, notes)
}

fn context(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<Context> {
    let server_id =
        table.need("server_id", "\"spiffe://example.org/leasehold\"", notes, str::parse::<SpiffeId>);
    let id = server_id.clone();
    let server = table.need("server", "\"localhost:8443\"", notes, |t| match id {
        Some(id) => Endpoint::new(t, id).map(|e| e.address().to_owned()).map_err(|e| e.to_string()),
        None => Ok(t.to_owned()),
    });
    let login = table.text("login", notes, |t| match server_id.clone() {
        Some(id) => Endpoint::new(t, id).map(|e| e.address().to_owned()).map_err(|e| e.to_string()),
        None => Ok(t.to_owned()),
    });
    let issuer = table.text("issuer", notes, |t| Ok::<_, String>(t.to_owned()));
    let bundles_line = table.line_of("bundles");
    let mut bundles = BTreeMap::new();
    if let Some(named) = table.section_if_there("bundles", notes) {
        for (domain, line, file) in named.named_texts(notes) {
            match domain.parse::<TrustDomain>() {
                Ok(domain) => match path(file, folder) {
                    Ok(file) => drop(bundles.insert(domain, file)),
                    Err(e) => notes.problem(line, format!("bundles: {e}")),
                },
                Err(e) => notes.problem(line, format!("bundles: {e}")),
            }
        }
    }
    let mut identities = BTreeMap::new();
    if let Some(named) = table.section_if_there("identity", notes) {
        for (role, mut table) in named.named_sections(notes) {
            let line = table.line();
            let from = svid(&mut table, folder, notes);
            table.finish(notes);
            match (role.parse::<PrincipalKind>(), from) {
                (Ok(role), Some(from)) => {
                    identities.insert(role, from);
                }
                (Err(e), _) => notes.problem(line, e.to_string()),
                _ => {}
            }
        }
    }
    // A SPIFFE agent provides the bundle of its trust domain. For SVIDs in files, the context must name the bundle.
    let has_agent = identities.values().any(|from| matches!(from, SvidFrom::WorkloadApi { .. }));
    if let Some(domain) = server_id.as_ref().map(SpiffeId::trust_domain).filter(|d| !bundles.contains_key(d))
        && !has_agent
    {
        notes.problem(
            bundles_line,
            format!("a context has no bundle of its server's trust domain: write bundles = {{ \"{domain}\" = \"bundle.pem\" }}"),
        );
    }
    table.finish(notes);
    Some(Context { server: server?, server_id: server_id?, bundles, issuer, login, identities })
}

/// Reads the source of an SVID: two files, or a SPIFFE agent.
fn svid(table: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<SvidFrom> {
    let line = table.line_of("workload_api");
    let (has_files, has_agent) = (table.has("cert") || table.has("key"), table.has("workload_api"));
    if has_files && has_agent {
        notes.problem(
            line,
            "workload_api is set beside cert and key: an SVID has one source, so remove one of them",
        );
    }
    if !has_files {
        let endpoint = table.text("workload_api", notes, |t| match t {
            // The variable is looked up when the identity is used.
            t if t.strip_prefix('$') == Some(ENDPOINT_VARIABLE) => Ok(None),
            t => t.parse::<WorkloadEndpoint>().map(Some),
        });
        if !has_agent {
            table.missing(
                "cert",
                "\"svid.pem\" and key = \"svid.key\", or workload_api = \"unix:///PATH\"",
                notes,
            );
        }
        let line = table.line_of("spiffe_id");
        let has_both = table.has("hint") && table.has("spiffe_id");
        let hint = table.text("hint", notes, |t| Ok::<_, String>(Pick::Hint(t.to_owned())));
        let id = table.text("spiffe_id", notes, |t| t.parse::<SpiffeId>().map(Pick::Id));
        if has_both {
            notes.problem(
                line,
                "spiffe_id is set beside hint: one of them selects the SVID, so remove the other",
            );
        }
        return Some(SvidFrom::WorkloadApi { endpoint: endpoint?, pick: hint.or(id).unwrap_or_default() });
    }
    let cert = table.need("cert", "\"svid.pem\"", notes, |t| path(t, folder));
    let key = table.need("key", "\"svid.key\"", notes, |t| path(t, folder));
    let _ = table.text("workload_api", notes, |_| Ok::<_, String>(()));
    Some(SvidFrom::Files(SvidFiles { cert: cert?, key: key? }))
}

/// Writes the text of the contexts file.
impl fmt::Display for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let path = |path: &Path| quoted(&path.to_string_lossy());
        writeln!(
            f,
            "# The daemons that `leasehold` uses, and your identities there. See `leasehold context --help`."
        )?;
        if let Some(current) = &self.current {
            writeln!(f, "current = {}", quoted(current))?;
        }
        for (name, context) in &self.contexts {
            let name = quoted(name);
            writeln!(f, "\n[context.{name}]")?;
            writeln!(f, "server = {}", quoted(&context.server))?;
            writeln!(f, "server_id = {}", quoted(context.server_id.as_str()))?;
            if let Some(issuer) = &context.issuer {
                writeln!(f, "issuer = {}", quoted(issuer))?;
            }
            if let Some(login) = &context.login {
                writeln!(f, "login = {}", quoted(login))?;
            }
            writeln!(f, "\n[context.{name}.bundles]")?;
            for (domain, file) in &context.bundles {
                writeln!(f, "{} = {}", quoted(domain.as_str()), path(file))?;
            }
            for (role, from) in &context.identities {
                writeln!(f, "\n[context.{name}.identity.{role}]")?;
                match from {
                    SvidFrom::Files(files) => {
                        writeln!(f, "cert = {}", path(&files.cert))?;
                        writeln!(f, "key = {}", path(&files.key))?;
                    }
                    SvidFrom::WorkloadApi { endpoint, pick } => {
                        writeln!(f, "workload_api = {}", quoted(&shown_endpoint(endpoint.as_ref())))?;
                        match pick {
                            Pick::First => {}
                            Pick::Hint(hint) => writeln!(f, "hint = {}", quoted(hint))?,
                            Pick::Id(id) => writeln!(f, "spiffe_id = {}", quoted(id.as_str()))?,
                        }
                    }
                }
            }
        }
        for (name, broken) in &self.broken {
            let named = toml::Table::from_iter([(name.clone(), toml::Value::Table(broken.table.clone()))]);
            let all = toml::Table::from_iter([("context".to_owned(), toml::Value::Table(named))]);
            write!(f, "\n{}", toml::to_string(&all).map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    }
}

/// Shows a URI, or the name of the variable that contains the URI.
pub(super) fn shown_endpoint(endpoint: Option<&WorkloadEndpoint>) -> String {
    endpoint.map_or_else(|| format!("${ENDPOINT_VARIABLE}"), WorkloadEndpoint::to_string)
}

impl From<SvidFiles> for SvidFrom {
    fn from(files: SvidFiles) -> Self {
        SvidFrom::Files(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Contexts {
        let context = Context {
            server: "localhost:8443".into(),
            server_id: "spiffe://dev.example/leasehold".parse().unwrap(),
            bundles: BTreeMap::from([("dev.example".parse().unwrap(), PathBuf::from("/d/b \"quoted\".pem"))]),
            issuer: Some("http://127.0.0.1:8444".into()),
            login: Some("localhost:8447".into()),
            identities: BTreeMap::from([
                (
                    PrincipalKind::Workload,
                    SvidFiles { cert: "/d/w.pem".into(), key: "/d/w.key".into() }.into(),
                ),
                (
                    PrincipalKind::Operator,
                    SvidFrom::WorkloadApi {
                        endpoint: Some("unix:///run/agent.sock".parse().unwrap()),
                        pick: Pick::Hint("ops".into()),
                    },
                ),
                (
                    PrincipalKind::Launcher,
                    SvidFrom::WorkloadApi {
                        endpoint: None,
                        pick: Pick::Id("spiffe://dev.example/l".parse().unwrap()),
                    },
                ),
            ]),
        };
        Contexts {
            current: Some("dev".into()),
            contexts: BTreeMap::from([("dev".into(), context.clone()), ("prod-2.eu".into(), context)]),
            broken: BTreeMap::new(),
        }
    }

    #[test]
    fn contexts_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/leasehold/contexts.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        some().save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), some());
        let changed = Contexts { current: Some("prod-2.eu".into()), ..some() };
        changed.save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), changed);
        let left: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["contexts.toml"], "no draft is left behind");
    }

    #[test]
    fn contexts_are_readable_by_their_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leasehold/contexts.toml");
        some().save(&path).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        some().save(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_bad_context_is_reported_and_blocks_no_other() {
        let text = r#"
current = "good"
[context.good]
server = "localhost:1"
server_id = "spiffe://td.example/l"
bundles = { "td.example" = "b.pem" }
[context.a]
server = "https://localhost:8443"
server_id = "spiffe://td.example/l"
[context.a.identity.boss]
cert = "c.pem"
key = "k.pem"
[context.b]
server = "localhost:1"
server_id = "td.example"
bundles = { "td.example" = "b.pem" }
colour = "red"
"#;
        let path = Path::new("/c/contexts.toml");
        let read = Contexts::read(path, text).unwrap();
        assert_eq!(read.contexts.keys().collect::<Vec<_>>(), ["good"]);
        let problems: Vec<_> = read.broken.values().map(|b| b.problems.to_string()).collect();
        insta::assert_snapshot!(problems.join("\n"), @r#"
        /c/contexts.toml:7: a context has no bundle of its server's trust domain: write bundles = { "td.example" = "bundle.pem" }
        /c/contexts.toml:8: context.a.server: `https://localhost:8443` is not an address: write `HOST:PORT`, without a scheme or a path
        /c/contexts.toml:10: `boss` is not a kind of principal: it must be one of: workload launcher scheduler operator verifier auditor
        /c/contexts.toml:15: context.b.server_id: `td.example` is not a SPIFFE ID: it does not begin with `spiffe://` in lower case; write server_id = "spiffe://example.org/leasehold"
        /c/contexts.toml:17: context.b.colour is not a key: write one of server_id, server, login, issuer, bundles, identity, or remove it
        "#);
        let again = Contexts::read(path, &read.to_string()).unwrap();
        assert_eq!(again.contexts, read.contexts);
        let tables = |c: &Contexts| c.broken.values().map(|b| b.table.clone()).collect::<Vec<_>>();
        assert_eq!(tables(&again), tables(&read), "writing the file keeps what it cannot read");
        let errors = Contexts::read(path, "current = \"gone\"\n").unwrap_err();
        assert_eq!(
            errors.to_string(),
            "/c/contexts.toml:1: current: there is no [context.gone]: write the name of a context in this file"
        );
    }
}

//! Implements `leasehold context`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    contexts_file::{Context, Contexts, SvidFiles, SvidFrom, shown_endpoint},
    output::{TableCell, columns, fields, note, print},
    parse,
};
use crate::{
    config::{ConfiguredPath, PathUse},
    identity::Pick,
    link::Endpoint,
    name::{InstanceName, PrincipalKind, SpiffeId, TrustDomain},
    plain,
    secret::redacted,
    written::shown_key_path,
};

/// Lists, adds and chooses contexts: the daemons that you use, and your identities there.
#[derive(Debug, Args)]
#[command(after_help = "\
Contexts are in the file $LEASEHOLD_CONTEXTS, or else in ~/.config/leasehold/contexts.toml.
`leasehold dev` writes a context; `leasehold context add` describes another daemon. In the file, a
context with certificates from a SPIFFE agent looks like this:
  [context.prod]
  server    = \"leasehold.acme.example:8443\"
  server_id = \"spiffe://acme.example/leasehold\"
  [context.prod.identity.operator]
  workload_api = \"unix:///run/spire/agent/public/api.sock\"

Examples:
  leasehold context list
  leasehold context use prod
  leasehold --context prod lease list           for one command")]
pub struct ContextArgs {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// Lists the contexts. The current one has a star.
    #[command(after_help = "\
Examples:
  leasehold context list")]
    List,
    /// Shows one context.
    #[command(after_help = "\
Examples:
  leasehold context show
  leasehold context show prod -o json")]
    Show {
        /// The name of a context [default: the current one]
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Adds a context. The first one becomes the current one.
    #[command(after_help = "\
Examples:
  leasehold context add prod --server leasehold.acme.example:8443 \\
    --server-id spiffe://acme.example/leasehold \\
    --identity operator=unix:///run/spire/agent/public/api.sock
  leasehold context add trial --server localhost:8443 --server-id spiffe://leasehold.test/daemon \\
    --bundle leasehold.test=ca/bundle.pem --identity operator=svid/operator.pem,svid/operator.key")]
    Add(AddArgs),
    /// Makes a context the current one.
    #[command(after_help = "\
Examples:
  leasehold context use prod")]
    Use {
        /// The name of the context, as `context list` shows it
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Removes a context. Its keys and certificates stay where they are.
    #[command(after_help = "\
Examples:
  leasehold context delete dev")]
    Delete {
        /// The name of the context, as `context list` shows it
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// The description of a daemon.
#[derive(Debug, Args)]
struct AddArgs {
    /// The name of the new context
    #[arg(value_name = "NAME")]
    name: InstanceName,
    /// The address of the daemon
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// The identity that the daemon must show
    #[arg(long, value_name = "SPIFFE ID")]
    server_id: SpiffeId,
    /// The CA certificates of a trust domain, as PEM or a SPIFFE bundle. A SPIFFE agent brings its own. Repeatable
    #[arg(long, value_name = "DOMAIN=FILE", value_parser = parse::bundle)]
    bundle: Vec<(TrustDomain, PathBuf)>,
    /// Your identity in a role: ROLE=CERT,KEY, or ROLE=unix:///PATH for a SPIFFE agent. Repeatable
    #[arg(long, value_name = "ROLE=FROM", value_parser = parse::identity, required_unless_present = "login")]
    identity: Vec<(PrincipalKind, SvidFrom)>,
    /// The address at which people log in to the daemon: then `leasehold login` gets your identity
    #[arg(long, value_name = "HOST:PORT")]
    login: Option<String>,
    /// Make this the current context
    #[arg(long = "use")]
    is_current: bool,
}

impl AddArgs {
    fn add(self, contexts: &mut Contexts) -> Result<(), Failure> {
        let name = self.name.to_string();
        if contexts.contexts.contains_key(&name) || contexts.broken.contains_key(&name) {
            return Err(Failure::new(Exit::Failure, format!("a context `{name}` exists already"))
                .fix(format!("choose another name, or run `leasehold context delete {name}` first")));
        }
        let server = Endpoint::new(&self.server, self.server_id.clone())
            .map_err(|e| Failure::usage(e.to_string()).fix("write --server HOST:PORT"))?;
        let login = match &self.login {
            None => None,
            Some(address) => Some(
                Endpoint::new(address, self.server_id.clone())
                    .map_err(|e| Failure::usage(e.to_string()).fix("write --login HOST:PORT"))?
                    .address()
                    .to_owned(),
            ),
        };
        let has_agent = self.identity.iter().any(|(_, from)| matches!(from, SvidFrom::WorkloadApi { .. }));
        let domain = self.server_id.trust_domain();
        if !has_agent && self.bundle.iter().all(|(named, _)| *named != domain) {
            return Err(Failure::usage(format!(
                "no --bundle gives the CA certificates of the trust domain {domain}"
            ))
            .fix(format!("add --bundle {domain}=FILE")));
        }
        let context = Context {
            server: server.address().to_owned(),
            server_id: self.server_id,
            bundles: self.bundle.into_iter().collect(),
            issuer: None,
            login,
            identities: self.identity.into_iter().collect(),
        };
        contexts.contexts.insert(name.clone(), context);
        if self.is_current || contexts.current.is_none() {
            contexts.current = Some(name);
        }
        Ok(())
    }
}

impl ContextArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let path = session.contexts_file()?;
        let mut contexts = Contexts::load(path)?;
        let save = |contexts: &Contexts| {
            contexts.save(path).map_err(|e| {
                Failure::new(Exit::Failure, format!("`{}` cannot be written: {e}", plain::path(path)))
                    .fix("set LEASEHOLD_CONTEXTS to a file that you may write")
            })
        };
        match self.command {
            ContextCommand::List => {
                list(&contexts, session)?;
                if contexts.contexts.is_empty() && contexts.broken.is_empty() {
                    note(&no_context(path));
                }
                for (name, broken) in &contexts.broken {
                    note(&format!("leasehold: warning: context {name} cannot be used:"));
                    broken.problems.problems().iter().for_each(|p| note(&format!("  {p}")));
                }
            }
            ContextCommand::Show { name } => {
                let (name, context) = match name {
                    Some(name) => {
                        if let Some(broken) = contexts.broken.remove(&name) {
                            return Err(Failure::from(broken.problems));
                        }
                        let context =
                            contexts.contexts.remove(&name).ok_or_else(|| unknown(&name, &contexts))?;
                        (name, context)
                    }
                    None => session.context()?,
                };
                show(&name, &context, session)?;
            }
            ContextCommand::Add(args) => {
                let name = args.name.to_string();
                args.add(&mut contexts)?;
                if let Some(context) = contexts.contexts.get(&name) {
                    missing_files(context)
                        .iter()
                        .for_each(|line| note(&format!("leasehold: warning: {line}")));
                }
                save(&contexts)?;
                let is_current = contexts.current.as_ref() == Some(&name);
                let use_it = if is_current {
                    "It is the current context.".to_owned()
                } else {
                    format!("To use it: leasehold context use {name}")
                };
                note(&format!("Context {name} is written to {}. {use_it}", plain::path(path)));
                let next =
                    match contexts.contexts.get(&name).is_some_and(|context| context.identities.is_empty()) {
                        true => format!("To get an identity there: leasehold login --context {name}"),
                        false => format!("To check that it works: leasehold doctor --context {name}"),
                    };
                note(&next);
            }
            ContextCommand::Use { name } => {
                if !contexts.contexts.contains_key(&name) {
                    return Err(unknown(&name, &contexts));
                }
                contexts.current = Some(name.clone());
                save(&contexts)?;
                note(&format!("The current context is {name}."));
            }
            ContextCommand::Delete { name } => {
                let was_there = contexts.contexts.remove(&name).is_some();
                if contexts.broken.remove(&name).is_none() && !was_there {
                    return Err(unknown(&name, &contexts));
                }
                let was_current = contexts.current.take_if(|current| *current == name).is_some();
                save(&contexts)?;
                let now = if was_current { " There is no current context now." } else { "" };
                note(&format!("Context {name} is removed.{now}"));
            }
        }
        Ok(Exit::Ok)
    }
}

/// Explains that there is no context, and how to get a context.
fn no_context(file: &Path) -> String {
    let what = match file.exists() {
        true => format!("`{}` has no context.", plain::path(file)),
        false => format!("There is no contexts file: `{}` does not exist.", plain::path(file)),
    };
    format!("{what} `leasehold dev` writes one, and `leasehold context add` describes another daemon.")
}

/// Returns a line for each file of a context that cannot be used now. Another program may write the file later.
fn missing_files(context: &Context) -> Vec<String> {
    let one = |what: String, path: &Path, wanted| ConfiguredPath { key: what, path: path.to_owned(), wanted };
    let mut files: Vec<ConfiguredPath> = Vec::new();
    for (domain, path) in &context.bundles {
        files.push(one(format!("bundle {domain}"), path, PathUse::File));
    }
    for (role, from) in &context.identities {
        if let SvidFrom::Files(SvidFiles { cert, key }) = from {
            files.push(one(format!("{role} certificate"), cert, PathUse::File));
            files.push(one(format!("{role} key"), key, PathUse::PrivateFile));
        }
    }
    let fault =
        |file: &ConfiguredPath| Some(format!("{}: `{}` {}", file.key, file.shown(), file.check().err()?));
    files.iter().filter_map(fault).collect()
}

fn unknown(name: &str, contexts: &Contexts) -> Failure {
    let known = contexts.contexts.keys().cloned().collect::<Vec<_>>().join(", ");
    Failure::usage(format!("there is no context `{}`", plain::value(name))).fix(if known.is_empty() {
        "start `leasehold dev`, which writes a context".to_owned()
    } else {
        format!("name one of: {known}")
    })
}

fn list(contexts: &Contexts, session: &Session) -> Result<(), Failure> {
    let is_current = |name: &String| contexts.current.as_ref() == Some(name);
    if session.for_programs() {
        let all = contexts.contexts.iter().map(|(name, context)| {
            let mut value = value(name, context);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("current".to_owned(), Value::Bool(is_current(name)));
            }
            value
        });
        return session.print_value(&all.collect());
    }
    let rows = contexts.contexts.iter().map(|(name, context)| {
        let star = if is_current(name) { "*" } else { "" };
        vec![
            star.to_owned(),
            name.clone(),
            redacted(&context.server).into_owned(),
            roles(context),
            context.server_id.to_string(),
        ]
    });
    print(&columns(&["", "NAME", "SERVER", "IDENTITIES", "SERVER ID"], rows))
}

fn roles(context: &Context) -> String {
    context.identities.keys().map(|r| r.as_str()).collect::<Vec<_>>().join(",")
}

fn show(name: &str, context: &Context, session: &Session) -> Result<(), Failure> {
    if session.for_programs() {
        return session.print_value(&value(name, context));
    }
    let bundles = context.bundles.iter().map(|(domain, path)| format!("{domain}: {}", plain::path(path)));
    let identities = context.identities.iter().map(|(role, from)| format!("{role}: {}", svid(from)));
    print(&fields([
        ("name", TableCell::from(name)),
        ("server", redacted(&context.server).into_owned().into()),
        ("server id", context.server_id.as_str().into()),
        ("issuer", redacted(context.issuer.as_deref().unwrap_or_default()).into_owned().into()),
        ("login", redacted(context.login.as_deref().unwrap_or_default()).into_owned().into()),
        ("bundles", TableCell::list(bundles)),
        ("identities", TableCell::list(identities)),
    ]))
}

/// Shows on one line where an SVID comes from.
fn svid(from: &SvidFrom) -> String {
    match from {
        SvidFrom::Files(files) => format!("{}, {}", plain::path(&files.cert), shown_key_path(&files.key)),
        SvidFrom::WorkloadApi { endpoint, pick } => {
            format!("{pick}, from {}", shown_endpoint(endpoint.as_ref()))
        }
    }
}

fn value(name: &str, context: &Context) -> Value {
    let bundles: serde_json::Map<_, _> =
        context.bundles.iter().map(|(d, p)| (d.to_string(), json!(plain::path(p)))).collect();
    let identities: serde_json::Map<_, _> = context
        .identities
        .iter()
        .map(|(role, from)| {
            let from = match from {
                SvidFrom::Files(files) => {
                    json!({ "cert": plain::path(&files.cert), "key": shown_key_path(&files.key) })
                }
                SvidFrom::WorkloadApi { endpoint, pick: Pick::Hint(hint) } => {
                    json!({ "workload_api": shown_endpoint(endpoint.as_ref()), "hint": redacted(hint) })
                }
                SvidFrom::WorkloadApi { endpoint, pick: Pick::Id(id) } => {
                    json!({ "workload_api": shown_endpoint(endpoint.as_ref()), "spiffe_id": id.as_str() })
                }
                SvidFrom::WorkloadApi { endpoint, pick: Pick::First } => {
                    json!({ "workload_api": shown_endpoint(endpoint.as_ref()) })
                }
            };
            (role.to_string(), from)
        })
        .collect();
    json!({
        "name": name, "server": redacted(&context.server), "server_id": context.server_id.as_str(),
        "issuer": context.issuer.as_deref().map(redacted), "login": context.login.as_deref().map(redacted), "bundles": bundles, "identities": identities,
    })
}

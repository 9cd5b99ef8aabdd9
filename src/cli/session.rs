//! The session of one command: its output format, context, identity and clock.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Client, Exit, Failure, Format,
    contexts_file::{Context, Contexts, NoPlace, SvidFrom},
    output::{self, Page},
    table::TableSize,
};
use crate::{
    agent::FrontPipes,
    clock::{Clock, Now, SystemClock},
    identity::{IdentityOptions, IdentitySource, Origin, Pick, WorkloadEndpoint},
    limits,
    link::{Connector, Endpoint},
    name::PrincipalKind,
    plain,
};

/// The output format, context, identity and clock of one command.
pub struct Session {
    pub output: Format,
    pub clock: Arc<dyn Clock>,
    contexts_file: Result<PathBuf, NoPlace>,
    context: Option<String>,
    role: Option<PrincipalKind>,
    /// How long to wait for a first SVID, if it is set on the command line.
    pub identity_wait: Option<Duration>,
    /// The SPIFFE agent that is used instead of the identity of the context.
    pub workload_api: Option<WorkloadEndpoint>,
    /// The pipes to the process that the shell started, if this process is the wrapper behind that process.
    pub behind: Option<FrontPipes>,
}

/// The chosen context, and the identity to use with its daemon.
pub struct Chosen {
    pub name: String,
    pub context: Context,
    pub svid: SvidFrom,
}

impl Session {
    pub(super) fn new(output: Format, context: Option<String>, role: Option<PrincipalKind>) -> Self {
        let (clock, contexts_file) = (Arc::new(SystemClock::new()), Contexts::default_path());
        Session {
            output,
            clock,
            contexts_file,
            context,
            role,
            identity_wait: None,
            workload_api: None,
            behind: None,
        }
    }

    /// Makes a session with the given clock and contexts file.
    #[cfg(test)]
    pub(super) fn of_test(
        clock: Arc<dyn Clock>,
        contexts_file: PathBuf,
        role: Option<PrincipalKind>,
    ) -> Self {
        Session { clock, contexts_file: Ok(contexts_file), ..Session::new(Format::Table, None, role) }
    }

    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Returns how long to wait for a first SVID.
    pub fn identity_wait(&self) -> Duration {
        self.identity_wait.unwrap_or(limits::IDENTITY_WAIT)
    }

    /// Whether data is printed as a value for programs, not as text for people.
    pub fn for_programs(&self) -> bool {
        matches!(self.output, Format::Json | Format::Yaml)
    }

    /// Prints the only value of a command.
    pub(super) fn print_value(&self, value: &Value) -> Result<(), Failure> {
        output::print(&match self.output {
            Format::Yaml => output::yaml(value),
            Format::Table | Format::Wide | Format::Json => output::json(value),
        })
    }

    /// Prints one of several values: a line of JSON, or a YAML document.
    pub(super) fn print_item(&self, value: &Value) -> Result<(), Failure> {
        output::print(&match self.output {
            Format::Yaml => Page::line("---").then(&output::yaml(value)),
            Format::Table | Format::Wide | Format::Json => output::json_line(value),
        })
    }

    /// Returns how much of a list stdout can show.
    pub(super) fn table_size(&self) -> TableSize {
        let columns = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0.into());
        TableSize { is_wide: self.output == Format::Wide, columns }
    }

    /// Returns the path of the contexts file.
    pub fn contexts_file(&self) -> Result<&Path, Failure> {
        self.contexts_file.as_deref().map_err(|e| Failure::new(Exit::Failure, e.to_string()))
    }

    /// Returns the context that `--context` names, or else the current context.
    pub fn context(&self) -> Result<(String, Context), Failure> {
        let path = self.contexts_file()?;
        let mut contexts = Contexts::load(path)?;
        let known = contexts.contexts.keys().cloned().collect::<Vec<_>>().join(", ");
        let fix = || {
            match known.is_empty() {
            true => "start `leasehold dev`, which writes a context, or describe your daemon with `leasehold context add`".to_owned(),
            false => format!("run `leasehold context use NAME`, or add --context NAME; the known names are: {known}"),
        }
        };
        let file = plain::path(path);
        let Some(name) = self.context.clone().or_else(|| contexts.current.take()) else {
            let text = match path.exists() {
                true => "no context is chosen, so the command does not know which daemon to use",
                false => "the contexts file does not exist, so the command does not know which daemon to use",
            };
            let failure = Failure::new(Exit::Failure, text).with("file", file);
            return Err(match (path.exists(), std::env::var_os("LEASEHOLD_CONTEXTS").is_some()) {
                (false, true) => failure
                    .with("named by", "LEASEHOLD_CONTEXTS")
                    .fix("set LEASEHOLD_CONTEXTS to a file that exists, or unset it"),
                _ => failure.fix(fix()),
            });
        };
        if let Some(broken) = contexts.broken.remove(&name) {
            return Err(Failure::from(broken.problems));
        }
        match contexts.contexts.remove(&name) {
            Some(context) => Ok((name, context)),
            None => Err(Failure::usage(format!("there is no context `{}`", plain::value(&name)))
                .with("file", file)
                .fix(fix())),
        }
    }

    /// Chooses the context and its identity: the identity that `--as` names, or else the first that this command prefers.
    pub fn choose(&self, prefer: &[PrincipalKind]) -> Result<Chosen, Failure> {
        let (name, mut context) = self.context()?;
        let role = match self.role {
            Some(role) => context.identities.contains_key(&role).then_some(role),
            None => prefer.iter().copied().find(|role| context.identities.contains_key(role)),
        };
        let found = role.and_then(|role| context.identities.remove(&role));
        let svid = match (found, &self.workload_api) {
            (found, Some(endpoint)) => {
                // If --workload-api is set, the identity comes from that agent, even if the context has another source.
                let pick = match &found {
                    Some(SvidFrom::WorkloadApi { pick, .. }) => pick.clone(),
                    _ => Pick::First,
                };
                Some(SvidFrom::WorkloadApi { endpoint: Some(endpoint.clone()), pick })
            }
            (found, None) => found,
        };
        let Some(svid) = svid else {
            let wanted = self.role.map_or_else(|| join(prefer, " or "), |r| r.to_string());
            let have: Vec<_> = context.identities.keys().copied().collect();
            return Err(Failure::new(
                Exit::Failure,
                format!("context `{name}` has no identity for {wanted}"),
            )
            .with("has", if have.is_empty() { "none".to_owned() } else { join(&have, ", ") })
            .fix(match context.login.is_some() {
                true => format!("leasehold login --context {name}"),
                false => format!(
                "add [context.{name}.identity.{}] to the contexts file, with cert and key or with workload_api, or choose another role with --as",
                self.role.or(prefer.first().copied()).map_or("workload", |r| r.as_str())
            ),
            }));
        };
        Ok(Chosen { name, context, svid })
    }

    /// Makes a client for the chosen daemon. The client connects at its first call.
    pub fn client(&self, prefer: &[PrincipalKind]) -> Result<Client, Failure> {
        let chosen = self.choose(prefer)?;
        let (connector, source) = self.connector(&chosen)?;
        let client = Client::new(connector, source, self.clock.clone(), self.identity_wait());
        Ok(match chosen.svid {
            SvidFrom::Files(files) => client.with_certificate(files.cert),
            SvidFrom::WorkloadApi { .. } => client,
        })
    }

    /// Makes the connector to the chosen daemon, and the source of our SVID. The source follows rotations from now on. If the
    /// SVID comes from an agent, it may not have arrived yet, so wait for it before the first connection.
    pub fn connector(&self, chosen: &Chosen) -> Result<(Connector, Arc<dyn IdentitySource>), Failure> {
        let context = &chosen.context;
        let unusable = || {
            Failure::new(Exit::Failure, format!("the identity of context `{}` cannot be used", chosen.name))
        };
        let origin = match &chosen.svid {
            SvidFrom::Files(files) => Origin::Files { cert: files.cert.clone(), key: files.key.clone() },
            SvidFrom::WorkloadApi { endpoint: Some(endpoint), pick } => {
                Origin::WorkloadApi { endpoint: endpoint.clone(), pick: pick.clone() }
            }
            SvidFrom::WorkloadApi { endpoint: None, pick } => {
                let endpoint = WorkloadEndpoint::from_env().map_err(|e| {
                    unusable().with("", e.to_string()).fix(
                        "set it to the socket of your SPIFFE agent, or give the socket with --workload-api",
                    )
                })?;
                Origin::WorkloadApi { endpoint, pick: pick.clone() }
            }
        };
        let bundles = context.bundles.iter().map(|(d, p)| (d.clone(), p.clone())).collect();
        let source = IdentityOptions::new(origin, bundles).open(self.clock.clone()).map_err(|e| {
            unusable().with("file", e.to_string()).fix("run `leasehold doctor`, which checks each file")
        })?;
        // This task ends with the process.
        tokio::spawn(source.clone().follow(CancellationToken::new()));
        let endpoint = Endpoint::new(&context.server, context.server_id.clone())
            .map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
        Ok((Connector::new(source.clone(), self.clock.clone(), endpoint), source))
    }

    /// Whether the context was named for this command. If not, the contexts file chooses it.
    pub(super) fn is_context_named(&self) -> bool {
        self.context.is_some()
    }

    pub(super) fn role(&self) -> Option<PrincipalKind> {
        self.role
    }
}

fn join(roles: &[PrincipalKind], between: &str) -> String {
    roles.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

//! What can be written on the command line.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use clap::{Parser, Subcommand, error::ErrorKind};

use super::{
    Exit, Failure, Format, Session,
    output::{self, Page},
    parse,
    runtime::{self, Needs},
};
use crate::{agent, identity::WorkloadEndpoint, name::PrincipalKind};

/// Gives every tuning job exactly the access it was approved for, for exactly as long as it runs.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, max_term_width = 110, after_help = AFTER)]
#[command(propagate_version = false, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// How data and refusals are printed: for people, or as one value (one per line or document if they keep coming).
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "table|wide|json|yaml",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "Everywhere"
    )]
    output: Format,
    /// The context to use; see `leasehold context list`.
    #[arg(
        long,
        global = true,
        env = "LEASEHOLD_CONTEXT",
        hide_env_values = true,
        value_name = "NAME",
        help_heading = "Everywhere"
    )]
    context: Option<String>,
    /// The identity of the context to use; each command prefers one by itself.
    #[arg(long = "as", global = true, value_name = "ROLE", value_parser = parse::role(), help_heading = "Everywhere")]
    role: Option<PrincipalKind>,
    /// The SPIFFE agent to ask for our SVID, in the place of what the context says: unix:///PATH.
    #[arg(long, global = true, value_name = "URI", help_heading = "Everywhere")]
    workload_api: Option<WorkloadEndpoint>,
    /// How long to wait for a first SVID [default: 1m]
    #[arg(
        long,
        global = true,
        env = "LEASEHOLD_IDENTITY_WAIT",
        hide_env_values = true,
        value_name = "SPAN",
        value_parser = humantime::parse_duration,
        help_heading = "Everywhere"
    )]
    identity_wait: Option<Duration>,
    /// The process in front of this one, at a terminal.
    #[arg(skip)]
    behind: Option<agent::FrontPipes>,
    #[command(subcommand)]
    command: CliCommand,
}

const AFTER: &str = "\
Begin with:
  leasehold demo                               the whole story in seconds
  leasehold dev                                a daemon of your own, and a context for it
  leasehold run --spec job.toml -- python train.py
  leasehold doctor                             what is wrong, where something is

Data goes to stdout, everything else to stderr. Only logs have colours, on a terminal, and not with NO_COLOR.

Exit codes: 0 ok, 1 failure, 2 denied, 3 awaiting approval, 4 ended or stale attempt, 5 not durable,
7 verification failed, 64 usage. `run` exits with its command's code; 125 for a failure of its own.

Environment: LEASEHOLD_CONTEXT, LEASEHOLD_CONTEXTS (the file), LEASEHOLD_CONFIG, LEASEHOLD_ATTEMPT_KEY,
LEASEHOLD_IDENTITY_WAIT, SPIFFE_ENDPOINT_SOCKET. What `run` sets for its command: leasehold run --help.";

#[derive(Debug, Subcommand)]
enum CliCommand {
    Demo(super::demo::DemoArgs),
    Dev(super::dev::DevArgs),
    Init(super::init::InitArgs),
    Serve(super::serve::ServeArgs),
    Run(super::run::RunArgs),
    Agent(super::agent::AgentArgs),
    Job(super::job::JobArgs),
    Lease(super::lease::LeaseArgs),
    Revoke(super::revoke::RevokeArgs),
    Lock(super::lock::LockArgs),
    Unlock(super::lock::UnlockArgs),
    Policy(super::policy::PolicyArgs),
    Catalog(super::catalog::CatalogArgs),
    Token(super::token::TokenArgs),
    Svid(super::svid::SvidArgs),
    Audit(super::audit::AuditArgs),
    Whoami(super::status::WhoamiArgs),
    Status(super::status::StatusArgs),
    Doctor(super::doctor::DoctorArgs),
    Slurm(super::slurm::SlurmArgs),
    Context(super::context::ContextArgs),
    Config(super::config::ConfigArgs),
    Completions(super::completions::CompletionsArgs),
    Version(super::version::VersionArgs),
}

impl Cli {
    /// Reads the command line of this process. `Err` is the exit code where there is nothing to do: help was asked for,
    /// or what was written is no command.
    ///
    /// Becomes the guard of a wrapper's command where this process was started for that. Call it first, before any thread.
    pub fn from_env() -> Result<Cli, Exit> {
        let mut args: Vec<OsString> = std::env::args_os().collect();
        let behind = agent::FrontPipes::take(&mut args);
        if args.get(1).is_some_and(|a| a == "__guard") {
            agent::guard(args.into_iter().skip(2));
        }
        if let (Some("__await"), Some(file)) = (args.get(1).and_then(|a| a.to_str()), args.get(2)) {
            return Err(Exit::Child(crate::dev::demo::await_word(
                Path::new(file),
                args.get(3).map(OsString::as_os_str),
            )));
        }
        let parsed = Cli::try_parse_from(&args).map(|cli| Cli { behind, ..cli });
        parsed.map_err(|e| match e.use_stderr() {
            true if wants_json(&args) => {
                output::note_page(&output::json_line(&unreadable(&e).to_json()));
                Exit::Usage
            }
            failed => {
                // Nobody is left to be told where it cannot be written.
                let _ = e.print();
                if let Some(tip) = tip(&e, &args) {
                    output::note_page(&Page::default().below(&Page::line(&format!("  tip: {tip}"))));
                }
                if failed { Exit::Usage } else { Exit::Ok }
            }
        })
    }

    #[cfg(test)]
    pub(super) async fn run_in(self, mut session: Session) -> Result<Exit, Failure> {
        session.output = self.output;
        self.command.run(&session).await
    }

    /// Does what was asked, and says why not.
    pub fn run(self) -> Exit {
        let mut session = Session::new(self.output, self.context, self.role);
        session.workload_api = self.workload_api;
        session.identity_wait = self.identity_wait;
        session.behind = self.behind;
        if matches!(self.command, CliCommand::Run(_)) && self.behind.is_none() {
            let args: Vec<OsString> = std::env::args_os().collect();
            if let Some(code) = agent::run_in_front(&args) {
                return Exit::Child(code);
            }
        }
        let runtime = match runtime::build(self.command.needs()) {
            Ok(runtime) => runtime,
            Err(failure) => return self.command.ended_before(failure, &session),
        };
        let done = runtime.block_on(self.command.run(&session));
        // What reads stdin or a disk may never come back; the process ends without it.
        runtime.shutdown_background();
        match done {
            Ok(exit) => exit,
            Err(failure) => tell(&failure, &session),
        }
    }
}

/// Whether a command line that cannot be read asks for JSON all the same.
fn wants_json(args: &[OsString]) -> bool {
    let words: Vec<_> = args.iter().skip(1).take_while(|a| *a != "--").filter_map(|a| a.to_str()).collect();
    words.iter().any(|w| ["-ojson", "-o=json", "--output=json"].contains(w))
        || words.windows(2).any(|two| matches!(two, ["-o" | "--output", "json"]))
}

/// What a line may have meant that clap knows nothing of.
fn tip(error: &clap::Error, args: &[OsString]) -> Option<&'static str> {
    let words: Vec<_> = args.iter().skip(1).filter_map(|a| a.to_str()).collect();
    let wraps = words.iter().find(|w| ["run", "agent"].contains(w)).copied();
    // Below it stands the usage, which names everything.
    let text = error.to_string();
    let named = |what: &str| text.split("Usage:").next().is_some_and(|said| said.contains(what));
    match (error.kind(), wraps) {
        (ErrorKind::UnknownArgument, Some("run")) if !words.contains(&"--") => {
            Some("the command stands after `--`: leasehold run --spec job.toml -- python train.py")
        }
        (ErrorKind::MissingRequiredArgument, Some("run")) if named("<CMD>") => {
            Some("say what to run after `--`: leasehold run --spec job.toml -- python train.py")
        }
        (ErrorKind::MissingRequiredArgument, Some(_)) if named("--spec") => Some(
            "--spec FILE describes a new job (see `leasehold job --help`), --job ID takes part in one that is there",
        ),
        _ => None,
    }
}

/// What clap says in many lines, in one.
fn unreadable(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Failure::usage(first.trim_start_matches("error: ").to_owned())
        .fix("`leasehold help` and the command's --help")
}

fn tell(failure: &Failure, session: &Session) -> Exit {
    if failure.exit == Exit::Ok {
        return Exit::Ok;
    }
    let failure = runtime::naming_the_limit(failure.clone());
    output::note_page(&match session.output {
        Format::Json => output::json_line(&failure.to_json()),
        Format::Yaml => output::yaml(&failure.to_json()),
        Format::Table | Format::Wide => failure.page(),
    });
    let _ = io::stderr().flush();
    failure.exit
}

impl CliCommand {
    fn needs(&self) -> Needs {
        match self {
            CliCommand::Demo(_) | CliCommand::Dev(_) | CliCommand::Serve(_) => Needs::Workers,
            _ => Needs::OneThread,
        }
    }

    /// Says a failure that came before the command began, and answers the code that the command has for it.
    fn ended_before(&self, failure: Failure, session: &Session) -> Exit {
        match self {
            CliCommand::Run(_) => tell(&failure.before_the_command(), session),
            CliCommand::Slurm(args) if args.never_fails() => {
                tell(&failure, session);
                Exit::Ok
            }
            _ => tell(&failure, session),
        }
    }

    async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self {
            CliCommand::Demo(args) => args.run(session).await,
            CliCommand::Dev(args) => args.run(session).await,
            CliCommand::Init(args) => args.run(session),
            CliCommand::Serve(args) => args.run(session).await,
            CliCommand::Run(args) => args.run(session).await,
            CliCommand::Agent(args) => args.run(session).await,
            CliCommand::Job(args) => args.run(session).await,
            CliCommand::Lease(args) => args.run(session).await,
            CliCommand::Revoke(args) => args.run(session).await,
            CliCommand::Lock(args) => args.run(session).await,
            CliCommand::Unlock(args) => args.run(session).await,
            CliCommand::Policy(args) => args.run(session),
            CliCommand::Catalog(args) => args.run(session).await,
            CliCommand::Svid(args) => args.run(session),
            CliCommand::Token(args) => args.run(session).await,
            CliCommand::Audit(args) => args.run(session).await,
            CliCommand::Status(args) => args.run(session).await,
            CliCommand::Whoami(args) => args.run(session).await,
            CliCommand::Doctor(args) => args.run(session).await,
            CliCommand::Slurm(args) => args.run(session).await,
            CliCommand::Context(args) => args.run(session),
            CliCommand::Config(args) => args.run(session),
            CliCommand::Completions(args) => args.run(),
            CliCommand::Version(args) => args.run(session),
        }
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;

//! The command line: its arguments, and the code that runs for each command.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use clap::{
    Command, CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    Exit, Failure, Format, Session,
    output::{self, Page},
    parse,
    runtime::{self, Needs},
};
use crate::{
    agent,
    identity::WorkloadEndpoint,
    name::PrincipalKind,
    plain,
    secret::{looks_secret, redacted, withheld},
};

/// Gives each tuning job access to the data that it was approved for, and ends the access with the job.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, max_term_width = 110, help_template = HELP, after_help = AFTER)]
#[command(propagate_version = false, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// How to print: table, wide (all columns), json or yaml [default: table]
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT",
        hide_possible_values = true,
        hide_default_value = true,
        help_heading = "Everywhere"
    )]
    output: Format,
    /// The daemon to use, from `leasehold context list`
    #[arg(
        long,
        global = true,
        env = "LEASEHOLD_CONTEXT",
        hide_env = true,
        value_name = "NAME",
        help_heading = "Everywhere"
    )]
    context: Option<String>,
    /// Your role, for example operator [default: what the command needs]
    #[arg(
        long = "as",
        global = true,
        value_name = "ROLE",
        value_parser = parse::role(),
        hide_possible_values = true,
        help_heading = "Everywhere"
    )]
    role: Option<PrincipalKind>,
    /// A SPIFFE agent with your identity: unix:///PATH
    #[arg(long, global = true, value_name = "URI", help_heading = "Everywhere")]
    workload_api: Option<WorkloadEndpoint>,
    /// How long to wait for an identity [default: 1m]
    #[arg(
        long,
        global = true,
        env = "LEASEHOLD_IDENTITY_WAIT",
        hide_env = true,
        value_name = "SPAN",
        value_parser = humantime::parse_duration,
        help_heading = "Everywhere"
    )]
    identity_wait: Option<Duration>,
    /// The process in front of this process, if a wrapper runs at a terminal.
    #[arg(skip)]
    behind: Option<agent::FrontPipes>,
    #[command(subcommand)]
    command: CliCommand,
}

/// The help of the whole program. It groups the commands by what people want to do.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Try it:
  demo                     Shows everything in a few seconds, with real processes
  dev                      Starts a daemon of your own, with identities and sample data
Launch jobs:
  run                      Runs a command with the access of a job
  agent                    Keeps credentials for a process that already runs, such as a notebook
  job, lease               Create, list and end jobs; look at who has access to what
  can-i, who-can           Ask policy who may do what, without changing anything
  token                    Shows what a credential says, and whether it is valid now
  s3-key                   Gets an S3 key for a client without a wrapper
  slurm                    For the prologs and epilogs of slurm.conf
Operate:
  status, whoami           Show the state of the daemon, and your identity there
  revoke                   Ends all access that depends on a name, at once
  lock, unlock             Also refuse new access, until you unlock (also: freeze, unfreeze)
  verify-clean             Checks that no access depends on a name
  dataset                  Recalls a dataset from all present and future jobs
  identity, tenant         Offboard an identity or a team permanently
Approve:
  approvals                Lists the jobs that wait for people
  approve, reject          Decide on a job that waits
  unapprove                Withdraws your approval
  break-glass, reviews     Open the gates of a job in an emergency; review emergencies
Audit:
  audit                    Reads and checks the record of every decision (the ledger)
  ledger                   Moves old records to an archive
  waivers                  Lists the rules that are waived for a time
  controls                 Lists the controls of a governed pipeline, and tries them
Set up:
  doctor                   Finds what is wrong between you and the daemon, and says how to fix it
  context, login, logout   Choose the daemon, and your identity there
  init, svid, people       Write a first set of files; issue trial certificates; make a CA for people
  serve, gateway           Run the daemon; run an S3 gateway on another machine
  config, catalog, policy  Check, show and reload what the daemon reads
  bench, version           Measure this machine; show the version
  completions, help        Print completions for your shell; show the help of a command

Everywhere:
{options}{after-help}";

const AFTER: &str = "\
Data goes to stdout, everything else to stderr. NO_COLOR turns the colours of logs off.
Exit codes: 0 ok, 1 failure, 2 denied, 3 awaiting approval, 4 ended or stale attempt, 5 not durable,
6 something is left, 7 verification failed, 64 usage. `run`: the code of its command, or 125.
Environment: LEASEHOLD_CONTEXT, LEASEHOLD_CONTEXTS (the file), LEASEHOLD_CONFIG,
LEASEHOLD_ATTEMPT_KEY, LEASEHOLD_IDENTITY_WAIT, SPIFFE_ENDPOINT_SOCKET. `leasehold run --help` lists what `run` sets.";

#[derive(Debug, Subcommand)]
enum CliCommand {
    Demo(super::demo::DemoArgs),
    Controls(super::controls::ControlsArgs),
    Bench(super::bench::BenchArgs),
    Dev(super::dev::DevArgs),
    Init(super::init::InitArgs),
    Serve(super::serve::ServeArgs),
    Gateway(super::gateway::GatewayArgs),
    Run(super::run::RunArgs),
    Agent(super::agent::AgentArgs),
    Job(super::job::JobArgs),
    Lease(super::lease::LeaseArgs),
    Revoke(super::revoke::RevokeArgs),
    #[command(visible_alias = "freeze")]
    Lock(super::lock::LockArgs),
    #[command(visible_alias = "unfreeze")]
    Unlock(super::lock::UnlockArgs),
    Dataset(super::dataset::DatasetArgs),
    Identity(super::offboard::IdentityArgs),
    Tenant(super::offboard::TenantArgs),
    VerifyClean(super::verify_clean::VerifyCleanArgs),
    People(super::people::PeopleArgs),
    Policy(super::policy::PolicyArgs),
    #[command(name = "can-i")]
    CanI(super::can_i::CanIArgs),
    #[command(name = "who-can")]
    WhoCan(super::can_i::WhoCanArgs),
    Catalog(super::catalog::CatalogArgs),
    Approve(super::approve::ApproveArgs),
    Reject(super::approve::RejectArgs),
    Unapprove(super::approve::UnapproveArgs),
    Approvals(super::approvals::ApprovalsArgs),
    #[command(name = "break-glass")]
    BreakGlass(super::reviews::BreakGlassArgs),
    Reviews(super::reviews::ReviewsArgs),
    Waivers(super::waivers::WaiversArgs),
    Token(super::token::TokenArgs),
    #[command(name = "s3-key")]
    S3Key(super::s3_key::S3KeyArgs),
    Svid(super::svid::SvidArgs),
    Audit(super::audit::AuditArgs),
    Ledger(super::ledger::LedgerArgs),
    Login(super::login::LoginArgs),
    Logout(super::login::LogoutArgs),
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
    /// Reads the command line of this process.
    ///
    /// If a wrapper started this process to guard its command, the process becomes the guard. Call this function first, before
    /// any thread starts.
    ///
    /// # Errors
    ///
    /// Returns the exit code if there is nothing to run: help was printed, or the command line is wrong.
    pub fn from_env() -> Result<Cli, Exit> {
        let mut args: Vec<OsString> = std::env::args_os().collect();
        let behind = agent::FrontPipes::take(&mut args);
        if args.get(1).is_some_and(|a| a == "__guard") {
            agent::guard(args.into_iter().skip(2));
        }
        if let (Some("__await"), Some(file)) = (args.get(1).and_then(|a| a.to_str()), args.get(2)) {
            return Err(Exit::Child(crate::dev::demo::await_exit_code(
                Path::new(file),
                args.get(3).map(OsString::as_os_str),
            )));
        }
        if let (Some("__s3"), Some(object)) = (args.get(1).and_then(|a| a.to_str()), args.get(2)) {
            return Err(Exit::Child(crate::dev::demo::download_slowly(object)));
        }
        let parsed = read_args(&args).map(|cli| Cli { behind, ..cli });
        parsed.map_err(with_safe_values).map_err(|e| match e.use_stderr() {
            true if wants_json(&args) => {
                output::note_page(&output::json_line(&usage_failure(&e, &args).to_json()));
                Exit::Usage
            }
            failed => {
                print_error(&e, &args);
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

    /// Runs the command. If the command fails, prints the reason.
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
            Err(failure) => return self.command.fail_before_run(failure, &session),
        };
        let done = runtime.block_on(self.command.run(&session));
        // A thread that reads stdin or a disk may never return. The process ends without waiting for it.
        runtime.shutdown_background();
        match done {
            Ok(exit) => exit,
            Err(failure) => print_failure(&failure, &session),
        }
    }
}

fn read_args(args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = Cli::command().mut_subcommands(fill_paragraphs);
    let mut matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Makes one line from each paragraph of the text below the options, in a command and its subcommands. Then clap wraps the text
/// at the width of the terminal.
fn fill_paragraphs(command: Command) -> Command {
    let command = match command.get_after_help().map(ToString::to_string) {
        Some(text) => command.after_help(filled(&text)),
        None => command,
    };
    command.mut_subcommands(fill_paragraphs)
}

/// Joins the lines of each paragraph. An indented line stays a separate line, and so does a line below a line that ends in a
/// colon.
fn filled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let is_text = |line: &str| !line.is_empty() && !line.starts_with(' ');
    let mut last = "";
    for line in text.lines() {
        let goes_on = is_text(last) && is_text(line) && !last.ends_with(':');
        out.push_str(if goes_on { " " } else { "\n" });
        out.push_str(line);
        last = line;
    }
    out.trim_start_matches('\n').to_owned()
}

/// Whether a command line that cannot be parsed asks for JSON.
fn wants_json(args: &[OsString]) -> bool {
    let words: Vec<_> = args.iter().skip(1).take_while(|a| *a != "--").filter_map(|a| a.to_str()).collect();
    words.iter().any(|w| ["-ojson", "-o=json", "--output=json"].contains(w))
        || words.windows(2).any(|two| matches!(two, ["-o" | "--output", "json"]))
}

/// Suggests a correction in cases that clap does not know.
fn tip(error: &clap::Error, args: &[OsString]) -> Option<&'static str> {
    let words: Vec<_> = args.iter().skip(1).filter_map(|a| a.to_str()).collect();
    let wraps = words.iter().find(|w| ["run", "agent"].contains(w)).copied();
    // The usage below the message names every argument, so only the text before it counts.
    let text = error.to_string();
    let named = |what: &str| text.split("Usage:").next().is_some_and(|said| said.contains(what));
    match (error.kind(), wraps) {
        (ErrorKind::UnknownArgument, Some("run")) if !words.contains(&"--") => {
            Some("write the command after `--`: leasehold run --spec job.toml -- python train.py")
        }
        (ErrorKind::MissingRequiredArgument, Some("run")) if named("<CMD>") => {
            Some("say what to run after `--`: leasehold run --spec job.toml -- python train.py")
        }
        (ErrorKind::MissingRequiredArgument, Some(_)) if named("--spec") => Some(
            "--spec FILE describes a new job (see `leasehold job --help`), --job ID joins an existing one",
        ),
        _ => None,
    }
}

/// Replaces each value that a clap error quotes, if the value is not safe to print.
///
/// This happens before the error becomes text. The text of clap leaves escape sequences out and keeps line breaks, so a search
/// for the value would not find it.
fn with_safe_values(mut error: clap::Error) -> clap::Error {
    let changed: Vec<_> =
        error.context().filter_map(|(kind, value)| safe_value(value).map(|safe| (kind, safe))).collect();
    if !changed.is_empty() {
        // The tips quote the value too, in text with colours.
        error.remove(ContextKind::Suggested);
    }
    for (kind, safe) in changed {
        error.insert(kind, safe);
    }
    error
}

/// Returns what a clap error shows instead of a value. `None` if the value is safe.
fn safe_value(value: &ContextValue) -> Option<ContextValue> {
    let safe = |text: &String| match looks_secret(text) {
        true => withheld(text),
        false => plain::line(text).into_owned(),
    };
    let shown = match value {
        ContextValue::String(text) => ContextValue::String(safe(text)),
        ContextValue::Strings(texts) => ContextValue::Strings(texts.iter().map(safe).collect()),
        _ => return None,
    };
    (shown != *value).then_some(shown)
}

/// Prints a clap error. If the error quotes a secret, or a character that moves the cursor, the text is printed without colours
/// and that part is replaced. The value may also come from an environment variable.
fn print_error(error: &clap::Error, args: &[OsString]) {
    let text = error.to_string();
    let safe = without_secrets(&text, args);
    // If the text cannot be printed, there is no other place to report it.
    if safe == text {
        let _ = error.print();
    } else {
        output::note_page(&Page::verbatim(safe));
    }
}

/// Replaces the parts of an error text that are not safe to print: secrets, and line breaks of an argument.
fn without_secrets(text: &str, args: &[OsString]) -> String {
    let args = args.iter().map(|arg| arg.to_string_lossy());
    let values = args.flat_map(|arg| match arg.split_once('=') {
        Some((_, value)) => vec![value.to_owned(), arg.into_owned()],
        None => vec![arg.into_owned()],
    });
    let text = values.fold(text.to_owned(), |text, value| {
        // The text of clap has no escape sequences.
        let bare = StyledStr::from(value.clone()).to_string();
        let shown = match looks_secret(&value) || looks_secret(&bare) {
            true => withheld(&value),
            false => plain::line(&value).into_owned(),
        };
        let must_go =
            |text: &str| looks_secret(text) || (plain::line(text) != text && !text.trim().is_empty());
        [value, bare]
            .iter()
            .filter(|quoted| must_go(quoted.as_str()))
            .fold(text, |text, quoted| text.replace(quoted.as_str(), &shown))
    });
    redacted(&text).split('\n').map(plain::line).collect::<Vec<_>>().join("\n")
}

/// Makes one failure from the lines of a clap error.
fn usage_failure(error: &clap::Error, args: &[OsString]) -> Failure {
    let text = without_secrets(&error.to_string(), args);
    let first = text.lines().next().unwrap_or_default();
    Failure::usage(first.trim_start_matches("error: ").to_owned())
        .fix("see `leasehold help`, or --help of the command")
}

fn print_failure(failure: &Failure, session: &Session) -> Exit {
    if failure.exit == Exit::Ok {
        return Exit::Ok;
    }
    let failure = runtime::name_limit(failure.clone());
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
            CliCommand::Bench(_)
            | CliCommand::Controls(_)
            | CliCommand::Demo(_)
            | CliCommand::Dev(_)
            | CliCommand::Gateway(_)
            | CliCommand::Serve(_) => Needs::Workers,
            _ => Needs::OneThread,
        }
    }

    /// Prints a failure that happened before the command began. Returns the exit code of the command for it.
    fn fail_before_run(&self, failure: Failure, session: &Session) -> Exit {
        match self {
            CliCommand::Run(_) => print_failure(&failure.before_the_command(), session),
            CliCommand::Slurm(args) if args.never_fails() => {
                print_failure(&failure, session);
                Exit::Ok
            }
            _ => print_failure(&failure, session),
        }
    }

    async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self {
            CliCommand::Demo(args) => args.run(session).await,
            CliCommand::Controls(args) => args.run(session).await,
            CliCommand::Bench(args) => args.run(session).await,
            CliCommand::Dev(args) => args.run(session).await,
            CliCommand::Init(args) => args.run(session),
            CliCommand::Serve(args) => args.run(session).await,
            CliCommand::Gateway(args) => args.run(session).await,
            CliCommand::Run(args) => args.run(session).await,
            CliCommand::Agent(args) => args.run(session).await,
            CliCommand::Job(args) => args.run(session).await,
            CliCommand::Lease(args) => args.run(session).await,
            CliCommand::Revoke(args) => args.run(session).await,
            CliCommand::Lock(args) => args.run(session).await,
            CliCommand::Unlock(args) => args.run(session).await,
            CliCommand::Dataset(args) => args.run(session).await,
            CliCommand::Identity(args) => args.run(session).await,
            CliCommand::Tenant(args) => args.run(session).await,
            CliCommand::VerifyClean(args) => args.run(session).await,
            CliCommand::Approve(args) => args.run(session).await,
            CliCommand::Reject(args) => args.run(session).await,
            CliCommand::Unapprove(args) => args.run(session).await,
            CliCommand::Approvals(args) => args.run(session).await,
            CliCommand::BreakGlass(args) => args.run(session).await,
            CliCommand::Reviews(args) => args.run(session).await,
            CliCommand::Waivers(args) => args.run(session).await,
            CliCommand::Policy(args) => args.run(session).await,
            CliCommand::CanI(args) => args.run(session).await,
            CliCommand::WhoCan(args) => args.run(session).await,
            CliCommand::Catalog(args) => args.run(session).await,
            CliCommand::Svid(args) => args.run(session),
            CliCommand::Token(args) => args.run(session).await,
            CliCommand::S3Key(args) => args.run(session).await,
            CliCommand::Audit(args) => args.run(session).await,
            CliCommand::Ledger(args) => args.run(session).await,
            CliCommand::Status(args) => args.run(session).await,
            CliCommand::Login(args) => args.run(session).await,
            CliCommand::Logout(args) => args.run(session).await,
            CliCommand::People(args) => args.run(session),
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

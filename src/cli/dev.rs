//! Implements `leasehold dev`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Context, Contexts, Exit, Failure, Session, SvidFiles,
    output::{Page, note, print},
    parse,
    serve::{Stops, not_started, serve},
};
use crate::{
    config::{LogConfig, LogFormat},
    daemon::{Daemon, StartError, Stopped, init_logging, init_metrics},
    dev::{
        DevDeployment, FileClient, Ports, Role, Running, TRUST_DOMAIN, encode_path, free_ports, read_token,
    },
    limits::SHUTDOWN,
    link::{Connector, Endpoint},
    name::{PrincipalKind, ResourceName},
};

/// Starts a daemon of your own on this machine, with identities and sample data, to try leasehold.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
The command writes missing files into one folder: identities, catalog, policies, sample data, a job.
It makes `dev` the current context, so that all other commands use this daemon, and prints commands
to try. Stop it with Ctrl-C. The next start keeps jobs and locks. Do not use it in production: the
private keys are in the folder.

Examples:
  leasehold dev
  leasehold dev --data ~/tickets            serve your own folder as a dataset
  leasehold dev --dir /tmp/x --port 18443   a second daemon beside the first"
)]
pub struct DevArgs {
    /// The folder for the files of this daemon [default: ~/.local/share/leasehold/dev]
    #[arg(long, value_name = "DIR", value_parser = parse::new_path)]
    pub dir: Option<PathBuf>,
    /// Serve this folder as the dataset, read only [default: sample data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The daemon's port; keys, probes, files and S3 use the next four. 0 chooses free ports
    #[arg(long, value_name = "N", default_value_t = 8443, env = "LEASEHOLD_DEV_PORT", hide_env = true)]
    pub port: u16,
    #[command(subcommand)]
    pub command: Option<DevCommand>,
}

/// Commands to try inside a job. They use the job's credentials at the file server of `leasehold dev`.
#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Inside a job: prints a file of a dataset or model, or the list of a folder (the path ends in /).
    #[command(after_help = "\
Examples:
  leasehold run --spec job.toml -- leasehold dev fetch dataset:dev/data@v1/
  leasehold run --spec job.toml -- leasehold dev fetch dataset:dev/data@v1/tickets-0001.jsonl")]
    Fetch {
        /// For example dataset:dev/data@v1/tickets-0001.jsonl
        #[arg(value_name = "RESOURCE/PATH")]
        what: String,
    },
    /// Inside a job: stores stdin as a file of a checkpoint.
    #[command(after_help = "\
Examples:
  leasehold run --spec job.toml -- sh -c 'echo w | leasehold dev store checkpoint:dev/tuned/1.bin'")]
    Store {
        /// For example checkpoint:dev/tuned/step-100.bin
        #[arg(value_name = "RESOURCE/PATH")]
        what: String,
    },
}

impl DevArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            Some(DevCommand::Fetch { what }) => fetch(session, &what).await,
            Some(DevCommand::Store { what }) => store(session, &what).await,
            None => self.run_deployment(session).await,
        }
    }

    async fn run_deployment(self, session: &Session) -> Result<Exit, Failure> {
        let mut stops = Stops::listen()?;
        init_logging(&LogConfig {
            format: LogFormat::Text,
            level: tracing::level_filters::LevelFilter::WARN,
        });
        init_metrics();
        let dir = match self.dir {
            Some(dir) => dir,
            None => default_dir()?,
        };
        // The free ports stay reserved until the command ends.
        let free = match self.port {
            0 => Some(free_ports().map_err(|e| failed("no free ports were found on localhost", &e))?),
            _ => None,
        };
        let ports = free.as_ref().map_or_else(|| ports_from(self.port), |free| Ok(free.ports))?;
        let deployment = DevDeployment::set_up(&dir, self.data.as_deref(), ports, session.clock.clone())
            .map_err(|e| failed("the folder could not be set up", &chain(&e)))?;
        let deployment = Arc::new(deployment);
        let config = deployment.config().map_err(|e| failed("the configuration cannot be used", &e))?;
        let daemon = tokio::select! {
            daemon = Daemon::start(&config) => daemon.map_err(|e| not_started_here(&e))?,
            () = stops.stop() => return Ok(Exit::Ok),
        };
        let running = Running::start(&deployment, session.clock.clone())
            .await
            .map_err(|e| failed("the file server did not start", &chain(&e)))?;
        let file = session.contexts_file()?.to_owned();
        let mut contexts = Contexts::load(&file)?;
        let mine = contexts_of(&deployment)?;
        contexts.contexts.extend(mine.contexts);
        let before = contexts.current.take().filter(|before| mine.current.as_ref() != Some(before));
        contexts.current = mine.current;
        contexts.save(&file).map_err(|e| failed("the context could not be written", &e))?;
        running.verifier.ready().await;
        running.s3_verifier.ready().await;
        if session.for_programs() {
            session.print_item(&addresses(&deployment, &file))?;
        } else {
            print(&welcome(&deployment, &file, before.as_deref()))?;
        }
        // The file server is a client of the daemon. It stops first, so that it does not report a lost daemon.
        let clock = session.clock.clone();
        let stop_file_server = async move {
            tokio::select! {
                () = running.stop() => {}
                () = clock.sleep(SHUTDOWN) => {}
            }
        };
        let stopped = serve(daemon, stops, stop_file_server).await;
        Ok(match stopped {
            Stopped::InOrder => Exit::Ok,
            Stopped::Failed => Exit::Failure,
        })
    }
}

/// Makes the failure of a start. If a port is taken, the fix names --port, because `dev` has no configuration file.
fn not_started_here(error: &StartError) -> Failure {
    let mut failure = not_started(error);
    if let StartError::Listen { .. } = error {
        failure = failure.fix_instead("another `leasehold dev` may be running: stop it, or use other ports with --port N; --port 0 uses free ones");
    }
    failure
}

/// Makes the context `dev` of a deployment.
pub(super) fn contexts_of(deployment: &DevDeployment) -> Result<Contexts, Failure> {
    let id = deployment
        .id(Role::Daemon)
        .map_err(|e| failed("the SPIFFE IDs of this deployment are not valid", &e))?;
    let domain =
        deployment.domain().map_err(|e| failed("the SPIFFE IDs of this deployment are not valid", &e))?;
    let svid = |role: Role| SvidFiles { cert: deployment.cert(role), key: deployment.key(role) }.into();
    let context = Context {
        server: format!("localhost:{}", deployment.ports.grpc),
        server_id: id,
        bundles: BTreeMap::from([(domain, deployment.bundle())]),
        issuer: Some(format!("http://localhost:{}", deployment.ports.issuer)),
        login: None,
        identities: BTreeMap::from([
            (PrincipalKind::Workload, svid(Role::Trainer)),
            (PrincipalKind::Launcher, svid(Role::Launcher)),
            (PrincipalKind::Operator, svid(Role::Operator)),
            (PrincipalKind::Verifier, svid(Role::Files)),
        ]),
    };
    Ok(Contexts::with("dev", context))
}

/// Returns all addresses and paths, for programs.
fn addresses(deployment: &DevDeployment, contexts: &std::path::Path) -> Value {
    let Ports { grpc, issuer, probe, files, s3 } = deployment.ports;
    json!({
        "daemon": format!("localhost:{grpc}"), "trust_domain": TRUST_DOMAIN,
        "keys": format!("http://localhost:{issuer}/keys"), "probes": format!("http://localhost:{probe}/readyz"),
        "files": format!("https://localhost:{files}"), "s3": format!("localhost:{s3}"), "dataset": "dataset:dev/data@v1",
        "data": deployment.data.display().to_string(), "folder": deployment.root().display().to_string(),
        "context": "dev", "contexts": contexts.display().to_string(),
    })
}

/// Returns the text that is shown at the start. `before` is the context that was current before, if it was another context.
fn welcome(deployment: &DevDeployment, contexts: &std::path::Path, before: Option<&str>) -> Page {
    let back = before.map(|name| format!("; to go back: leasehold context use {name}")).unwrap_or_default();
    let root = deployment.root().display();
    let Ports { grpc, issuer, probe, files, s3 } = deployment.ports;
    let text = format!(
        "leasehold dev is ready. Stop it with Ctrl-C.

  daemon       localhost:{grpc}, trust domain {TRUST_DOMAIN}
  keys         http://localhost:{issuer}/keys
  probes       http://localhost:{probe}/readyz
  file server  https://localhost:{files}
  S3 gateway   localhost:{s3}, for s3://dev/data/ and the job file s3-job.toml
  dataset      dataset:dev/data@v1 is {data}
  folder       {root}
  context      dev, in {contexts}. It is the current one now{back}

Try in another terminal:

  leasehold whoami
  leasehold run --spec {root}/job.toml -- sh -c 'leasehold dev fetch dataset:dev/data@v1/; sleep 300'

Or, if you have the aws CLI or boto3 (they need no change):

  leasehold run --spec {root}/s3-job.toml -- aws s3 ls s3://dev/data/

While the command runs, try in a third terminal:

  leasehold lease list
  leasehold revoke job:$(leasehold job list --open --ids) --reason \"to see it end\"
  leasehold audit tail --from 1 --no-follow
",
        data = deployment.data.display(),
        contexts = contexts.display(),
    );
    Page::lines(text.lines())
}

fn default_dir() -> Result<PathBuf, Failure> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("XDG_DATA_HOME")
        .or_else(|| Some(var("HOME")?.join(".local/share")))
        .map(|data| data.join("leasehold/dev"))
        .ok_or_else(|| {
            Failure::usage("the path of the folder is not known: XDG_DATA_HOME and HOME are not set")
                .fix("name the folder with --dir")
        })
}

fn ports_from(grpc: u16) -> Result<Ports, Failure> {
    let next = |n: u16| {
        grpc.checked_add(n).ok_or_else(|| {
            Failure::usage(format!("--port {grpc} is too large: the next four ports are needed as well"))
        })
    };
    Ok(Ports { grpc, issuer: next(1)?, probe: next(2)?, files: next(3)?, s3: next(4)? })
}

/// How to reach one resource, from the wrapper's list of credentials.
struct FileAccess {
    token_file: PathBuf,
    audience: String,
    /// `HOST:PORT` of the server that has the resource.
    authority: String,
    path: String,
}

/// Splits `KIND:TENANT/NAME@VERSION/PATH`.
fn split(what: &str) -> Result<(ResourceName, String), Failure> {
    let mut parts = what.splitn(3, '/');
    let (tenant, name, path) = (parts.next(), parts.next(), parts.next());
    let resource = format!("{}/{}", tenant.unwrap_or_default(), name.unwrap_or_default());
    let resource = resource.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    Ok((resource, path.unwrap_or_default().to_owned()))
}

fn find_access(resource: &ResourceName) -> Result<FileAccess, Failure> {
    let outside = || {
        Failure::new(Exit::Failure, "this does not run inside a job: LEASEHOLD_CREDENTIALS is not set")
            .fix("run it inside a job: leasehold run --spec job.toml -- leasehold dev fetch …")
    };
    let index = std::env::var_os("LEASEHOLD_CREDENTIALS").ok_or_else(outside)?;
    let text = std::fs::read(&index).map_err(|_| {
        Failure::new(Exit::Ended, "the credentials of this job were removed: its access has ended")
    })?;
    let index: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| failed("the list of credentials cannot be read", &e))?;
    let list =
        |v: &serde_json::Value, key: &str| v.get(key).and_then(|l| l.as_array()).cloned().unwrap_or_default();
    let text =
        |v: &serde_json::Value, key: &str| v.get(key).and_then(|t| t.as_str()).unwrap_or_default().to_owned();
    for credential in list(&index, "credentials") {
        for r in list(&credential, "resources") {
            if text(&r, "resource") != resource.as_str() {
                continue;
            }
            let location: http::Uri = text(&r, "location")
                .parse()
                .map_err(|e| failed("the location of the resource cannot be read", &e))?;
            let authority = location.authority().map(ToString::to_string).unwrap_or_default();
            return Ok(FileAccess {
                token_file: text(&credential, "path").into(),
                audience: text(&credential, "audience"),
                authority,
                path: location.path().to_owned(),
            });
        }
    }
    Err(Failure::new(Exit::Denied, format!("this job has no credential for {resource}"))
        .fix("add it to the job file, under [[read]] or [[write]]"))
}

async fn fetch(session: &Session, what: &str) -> Result<Exit, Failure> {
    let (resource, path) = split(what)?;
    let access = find_access(&resource)?;
    let client = file_client(session, &access).await?;
    let token = read_token(&access.token_file).map_err(|e| failed("the credential cannot be read", &e))?;
    let download = client
        .get(&format!("{}{}", access.path, encode_path(&path)), &token)
        .await
        .map_err(|e| file_server_failure(&e))?;
    download.write_to(&mut tokio::io::stdout()).await.map_err(|e| file_server_failure(&e))?;
    Ok(Exit::Ok)
}

async fn store(session: &Session, what: &str) -> Result<Exit, Failure> {
    use tokio::io::AsyncReadExt;
    let (resource, path) = split(what)?;
    let access = find_access(&resource)?;
    let client = file_client(session, &access).await?;
    let mut bytes = Vec::new();
    tokio::io::stdin()
        .take(crate::limits::FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .await
        .map_err(|e| failed("stdin cannot be read", &e))?;
    let token = read_token(&access.token_file).map_err(|e| failed("the credential cannot be read", &e))?;
    let count = bytes.len();
    client
        .put(&format!("{}{}", access.path, encode_path(&path)), &token, bytes.into())
        .await
        .map_err(|e| file_server_failure(&e))?;
    note(&format!("stored {count} bytes as {what}"));
    Ok(Exit::Ok)
}

async fn file_client(session: &Session, access: &FileAccess) -> Result<FileClient, Failure> {
    let chosen = session.choose(&[PrincipalKind::Workload])?;
    let (_, source) = session.connector(&chosen)?;
    super::client::wait_for_identity(&*source, &*session.clock, session.identity_wait()).await?;
    let server = access.audience.parse().map_err(|e| failed("the audience is not a SPIFFE ID", &e))?;
    let endpoint =
        Endpoint::new(&access.authority, server).map_err(|e| failed("the location is not an address", &e))?;
    Ok(FileClient::new(Connector::new(source, session.clock.clone(), endpoint)))
}

fn file_server_failure(error: &crate::dev::ClientError) -> Failure {
    match error {
        crate::dev::ClientError::Refused(refusal) => refusal.clone().into(),
        e => failed("the request to the file server failed", &chain(e)),
    }
}

/// Makes a failure from a text and the error that caused it.
pub(super) fn failed(what: &str, e: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failure, format!("{what}: {e}"))
}

/// Joins an error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        line.push_str(": ");
        line.push_str(&e.to_string());
        cause = e.source();
    }
    line
}

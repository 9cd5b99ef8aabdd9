//! Implements `leasehold people`.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Exit, Failure, Session, parse, svid::print_written};
use crate::{name::TrustDomain, people::PeopleAuthority, plain};

/// Prepares a daemon for people who log in.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold people init-ca /etc/leasehold/people --trust-domain login.acme.example")]
pub struct PeopleArgs {
    #[command(subcommand)]
    command: PeopleCommand,
}

#[derive(Debug, Subcommand)]
enum PeopleCommand {
    /// Makes the CA that signs the certificates of people who log in.
    #[command(after_help = "\
Writes ca.pem and ca.key (mode 0600) into the directory, and overwrites nothing. In the daemon's
configuration, [people] names both with ca_cert and ca_key, and the same trust domain. Anyone who
reads ca.key can sign certificates of people, but they are of no use without a recorded login.

Examples:
  leasehold people init-ca /etc/leasehold/people --trust-domain login.acme.example")]
    InitCa(InitCaArgs),
}

#[derive(Debug, Args)]
struct InitCaArgs {
    /// The directory for the two files. It is created if it does not exist
    #[arg(value_name = "DIR", value_parser = parse::new_path)]
    dir: PathBuf,
    /// An unused trust domain: the part after spiffe:// in people's identities
    #[arg(long, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// How long the CA is valid
    #[arg(long, value_name = "SPAN", default_value = "5y", value_parser = humantime::parse_duration)]
    life: Duration,
}

/// The longest lifetime of the CA: ten years.
const LIFE_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

impl PeopleArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let PeopleCommand::InitCa(args) = self.command;
        if args.life > LIFE_MAX {
            return Err(Failure::usage("--life is longer than 10y").fix("write --life 10y or less"));
        }
        let now = session.now().wall;
        let made = PeopleAuthority::generate(&args.trust_domain, now, args.life)
            .map_err(|e| Failure::new(Exit::Failure, format!("no CA could be made: {e}")))?;
        let failed = |path: &Path, e: &std::io::Error| {
            let fix = match e.kind() {
                std::io::ErrorKind::AlreadyExists => "name another directory: this command overwrites no CA",
                _ => "name a directory that you may write",
            };
            Failure::new(Exit::Failure, format!("`{}` cannot be written: {e}", plain::path(path))).fix(fix)
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&args.dir)
            .map_err(|e| failed(&args.dir, &e))?;
        let (cert, key) = (args.dir.join("ca.pem"), args.dir.join("ca.key"));
        for (path, text, mode) in [(&key, made.key.as_str(), 0o600), (&cert, made.cert.as_str(), 0o644)] {
            let written =
                OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
                    file.write_all(text.as_bytes())?;
                    file.sync_all()
                });
            written.map_err(|e| failed(path, &e))?;
        }
        let (cert, key) = (plain::path(&cert), plain::path(&key));
        let value = json!({ "ca_cert": cert, "ca_key": key, "ends": now.plus(args.life).to_string() });
        let next = "Name both in [people] of the daemon's configuration: ca_cert and ca_key.";
        print_written(session, &value, [&cert, &key], next)
    }
}

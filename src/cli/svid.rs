//! Implements `leasehold svid`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    output::{Page, note, print},
    parse,
};
use crate::{dev, name::SpiffeId, written::span_text};

/// Issues identities (certificates) to try leasehold on one machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold svid mint spiffe://leasehold.test/trainer --ca lh/ca --out lh/svid/trainer")]
pub struct SvidArgs {
    #[command(subcommand)]
    command: SvidCommand,
}

#[derive(Debug, Subcommand)]
enum SvidCommand {
    /// Issues one certificate from the CA that `leasehold init` or `leasehold dev` made.
    #[command(after_help = "\
Do not use it in production: everyone who can read the key of the CA can become any identity of
its trust domain. A running daemon or wrapper loads replaced files within seconds.

Examples:
  leasehold svid mint spiffe://leasehold.test/daemon --ca lh/ca --out lh/svid/daemon --dns localhost
  leasehold svid mint spiffe://leasehold.test/people/ada --ca lh/ca --out ada --ttl 8h")]
    Mint(MintArgs),
}

#[derive(Debug, Args)]
struct MintArgs {
    /// The identity, for example spiffe://leasehold.test/trainer
    #[arg(value_name = "SPIFFE ID")]
    id: SpiffeId,
    /// The directory with root.pem and root.key
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Write PATH.pem and PATH.key, and replace existing files
    #[arg(long, value_name = "PATH", value_parser = parse::new_path)]
    out: PathBuf,
    /// How long the certificate is valid, at most 25h
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = parse::span)]
    ttl: Duration,
    /// Add a host name, for clients that check host names. Repeatable
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
}

const TTL_MAX: Duration = Duration::from_secs(25 * 3_600);

/// Returns the command that issues a certificate again, if `leasehold init` made its folder. In that case the CA is in `ca`,
/// beside the folder of the certificate.
pub(super) fn mint_command(cert: &Path, id: &SpiffeId) -> Option<String> {
    let ca = cert.parent()?.parent()?.join("ca");
    let is_ours = ca.join("root.key").is_file() && ca.join("root.pem").is_file();
    let out = cert.with_extension("");
    // The daemon's certificate contains a host name, for clients that compare host names.
    let dns = if out.file_name()? == "daemon" { " --dns localhost" } else { "" };
    is_ours.then(|| {
        format!("issue it again: leasehold svid mint {id} --ca {} --out {}{dns}", ca.display(), out.display())
    })
}

impl SvidArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let SvidCommand::Mint(args) = self.command;
        if args.ttl > TTL_MAX {
            return Err(Failure::usage(format!("{} is longer than 25h", span_text(args.ttl)))
                .fix("write --ttl 25h or less: daemons refuse certificates that last longer"));
        }
        let failed = |e: &dev::SetupError| {
            let cause = std::error::Error::source(e).map(|e| format!(": {e}")).unwrap_or_default();
            Failure::new(Exit::Failure, format!("{e}{cause}")).fix(
                "give the directory `ca` that `leasehold init` wrote, and an identity of its trust domain",
            )
        };
        let dns: Vec<&str> = args.dns.iter().map(String::as_str).collect();
        let now = session.now().wall;
        let svid = dev::mint(&args.ca, &args.id, &dns, args.ttl, now).map_err(|e| failed(&e))?;
        let (cert, key) = (args.out.with_added_extension("pem"), args.out.with_added_extension("key"));
        dev::write_svid(&svid, &cert, &key).map_err(|e| failed(&e))?;
        let ends = now.plus(args.ttl).to_string();
        let (cert, key) = (cert.display().to_string(), key.display().to_string());
        let value = json!({ "spiffe_id": args.id.as_str(), "cert": cert, "key": key, "ends": ends });
        print_written(session, &value, [&cert, &key], &format!("{} is valid until {ends}.", args.id))
    }
}

/// Prints the two files that a command wrote: a value for programs, or the paths and a note.
pub(super) fn print_written(
    session: &Session,
    value: &Value,
    files: [&str; 2],
    said: &str,
) -> Result<Exit, Failure> {
    if session.for_programs() {
        session.print_value(value)?;
    } else {
        print(&Page::lines(files))?;
        note(said);
    }
    Ok(Exit::Ok)
}

//! `leasehold svid`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session,
    output::{note, print_line},
    parse,
};
use crate::{dev, name::SpiffeId};

/// Issues SVIDs for trials.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold svid mint spiffe://leasehold.test/trainer --ca ./leasehold/ca --out ./leasehold/svid/trainer")]
pub struct SvidArgs {
    #[command(subcommand)]
    command: SvidCommand,
}

#[derive(Debug, Subcommand)]
enum SvidCommand {
    /// Issues one SVID from the authority that `leasehold init` or `leasehold dev` made. Offline.
    ///
    /// For trials on one machine: whoever can read the authority's key can be anyone in its trust domain. A daemon and a
    /// wrapper take up replaced files within seconds.
    #[command(after_help = "\
Examples:
  leasehold svid mint spiffe://leasehold.test/daemon --ca ./leasehold/ca --out ./leasehold/svid/daemon --dns localhost
  leasehold svid mint spiffe://leasehold.test/people/ada --ca ./leasehold/ca --out ./ada --ttl 8h")]
    Mint(MintArgs),
}

#[derive(Debug, Args)]
struct MintArgs {
    /// Whose it is.
    #[arg(value_name = "SPIFFE ID")]
    id: SpiffeId,
    /// The directory with root.pem and root.key.
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Where it is written: PATH.pem and PATH.key, in the place of what is there.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// How long it is good, at most 25h, which is what a daemon takes.
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = parse::span)]
    ttl: Duration,
    /// A host name for clients that look at one. May be repeated.
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
}

const TTL_MAX: Duration = Duration::from_secs(25 * 3_600);

impl SvidArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let SvidCommand::Mint(args) = self.command;
        if args.ttl > TTL_MAX {
            return Err(Failure::usage(format!(
                "{} is longer than 25h",
                humantime::format_duration(args.ttl)
            ))
            .fix("write --ttl 25h or less: daemons refuse SVIDs that last longer"));
        }
        let failed = |e: &dev::SetupError| {
            let cause = std::error::Error::source(e).map(|e| format!(": {e}")).unwrap_or_default();
            Failure::new(Exit::Failure, format!("{e}{cause}"))
                .fix("name the directory `ca` that `leasehold init` wrote, and an ID of its trust domain")
        };
        let dns: Vec<&str> = args.dns.iter().map(String::as_str).collect();
        let now = session.now().wall;
        let svid = dev::mint(&args.ca, &args.id, &dns, args.ttl, now).map_err(|e| failed(&e))?;
        let (cert, key) = (args.out.with_added_extension("pem"), args.out.with_added_extension("key"));
        dev::write_svid(&svid, &cert, &key).map_err(|e| failed(&e))?;
        let ends = now.plus(args.ttl).to_string();
        let (cert, key) = (cert.display().to_string(), key.display().to_string());
        if session.for_programs() {
            session.print_value(
                &json!({ "spiffe_id": args.id.as_str(), "cert": cert, "key": key, "ends": ends }),
            )?;
        } else {
            print_line(&cert)?;
            print_line(&key)?;
            note(&format!("{} is good until {ends}.", args.id));
        }
        Ok(Exit::Ok)
    }
}

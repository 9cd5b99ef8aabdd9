//! Implements `leasehold version`.

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    output::{fields, print},
};

/// Shows the version of this program. `leasehold whoami` shows the daemon's version.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold version
  leasehold version -o json | jq -r .version")]
pub struct VersionArgs {}

/// The package of the gRPC messages.
const API: &str = "leasehold.v1";

impl VersionArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let version = env!("CARGO_PKG_VERSION");
        let built = if cfg!(debug_assertions) { "debug" } else { "release" };
        let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
        if session.for_programs() {
            session.print_value(&json!({
                "version": version, "api": API, "platform": platform, "build": built, "tls": "1.3",
            }))?;
        } else {
            print(&fields([
                ("leasehold", version.to_owned()),
                ("api", format!("{API}, gRPC over TLS 1.3")),
                ("platform", platform),
                ("build", built.to_owned()),
            ]))?;
        }
        Ok(Exit::Ok)
    }
}

//! Implements `leasehold gateway`.

use std::path::PathBuf;

use clap::Args;

use super::{
    Exit, Failure, Session,
    serve::{ServerOptions, Stops, apply_options, not_started},
};
use crate::{
    config::GatewayConfig,
    daemon::{GatewayProcess, Stopped, init_logging},
};

/// Runs an S3 gateway on a machine without the daemon. It serves the objects that leases allow.
#[derive(Debug, Args)]
#[command(after_help = "\
See docs/gateway.md for the sections [daemon], [identity], [gateway] and [log]. SIGTERM stops it.
SIGHUP reads the catalog and identity files again; a file with a mistake changes nothing.

Examples:
  leasehold config check /etc/leasehold/gateway.toml
  leasehold gateway --config /etc/leasehold/gateway.toml")]
pub struct GatewayArgs {
    /// The configuration file. Paths in it are relative to its directory
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    server_options: ServerOptions,
}

impl GatewayArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut stops = Stops::listen()?;
        let mut config = GatewayConfig::load(&self.config)?.config;
        apply_options(&mut config.identity, session);
        init_logging(&config.log);
        let gateway = tokio::select! {
            gateway = GatewayProcess::start(&config) => gateway.map_err(|error| {
                not_started(&error).fix_instead("correct the mistakes that are listed above, and start again".to_owned()).saying("The gateway did not start.")
            })?,
            () = stops.stop() => return Ok(Exit::Ok),
        };
        tracing::info!(s3 = %gateway.address, s3_direct = gateway.direct.map(tracing::field::display), version = env!("CARGO_PKG_VERSION"), "ready");
        let (stopper, reload) = (gateway.stopper(), gateway.reloader());
        let signals = tokio::spawn(stops.until_stopped(stopper, reload));
        let stopped = gateway.run().await;
        signals.abort();
        Ok(match stopped {
            Stopped::InOrder => Exit::Ok,
            Stopped::Failed => Exit::Failure,
        })
    }
}

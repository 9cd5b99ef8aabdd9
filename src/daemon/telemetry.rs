//! Logs on stderr, metrics in the form of Prometheus.

use std::{
    env,
    ffi::OsStr,
    io::{self, IsTerminal},
    sync::OnceLock,
};

use metrics_exporter_prometheus::PrometheusHandle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::metrics;
use crate::config::{LogConfig, LogFormat};

/// The HTTP/2 library warns of each connection that breaks its rules, without saying whose it is: a client could fill the log.
const H2_ERRORS_ONLY: &str = "h2=error";

/// Sends the log to stderr. Once for each process; a second time changes nothing. `LEASEHOLD_LOG` overrules the level.
/// Coloured only at a terminal, and not if `NO_COLOR` is set: files and collectors get plain text.
pub fn init_logging(log: &LogConfig) {
    let filter = EnvFilter::try_from_env("LEASEHOLD_LOG").unwrap_or_else(|_| {
        let filter = EnvFilter::default().add_directive(log.level.into());
        let quiet = (log.level <= LevelFilter::INFO).then(|| H2_ERRORS_ONLY.parse().ok()).flatten();
        quiet.into_iter().fold(filter, EnvFilter::add_directive)
    });
    let registry = tracing_subscriber::registry().with(filter);
    let done = match log.format {
        LogFormat::Text => {
            let colored = colored(&io::stderr(), env::var_os("NO_COLOR").as_deref());
            registry
                .with(fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(colored))
                .try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(io::stderr)).try_init(),
    };
    drop(done);
}

/// Whether to colour the log: only at a terminal, and not if `NO_COLOR` is set and not empty (no-color.org).
fn colored(stderr: &impl IsTerminal, no_color: Option<&OsStr>) -> bool {
    stderr.is_terminal() && no_color.is_none_or(OsStr::is_empty)
}

/// Starts the metrics of this process. Later calls return the same handle.
pub fn init_metrics() -> Option<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE.get_or_init(metrics::install).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_to_a_file_or_with_no_color_has_no_escape_sequences() {
        let file = tempfile::tempfile().unwrap();
        assert!(!colored(&file, None));
        // Both ends stay open, because a terminal without its master does not work.
        let pair = nix::pty::openpty(None, None).unwrap();
        let terminal = &pair.slave;
        assert!(colored(terminal, None));
        assert!(colored(terminal, Some(OsStr::new(""))));
        assert!(!colored(terminal, Some(OsStr::new("1"))));
    }
}

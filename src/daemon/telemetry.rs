//! The log on stderr, and the metrics in the format of Prometheus.

use std::{
    env,
    ffi::OsStr,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

use metrics_exporter_prometheus::PrometheusHandle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::metrics;
use crate::{
    config::{LogConfig, LogFormat},
    plain,
    secret::redacted,
};

/// The HTTP/2 library warns about each connection that breaks its rules, without the name of the client. So a client
/// could fill the log.
const H2_ERRORS_ONLY: &str = "h2=error";

/// The S3 library logs each answer that is an error, and at lower levels headers with signatures. The gateway writes
/// its own log lines.
const NO_S3_LOG: &str = "s3s=off";

/// Sends the log to stderr. Call it once for each process: a second call changes nothing. `LEASEHOLD_LOG` overrides the
/// level. The log has colours only at a terminal, and not if `NO_COLOR` is set.
pub fn init_logging(log: &LogConfig) {
    let filter = EnvFilter::try_from_env("LEASEHOLD_LOG").unwrap_or_else(|_| {
        let filter = EnvFilter::default().add_directive(log.level.into());
        let quiet = (log.level <= LevelFilter::INFO).then(|| H2_ERRORS_ONLY.parse().ok()).flatten();
        quiet.into_iter().fold(filter, EnvFilter::add_directive)
    });
    let filter = NO_S3_LOG.parse().into_iter().fold(filter, EnvFilter::add_directive);
    let registry = tracing_subscriber::registry().with(filter);
    let done = match log.format {
        LogFormat::Text => {
            let colored = colored(&io::stderr(), env::var_os("NO_COLOR").as_deref());
            registry
                .with(
                    fmt::layer()
                        .with_writer(move || LogWriter { format: LogFormat::Text, colored })
                        .with_target(false)
                        .with_ansi(colored),
                )
                .try_init()
        }
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(|| LogWriter { format: LogFormat::Json, colored: false }))
            .try_init(),
    };
    drop(done);
}

/// The writer of the log on stderr. Each event is one line, texts that look like secrets are withheld, and control
/// characters are escaped.
struct LogWriter {
    format: LogFormat,
    colored: bool,
}

impl LogWriter {
    /// Returns the safe text of an event. `event` ends in a line break.
    fn safe(&self, event: &str) -> String {
        let mut out = match self.format {
            LogFormat::Json => plain::json(&redacted(event.trim_end_matches('\n'))).into_owned(),
            LogFormat::Text => self.safe_text(event.trim_end_matches('\n')),
        };
        out.push('\n');
        out
    }

    /// Makes a text safe, but keeps the colours of the log.
    fn safe_text(&self, event: &str) -> String {
        const COLOR: &str = "\u{1b}[";
        if !self.colored {
            return plain::message(event).into_owned();
        }
        let mut pieces = event.split(COLOR);
        let mut out = plain::message(pieces.next().unwrap_or_default()).into_owned();
        for piece in pieces {
            let color = piece
                .find('m')
                .filter(|end| piece.bytes().take(*end).all(|byte| byte.is_ascii_digit() || byte == b';'));
            let (color, text) = piece.split_at(color.map_or(0, |end| end + 1));
            match color {
                "" => out.push_str(&plain::message(&format!("{COLOR}{text}"))),
                color => out.extend([COLOR, color, &plain::message(text)]),
            }
        }
        out
    }
}

impl Write for LogWriter {
    /// Writes one complete event of the log.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = self.safe(&String::from_utf8_lossy(event));
        io::stderr().lock().write_all(text.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the log has colours: only at a terminal, and not if `NO_COLOR` is set and not empty (no-color.org).
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
    fn a_log_line_shows_no_token_and_moves_no_cursor() {
        let token = "ghp_0123456789abcdefABCDEF0123456789abcd";
        let plain = format!("WARN it failed why=`{token}`\u{202e}\nINFO all is well\n");
        let colored = format!("\u{1b}[33m WARN\u{1b}[0m why\u{1b}[2m=\u{1b}[0m{token}\u{1b}[2J\u{202e}\n");
        let json = format!("{{\"why\":\"{token} \u{202e}\"}}\n");
        for (format, is_colored, event) in [
            (LogFormat::Text, false, &plain),
            (LogFormat::Text, true, &colored),
            (LogFormat::Json, false, &json),
        ] {
            let line = LogWriter { format, colored: is_colored }.safe(event);
            assert!(!line.contains(token) && line.contains("not shown"), "{line}");
            assert!(!line.contains(['\u{202e}']) && !line.contains("\u{1b}[2J"), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
            assert_eq!(line.contains("\u{1b}[33m"), is_colored);
        }
        let read: serde_json::Value =
            serde_json::from_str(&LogWriter { format: LogFormat::Json, colored: false }.safe(&json)).unwrap();
        assert!(read["why"].as_str().unwrap().ends_with('\u{202e}'));
    }

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

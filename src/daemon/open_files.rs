//! How many files this process may have open: each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{config::RoomConfig, limits};

/// What is open beside connections: the ledger, identity files, the runtime's own.
const OTHERS: usize = 256;

/// Raises the soft limit on open files to what a configuration needs, as far as the hard limit allows. A shell starts a
/// process with 1,024, which handshakes of unknown callers could use up. In that case, no one else could connect, and the
/// ledger could not begin a segment. Logs a warning if the limit is still too low.
pub fn allow_open_files(room: &RoomConfig) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = wanted(room);
    let enough = wanted.min(hard).max(soft);
    if enough > soft
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, enough, hard)
    {
        tracing::warn!(soft, wanted, %error, "the limit on open files could not be raised");
    }
    if hard < wanted {
        tracing::warn!(
            limit = hard,
            wanted,
            "the limit on open files is below the bounds on connections: raise the hard limit (LimitNOFILE= of systemd), or lower \
             connections_max below [server]"
        );
    }
}

fn wanted(room: &RoomConfig) -> u64 {
    let files = [
        room.connections_max,
        room.connections_unknown_max,
        room.connections_operators_max,
        limits::CONNECTIONS_REFUSED_MAX,
        room.handshakes_max,
        limits::HANDSHAKES_WAITING_MAX,
        // Issuer and probes.
        limits::WEB_CONNECTIONS_MAX,
        limits::WEB_CONNECTIONS_MAX,
        OTHERS,
    ];
    files.into_iter().fold(0, |sum: u64, n| sum.saturating_add(n as u64))
}

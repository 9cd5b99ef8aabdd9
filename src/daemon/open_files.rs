//! The limit on open files of this process. Each connection is an open file.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{config::RoomConfig, limits};

/// The number of files that are open in addition to connections: the ledger, identity files, and the files of the
/// runtime.
const OTHERS: usize = 256;

/// The lowest number of connections that a limit on open files may allow without a warning.
const CONNECTIONS_FIT_MIN: u64 = 1_024;

/// The source of the bound on connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundFrom {
    /// The default. It may be lowered to the limit on open files.
    Default,
    /// The configuration file.
    File,
}

/// Raises the soft limit on open files to the number that a configuration needs, as far as the hard limit allows. A
/// shell starts a process with a limit of 1,024, and handshakes of unknown callers could use up so few files. Then
/// other callers could not connect, and the ledger could not begin a segment.
///
/// If the hard limit is too low, this lowers a default bound on connections to the number that fits. If fewer than
/// [`CONNECTIONS_FIT_MIN`] fit, or if the bound is from the configuration file, the bound stays, with a warning.
///
/// The bounds apply to one listener. `listeners` is the number of listeners with these bounds.
pub fn allow_open_files(room: &mut RoomConfig, from: BoundFrom, listeners: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let needed = wanted(room, listeners);
    let enough = needed.min(hard).max(soft);
    if enough > soft
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, enough, hard)
    {
        tracing::warn!(soft, wanted = needed, %error, "the limit on open files could not be raised");
    }
    if hard >= needed {
        return;
    }
    match fitting(room, hard, listeners).filter(|_| from == BoundFrom::Default) {
        Some(fitting) => {
            room.connections_max = fitting;
            room.connections_per_peer_max = room.connections_per_peer_max.min(fitting / 2);
            tracing::info!(
                limit = hard,
                connections_max = fitting,
                "the limit on open files bounds the connections"
            );
        }
        None => tracing::warn!(
            limit = hard,
            wanted = needed,
            "the limit on open files is below the bounds on connections: raise the hard limit (LimitNOFILE= of systemd), or lower \
             connections_max below [server]"
        ),
    }
}

/// Returns how many connections of known callers fit into the limit `hard`. `None` if fewer than [`CONNECTIONS_FIT_MIN`]
/// fit.
fn fitting(room: &RoomConfig, hard: u64, listeners: usize) -> Option<usize> {
    let others = wanted(&RoomConfig { connections_max: 0, ..room.clone() }, listeners);
    let left = hard.checked_sub(others)?.checked_div(listeners as u64)?;
    usize::try_from(left).ok().filter(|_| left >= CONNECTIONS_FIT_MIN)
}

fn wanted(room: &RoomConfig, listeners: usize) -> u64 {
    let of_one = [
        room.connections_max,
        room.connections_unknown_max,
        room.connections_operators_max,
        limits::CONNECTIONS_REFUSED_MAX,
        room.handshakes_max,
        limits::HANDSHAKES_WAITING_MAX,
        limits::HANDSHAKES_ENDING_MAX,
    ];
    // Issuer, probes, and the gateway's clients without an SVID.
    let others = [
        limits::WEB_CONNECTIONS_MAX,
        limits::WEB_CONNECTIONS_MAX,
        limits::GATEWAY_DIRECT_UNPROVEN_MAX,
        limits::GATEWAY_DIRECT_CONNECTIONS_MAX,
        OTHERS,
    ];
    let sum = |files: &[usize]| files.iter().fold(0, |sum: u64, n| sum.saturating_add(*n as u64));
    sum(&of_one).saturating_mul(listeners as u64).saturating_add(sum(&others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_bound_is_lowered_to_what_fits() {
        let room = RoomConfig {
            handshakes_max: 10,
            connections_max: 20_000,
            connections_per_peer_max: 10_000,
            connections_unknown_max: 10,
            connections_operators_max: 10,
            streams_per_connection_max: 1,
            requests_max: 1,
            requests_per_peer_max: 1,
            buffered_bytes_max: 1,
            buffered_bytes_per_peer_max: 1,
        };
        let fits = fitting(&room, 20_000, 1).unwrap();
        assert!(fits < 20_000);
        assert_eq!(wanted(&RoomConfig { connections_max: fits, ..room.clone() }, 1), 20_000);
        // A gateway has a listener with the same bounds.
        let with_gateway = fitting(&room, 20_000, 2).unwrap();
        assert!(with_gateway <= fits / 2);
        assert!(wanted(&RoomConfig { connections_max: with_gateway, ..room.clone() }, 2) <= 20_000);
        assert_eq!(fitting(&room, 1_024, 1), None);
    }
}

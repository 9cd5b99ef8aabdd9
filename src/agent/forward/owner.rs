//! Finds the user that a connection on this machine comes from.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// Returns the user of the process that opened a connection to us, from the kernel's tables of sockets.
///
/// `peer` is the address of the other end of the connection, and `own` is the address of our end. Returns `None` if the tables
/// do not contain the connection, or if the program has already closed it. For a closed connection, the kernel shows user 0 instead
/// of the program's user.
pub(super) fn user_of(peer: SocketAddr, own: SocketAddr) -> io::Result<Option<u32>> {
    let (SocketAddr::V4(peer), SocketAddr::V4(own)) = (peer, own) else { return Ok(None) };
    for (table, mapped) in [("/proc/self/net/tcp", false), ("/proc/self/net/tcp6", true)] {
        let text = match fs::read_to_string(table) {
            Ok(text) => text,
            // A machine without IPv6 has only the first table.
            Err(e) if e.kind() == io::ErrorKind::NotFound && mapped => continue,
            Err(e) => return Err(e),
        };
        let local = shown(*peer.ip(), peer.port(), mapped);
        let remote = shown(*own.ip(), own.port(), mapped);
        if let Some(user) = find(&text, &local, &remote) {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

/// Whether an address belongs to this machine.
pub(super) fn is_local(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V4(ip) if ip.is_loopback())
}

/// Writes an address as the tables do: each 32-bit word of the address in the byte order of this processor.
fn shown(ip: Ipv4Addr, port: u16, mapped: bool) -> String {
    let word = u32::from_ne_bytes(ip.octets());
    let mark = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    match mapped {
        false => format!("{word:08X}:{port:04X}"),
        // If a program uses an IPv6 socket, the table has the mapped form of the address.
        true => format!("{:08X}{:08X}{mark:08X}{word:08X}:{port:04X}", 0, 0),
    }
}

/// The state of a socket that both ends have open.
const ESTABLISHED: &str = "01";

/// Finds the user of the open socket with these two ends.
fn find(table: &str, local: &str, remote: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let ends = (words.next()?, words.next()?);
        let is_open = words.next()? == ESTABLISHED;
        let user = words.nth(3)?;
        (is_open && ends == (local, remote)).then(|| user.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use nix::unistd::geteuid;

    use super::*;

    // The kernel's tables name the user of a connection, also for a program that uses an IPv6 socket.
    #[test]
    fn the_kernel_names_the_user_of_a_connection() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        assert_eq!(user_of(peer, own).unwrap(), Some(geteuid().as_raw()));
        assert_eq!(
            user_of(own, peer).unwrap(),
            Some(geteuid().as_raw()),
            "the other end of the connection is ours too"
        );
        let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), own.port()));
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            let _client = TcpStream::connect(mapped).unwrap();
            let (_accepted, peer) = listener.accept().unwrap();
            assert_eq!(user_of(peer, own).unwrap(), Some(geteuid().as_raw()));
        }
        let absent = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        assert_eq!(user_of(absent, own).unwrap(), None);
        drop(client);
    }

    // A connection that its program has closed has no user. The kernel shows user 0 for it, and our user may be 0.
    #[test]
    fn a_closed_connection_has_no_user() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        drop(client);
        assert_eq!(user_of(peer, own).unwrap(), None);
        let closed = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                      \x20  0: 0100007F:C350 0100007F:1F90 05 00000000:00000000 00:00000000 00000000     0        0 0 1\n";
        assert_eq!(find(closed, "0100007F:C350", "0100007F:1F90"), None);
    }

    // The line of another connection does not match.
    #[test]
    fn both_ends_must_be_the_same() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     \x20  0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1001        0 7 1\n\
                     \x20  1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 8 1\n";
        assert_eq!(find(table, "0100007F:C350", "0100007F:1F90"), Some(1000));
        assert_eq!(find(table, "0100007F:1F90", "0100007F:C350"), Some(1001));
        assert_eq!(find(table, "0100007F:C350", "0100007F:1F91"), None);
        assert_eq!(find("", "a", "b"), None);
    }
}

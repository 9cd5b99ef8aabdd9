//! Finds the programs of others that a bench starts beside the daemon, and ports for them.

use std::{io, net::TcpListener, os::unix::fs::PermissionsExt, path::PathBuf};

/// Finds a program in PATH, or in the folders `elsewhere`.
pub(super) fn find_program(name: &str, elsewhere: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(elsewhere.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| {
        file.metadata().is_ok_and(|seen| seen.is_file() && seen.permissions().mode() & 0o111 != 0)
    })
}

/// Returns ports of this machine's loopback address that no program uses now.
pub(super) fn unused_ports<const N: usize>() -> Result<[u16; N], String> {
    let find = || {
        // All listeners stay until all ports are known, so the ports differ.
        let listeners = (0..N).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<Vec<_>, _>>()?;
        let mut ports = [0; N];
        for (port, listener) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        Ok(ports)
    };
    find().map_err(|e: io::Error| format!("there is no free port: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_a_folder_beside_path() {
        assert_eq!(find_program("no-such-program", &["/bin"]), None);
        assert!(find_program("sh", &["/bin"]).is_some_and(|file| file.ends_with("sh")));
    }

    #[test]
    fn unused_ports_differ() {
        let [one, other] = unused_ports().unwrap();
        assert!(one != other && one > 0 && other > 0, "{one} {other}");
    }
}

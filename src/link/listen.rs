//! Listening for connections.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::limits;

/// Listens on an address. A burst of connections waits in the kernel until it is accepted.
///
/// # Errors
///
/// The errors of the system: the address is in use, belongs to another machine, or requires a permission.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    // Without this option, a restart would wait until the kernel has forgotten the earlier connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::LISTEN_BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::{net::TcpStream, time::timeout};

    use super::*;

    // More connections than the usual 128 are made although no one accepts them yet.
    #[tokio::test]
    async fn a_burst_waits_until_it_is_accepted() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let burst = join_all((0..400).map(|_| TcpStream::connect(address)));
        let made = timeout(Duration::from_secs(30), burst).await.expect("the kernel dropped some");
        assert!(made.iter().all(Result::is_ok));
    }
}

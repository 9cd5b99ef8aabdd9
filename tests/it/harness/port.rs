//! A local address that no other process uses while a test runs, whether a process listens there or not.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A port that a socket holds without listening. The system gives it to no other process, neither as a free port nor for an
/// outgoing connection. A listener of the test may take it, close it, and take it again.
pub struct Port {
    _held: TcpSocket,
    pub address: SocketAddr,
}

impl Port {
    pub fn reserve() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        // Both sockets must set the option to share a port; the listener does as well.
        held.set_reuseaddr(true).unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = held.local_addr().unwrap();
        Port { _held: held, address }
    }
}

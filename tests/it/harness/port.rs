//! A local address that is nobody else's for as long as a test runs, whether somebody listens there or not.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A port that a socket without a listener holds: the system gives it to nobody, neither to who asks for any port nor to who
/// connects, and a listener that is to be found there may take it, go, and take it again.
pub struct Port {
    _held: TcpSocket,
    pub address: SocketAddr,
}

impl Port {
    pub fn reserve() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        // Both ends of the sharing must say so; whoever listens does.
        held.set_reuseaddr(true).unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = held.local_addr().unwrap();
        Port { _held: held, address }
    }
}

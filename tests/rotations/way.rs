//! A relay between a wrapper and its daemon. It reports when it is idle, so that the clock advances only between two
//! exchanges.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The relay.
pub struct Way {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    /// The number of chunks in both directions, and the direction of the last one.
    last: Mutex<(u64, Toward)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Toward {
    #[default]
    Client,
    Server,
}

impl Way {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let seen = way.seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let (client, server) = (client.into_split(), server.into_split());
                tokio::spawn(relay(client.0, server.1, seen.clone(), Toward::Server));
                tokio::spawn(relay(server.0, client.1, seen.clone(), Toward::Client));
            }
        });
        way
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of connections so far.
    pub fn made(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Waits until it is idle: the server sent the last chunk some time ago, or there was no chunk for longer.
    pub async fn quiet(&self) {
        const LOOK: Duration = Duration::from_millis(2);
        let (mut count, mut same) = (u64::MAX, 0);
        loop {
            tokio::time::sleep(LOOK).await;
            let (now, toward) = *self.seen.last.lock().unwrap();
            same = if now == count { same + 1 } else { 0 };
            count = now;
            if same >= if toward == Toward::Client { 4 } else { 100 } {
                return;
            }
        }
    }
}

async fn relay(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    seen: Arc<Seen>,
    toward: Toward,
) {
    let mut chunk = vec![0u8; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        {
            let mut last = seen.last.lock().unwrap();
            *last = (last.0 + 1, toward);
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

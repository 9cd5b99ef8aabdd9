//! The daemon as its own process: `leasehold serve`, with its log.

use std::{process::ExitStatus, sync::Arc};

use leasehold::{
    clock::Clock,
    link::{Connector, Endpoint},
    proto::v1,
    verify::{Verifier, VerifierSettings},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::watch,
};

use crate::harness::*;

/// The files of a daemon at one fixed address, for one process after the other.
pub struct Place {
    pub world: World,
    pub address: String,
    probe: Port,
    issuer: Port,
    _grpc: Port,
}

/// One run of the daemon. Dropping it kills the process.
pub struct Process {
    child: Child,
    log: watch::Receiver<Vec<String>>,
}

impl Place {
    pub fn new() -> Self {
        Self::with("")
    }

    /// The same with lines below `[lease]`.
    pub fn with(lease: &str) -> Self {
        Self::prepared(lease, "")
    }

    /// The same with lines below `[server]`.
    pub fn of_server(server: &str) -> Self {
        Self::prepared("", server)
    }

    fn prepared(lease: &str, server: &str) -> Self {
        let world = World::prepared(|setup| {
            setup.real_clock = true;
            setup.lease = lease.to_owned();
            setup.server = server.to_owned();
        });
        let (grpc, probe, issuer) = (Port::reserve(), Port::reserve(), Port::reserve());
        let address = grpc.address.to_string();
        let text = world
            .read("leasehold.toml")
            .replacen("grpc = \"127.0.0.1:0\"", &format!("grpc = \"{address}\""), 1)
            .replacen("probe = \"127.0.0.1:0\"", &format!("probe = \"{}\"", probe.address), 1)
            .replacen("listen = \"127.0.0.1:0\"", &format!("listen = \"{}\"", issuer.address), 1)
            // Small segments, so that the kills often come while one begins.
            .replacen("[ledger]\n", "[ledger]\nsegment = \"1MiB\"\n", 1);
        assert!(
            text.contains(&address) && text.contains(&probe.address.to_string()) && text.contains("segment")
        );
        world.write("leasehold.toml", &text);
        Place { world, address, probe, issuer, _grpc: grpc }
    }

    /// Starts a daemon; it is not ready yet.
    pub fn start(&self) -> Process {
        self.start_by(&[])
    }

    /// The same, run by another command.
    pub fn start_by(&self, before: &[&str]) -> Process {
        let words = before.iter().copied().chain([env!("CARGO_BIN_EXE_leasehold"), "serve", "--config"]);
        let words: Vec<&str> = words.collect();
        let mut child = plain(words[0])
            .args(&words[1..])
            .arg(self.world.file("leasehold.toml"))
            .stderr(std::process::Stdio::piped())
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (tell, log) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                tell.send_modify(|log: &mut Vec<String>| log.push(line));
            }
        });
        Process { child, log }
    }

    /// Starts a daemon and waits until it serves.
    pub async fn serve(&self) -> Process {
        let mut process = self.start();
        process.ready().await;
        process
    }

    pub fn connector(&self, id: &str) -> Connector {
        let endpoint = Endpoint::new(&self.address, DAEMON.parse().unwrap()).unwrap();
        let source = self.world.source(&self.world.svid(id));
        Connector::new(source, self.world.clock.clone(), endpoint)
    }

    /// A client that connects at its first call, and again whenever it must.
    pub fn client(&self, id: &str) -> Client {
        Client::new(id, self.world.svid(id), self.connector(id).channel())
    }

    pub fn verifier(&self) -> Verifier {
        Verifier::start(VerifierSettings {
            connector: self.connector(GATEWAY),
            audience: GATEWAY.parse().unwrap(),
            clock: self.world.clock.clone(),
        })
    }

    /// Where the daemon serves `/keys`.
    pub fn issuer(&self) -> std::net::SocketAddr {
        self.issuer.address
    }

    /// Where the daemon answers probes.
    pub fn probes(&self) -> std::net::SocketAddr {
        self.probe.address
    }

    pub fn clock(&self) -> Arc<dyn Clock> {
        self.world.clock.clone()
    }

    /// The answer of the probe listener. `None` if no process listens.
    pub async fn probe(&self, path: &str) -> Option<u16> {
        let address = self.probe.address;
        tokio::net::TcpStream::connect(address).await.ok()?;
        Some(self.world.http(address, path).await.0)
    }
}

impl Process {
    /// Waits until it says that it is ready, and returns its epoch.
    pub async fn ready(&mut self) -> u64 {
        let line = self.says(" ready ").await;
        let epoch = line.split(' ').find_map(|word| word.strip_prefix("epoch="));
        epoch.unwrap_or_else(|| panic!("no epoch in: {line}")).parse().unwrap()
    }

    /// Waits for a line of its log.
    pub async fn says(&mut self, what: &str) -> String {
        let mut log = self.log.clone();
        let found = soon(what, log.wait_for(|l| l.iter().any(|line| line.contains(what)))).await;
        match found {
            Ok(lines) => lines.iter().find(|l| l.contains(what)).unwrap().clone(),
            Err(_) => panic!("it ended before it said `{what}`:\n{}", self.log()),
        }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it was not waited for").try_into().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Kills it at once, and waits until it is gone.
    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        soon("the end of a killed daemon", self.child.wait()).await.unwrap();
    }

    /// Waits until it ends without a signal.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("the daemon to end", self.child.wait()).await.unwrap()
    }

    /// Stops it gracefully.
    pub async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.log());
    }
}

/// Waits until an ending is on disk. False if the daemon went away meanwhile.
pub async fn durable(operator: &Client, ending: &v1::Ending) -> bool {
    let request = v1::WaitDurableRequest { receipt: ending.receipt.clone() };
    ending.durable || operator.operators().wait_durable(request).await.is_ok()
}

//! Three namespaces behind a router, each with its own link.

use std::{path::Path, process::Command};

/// The sides of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Daemon,
    Member,
    Verifier,
}

impl Side {
    const ALL: [Side; 3] = [Side::Daemon, Side::Member, Side::Verifier];

    fn number(self) -> u8 {
        match self {
            Side::Daemon => 1,
            Side::Member => 2,
            Side::Verifier => 3,
        }
    }

    pub fn address(self) -> String {
        format!("10.77.{}.2", self.number())
    }

    fn router(self) -> String {
        format!("10.77.{}.1", self.number())
    }
}

/// The kind of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The router silently drops every packet in both directions.
    Silent,
    /// The link goes down at the side of the router.
    Down,
}

impl Cut {
    pub fn word(self) -> &'static str {
        match self {
            Cut::Silent => "silent",
            Cut::Down => "down",
        }
    }
}

/// The network. Dropping it removes all of its namespaces.
pub struct Network {
    prefix: String,
}

impl Network {
    pub fn lay() -> Self {
        let network = Network { prefix: format!("lh{}", std::process::id()) };
        let router = network.router();
        ip(&["netns", "add", &router]);
        ip(&["-n", &router, "link", "set", "lo", "up"]);
        for side in Side::ALL {
            let (name, port) = (network.name(side), network.port(side));
            ip(&["netns", "add", &name]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&[
                "-n", &router, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ]);
            ip(&["-n", &name, "addr", "add", &format!("{}/24", side.address()), "dev", "eth0"]);
            ip(&["-n", &router, "addr", "add", &format!("{}/24", side.router()), "dev", &port]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
            ip(&["-n", &router, "link", "set", &port, "up"]);
            ip(&["-n", &name, "route", "add", "default", "via", &side.router()]);
        }
        network.forward("all", true);
        network
    }

    /// Makes a command that runs on one side.
    pub fn command(&self, side: Side, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(side)]).arg(program);
        command.env_remove("LEASEHOLD_LOG").env_remove("LEASEHOLD_CONTEXT");
        command
    }

    pub fn cut(&self, side: Side, cut: Cut) {
        let (router, port) = (self.router(), self.port(side));
        match cut {
            Cut::Silent => {
                // Packets from there are not forwarded, and packets to there are discarded, without an ICMP error.
                self.forward(&port, false);
                ip(&["-n", &router, "route", "add", "blackhole", &format!("{}/32", side.address())]);
            }
            Cut::Down => ip(&["-n", &router, "link", "set", &port, "down"]),
        }
    }

    pub fn mend(&self, side: Side, cut: Cut) {
        let (router, port) = (self.router(), self.port(side));
        match cut {
            Cut::Silent => {
                ip(&["-n", &router, "route", "del", "blackhole", &format!("{}/32", side.address())]);
                self.forward(&port, true);
            }
            Cut::Down => ip(&["-n", &router, "link", "set", &port, "up"]),
        }
    }

    fn forward(&self, port: &str, on: bool) {
        let set = format!("echo {} >/proc/sys/net/ipv4/conf/{port}/forwarding", u8::from(on));
        ip(&["netns", "exec", &self.router(), "sh", "-c", &set]);
    }

    fn router(&self) -> String {
        format!("{}r", self.prefix)
    }

    fn name(&self, side: Side) -> String {
        format!("{}s{}", self.prefix, side.number())
    }

    fn port(&self, side: Side) -> String {
        format!("to{}", side.number())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in Side::ALL.map(|side| self.name(side)).iter().chain([&self.router()]) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().unwrap();
    assert!(done.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
}

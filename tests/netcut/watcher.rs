//! A verifier in its own process and namespace. It checks two tokens every 20 ms and reports each change.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use leasehold::{
    clock::{Clock, SystemClock},
    identity::{FileSource, IdentityFiles, X509Svid},
    internals::dev::{DevDeployment, Role},
    link::{Connector, Endpoint},
    name::{Action, Object, SpiffeId},
    token::Presenter,
    verify::{Verifier, VerifierSettings},
};

use crate::network::{Network, Side};

/// The result of a check of one token: accepted, or why it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The first token of the member.
    First(Result<(), String>),
    /// The present token of the member.
    Present(Result<(), String>),
}

impl Seen {
    pub const PRESENT_OPENS: Seen = Seen::Present(Ok(()));
}

#[derive(Clone, Debug)]
pub struct Change {
    /// Wall clock, in milliseconds.
    pub at: u64,
    pub seen: Seen,
}

pub struct Watcher {
    child: Child,
    lines: mpsc::Receiver<Change>,
    first: Result<(), String>,
    present: Result<(), String>,
}

const FOLDER: &str = "LEASEHOLD_NETCUT_FOLDER";
const SERVER: &str = "LEASEHOLD_NETCUT_SERVER";
const NOT_YET: &str = "not yet";

impl Watcher {
    pub fn start(network: &Network, house: &DevDeployment, folder: &Path) -> Self {
        let mut command = network.command(Side::Verifier, &std::env::current_exe().unwrap());
        command.args(["--exact", "watcher::the_verifier_of_the_test_beside", "--ignored", "--nocapture"]);
        command.env(FOLDER, folder);
        command.env(SERVER, format!("{}:{}", Side::Daemon.address(), house.ports.grpc));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let Some(change) = parse(&line) else { continue };
                if tx.send(change).is_err() {
                    return;
                }
            }
        });
        let not_yet = Err(NOT_YET.to_owned());
        Watcher { child, lines, first: not_yet.clone(), present: not_yet }
    }

    /// Waits for a result; returns at once if it is the present one.
    pub fn until(&mut self, what: &str, so: impl Fn(Seen) -> bool) -> Change {
        for seen in [Seen::First(self.first.clone()), Seen::Present(self.present.clone())] {
            if so(seen.clone())
                && !matches!(&seen, Seen::First(Err(w)) | Seen::Present(Err(w)) if w == NOT_YET)
            {
                return Change { at: 0, seen };
            }
        }
        loop {
            let change = self.lines.recv_timeout(Duration::from_secs(120));
            let change =
                change.unwrap_or_else(|_| panic!("not within 120 s: {what}; now {:?}", self.present));
            self.take(&change);
            if so(change.seen.clone()) {
                return change;
            }
        }
    }

    fn take(&mut self, change: &Change) {
        match &change.seen {
            Seen::First(seen) => self.first.clone_from(seen),
            Seen::Present(seen) => self.present.clone_from(seen),
        }
    }

    fn catch_up(&mut self) {
        while let Ok(change) = self.lines.try_recv() {
            self.take(&change);
        }
    }

    pub fn last_present(&mut self) -> Result<(), String> {
        self.catch_up();
        self.present.clone()
    }

    pub fn first_is_refused(&mut self) -> bool {
        self.catch_up();
        self.first.is_err()
    }

    /// Waits for the next change of the first token.
    pub fn next_of_first(&mut self, what: &str) -> Change {
        loop {
            let change = self.lines.recv_timeout(Duration::from_secs(120));
            let change = change.unwrap_or_else(|_| panic!("not within 120 s: {what}; now {:?}", self.first));
            self.take(&change);
            if matches!(change.seen, Seen::First(_)) {
                return change;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `AT first|present opens|CODE`
fn parse(line: &str) -> Option<Change> {
    let mut words = line.split(' ');
    let (at, which, state) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let state = if state == "opens" { Ok(()) } else { Err(state.to_owned()) };
    let seen = match which {
        "first" => Seen::First(state),
        "present" => Seen::Present(state),
        _ => return None,
    };
    Some(Change { at, seen })
}

/// The process of the verifier. It does nothing unless it is started for that.
#[test]
#[ignore = "the verifier of the other test, which starts it in a separate namespace"]
fn the_verifier_of_the_test_beside() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let server = std::env::var(SERVER).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(watch(&folder, &server));
}

async fn watch(folder: &Path, server: &str) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let house = folder.join("dev");
    let id = |name: &str| -> SpiffeId { format!("spiffe://dev.leasehold/{name}").parse().unwrap() };
    let svid = |role: Role, end: &str| house.join(format!("svid/{}.{end}", role.as_str()));
    let files = IdentityFiles {
        svid: Some((svid(Role::Files, "pem"), svid(Role::Files, "key"))),
        bundles: vec![("dev.leasehold".parse().unwrap(), house.join("ca/bundle.pem"))],
    };
    let source = Arc::new(FileSource::open(files, clock.clone()).unwrap());
    let connector = Connector::new(source, clock.clone(), Endpoint::new(server, id("daemon")).unwrap());
    let verifier =
        Verifier::start(VerifierSettings { connector, audience: id("files"), clock: clock.clone() });
    let (holder, data): (SpiffeId, Object) = (id("trainer"), "dataset:dev/data@v1".parse().unwrap());
    let holders = X509Svid::load(&svid(Role::Trainer, "pem"), &svid(Role::Trainer, "key")).unwrap();
    let presenter = Presenter::Svid { id: &holder, x5t_s256: Some(&holders.leaf().x5t_s256) };
    // The test harness has begun a line already.
    println!();
    let mut said = [String::new(), String::new()];
    loop {
        let present = std::fs::read_to_string(folder.join("path")).unwrap_or_default();
        let tokens = [("first", folder.join("first")), ("present", PathBuf::from(present))];
        for ((which, file), said) in tokens.iter().zip(&mut said) {
            let state = match std::fs::read_to_string(file) {
                Err(_) => "NO_TOKEN".to_owned(),
                Ok(token) => {
                    match verifier.check(token.trim(), presenter, &data, Action::ReadDataset).await {
                        Ok(_) => "opens".to_owned(),
                        Err(refusal) => refusal.reason.code().to_owned(),
                    }
                }
            };
            if *said != state {
                println!("{} {which} {state}", clock.now().wall.0);
                *said = state;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

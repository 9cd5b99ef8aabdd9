//! A daemon with its files: started, stopped, and started again on the same files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use leasehold::{
    clock::{Clock, SystemClock},
    identity::StaticSource,
    internals::{
        config::Config,
        daemon::{Daemon, StartError, Stopped},
    },
    link::{Alpn, Connector, Endpoint},
};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::{Authority, Client, Credentials, DAEMON, NOW, Port, Records, TestClock, eventually, soon};

const DOMAINS: [&str; 7] = [
    "leasehold.example",
    "k8s.acme.example",
    "hpc.acme.example",
    "people.acme.example",
    "k8s.globex.example",
    "people.globex.example",
    "people.platform.example",
];

/// The settings that a test changes before the daemon starts.
pub struct Setup {
    /// The catalog's files, by name.
    pub catalog: BTreeMap<&'static str, String>,
    /// Lines below `[lease]`.
    pub lease: String,
    /// Lines below `[server]`.
    pub server: String,
    /// Lines below `[policy]`.
    pub policy: String,
    /// Sections of the configuration in addition to the usual ones.
    pub more: String,
    /// Whether the daemon uses the clocks of this machine.
    pub real_clock: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let catalog = BTreeMap::from([
            ("acme.toml", include_str!("catalog/acme.toml").to_owned()),
            ("globex.toml", include_str!("catalog/globex.toml").to_owned()),
            ("platform.toml", include_str!("catalog/platform.toml").to_owned()),
        ]);
        Setup {
            catalog,
            lease: String::new(),
            server: String::new(),
            policy: String::new(),
            more: String::new(),
            real_clock: false,
        }
    }
}

/// One daemon and everything that it needs.
pub struct World {
    pub dir: TempDir,
    pub clock: Arc<dyn Clock>,
    manual: Option<Arc<TestClock>>,
    authorities: BTreeMap<String, Authority>,
    daemon: Option<Daemon>,
    /// The address at which it always listens, if the test sets one.
    port: Option<Port>,
}

impl World {
    /// A daemon with the usual files, on a clock that stands still.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The same with a change to its files.
    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut world = Self::prepared(change);
        world.restart().await;
        world
    }

    /// Writes all of the files, without starting the daemon.
    pub fn prepared(change: impl FnOnce(&mut Setup)) -> Self {
        super::log::capture();
        let mut setup = Setup::default();
        change(&mut setup);
        let manual = (!setup.real_clock).then(|| Arc::new(TestClock::new()));
        let clock: Arc<dyn Clock> = match &manual {
            Some(manual) => manual.clone(),
            None => Arc::new(SystemClock::new()),
        };
        let now = if setup.real_clock { clock.now().wall } else { NOW };
        let authorities: BTreeMap<String, Authority> =
            DOMAINS.iter().map(|d| ((*d).to_owned(), Authority::new(d, now))).collect();
        let world =
            World { dir: tempfile::tempdir().unwrap(), clock, manual, authorities, daemon: None, port: None };
        world.write_identity(&world.authority(DAEMON).svid(DAEMON, now));
        for (domain, authority) in &world.authorities {
            world.write(&format!("{domain}.pem"), &authority.pem);
        }
        fs::create_dir(world.file("catalog.d")).unwrap();
        for (name, text) in &setup.catalog {
            world.write(&format!("catalog.d/{name}"), text);
        }
        fs::create_dir(world.file("policy")).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy");
        for file in fs::read_dir(shipped).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), world.file("policy").join(file.file_name())).unwrap();
        }
        // As in `leasehold dev`, wrappers create their own jobs.
        world.write("policy/dev.cedar", include_str!("../../../src/dev/dev.cedar"));
        world.write("leasehold.toml", &config_text(&setup));
        world
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// The daemon's own SVID and all of its bundles come from a SPIFFE agent, from the next start on.
    pub fn identity_from(&self, uri: &str) {
        let text = self.read("leasehold.toml");
        let (from, to) = (text.find("cert = \"svid.pem\"").unwrap(), text.find("[policy]").unwrap());
        self.write("leasehold.toml", &format!("{}workload_api = \"{uri}\"\n{}", &text[..from], &text[to..]));
    }

    /// From the next start on, the daemon listens at one address, which no other process can take while the daemon is
    /// away.
    pub fn stays_where_it_is(&mut self) {
        let port = Port::reserve();
        let text = self.read("leasehold.toml");
        let grpc = "grpc = \"127.0.0.1:0\"";
        assert!(text.contains(grpc));
        self.write("leasehold.toml", &text.replacen(grpc, &format!("grpc = \"{}\"", port.address), 1));
        self.port = Some(port);
    }

    fn write_identity(&self, svid: &Credentials) {
        self.write("svid.pem", &svid.cert);
        self.write("svid.key", &svid.key);
        fs::set_permissions(self.file("svid.key"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Gives the daemon a new SVID, as SPIRE does half a life before the end of the old one.
    pub fn rotate(&self) {
        self.write_identity(&self.svid(DAEMON));
        self.daemon().reload();
    }

    // ---------- the daemon ----------

    pub fn config(&self) -> Config {
        Config::load(&self.file("leasehold.toml")).unwrap().config
    }

    /// Starts the daemon. Returns the error if it does not start.
    pub async fn try_start(&mut self) -> Result<(), StartError> {
        assert!(self.daemon.is_none(), "it runs already");
        let daemon = soon("a start", Daemon::start_with(&self.config(), self.clock.clone(), |_| {})).await?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Stops the daemon gracefully, if it runs, and starts it again on the same files.
    pub async fn restart(&mut self) {
        self.stop().await;
        if let Err(why) = self.try_start().await {
            panic!("the daemon does not start: {why} {why:?}");
        }
    }

    /// Stops the daemon gracefully, if it runs.
    pub async fn stop(&mut self) -> Option<Stopped> {
        let daemon = self.daemon.take()?;
        daemon.stopper().cancel();
        Some(soon("a stop", daemon.run()).await)
    }

    /// Waits until the daemon ends without being stopped.
    pub async fn ends_by_itself(&mut self) -> Stopped {
        soon("an end", self.daemon.take().expect("the daemon runs").run()).await
    }

    /// The running daemon.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("the daemon runs")
    }

    /// The manual clock.
    pub fn time(&self) -> &TestClock {
        self.manual.as_deref().expect("this test has a manual clock")
    }

    /// The manual clock, for an action that uses the clock itself.
    pub fn shared_time(&self) -> Arc<TestClock> {
        self.manual.clone().expect("this test has a manual clock")
    }

    // ---------- who calls ----------

    /// The authority of a SPIFFE ID's trust domain.
    pub fn authority(&self, id: &str) -> &Authority {
        let domain = id.strip_prefix("spiffe://").unwrap().split('/').next().unwrap();
        self.authorities.get(domain).unwrap_or_else(|| panic!("no authority for {id}"))
    }

    /// An SVID that is valid now.
    pub fn svid(&self, id: &str) -> Credentials {
        self.authority(id).svid(id, self.clock.now().wall)
    }

    pub fn source(&self, credentials: &Credentials) -> Arc<StaticSource> {
        credentials.source(self.authority(DAEMON), self.clock.now().wall)
    }

    pub fn connector(&self, credentials: &Credentials) -> Connector {
        let endpoint = Endpoint::new(&self.daemon().grpc.to_string(), DAEMON.parse().unwrap()).unwrap();
        Connector::new(self.source(credentials), self.clock.clone(), endpoint)
    }

    /// A client with its own connection.
    pub async fn client(&self, id: &str) -> Client {
        let credentials = self.svid(id);
        let connector = self.connector(&credentials);
        let channel: Channel = soon("a connection", connector.connected_channel())
            .await
            .unwrap_or_else(|why| panic!("{id} cannot connect: {why}"));
        Client::new(id, credentials, channel)
    }

    /// The same with a window of one kibibyte on each stream, so that the daemon cannot send more than the client
    /// reads.
    pub async fn narrow_client(&self, id: &str) -> Client {
        let credentials = self.svid(id);
        let connector = self.connector(&credentials);
        let dial = tower::service_fn(move |_: http::Uri| {
            let connector = connector.clone();
            async move { connector.connect(Alpn::Http2).await.map(|d| TokioIo::new(d.tls)) }
        });
        let endpoint =
            tonic::transport::Endpoint::from_static("https://narrow").initial_stream_window_size(1_024);
        let channel = soon("a connection", endpoint.connect_with_connector(dial)).await.unwrap();
        Client::new(id, credentials, channel)
    }

    /// An HTTP answer from one of the plain listeners: its status and its body.
    pub async fn http(&self, address: std::net::SocketAddr, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        tcp.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("an HTTP answer", tcp.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The value of a counter with this label, summed over all daemons of this process.
    pub async fn counted(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.http(self.daemon().probe, "/metrics").await;
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(label));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    // ---------- what is left behind ----------

    /// What a refused request must not change: records (except those of denials), jobs, leases, lowerings.
    pub async fn snapshot(&self) -> (Vec<String>, usize, usize, u64) {
        let broker = &self.daemon().broker;
        let records = self.records().await;
        let kinds = records.kinds().into_iter().filter(|k| *k != "denied").map(str::to_owned).collect();
        (kinds, broker.open_jobs(), broker.live_leases(), broker.fences().seq().0)
    }

    /// The ledger as an auditor reads it, after all records are on disk.
    pub async fn records(&self) -> Records {
        if let Some(daemon) = &self.daemon {
            let ledger = daemon.broker.ledger();
            eventually("the ledger", async || ledger.waiting() == (0, 0)).await;
        }
        Records::read(&self.file("state"))
    }

    /// Waits for records in the ledger, because the consequences of an ending are recorded after its answer.
    pub async fn recorded(&self, what: &str, mut has: impl FnMut(&Records) -> bool) -> Records {
        let mut records = self.records().await;
        eventually(what, async || {
            records = self.records().await;
            has(&records)
        })
        .await;
        records
    }
}

fn config_text(setup: &Setup) -> String {
    let bundles: Vec<String> = DOMAINS.iter().map(|d| format!("\"{d}\" = \"{d}.pem\"")).collect();
    format!(
        "[server]\ngrpc = \"127.0.0.1:0\"\nprobe = \"127.0.0.1:0\"\nstate = \"state\"\n{}\n\
         [issuer]\nurl = \"https://leasehold.example\"\nlisten = \"127.0.0.1:0\"\n\
         [identity]\ncert = \"svid.pem\"\nkey = \"svid.key\"\nbundles = {{ {} }}\n\
         [policy]\ndir = \"policy\"\ncatalog = \"catalog.d\"\n{}\n\
         [lease]\n{}\n\
         [ledger]\nfree_space_stop = \"1MiB\"\n{}",
        setup.server,
        bundles.join(", "),
        setup.policy,
        setup.lease,
        setup.more
    )
}

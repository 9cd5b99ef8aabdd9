//! Network cuts between the daemon and a member or a verifier: packets are dropped without a reset, or a link goes down. The
//! processes are real and run in network namespaces of this machine, behind their own router.
//!
//! Needs root and `ip`. `tests/interop/netcut/run` checks for both and runs this; `cargo test` does not.
#![allow(clippy::restriction, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

mod network;
#[path = "../it/harness/stopwatch.rs"]
#[allow(dead_code, reason = "other tests use all of it")]
mod stopwatch;
mod watcher;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use leasehold::{
    clock::{Clock, SystemClock},
    internals::{
        cli::{Context, Contexts, SvidFiles},
        dev::{DevDeployment, Role, free_ports},
    },
    limits::FEED_STALE,
    name::PrincipalKind,
};
use network::{Cut, Network, Side};
use stopwatch::Pressure;
use watcher::{Seen, Watcher};

/// The beats of this daemon: a window of 3 s instead of 15 s.
const BEAT: Duration = Duration::from_secs(1);
const LOST_AFTER: u32 = 3;
/// The time that is allowed after the window, for the next run of the reaper and for its notice.
const BEYOND: Duration = Duration::from_secs(1);
/// How long a cut lasts: longer than the window and the time to notice it.
const LASTS: Duration = Duration::from_secs(8);

/// Ends its process on drop, by its id.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Scene {
    network: Network,
    house: DevDeployment,
    folder: tempfile::TempDir,
    clock: Arc<dyn Clock>,
    _daemon: Started,
}

impl Scene {
    /// Starts a daemon in its namespace, with a context for clients from the others.
    fn set() -> Self {
        let network = Network::lay();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let folder = tempfile::tempdir().unwrap();
        let house = DevDeployment::set_up(
            &folder.path().join("dev"),
            None,
            free_ports().unwrap().ports,
            clock.clone(),
        )
        .unwrap();
        let file = house.path("leasehold.toml");
        let ours = |port: u16| format!("\"127.0.0.1:{port}\"");
        let text = fs::read_to_string(&file).unwrap();
        let listens = format!("\"{}:{}\"", Side::Daemon.address(), house.ports.grpc);
        let text = text.replacen(&ours(house.ports.grpc), &listens, 1)
            + &format!("\n[lease]\nbeat = \"{}s\"\nlost_after = {LOST_AFTER}\n", BEAT.as_secs());
        fs::write(&file, text).unwrap();
        let svid = |role| SvidFiles { cert: house.cert(role), key: house.key(role) }.into();
        let context = Context {
            server: format!("{}:{}", Side::Daemon.address(), house.ports.grpc),
            server_id: house.id(Role::Daemon).unwrap(),
            bundles: BTreeMap::from([(house.domain().unwrap(), house.bundle())]),
            issuer: None,
            login: None,
            identities: BTreeMap::from([
                (PrincipalKind::Workload, svid(Role::Trainer)),
                (PrincipalKind::Operator, svid(Role::Operator)),
            ]),
        };
        let contexts = BTreeMap::from([("cut".to_owned(), context)]);
        Contexts { current: Some("cut".into()), contexts, ..Default::default() }
            .save(&folder.path().join("contexts.toml"))
            .unwrap();
        let log = fs::File::create(folder.path().join("daemon.log")).unwrap();
        let mut serve = network.command(Side::Daemon, &program());
        serve.args(["serve", "--config"]).arg(&file).stderr(log).stdout(Stdio::null()).stdin(Stdio::null());
        let daemon = Started(serve.spawn().unwrap());
        Scene { network, house, folder, clock, _daemon: daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn now(&self) -> u64 {
        self.clock.now().wall.0
    }

    /// Starts a wrapper. Its command writes its first token, the path of the present one, and its process id.
    fn member(&self) -> Started {
        let folder = self.folder.path().display();
        let script = format!(
            "cp \"$LEASEHOLD_TOKEN_FILE_READING\" {folder}/first; echo $$ >{folder}/pid; \
             printf %s \"$LEASEHOLD_TOKEN_FILE_READING\" >{folder}/path.new; mv {folder}/path.new {folder}/path; \
             exec sleep 600"
        );
        let said = fs::File::create(self.path("member.log")).unwrap();
        let mut run = self.network.command(Side::Member, &program());
        run.args(["run", "--spec"]).arg(self.house.path("job.toml")).args(["--", "sh", "-c", &script]);
        run.env("LEASEHOLD_CONTEXTS", self.path("contexts.toml"));
        let run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        let run = Started(run);
        patient("the member has its credentials", || self.path("path").exists());
        run
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("member.log")).unwrap_or_default()
    }

    fn watcher(&self) -> Watcher {
        Watcher::start(&self.network, &self.house, self.folder.path())
    }

    fn operate(&self, words: &[&str]) -> String {
        let mut command = self.network.command(Side::Daemon, &program());
        command.args(words).env("LEASEHOLD_CONTEXTS", self.path("contexts.toml"));
        let done = command.output().unwrap();
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }
}

/// The binary under test.
fn program() -> PathBuf {
    std::env::var_os("LEASEHOLD").map_or_else(|| env!("CARGO_BIN_EXE_leasehold").into(), PathBuf::from)
}

fn patient(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..2_400 {
        if so() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("not within 120 s: {what}");
}

fn alive(pid: &Path) -> bool {
    let pid = fs::read_to_string(pid).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']) && !rest.is_empty())
}

/// The part of this time in which no process of this machine waited for a processor.
fn undisturbed(ms: u64, since: Pressure) -> Duration {
    Duration::from_millis(ms).saturating_sub(Pressure::now().since(since))
}

fn shown(ms: u64) -> String {
    format!("{:.2} s", Duration::from_millis(ms).as_secs_f64())
}

/// Cuts the member from the daemon, and measures the access of the member at a verifier.
fn cut_from_its_member(scene: &Scene, watcher: &mut Watcher, cut: Cut) -> String {
    watcher.until("the member's token opens", |seen| seen == Seen::PRESENT_OPENS);
    let window = BEAT * LOST_AFTER;
    let (at, pressure) = (scene.now(), Pressure::now());
    scene.network.cut(Side::Member, cut);
    let lost = watcher.until("its token is refused", |seen| matches!(seen, Seen::Present(Err(_))));
    let took = lost.at.saturating_sub(at);
    assert!(
        undisturbed(took, pressure) <= window + BEYOND,
        "{cut:?}: access ended only after {}",
        shown(took)
    );
    thread::sleep(LASTS);
    assert!(watcher.last_present().is_err(), "nothing comes back while the network is cut");
    let mended = scene.now();
    scene.network.mend(Side::Member, cut);
    let back = watcher.until("the member is back by itself", |seen| seen == Seen::PRESENT_OPENS);
    assert!(alive(&scene.path("pid")), "the command noticed nothing");
    assert!(watcher.first_is_refused(), "the token from before stays dead");
    format!(
        "member - daemon    {:<8} access ended after {}, back {} after the network",
        cut.word(),
        shown(took),
        shown(back.at.saturating_sub(mended))
    )
}

/// Cuts the verifier from the daemon, and measures what it accepts.
fn cut_from_its_verifier(scene: &Scene, watcher: &mut Watcher, cut: Cut) -> String {
    watcher.until("the member's token opens", |seen| seen == Seen::PRESENT_OPENS);
    let (at, pressure) = (scene.now(), Pressure::now());
    scene.network.cut(Side::Verifier, cut);
    let lost = watcher.until("the verifier refuses", |seen| matches!(seen, Seen::Present(Err(_))));
    let took = lost.at.saturating_sub(at);
    assert_eq!(lost.seen, Seen::Present(Err("FEED_STALE".to_owned())));
    assert!(
        undisturbed(took, pressure) <= FEED_STALE + BEYOND,
        "{cut:?}: refused only after {}",
        shown(took)
    );
    thread::sleep(LASTS);
    assert!(watcher.last_present().is_err(), "what is not known is refused");
    let mended = scene.now();
    scene.network.mend(Side::Verifier, cut);
    let back = watcher.until("the verifier knows again", |seen| seen == Seen::PRESENT_OPENS);
    format!(
        "verifier - daemon  {:<8} refused after {}, back {} after the network",
        cut.word(),
        shown(took),
        shown(back.at.saturating_sub(mended))
    )
}

// Proves law 30.
#[test]
#[ignore = "needs root and network namespaces: tests/interop/netcut/run"]
fn a_silent_network_ends_access_within_its_window() {
    let scene = Scene::set();
    let member = scene.member();
    let mut watcher = scene.watcher();
    let mut rows = Vec::new();
    for cut in [Cut::Silent, Cut::Down] {
        rows.push(cut_from_its_member(&scene, &mut watcher, cut));
        rows.push(cut_from_its_verifier(&scene, &mut watcher, cut));
    }

    // Revoked during the cut: the verifier never accepts that token again.
    let stolen = fs::read_to_string(scene.path("path")).unwrap();
    fs::copy(stolen, scene.path("first")).unwrap();
    watcher.until("the copied token opens", |seen| seen == Seen::First(Ok(())));
    scene.network.cut(Side::Verifier, Cut::Silent);
    watcher.until("the verifier refuses", |seen| seen == Seen::First(Err("FEED_STALE".to_owned())));
    let job = scene.operate(&["job", "list", "--open", "--ids"]);
    scene.operate(&["revoke", &format!("job:{job}"), "--reason", "while nobody hears"]);
    scene.network.mend(Side::Verifier, Cut::Silent);
    // The first answer for the token after the cut: it is never accepted in between.
    let end = watcher.next_of_first("it knows again");
    assert_eq!(end.seen, Seen::First(Err("REVOKED".to_owned())));
    patient("the wrapper ends its command", || scene.said().contains("access has ended (REVOKED)"));
    drop(member);
    println!(
        "\nbeats of {} s, lost after {LOST_AFTER}; stale after {} s",
        BEAT.as_secs(),
        FEED_STALE.as_secs()
    );
    for row in rows {
        println!("{row}");
    }
}

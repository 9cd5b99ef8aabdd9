//! `config check` and the start of the daemon find the same mistakes, and report all of them at once.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use leasehold::internals::daemon::StartError;
use rcgen::{CertificateParams, IsCa};

use crate::harness::*;

/// Returns whether `config check` succeeds, and its stderr.
fn checked(world: &World) -> (bool, String) {
    let file = world.file("leasehold.toml");
    let output =
        Command::new(env!("CARGO_BIN_EXE_leasehold")).args(["config", "check"]).arg(file).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

/// Checks that both refuse the configuration with these words.
async fn both_refuse(world: &mut World, words: &[&str]) {
    let (approved, said) = checked(world);
    assert!(!approved, "{words:?}: {said}");
    let fault = match world.try_start().await {
        Err(StartError::Faults(faults)) => faults.to_string(),
        other => panic!("{words:?}: {:?}", other.err()),
    };
    for word in words {
        assert!(said.contains(word), "`{word}` is not said by config check: {said}");
        assert!(fault.contains(word), "`{word}` is not said by the start: {fault}");
    }
}

fn real() -> World {
    World::prepared(|setup| setup.real_clock = true)
}

/// Writes a changed SVID for the daemon.
fn write_svid(world: &World, change: impl FnOnce(&mut CertificateParams)) {
    let svid = world.authority(DAEMON).issue(DAEMON, world.clock.now().wall, change);
    world.write("svid.pem", &svid.cert);
    world.write("svid.key", &svid.key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_starts_if_config_check_succeeds() {
    let mut world = real();
    let (approved, said) = checked(&world);
    assert!(approved, "{said}");
    world.try_start().await.unwrap();
    assert!(checked(&world).0, "it is good while its daemon runs, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_refuse_an_svid_that_no_client_accepts() {
    let from = |seconds: i64| time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    let mut world = real();
    write_svid(&world, |p| p.is_ca = IsCa::NoCa);
    both_refuse(&mut world, &["identity.cert", "X509-SVID section 4.1"]).await;
    write_svid(&world, |p| p.not_after = from(30 * 24 * 3_600));
    both_refuse(&mut world, &["at most 90000 are accepted"]).await;
    write_svid(&world, |p| (p.not_before, p.not_after) = (from(-200), from(-100)));
    both_refuse(&mut world, &["the SVID ended at"]).await;
    write_svid(&world, |p| (p.not_before, p.not_after) = (from(1_000), from(2_000)));
    both_refuse(&mut world, &["the SVID begins at", "compare the clocks"]).await;
    let stranger = Authority::new("leasehold.example", world.clock.now().wall);
    let svid = stranger.svid(DAEMON, world.clock.now().wall);
    world.write("svid.pem", &svid.cert);
    world.write("svid.key", &svid.key);
    both_refuse(&mut world, &["a signature of the chain is wrong"]).await;
    world.write("svid.key", &world.svid(DAEMON).key);
    both_refuse(&mut world, &["contains the key of another certificate"]).await;
    write_svid(&world, |_| {});
    assert!(checked(&world).0 && world.try_start().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mistakes_are_reported_at_once() {
    let mut world = real();
    fs::set_permissions(world.file("svid.key"), fs::Permissions::from_mode(0o644)).unwrap();
    write_svid(&world, |p| p.not_after = p.not_before + time::Duration::days(30));
    world.write("k8s.acme.example.pem", "");
    world.write("catalog.d/acme.toml", "[tenant.acme]\n[[principal]]\nmatch = \"x\"\n");
    world.write("policy/own.cedar", "permit (principal, action, resource);");
    let text = world.read("leasehold.toml");
    world.write("leasehold.toml", &text.replace("state = \"state\"", "state = \"/proc/self\""));
    let words = [
        "server.state: `/proc/self` cannot be written",
        "may be read by others (mode 0644)",
        "at most 90000 are accepted",
        "identity.bundles.\"k8s.acme.example\"",
        "contains no certificate",
        "acme.toml:3",
        "policy.dir: own.cedar:1",
    ];
    both_refuse(&mut world, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_mistake_fails_config_check_and_no_start() {
    let mut world = real();
    world.write("catalog.d/globex.toml", "[tenant.globex]\n[[principal]]\nmatch = \"x\"\n");
    let (approved, said) = checked(&world);
    assert!(!approved && said.contains("globex.toml:3") && said.contains("would start without"), "{said}");
    world.try_start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_refuses_peers_gets_a_warning() {
    let world = real();
    world.write("k8s.globex.example.pem", "{\"keys\": []}");
    let claims = world.read("catalog.d/platform.toml");
    let claims = claims.replace(
        "\"spiffe://hpc.acme.example/**\"",
        "\"spiffe://hpc.acme.example/**\", \"spiffe://nowhere.example/**\"",
    );
    world.write("catalog.d/platform.toml", &claims);
    let catalog = world.read("catalog.d/acme.toml");
    let more = "\n[[principal]]\nmatch = \"spiffe://nowhere.example/x\"\nkind = \"workload\"\nroles = [\"trainr\"]\n";
    world.write("catalog.d/acme.toml", &format!("{catalog}{more}"));
    let (approved, said) = checked(&world);
    assert!(approved, "{said}");
    for word in [
        "`k8s.globex.example` has no usable root (it lists none)",
        "`spiffe://nowhere.example/x` cannot connect, since the daemon has no roots of `nowhere.example`",
        "no rule mentions the role `trainr`: write `trainer`?",
    ] {
        assert!(said.contains(word), "`{word}` is not in {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_svid_that_the_catalog_gives_others_is_warned_of() {
    let world = real();
    let svid = world.svid(WORKER);
    world.write("svid.pem", &svid.cert);
    world.write("svid.key", &svid.key);
    let (approved, said) = checked(&world);
    assert!(approved, "{said}");
    assert!(said.contains(&format!("identity.cert: {WORKER} is a workload in the catalog")), "{said}");
    const SERVER: &str = "spiffe://k8s.globex.example/ns/data/sa/gateway";
    // The daemon verifies for the gateway that it has in it, and for no other audience.
    let svid = world.svid(SERVER);
    world.write("svid.pem", &svid.cert);
    world.write("svid.key", &svid.key);
    let said = checked(&world).1;
    assert!(said.contains(&format!("identity.cert: {SERVER} is a verifier in the catalog")), "{said}");
    let text = fs::read_to_string(world.file("leasehold.toml")).unwrap();
    let gateway = format!("{text}\n[gateway]\nlisten = \"127.0.0.1:0\"\naudience = \"{SERVER}\"\n");
    world.write("leasehold.toml", &gateway);
    let (approved, said) = checked(&world);
    assert!(approved && !said.contains("identity.cert"), "{said}");
}

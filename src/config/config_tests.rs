use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tracing::level_filters::LevelFilter;

use super::{file::Loaded, *};
use crate::{
    identity::{EndpointProfile, Pick},
    policy::Explain,
    written::Problems,
};

const LEAST: &str = r#"
[server]
state = "state"
[issuer]
url = "http://127.0.0.1:8444"
[identity]
cert = "svid.pem"
key = "svid.key"
bundles = { "td.example" = "bundle.pem" }
[policy]
dir = "policy"
catalog = "catalog.d"
"#;

fn read(text: &str) -> Result<Loaded<Config>, Problems> {
    Config::read(Path::new("/etc/x/leasehold.toml"), text)
}

fn problems(text: &str) -> Vec<String> {
    let errors = read(text).unwrap_err();
    errors.problems().iter().map(|p| format!("{}: {}", p.line, p.what)).collect()
}

#[test]
fn the_shipped_configuration_is_read_and_names_every_key() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/leasehold.toml");
    let loaded = Config::load(&file).unwrap();
    assert_eq!(loaded.defaults, [], "the shipped file names every key");
    let config = loaded.config;
    assert_eq!(config.server.grpc.port(), 8443);
    assert_eq!(config.identity.bundles.len(), 5);
    assert_eq!(config.ledger.free_space_stop_bytes, 5 << 30);
    assert!(matches!(config.issuer.listen, IssuerListen::Tls { .. }));
    assert_eq!(config.identity.federation.len(), 2);
    assert_eq!(config.paths().len(), 18);
    assert_eq!(config.notify.len(), 2);
}

#[test]
fn a_minimal_configuration_is_enough_and_names_its_defaults() {
    let loaded = read(LEAST).unwrap();
    let named: Vec<_> = loaded.defaults.iter().map(|d| format!("{} = {}", d.key, d.value)).collect();
    assert_eq!(
        named,
        [
            "server.grpc = \"0.0.0.0:8443\"",
            "server.probe = \"127.0.0.1:8445\"",
            "server.handshakes_max = 512",
            "server.connections_max = 20000",
            "server.connections_per_peer_max = 10000",
            "server.connections_unknown_max = 256",
            "server.connections_operators_max = 256",
            "server.streams_per_connection_max = 256",
            "server.requests_max = 4096",
            "server.requests_per_peer_max = 2048",
            "server.buffered_max = \"256MiB\"",
            "server.buffered_per_peer_max = \"32MiB\"",
            "issuer.listen = \"127.0.0.1:8444\"",
            "identity.max_svid_ttl = \"25h\"",
            "identity.wait = \"1m\"",
            "identity.outage_max = \"25h\"",
            "policy.source = \"files\"",
            "policy.explain = \"requester\"",
            "lease.token_ttl = \"5m\"",
            "lease.beat = \"5s\"",
            "lease.lost_after = 3",
            "lease.rejoin = \"1h\"",
            "lease.drain_read = \"10s\"",
            "ledger.segment = \"64MiB\"",
            "ledger.compress = true",
            "ledger.free_space_stop = \"1GiB\"",
            "ledger.rate_per_identity = 250",
            "ledger.rate_per_tenant = 1000",
            "log.format = \"text\"",
            "log.level = \"info\"",
        ]
    );
    let config = loaded.config;
    assert_eq!(config.lease.beat, Duration::from_secs(5));
    assert_eq!(config.log.level, LevelFilter::INFO);
    assert_eq!(config.policy.explain, Explain::Requester);
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config = read(LEAST).unwrap().config;
    let files = IdentityFrom::Files { cert: "/etc/x/svid.pem".into(), key: "/etc/x/svid.key".into() };
    assert_eq!(config.identity.from, files);
    let absolute = LEAST.replace("\"state\"", "\"/var/lib/l\"");
    assert_eq!(read(&absolute).unwrap().config.server.state, Path::new("/var/lib/l"));
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    let told = problems(
        r#"[server]
grpc = "example.org:8443"
stat = "x"
[issuer]
url = "http://issuer.example"
listen = "0.0.0.0:8444"
[identity]
workload_api = "unix://run/spire.sock"
cert = "svid.pem"
key = 5
bundles = { "TD" = "bundle.pem" }
[policy]
dir = "policy"
catalog = "catalog.d"
explain = "nobody"
[lease]
token_ttl = "100y"
lost_after = 0
[ledger]
segment = "256"
compress = "no"
[log]
level = true
[gateway]
listen = "0.0.0.0:9443"
"#,
    );
    insta::assert_snapshot!(told.join("\n"), @r#"
    1: server.state is missing: write state = "/var/lib/leasehold"
    2: server.grpc: `example.org:8443` is not an address: write IP:PORT, as "0.0.0.0:8443" or "[::]:8443"
    3: server.stat is not a key: write `state`, or remove it; the keys here are grpc, probe, state, handshakes_max, connections_max, connections_per_peer_max, connections_unknown_max, connections_operators_max, streams_per_connection_max, requests_max, requests_per_peer_max, buffered_max, buffered_per_peer_max
    5: issuer.url: `http://issuer.example` is plain HTTP: write https://
    6: issuer.listen: 0.0.0.0:8444 without issuer.cert and issuer.key would be plain HTTP on the network: write both, or listen on 127.0.0.1
    8: identity.workload_api is set beside identity.cert and identity.key: an SVID has one source, remove one
    8: identity.workload_api: `unix://run/spire.sock` names a host: write unix:///PATH, with three slashes and an absolute path
    10: identity.key: this is a whole number: write a text in quotes
    11: identity.bundles: `TD` is not a trust domain: a trust domain is made of a-z, 0-9, `.`, `-` and `_`, without a port or user
    15: policy.explain: `nobody` is not known: write one of requester, operators
    17: lease.token_ttl: `100y` is out of bounds: write 1s to 15m
    18: lease.lost_after: `0` is out of bounds: write a whole number from 1 to 60
    20: ledger.segment: `256` is not a size: write a whole number and KiB, MiB, GiB or TiB, as "1MiB"
    21: ledger.compress: this is a text: write true or false
    23: log.level: this is true or false: write a text in quotes
    24: gateway.audience is missing: write audience = "spiffe://hpc.acme.example/gateway", the name of an [[audience]] of the catalog
    "#);
}

#[test]
fn the_room_of_one_identity_is_a_share_of_the_room_of_all() {
    let room = |lines: &str| read(&LEAST.replace("[issuer]", &format!("{lines}[issuer]")));
    let config = room("connections_max = 10\nconnections_per_peer_max = 10\nrequests_per_peer_max = 1\n");
    let found = config.unwrap().config.server.room;
    assert_eq!((found.connections_max, found.connections_per_peer_max), (10, 10));
    assert_eq!((found.requests_max, found.requests_per_peer_max), (4_096, 1));
    let told = |lines: &str| {
        let errors = room(lines).unwrap_err();
        errors.problems().iter().map(|p| format!("{}: {}", p.line, p.what)).collect::<Vec<_>>()
    };
    // If only one of the two is set, the other one has its default.
    insta::assert_snapshot!(told("connections_max = 10\nrequests_per_peer_max = 5000\n").join("\n"), @"
    2: server.connections_per_peer_max is 10000, more than server.connections_max, which is 10: write at most 10
    5: server.requests_per_peer_max is 5000, more than server.requests_max, which is 4096: write at most 4096
    ");
    insta::assert_snapshot!(told("handshakes_max = 0\nstreams_per_connection_max = 1000001\n").join("\n"), @"
    4: server.handshakes_max: `0` is out of bounds: write a whole number from 1 to 1000000
    5: server.streams_per_connection_max: `1000001` is out of bounds: write a whole number from 1 to 1000000
    ");
}

#[test]
fn a_public_listener_without_a_certificate_is_refused() {
    let open = LEAST.replace("[identity]", "listen = \"0.0.0.0:8444\"\n[identity]");
    assert!(problems(&open)[0].contains("plain HTTP on the network"));
    let half = LEAST.replace("[identity]", "cert = \"c.pem\"\n[identity]");
    assert_eq!(problems(&half), ["6: issuer.cert is set and issuer.key is not: write issuer.key too"]);
    let both =
        LEAST.replace("[identity]", "listen = \"0.0.0.0:8444\"\ncert = \"c\"\nkey = \"k\"\n[identity]");
    assert!(read(&both).is_ok());
}

#[test]
fn trust_domains_must_name_the_domains_that_have_bundles() {
    let with = |list: &str| LEAST.replace("[policy]", &format!("trust_domains = [{list}]\n[policy]"));
    assert!(read(&with("\"td.example\"")).is_ok());
    assert_eq!(
        problems(&with("\"other.example\"")),
        [
            "10: identity.trust_domains: `other.example` has no bundle: write one, or remove it",
            "10: identity.trust_domains: `td.example` has a bundle and is not listed: list it, or remove trust_domains",
        ]
    );
    let no_bundle = LEAST.replace("bundles = { \"td.example\" = \"bundle.pem\" }", "bundles = {}");
    assert!(problems(&no_bundle)[0].contains("clients could not connect"));
}

#[test]
fn an_identity_from_an_agent_needs_its_socket_and_no_files() {
    let files = "cert = \"svid.pem\"\nkey = \"svid.key\"\nbundles = { \"td.example\" = \"bundle.pem\" }";
    let with = |lines: &str| LEAST.replace(files, lines);
    let from = |lines: &str| read(&with(lines)).unwrap().config.identity.from;
    let agent = |endpoint: Option<&str>, pick| IdentityFrom::WorkloadApi {
        endpoint: endpoint.map(|e| e.parse().unwrap()),
        pick,
    };
    let socket = "workload_api = \"unix:///run/spire/agent.sock\"";
    assert_eq!(from(socket), agent(Some("unix:///run/spire/agent.sock"), Pick::First));
    assert_eq!(from("workload_api = \"$SPIFFE_ENDPOINT_SOCKET\""), agent(None, Pick::First));
    assert_eq!(
        from(&format!("{socket}\nhint = \"broker\"")),
        agent(Some("unix:///run/spire/agent.sock"), Pick::Hint("broker".into()))
    );
    assert_eq!(
        from(
            "workload_api = \"tcp://127.0.0.1:8089\"\nspiffe_id = \"spiffe://td.example/l\"\ntrust_domains = [\"td.example\"]"
        ),
        agent(Some("tcp://127.0.0.1:8089"), Pick::Id("spiffe://td.example/l".parse().unwrap()))
    );
    let told = |lines: &str| problems(&with(lines)).join("\n");
    insta::assert_snapshot!(
        [
            told(""),
            told("workload_api = \"unix://run/a.sock\""),
            told("workload_api = \"/run/a.sock\""),
            told(&format!("{socket}\nhint = \"\"")),
            told(&format!("{socket}\nhint = \"a\"\nspiffe_id = \"spiffe://td.example/l\"")),
            told(&format!("{socket}\nsocket = \"x\"")),
            told(&format!("{socket}\nbundles = {{ \"a.example\" = \"a.pem\" }}\ntrust_domains = [\"td.example\"]")),
        ]
        .join("\n"),
        @r#"
    6: identity.cert is missing: write cert = "svid.pem" and key = "svid.key", or workload_api = "unix:///PATH" of a SPIFFE agent
    6: identity.bundles names no trust domain, so clients could not connect: write bundles = { "example.org" = "bundle.pem" }
    7: identity.workload_api: `unix://run/a.sock` names a host: write unix:///PATH, with three slashes and an absolute path
    7: identity.workload_api: `/run/a.sock` has no known scheme: write unix:///PATH or tcp://IP:PORT
    8: identity.hint: it is empty: write the hint of the registration entry
    9: identity.spiffe_id is set beside identity.hint: one of them picks the SVID, remove the other
    8: identity.socket is not a key: write one of workload_api, hint, spiffe_id, bundles, trust_domains, max_svid_ttl, wait, outage_max, or remove it
    9: identity.trust_domains: `a.example` has a bundle and is not listed: list it, or remove trust_domains
    "#
    );
}

#[test]
fn a_bundle_endpoint_is_written_in_full() {
    let with = |entries: &str| format!("{LEAST}{entries}");
    let spiffe = "[[federation]]\ntrust_domain = \"p.example\"\nprofile = \"https_spiffe\"\nurl = \"https://p.example/b\"\n\
                  endpoint_id = \"spiffe://p.example/s\"\nbundle = \"p.json\"\n";
    let web = "[[federation]]\ntrust_domain = \"w.example\"\nprofile = \"https_web\"\nurl = \"https://w.example/b\"\nca = \"web.pem\"\n";
    let [first, second] = &read(&with(&format!("{spiffe}{web}"))).unwrap().config.identity.federation[..]
    else {
        panic!("two")
    };
    let bundle = "/etc/x/p.json".into();
    assert_eq!(
        first.profile,
        EndpointProfile::Spiffe { id: "spiffe://p.example/s".parse().unwrap(), bundle }
    );
    assert_eq!(
        (second.profile.clone(), second.url.to_string()),
        (EndpointProfile::Web { ca: "/etc/x/web.pem".into() }, "https://w.example/b".to_owned())
    );
    let told = |entries: &str| problems(&with(entries)).join("\n");
    insta::assert_snapshot!(
        [
            told("[[federation]]\n"),
            told("[federation]\ntrust_domain = \"p.example\"\n"),
            told(&spiffe.replace("https://p", "http://p").replace("p.example/s", "P.example/s")),
            told(&spiffe.replace("https_spiffe", "https")),
            told(&spiffe.replace("https_spiffe", "https_web")),
            told(&format!("{}bundel = \"x\"\n", web.replace("web.pem", ""))),
            told(&format!("{spiffe}ca = \"x\"\n{web}{web}")),
            told(&web.replace("w.example\"", "td.example\"")),
        ]
        .join("\n"),
        @r#"
    13: federation.trust_domain is missing: write trust_domain = "partner.example"
    13: federation.url is missing: write url = "https://spire.partner.example/bundle"
    13: federation.profile is missing: write profile = "https_spiffe" or "https_web"
    13: federation: this is a table: write [[federation]] above each entry
    16: federation.url: `http://p.example/b` is not https: a bundle is fetched only over https; write url = "https://spire.partner.example/bundle"
    17: federation.endpoint_id: `spiffe://P.example/s` is not a SPIFFE ID: a trust domain is made of a-z, 0-9, `.`, `-` and `_`, without a port or user; write endpoint_id = "spiffe://partner.example/spire/server"
    15: federation.profile: `https` is not known: write one of https_spiffe, https_web
    13: federation.ca is missing: write ca = "/etc/ssl/certs/ca-certificates.crt", the authorities that may certify the host's name
    17: federation.endpoint_id is for https_spiffe: remove it, or change the profile
    18: federation.bundle is for https_spiffe: remove it, or change the profile
    17: federation.ca: is not a path: write one
    18: federation.bundel is not a key: write one of trust_domain, url, profile, ca, or remove it
    19: federation.ca is for https_web: remove it, or change the profile
    25: federation: `w.example` is listed twice: name each trust domain once
    13: federation: `td.example` has a bundle in identity.bundles too: a trust domain may have only one source, remove one of the two
    "#
    );
}

#[test]
fn two_listeners_never_share_an_address() {
    let same = LEAST.replace("[issuer]", "probe = \"127.0.0.1:8444\"\n[issuer]");
    assert_eq!(
        problems(&same),
        ["1: issuer.listen and server.probe are both 127.0.0.1:8444: write another port for one of them"]
    );
    let any = LEAST.replace(
        "[issuer]",
        "grpc = \"127.0.0.1:0\"\nprobe = \"127.0.0.1:0\"\n[issuer]\nlisten = \"127.0.0.1:0\"",
    );
    assert!(read(&any).is_ok(), "port 0 is another one each time");
}

#[test]
fn an_issuer_is_https_and_nothing_more_than_a_url() {
    for bad in [
        "leasehold.example.org",
        "http://leasehold.example.org",
        "https://leasehold.example.org/",
        "https://leasehold.example.org?x=1",
        "https://leasehold.example.org#f",
        "https://u@leasehold.example.org",
        "ftp://leasehold.example.org",
        "",
    ] {
        assert!(read(&LEAST.replace("http://127.0.0.1:8444", bad)).is_err(), "{bad}");
    }
    for good in
        ["https://leasehold.example.org", "https://x.example:8444/a", "http://localhost:1", "http://[::1]:2"]
    {
        assert!(read(&LEAST.replace("http://127.0.0.1:8444", good)).is_ok(), "{good}");
    }
}

#[test]
fn a_missing_file_or_one_without_toml_is_named() {
    assert!(problems("[server\ngrpc = 5")[0].starts_with("1: "));
    let twice = problems(&format!("{LEAST}dir = \"x\"\n"));
    assert_eq!(twice, ["13: it is not TOML: duplicate key `dir`"]);
    let gone = Config::load(Path::new("/nonexistent/l.toml")).unwrap_err().to_string();
    assert!(gone.starts_with("/nonexistent/l.toml: cannot be read"), "{gone}");
    assert!(problems("").len() >= 6, "nothing is configured by an empty file");
}

#[test]
fn a_key_that_others_may_read_is_refused_with_a_fix() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("svid.key");
    std::fs::write(&key, "k").unwrap();
    let path = ConfiguredPath { key: "identity.key".into(), path: key.clone(), wanted: PathUse::PrivateFile };
    for mode in [0o644, 0o660, 0o604] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(path.check(), Err(PathFault::OpenToOthers { mode }));
    }
    // A group may read a file of root, because a volume or a service manager may provide it.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(path.check().is_ok(), nix::unistd::Uid::effective().is_root());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(path.check(), Ok(()));
    let of =
        |path: &Path, wanted| ConfiguredPath { key: String::new(), path: path.to_owned(), wanted }.check();
    assert_eq!(of(&key, PathUse::Directory), Err(PathFault::NotADirectory));
    assert_eq!(of(folder.path(), PathUse::File), Err(PathFault::NotAFile));
    assert_eq!(of(&folder.path().join("new"), PathUse::State), Ok(()));
    assert!(of(&folder.path().join("a/b"), PathUse::State).is_err());
    // Even root cannot make a file in this directory.
    assert!(matches!(of(Path::new("/proc/self"), PathUse::State), Err(PathFault::Unwritable { .. })));
}

const PEOPLE: &str = r#"
[people]
trust_domain = "login.example"
ca_cert = "ca.pem"
ca_key = "ca.key"
issuer = "https://id.example/"
client_id = "leasehold"
"#;

#[test]
fn people_log_in_only_if_the_configuration_says_so() {
    assert!(read(LEAST).unwrap().config.people.is_none());
    let text = format!("{LEAST}{PEOPLE}[people.groups]\nb = \"B\"\na = \"A\"\n");
    let people = read(&text).unwrap().config.people.unwrap();
    let groups: Vec<_> = people.rules.groups.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(groups, ["b=B", "a=A"], "the order of the file is kept");
    assert_eq!((people.rules.life, people.rules.device_flow), (Duration::from_secs(8 * 3_600), false));
    assert_eq!(people.provider.issuer, "https://id.example/");
}

#[test]
fn each_mistake_about_people_is_reported() {
    let client = "client_id = \"leasehold\"";
    for (from, to, said) in [
        ("https://id.example/", "http://id.example", "is plain HTTP"),
        ("https://id.example/", "http://localhost:1", "is plain HTTP"),
        ("https://id.example/", "ftp://id.example", "is not a URL"),
        ("https://id.example/", "https://id.example/?a=b", "has more than an issuer may"),
        ("login.example", "td.example", "people need a separate trust domain"),
        (client, "client_id = \"\"", "people.client_id"),
        (client, "", "people.client_id is missing"),
        (client, "client_id = \"a\"\nsession = \"13h\"", "people.session"),
        (
            client,
            "client_id = \"a\"\nlisten = \"127.0.0.1:8444\"",
            "people.listen and issuer.listen are both 127.0.0.1:8444",
        ),
        (client, "client_id = \"a\"\n[people.groups]\nA = \"x\"", "is not the name of a group"),
        (client, "client_id = \"a\"\ndevice = true", "people.device is not a key"),
    ] {
        let found = problems(&format!("{LEAST}{}", PEOPLE.replace(from, to)));
        assert!(found.iter().any(|problem| problem.contains(said)), "{to}: {found:?}");
    }
    // Nothing else is wrong with such a file, so nothing else is reported.
    let notify = "[[notify]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/x\"\nsecret_file = \"s\"\nevents = [\"waiting\"]\ntenants = [\"*\"]\n";
    let gateway = "[gateway]\nlisten = \"nowhere\"\n";
    for (broken, at) in [
        (PEOPLE.replace(client, &format!("{client}\nsession = \"99h\"")), "people."),
        (PEOPLE.replace(client, &format!("{client}\ndevice = true")), "people."),
        (PEOPLE.replace("issuer", "isuer"), "people."),
        (gateway.to_owned(), "gateway"),
    ] {
        let found = problems(&format!("{LEAST}{broken}{notify}"));
        assert!(found.iter().all(|problem| problem.contains(at)), "{found:?}");
    }
    let glass = LEAST.replace("[policy]", "[policy]\nbreak_glass = [\"spiffe://login.example/ops\"]");
    let found = problems(&format!("{glass}{PEOPLE}"));
    assert!(found.iter().any(|problem| problem.contains("would have to log in first")), "{found:?}");
}

/// A webhook with these lines, and its mistakes.
fn webhook(lines: &str) -> Result<Vec<crate::notify::Webhook>, Vec<String>> {
    let text = format!("{LEAST}[[notify]]\n{lines}");
    match read(&text) {
        Ok(loaded) => Ok(loaded.config.notify),
        Err(_) => Err(problems(&text)),
    }
}

#[test]
fn a_webhook_hears_only_what_it_names() {
    use crate::notify::{LetterFormat, Occasion, TenantsHeard};
    let lines = "name = \"ops\"\nurl = \"http://127.0.0.1:9/x\"\nsecret_file = \"s\"\nevents = [\"lost\"]\n";
    let one = webhook(&format!("{lines}tenants = [\"acme\"]\n")).unwrap().remove(0);
    assert_eq!((one.format, one.name.as_str()), (LetterFormat::CloudEvents, "ops"));
    assert_eq!(one.occasions, [Occasion::Lost].into());
    assert_eq!(one.tenants, TenantsHeard::Only(["acme".parse().unwrap()].into()));
    assert_eq!(one.secret.as_deref(), Some(Path::new("/etc/x/s")));
    let all = webhook(&format!("{lines}tenants = [\"*\"]\n")).unwrap().remove(0);
    assert_eq!(all.tenants, TenantsHeard::All);
}

#[test]
fn each_mistake_in_a_webhook_says_what_to_write() {
    let refused = |lines: &str, parts: &[&str]| {
        let told = webhook(lines).unwrap_err().join("\n");
        assert!(parts.iter().all(|part| told.contains(part)), "{parts:?}: {told}");
        told
    };
    let missing = ["url is missing", "events is missing", "tenants is missing", "secret_file is missing"];
    refused("name = \"../x\"\n", &missing);
    let web = "name = \"a\"\nurl = \"https://h.example/\"\nevents = [\"lost\"]\ntenants = [\"*\"]\n";
    refused(web, &["ca is missing: write ca = ", "secret_file is missing: write secret_file = "]);
    let slack = web.replace("https://h.example/", "https://hooks.slack.com/services/T0/B0/hunter2");
    let told = refused(&format!("{slack}ca = \"c\"\nformat = \"slack\"\n"), &["url_file = \"FILE\""]);
    assert!(!told.contains("hunter2"), "{told}");
    refused(&web.replace("https://h.example", "http://h.example"), &["plain HTTP to another machine"]);
    refused(&web.replace("[\"*\"]", "[]"), &["the receiver would get no notices: write at least one"]);
    let good = "name = \"a\"\nurl = \"http://127.0.0.1/\"\nsecret_file = \"s\"\nevents = [\"lost\"]\ntenants = [\"*\"]\n";
    refused(&format!("{good}[[notify]]\n{good}"), &["notify `a` is there twice: write another name"]);
}

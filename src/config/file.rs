//! Reads the configuration file, section by section.

use std::{net::SocketAddr, ops::RangeInclusive, path::Path, time::Duration};

use tracing::level_filters::LevelFilter;

use super::{
    Config, DefaultUsed, IssuerConfig, IssuerListen, LeaseConfig, LedgerConfig, LogConfig, LogFormat,
    PolicyConfig, PolicyFrom, RoomConfig, ServerConfig, federation, identity, notify, people,
};
use crate::{
    gateway::GatewaySettings,
    ledger::Lost,
    limits::{
        BEAT, BREAK_GLASS_MAX, BUFFERED_BYTES_MAX, BUFFERED_BYTES_PER_PEER_MAX, CONNECTIONS_MAX,
        CONNECTIONS_OPERATORS_MAX, CONNECTIONS_PER_PEER_MAX, CONNECTIONS_UNKNOWN_MAX, DRAIN_GRACE_MAX,
        DRAIN_READ, FREE_SPACE_STOP, HANDSHAKES_MAX, JOB_DURATION_MAX, LEASE_TTL_DEFAULT, LEASE_TTL_MAX,
        LEDGER_SEGMENT_BYTES, LOST_AFTER, POLICY_SIGNATURES_MAX, RATE_PER_IDENTITY, RATE_PER_TENANT, REJOIN,
        REQUESTS_MAX, REQUESTS_PER_PEER_MAX, ROOM_MAX, STREAMS_PER_CONNECTION_MAX, TRUST_DOMAINS_MAX,
        TTL_MIN, WEBHOOKS_MAX,
    },
    name::SpiffeId,
    plain,
    policy::Explain,
    written::{
        Notes, Problems, Section, parse_toml, path, read_document, read_file, size, size_text, span,
        span_text,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A configuration that was read, and the defaults that it uses.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    pub config: C,
    pub defaults: Vec<DefaultUsed>,
}

impl Config {
    /// Reads a file. Relative paths in the file are relative to its folder.
    ///
    /// # Errors
    /// Every mistake in the file.
    pub fn load(path: &Path) -> Result<Loaded<Config>, Problems> {
        Self::read(path, &read_file(path)?)
    }

    /// Reads the text of a file.
    pub(super) fn read(path: &Path, text: &str) -> Result<Loaded<Config>, Problems> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let (config, defaults) =
            read_document(path, parse_toml(text), |root, notes| read_config(root, folder, notes))?;
        Ok(Loaded { config, defaults })
    }
}

/// Reads every section, even if another section has a mistake.
fn read_config(root: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<Config> {
    let server = server(root.section("server", notes), folder, notes);
    let issuer = issuer(root.section("issuer", notes), folder, notes);
    let federation =
        federation::read(root.list_of_sections("federation", TRUST_DOMAINS_MAX, notes), folder, notes);
    let identity = identity::read(root.section("identity", notes), federation, folder, notes);
    let policy = policy(root.section("policy", notes), folder, notes);
    let lease = lease(root.section("lease", notes), notes);
    let ledger = ledger(root.section("ledger", notes), folder, notes);
    let log = log(root.section("log", notes), notes);
    let has_gateway = root.has("gateway");
    let gateway = root.section_if_there("gateway", notes);
    let gateway = gateway.and_then(|table| GatewaySettings::read(table, folder, notes));
    let has_people = root.has("people");
    let people = root.section_if_there("people", notes).and_then(|table| people::read(table, folder, notes));
    let notify = notify::read(root.list_of_sections("notify", WEBHOOKS_MAX, notes), folder, notes);
    if has_gateway && gateway.is_none() || has_people && people.is_none() {
        return None; // their mistakes are noted
    }
    let config = Config {
        server: server?,
        issuer: issuer?,
        identity: identity?,
        policy: policy?,
        lease: lease?,
        ledger: ledger?,
        log: log?,
        gateway,
        people,
        notify: notify?,
    };
    people::check(&config, root.line_of("people"), notes);
    check_addresses(&config, root.line(), notes);
    Some(config)
}

fn server(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<ServerConfig> {
    let grpc = table.or("grpc", "0.0.0.0:8443", notes, address);
    let probe = table.or("probe", "127.0.0.1:8445", notes, address);
    let state = table.need("state", "\"/var/lib/leasehold\"", notes, |t| path(t, folder));
    let room = room(&mut table, notes);
    table.finish(notes);
    Some(ServerConfig { grpc: grpc?, probe: probe?, state: state?, room: room? })
}

fn room(table: &mut Section<'_>, notes: &mut Notes) -> Option<RoomConfig> {
    let handshakes = room_or(table, "handshakes_max", HANDSHAKES_MAX, notes);
    let connections = room_or(table, "connections_max", CONNECTIONS_MAX, notes);
    let connections_each = room_or(table, "connections_per_peer_max", CONNECTIONS_PER_PEER_MAX, notes);
    share(table, ["connections_per_peer_max", "connections_max"], connections, connections_each, notes);
    let unknown = room_or(table, "connections_unknown_max", CONNECTIONS_UNKNOWN_MAX, notes);
    let operators = room_or(table, "connections_operators_max", CONNECTIONS_OPERATORS_MAX, notes);
    let streams =
        table.count_or("streams_per_connection_max", 1..=ROOM_MAX, STREAMS_PER_CONNECTION_MAX, notes);
    let requests = room_or(table, "requests_max", REQUESTS_MAX, notes);
    let requests_each = room_or(table, "requests_per_peer_max", REQUESTS_PER_PEER_MAX, notes);
    share(table, ["requests_per_peer_max", "requests_max"], requests, requests_each, notes);
    let buffered = bytes_or(table, "buffered_max", BUFFERED_BYTES_MAX, notes);
    let buffered_each = bytes_or(table, "buffered_per_peer_max", BUFFERED_BYTES_PER_PEER_MAX, notes);
    share(table, ["buffered_per_peer_max", "buffered_max"], buffered, buffered_each, notes);
    Some(RoomConfig {
        handshakes_max: handshakes?,
        connections_max: connections?,
        connections_per_peer_max: connections_each?,
        connections_unknown_max: unknown?,
        connections_operators_max: operators?,
        streams_per_connection_max: streams?,
        requests_max: requests?,
        requests_per_peer_max: requests_each?,
        buffered_bytes_max: buffered?,
        buffered_bytes_per_peer_max: buffered_each?,
    })
}

/// Reads a bound on the concurrent work of the daemon.
fn room_or(table: &mut Section<'_>, key: &'static str, default: usize, notes: &mut Notes) -> Option<usize> {
    let default = u32::try_from(default).unwrap_or(u32::MAX);
    table.count_or(key, 1..=ROOM_MAX, default, notes).and_then(|n| usize::try_from(n).ok())
}

/// Reads an amount of memory. The minimum is 4 MiB: four of the largest messages in decoded form.
fn bytes_or(table: &mut Section<'_>, key: &'static str, default: usize, notes: &mut Notes) -> Option<usize> {
    const BOUNDS: RangeInclusive<u64> = 4 << 20..=1 << 40;
    let default = u64::try_from(default).unwrap_or(u64::MAX);
    let read = table.or(key, &size_text(default), notes, |t| size(t, BOUNDS));
    read.and_then(|bytes| usize::try_from(bytes).ok())
}

/// Refuses a bound for one caller that is larger than the bound for all callers, because it would have no effect.
fn share(
    table: &Section<'_>,
    [one, whole]: [&str; 2],
    all: Option<usize>,
    each: Option<usize>,
    notes: &mut Notes,
) {
    if let (Some(all), Some(each)) = (all, each)
        && each > all
    {
        let what =
            format!("server.{one} is {each}, more than server.{whole}, which is {all}: write at most {all}");
        notes.problem(table.line_of(one), what);
    }
}

fn issuer(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<IssuerConfig> {
    let url =
        table.need("url", "\"https://leasehold.example.org\", the iss of every token", notes, issuer_url);
    let address = table.or("listen", "127.0.0.1:8444", notes, address);
    let cert = table.text("cert", notes, |t| path(t, folder));
    let key = table.text("key", notes, |t| path(t, folder));
    table.finish(notes);
    let listen = match (table.has("cert"), table.has("key")) {
        (true, true) => Some(IssuerListen::Tls { address: address?, cert: cert?, key: key? }),
        (true, false) => {
            notes.problem(
                table.line_of("cert"),
                "issuer.cert is set and issuer.key is not: write issuer.key too",
            );
            None
        }
        (false, true) => {
            notes.problem(
                table.line_of("key"),
                "issuer.key is set and issuer.cert is not: write issuer.cert too",
            );
            None
        }
        (false, false) => match address? {
            a if a.ip().is_loopback() => Some(IssuerListen::Loopback(a)),
            a => {
                let what = format!(
                    "issuer.listen: {a} without issuer.cert and issuer.key would be plain HTTP on the network: \
                     write both, or listen on 127.0.0.1"
                );
                notes.problem(table.line_of("listen"), what);
                None
            }
        },
    };
    Some(IssuerConfig { url: url?, listen: listen? })
}

fn policy(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<PolicyConfig> {
    let dir = table.need("dir", "\"policy\"", notes, |t| path(t, folder));
    let catalog = table.need("catalog", "\"catalog.d\"", notes, |t| path(t, folder));
    let source = table.or("source", "files", notes, |t| match t {
        "files" => Ok(PolicyFrom::Files),
        "applied" => Ok(PolicyFrom::Applied),
        other => Err(one_of(other, &["files", "applied"])),
    });
    let explain = table.or("explain", "requester", notes, |t| match t {
        "requester" => Ok(Explain::Requester),
        "operators" => Ok(Explain::Operators),
        other => Err(one_of(other, &["requester", "operators"])),
    });
    let trusted_keys = table.list("trusted_keys", POLICY_SIGNATURES_MAX, notes, |t| path(t, folder));
    let break_glass = table.list("break_glass", BREAK_GLASS_MAX, notes, str::parse::<SpiffeId>);
    table.finish(notes);
    let break_glass = break_glass.into_iter().map(|id| id.value).collect();
    let trusted_keys = trusted_keys.into_iter().map(|key| key.value).collect();
    Some(PolicyConfig {
        source: source?,
        dir: dir?,
        catalog: catalog?,
        trusted_keys,
        explain: explain?,
        break_glass,
    })
}

fn lease(mut table: Section<'_>, notes: &mut Notes) -> Option<LeaseConfig> {
    let token_ttl =
        table.or("token_ttl", &span_text(LEASE_TTL_DEFAULT), notes, |t| span(t, TTL_MIN..=LEASE_TTL_MAX));
    let beat = table.or("beat", &span_text(BEAT), notes, |t| span(t, SECOND..=MINUTE));
    let lost_after = table.count_or("lost_after", 1..=60, LOST_AFTER, notes);
    let rejoin = table.or("rejoin", &span_text(REJOIN), notes, |t| span(t, TTL_MIN..=JOB_DURATION_MAX));
    let drain_read =
        table.or("drain_read", &span_text(DRAIN_READ), notes, |t| span(t, TTL_MIN..=DRAIN_GRACE_MAX));
    table.finish(notes);
    Some(LeaseConfig {
        token_ttl: token_ttl?,
        beat: beat?,
        lost_after: lost_after?,
        rejoin: rejoin?,
        drain_read: drain_read?,
    })
}

fn ledger(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<LedgerConfig> {
    let segment =
        table.or("segment", &size_text(LEDGER_SEGMENT_BYTES), notes, |t| size(t, 1 << 20..=16 << 30));
    let compress = table.truth_or("compress", true, notes);
    let stop =
        table.or("free_space_stop", &size_text(FREE_SPACE_STOP), notes, |t| size(t, 1 << 20..=1 << 40));
    let head_copy = table.text("head_copy", notes, |t| path(t, folder));
    let identity = table.count_or("rate_per_identity", 1..=ROOM_MAX, RATE_PER_IDENTITY, notes);
    let tenant = table.count_or("rate_per_tenant", 1..=ROOM_MAX, RATE_PER_TENANT, notes);
    if let (Some(identity), Some(tenant)) = (identity, tenant)
        && identity > tenant
    {
        let what = format!(
            "ledger.rate_per_identity is {identity}, more than ledger.rate_per_tenant: write at most {tenant}"
        );
        notes.problem(table.line_of("rate_per_identity"), what);
    }
    table.finish(notes);
    Some(LedgerConfig {
        segment_bytes: segment?,
        compress: compress?,
        free_space_stop_bytes: stop?,
        head_copy,
        rate_per_identity: identity?,
        rate_per_tenant: tenant?,
        lost: Lost::Refuse,
    })
}

pub(super) fn log(mut table: Section<'_>, notes: &mut Notes) -> Option<LogConfig> {
    let format = table.or("format", "text", notes, |t| match t {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(one_of(other, &["text", "json"])),
    });
    let level = table.or("level", "info", notes, |t| match t {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        other => Err(one_of(other, &["error", "warn", "info", "debug", "trace"])),
    });
    table.finish(notes);
    Some(LogConfig { format: format?, level: level? })
}

/// Refuses the same address for two listeners. Port 0 means a new port each time.
fn check_addresses(config: &Config, line: usize, notes: &mut Notes) {
    let all = config.addresses();
    for (i, (name, address)) in all.iter().enumerate() {
        for (other, _) in all.iter().skip(i + 1).filter(|(_, a)| a == address && a.port() != 0) {
            notes.problem(
                line,
                format!("{other} and {name} are both {address}: write another port for one of them"),
            );
        }
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "`{}` is not an address: write IP:PORT, as \"0.0.0.0:8443\" or \"[::]:8443\"",
            plain::value(text)
        )
    })
}

/// Reads an issuer: a URL with https and without query or fragment (RFC 8414 section 2); plain HTTP only on a loopback host.
fn issuer_url(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("`{}` {why}", plain::value(text));
    let uri: http::Uri =
        text.parse().map_err(|_| wrong("is not a URL: write https://HOST, with its port and path"))?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if loopback => {}
        Some("http") => return Err(wrong("is plain HTTP: write https://")),
        _ => return Err(wrong("is not a URL: write https://HOST")),
    }
    if uri.query().is_some()
        || text.contains('#')
        || uri.authority().is_some_and(|a| a.as_str().contains('@'))
    {
        return Err(wrong("has more than an issuer may: write only scheme, host, port and path"));
    }
    if text.ends_with('/') {
        return Err(wrong("ends in a slash, and verifiers compare it letter by letter: write it without"));
    }
    Ok(text.to_owned())
}

fn one_of(found: &str, words: &[&str]) -> String {
    format!("`{}` is not known: write one of {}", plain::value(found), words.join(", "))
}

//! The inspection of everything that the daemon reads when it starts. `leasehold config check` uses the same inspection,
//! so it always agrees with the daemon.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio_rustls::TlsAcceptor;

use super::rules;
use crate::{
    broker::KeptRules,
    broker::Rules,
    catalog::Catalog,
    clock::{Clock, Wall},
    config::{Config, ConfiguredPath, GatewayConfig, IdentityConfig, IdentityFrom, IssuerListen},
    gateway::{GatewaySettings, WebCertificate},
    identity::{BundleSource, EndpointProfile, LoadError, TrustBundles, X509Svid, web_client},
    ledger::Dir,
    limits,
    link::web_tls,
    name::{SpiffeId, TrustDomain},
    people::{
        AuthorityFault, IdentityProvider, People, PeopleAuthority, ProviderHttp, SpentTokens, has_https,
    },
};

/// The findings about one key of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The key in the file, for example `identity.key`.
    pub key: String,
    /// The path or address that the key means. If a private key's file does not exist, its path is not shown, because
    /// the value may be the key itself.
    pub means: String,
    /// Faults that prevent the start of a daemon.
    pub faults: Vec<String>,
    /// Mistakes of tenants. A daemon starts without the entries that they concern.
    pub mistakes: Vec<String>,
    /// Warnings that do not prevent the start.
    pub warnings: Vec<String>,
}

impl Look {
    /// Whether there are no faults and mistakes. There may be warnings.
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty() && self.mistakes.is_empty()
    }
}

/// All findings, in the order of the file, and the parts that the daemon needs when it starts.
pub struct Inspection {
    pub looks: Vec<Look>,
    rules: Option<Rules>,
    tls: Option<TlsAcceptor>,
    people: Option<People>,
    /// The daemon's own identity, if its SVID comes from files.
    own_id: Option<SpiffeId>,
}

/// The parts of an inspection that the daemon needs when it starts.
pub(super) struct StartParts {
    pub(super) rules: Rules,
    /// TLS of the issuer's listener, if it has TLS.
    pub(super) tls: Option<TlsAcceptor>,
    /// The settings for people who log in, if the configuration has them.
    pub(super) people: Option<People>,
}

/// All faults that prevent the start of a daemon, one line for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigFaults(pub Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration has mistakes that prevent the start")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n{fault}"))
    }
}

/// Reads every file that a configuration names, as the daemon does when it starts. Blocks.
pub fn inspect(config: &Config, clock: &Arc<dyn Clock>) -> Inspection {
    let looks = config.paths().iter().map(look_at_path).collect();
    let mut all = Inspection { looks, rules: None, tls: None, people: None, own_id: None };
    all.look_at_identity(&config.identity, clock);
    config.gateway.iter().for_each(|gateway| all.look_at_stores(gateway));
    all.look_at_issuer(config);
    all.look_at_people(config, clock.now().wall);
    all.look_at_webhooks(config, clock);
    all.look_at_rules(config);
    all
}

/// Reads every file that the configuration of a gateway names, as its start does. Blocks.
pub fn inspect_gateway(config: &GatewayConfig, clock: &Arc<dyn Clock>) -> Inspection {
    let looks = config.paths().iter().map(look_at_path).collect();
    let mut all = Inspection { looks, rules: None, tls: None, people: None, own_id: None };
    all.look_at_identity(&config.identity, clock);
    all.look_at_stores(&config.gateway);
    let catalog = Catalog::load(&config.catalog).or_else(|mistakes| {
        let look = all.look_mut("gateway.catalog");
        let lines = mistakes.iter().map(ToString::to_string);
        let catalog = Catalog::load_at_start(&config.catalog);
        match catalog {
            Ok(_) => look.mistakes.extend(lines),
            Err(_) if look.faults.is_empty() => look.faults.extend(lines),
            // The missing directory was reported before.
            Err(_) => {}
        }
        catalog
    });
    if let Ok(catalog) = &catalog {
        all.look_at_audience(&config.gateway, catalog);
        if let (Some(audience), Some(own)) = (catalog.audience(&config.gateway.audience), &all.own_id)
            && !audience.verifiers.contains(own)
        {
            let warning = format!(
                "{own} is not among the verifiers of {}: the daemon refuses it, so the gateway refuses every request",
                audience.name
            );
            all.look_mut("identity.cert").warnings.push(warning);
        }
    }
    all
}

impl Inspection {
    /// Returns each fault as `KEY: FAULT`.
    pub fn faults(&self) -> Vec<String> {
        self.lines(|look| &look.faults)
    }

    /// Returns each mistake of a tenant as `KEY: MISTAKE`.
    pub fn mistakes(&self) -> Vec<String> {
        self.lines(|look| &look.mistakes)
    }

    /// Returns each warning as `KEY: WARNING`.
    pub fn warnings(&self) -> Vec<String> {
        self.lines(|look| &look.warnings)
    }

    fn lines(&self, of: impl Fn(&Look) -> &Vec<String>) -> Vec<String> {
        let lines = |look: &'_ Look| {
            let key = look.key.clone();
            of(look).clone().into_iter().map(move |line| format!("{key}: {line}"))
        };
        self.looks.iter().flat_map(lines).collect()
    }

    /// Returns the parts that the daemon needs when it starts, or all faults and mistakes.
    pub(super) fn into_parts(self) -> Result<StartParts, ConfigFaults> {
        let (faults, mistakes) = (self.faults(), self.mistakes());
        match self.rules {
            Some(rules) if faults.is_empty() => Ok(StartParts { rules, tls: self.tls, people: self.people }),
            _ => Err(ConfigFaults(faults.into_iter().chain(mistakes).collect())),
        }
    }

    /// Tries each address. An address in use is only a warning, because the daemon may be running.
    pub fn look_at_ports(&mut self, config: &Config) {
        for (key, address) in config.addresses() {
            self.look_at_port(key, address, "leasehold serve");
        }
    }

    /// Tries one address on which `program` will listen.
    pub fn look_at_port(&mut self, key: &str, address: SocketAddr, program: &str) {
        let mut look = Look { key: key.to_owned(), means: address.to_string(), ..Look::default() };
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                look.warnings.push(format!(
                    "{address} is in use, perhaps because `{program}` is already running: a second one can start only when the first has stopped"
                ));
            }
            Err(e) => {
                look.faults
                    .push(format!("{address} cannot be used for a listener ({e}): write another address"));
            }
        }
        self.looks.push(look);
    }

    /// Checks whether another process uses the state directory. This is only a warning, because the daemon may be
    /// running.
    pub fn look_at_state(&mut self, config: &Config) {
        if let Some(holder) = Dir::at(&config.server.state).holder() {
            self.look_mut("server.state").warnings.push(format!(
                "a running daemon uses this folder ({holder}): if it is another daemon, set another server.state, because two \
                 daemons cannot share a ledger"
            ));
        }
    }

    fn look_mut(&mut self, key: &str) -> &mut Look {
        let index = self.looks.iter().position(|look| look.key == key).unwrap_or_else(|| {
            self.looks.push(Look { key: key.to_owned(), ..Look::default() });
            self.looks.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "it was found or pushed above")]
        &mut self.looks[index]
    }

    /// Whether a file exists. A missing file was reported with its path before.
    fn is_there(&self, key: &str, path: &Path) -> bool {
        path.is_file() && self.looks.iter().any(|look| look.key == key)
    }

    fn look_at_identity(&mut self, identity: &IdentityConfig, clock: &Arc<dyn Clock>) {
        let now = clock.now().wall;
        let roots = self.look_at_bundles(identity, now);
        self.look_at_svid(identity, &roots, now);
        self.look_at_endpoints(identity, clock);
    }

    fn look_at_bundles(&mut self, identity: &IdentityConfig, now: Wall) -> TrustBundles {
        let mut roots = TrustBundles::empty().with_svid_life_max(identity.max_svid_ttl);
        for (domain, path) in &identity.bundles {
            let key = format!("identity.bundles.\"{domain}\"");
            if !self.is_there(&key, path) {
                continue;
            }
            match roots.clone().with_file_at(domain.clone(), path, now) {
                Ok(more) => roots = more,
                Err(error) => self.look_mut(&key).faults.push(said(&error)),
            }
            let mine = format!("`{domain}`");
            let warnings = roots.warnings().into_iter().filter(|w| w.starts_with(&mine));
            self.look_mut(&key).warnings.extend(warnings);
        }
        roots
    }

    fn look_at_svid(&mut self, identity: &IdentityConfig, roots: &TrustBundles, now: Wall) {
        let IdentityFrom::Files { cert, key } = &identity.from else { return };
        if !self.is_there("identity.cert", cert) || !self.is_there("identity.key", key) {
            return;
        }
        match X509Svid::load(cert, key) {
            Err(error) if error.file == key.display().to_string() => {
                self.look_mut("identity.key").faults.push(said(&error));
            }
            Err(error) => self.look_mut("identity.cert").faults.push(said(&error)),
            Ok(svid) => {
                self.own_id = Some(svid.spiffe_id().clone());
                let look = self.look_mut("identity.cert");
                if let Err(why) = svid.verify(roots, now) {
                    look.faults
                        .push(format!("{}: every client would refuse this SVID: {why}", svid.spiffe_id()));
                } else if let Err(why) = svid.leaf().check_life(limits::SVID_LIFE_MAX) {
                    look.warnings.push(format!(
                        "{}: Leasehold's own clients refuse this SVID: {why}",
                        svid.spiffe_id()
                    ));
                }
            }
        }
    }

    fn look_at_endpoints(&mut self, identity: &IdentityConfig, clock: &Arc<dyn Clock>) {
        for endpoint in &identity.federation {
            let (path, kind) = match &endpoint.profile {
                EndpointProfile::Spiffe { bundle, .. } => (bundle, "bundle"),
                EndpointProfile::Web { ca } => (ca, "ca"),
            };
            let key = format!("federation.\"{}\".{kind}", endpoint.trust_domain);
            if !self.is_there(&key, path) {
                continue;
            }
            let opened = BundleSource::open(endpoint.clone(), Duration::MAX, Duration::MAX, clock.clone());
            if let Err(error) = opened {
                self.look_mut(&key).faults.push(said(&error));
            }
        }
    }

    fn look_at_issuer(&mut self, config: &Config) {
        let IssuerListen::Tls { cert, key, .. } = &config.issuer.listen else { return };
        if !self.is_there("issuer.cert", cert) || !self.is_there("issuer.key", key) {
            return;
        }
        match web_tls(cert, key) {
            Ok(acceptor) => self.tls = Some(acceptor),
            Err(fault) => self.look_mut(&format!("issuer.{}", fault.file)).faults.push(fault.what),
        }
    }

    fn look_at_people(&mut self, config: &Config, now: Wall) {
        let Some(people) = &config.people else { return };
        let is_plain = !has_https(&people.provider.issuer);
        if is_plain {
            let key = "people.issuer";
            self.look_mut(key).warnings.push(format!(
                "{} is plain HTTP: use it only for trials, because another program on this machine could pretend to be the provider",
                people.provider.issuer
            ));
        }
        if !self.is_there("people.ca_cert", &people.ca_cert)
            || !self.is_there("people.ca_key", &people.ca_key)
        {
            return;
        }
        let authority =
            match PeopleAuthority::load(&people.trust_domain, &people.ca_cert, &people.ca_key, now) {
                Ok(authority) => authority,
                Err(AuthorityFault::Cert(why)) => return self.look_mut("people.ca_cert").faults.push(why),
                Err(AuthorityFault::Key(why)) => return self.look_mut("people.ca_key").faults.push(why),
            };
        let ca = people.provider_ca.as_ref().map(std::fs::read).transpose();
        let http = match ca
            .map_err(|e| e.to_string())
            .map(|ca| ProviderHttp::new(&people.provider.issuer, ca.as_deref()))
        {
            Ok(Ok(http)) => http,
            Ok(Err(why)) => return self.look_mut("people.issuer_ca").faults.push(why.to_string()),
            Err(why) => return self.look_mut("people.issuer_ca").faults.push(why),
        };
        self.people = Some(People {
            domain: people.trust_domain.clone(),
            authority,
            provider: IdentityProvider::new(http, people.provider.clone()),
            rules: people.rules.clone(),
            spent: SpentTokens::default(),
            began: now,
        });
    }

    /// Reads the files of each webhook, as a delivery does.
    fn look_at_webhooks(&mut self, config: &Config, clock: &Arc<dyn Clock>) {
        for webhook in &config.notify {
            let key = |key: &str| format!("notify.\"{}\".{key}", webhook.name);
            for fault in webhook.faults() {
                let look = self.look_mut(&key(fault.key));
                // A missing file was reported with its path before.
                if look.faults.is_empty() {
                    look.faults.push(format!("`{}` {}", look.means, fault.what));
                }
            }
            if let Some(ca) = &webhook.ca
                && self.is_there(&key("ca"), ca)
                && let Err(error) = web_client(Some(ca), clock.clone())
            {
                self.look_mut(&key("ca")).faults.push(said(&error));
            }
        }
    }

    fn look_at_audience(&mut self, gateway: &GatewaySettings, catalog: &Catalog) {
        let look = self.look_mut("gateway.audience");
        look.means = gateway.audience.to_string();
        match catalog.audience(&gateway.audience) {
            Some(_) => look.warnings.extend(gateway.warnings(catalog)),
            None => look.warnings.push(format!(
                "the catalog has no [[audience]] named {}: the gateway refuses every request until it has",
                gateway.audience
            )),
        }
    }

    /// Opens the stores as the daemon does when it starts, unless a fault of their files was reported before.
    fn look_at_stores(&mut self, gateway: &GatewaySettings) {
        if let Some(WebCertificate { cert, key }) = gateway.direct.as_ref().map(|direct| &direct.certificate)
            && self.is_there("gateway.direct_cert", cert)
            && self.is_there("gateway.direct_key", key)
            && let Err(fault) = web_tls(cert, key)
        {
            self.look_mut(&format!("gateway.direct_{}", fault.file)).faults.push(fault.what);
        }
        let is_noted = self.looks.iter().any(|look| look.key.starts_with("gateway.store") && !look.is_ok());
        if let Some(fault) = gateway.open_stores().err().filter(|_| !is_noted) {
            self.look_mut("gateway.store").faults.push(fault.to_string());
        }
    }

    fn look_at_rules(&mut self, config: &Config) {
        let read = rules::read_all(&config.policy, &KeptRules::at(&config.server.state), None);
        self.look_mut("policy.catalog").faults.extend(read.catalog_faults);
        self.look_mut("policy.catalog").mistakes.extend(read.catalog_mistakes);
        self.look_mut("policy.dir").faults.extend(read.policy_faults);
        if let Some(rules) = &read.rules {
            let catalog = rules.catalog();
            if let Some(own) = self.own_id.clone()
                && let Some(entry) = catalog.principal(&own)
                && !is_own_gateway(config, catalog, &own)
            {
                let is = entry.kind.with_article();
                self.look_mut("identity.cert").warnings.push(format!(
                    "{own} is {is} in the catalog ({}): give the daemon an SVID that no other program has, because a program with this \
                     SVID could pretend to be the daemon",
                    entry.declared_at
                ));
            }
            self.look_mut("policy.catalog").warnings.extend(catalog.warnings().to_vec());
            self.look_mut("policy.catalog").warnings.extend(strangers(config, rules));
            let domain = config.people.as_ref().map(|people| &people.trust_domain);
            self.look_mut("policy.catalog").warnings.extend(rules::nameless_people(catalog, domain));
            if let Some(gateway) = &config.gateway {
                self.look_at_audience(gateway, catalog);
            }
            self.look_mut("policy.dir").warnings.extend(rules.engine.warnings().to_vec());
            self.look_mut("policy.dir").warnings.extend(rules.engine.gaps());
        }
        self.rules = read.rules;
    }
}

/// Whether the daemon has a gateway, and the catalog names the daemon's own identity as the verifier of the gateway's
/// audience and of no other audience.
fn is_own_gateway(config: &Config, catalog: &Catalog, own: &SpiffeId) -> bool {
    let audiences: Vec<_> = catalog.audiences_of_verifier(own).map(|audience| &audience.name).collect();
    config.gateway.as_ref().is_some_and(|gateway| audiences == [&gateway.audience])
}

fn look_at_path(path: &ConfiguredPath) -> Look {
    let mut look = Look { key: path.key.clone(), means: path.shown(), ..Look::default() };
    if let Err(fault) = path.check() {
        look.faults.push(format!("`{}` {fault}", look.means));
    }
    look
}

/// Returns a line for each catalog entry whose identities cannot connect, because the daemon has no source for the roots
/// of their trust domain.
fn strangers(config: &Config, rules: &Rules) -> Vec<String> {
    let identity = &config.identity;
    let has_roots = |domain: &TrustDomain| {
        let is_allowed = identity.trust_domains.as_ref().is_none_or(|allowed| allowed.contains(domain));
        let is_fetched = identity.federation.iter().any(|endpoint| endpoint.trust_domain == *domain);
        let is_of_people = config.people.as_ref().is_some_and(|people| people.trust_domain == *domain);
        let is_from_agent = matches!(identity.from, IdentityFrom::WorkloadApi { .. });
        is_of_people || is_allowed && (is_from_agent || is_fetched || identity.bundles.contains_key(domain))
    };
    let strangers = rules.catalog().principals().filter(|p| !has_roots(p.pattern.trust_domain()));
    let said = |p: &Arc<crate::catalog::Principal>| {
        format!(
            "{}: `{}` cannot connect, since the daemon has no roots of `{}`: add its bundle below identity.bundles",
            p.declared_at,
            p.pattern,
            p.pattern.trust_domain()
        )
    };
    strangers.map(said).collect()
}

fn said(error: &LoadError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}

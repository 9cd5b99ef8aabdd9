//! The configuration of a gateway without a daemon: `leasehold gateway --config FILE`.

use std::path::{Path, PathBuf};

use super::{
    IdentityConfig, LogConfig, federation,
    file::{self, Loaded},
    identity,
};
use crate::{
    gateway::GatewaySettings,
    limits::TRUST_DOMAINS_MAX,
    link::Endpoint,
    name::SpiffeId,
    written::{Notes, Problems, Section, parse_toml, path, read_document, read_file},
};

/// The configuration of a gateway process. Paths are absolute, or relative to the working directory of the process.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The section `[daemon]`: the daemon whose fence feed the gateway follows.
    pub daemon: Endpoint,
    /// The sections `[identity]` and `[[federation]]`.
    pub identity: IdentityConfig,
    /// The section `[gateway]`.
    pub gateway: GatewaySettings,
    /// `gateway.catalog`: a directory with the catalog's files.
    pub catalog: PathBuf,
    /// The section `[log]`.
    pub log: LogConfig,
}

impl GatewayConfig {
    /// Reads a file. Relative paths in the file are relative to its folder.
    ///
    /// # Errors
    /// Every mistake in the file.
    pub fn load(path: &Path) -> Result<Loaded<Self>, Problems> {
        let (text, folder) = (read_file(path)?, path.parent().unwrap_or(Path::new("")));
        let read = read_document(path, parse_toml(&text), |root, notes| read_sections(root, folder, notes));
        read.map(|(config, defaults)| Loaded { config, defaults })
    }

    /// Whether a file is for a gateway process, not for a daemon: it has a section `[daemon]` and no section
    /// `[server]`.
    pub fn is_in(path: &Path) -> bool {
        let Ok(text) = read_file(path) else { return false };
        let mut is_gateway = false;
        // The mistakes of the file are reported when it is loaded.
        let _ = read_document(path, parse_toml(&text), |root, _| {
            is_gateway = root.has("daemon") && !root.has("server");
            Some(())
        });
        is_gateway
    }
}

/// Reads every section, even if another section has a mistake.
fn read_sections(root: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<GatewayConfig> {
    let daemon = daemon(root.section("daemon", notes), notes);
    let federation =
        federation::read(root.list_of_sections("federation", TRUST_DOMAINS_MAX, notes), folder, notes);
    let identity = identity::read(root.section("identity", notes), federation, folder, notes);
    let mut table = root.section("gateway", notes);
    let catalog = table.need("catalog", "\"catalog.d\"", notes, |text| path(text, folder));
    let gateway = GatewaySettings::read(table, folder, notes);
    let log = file::log(root.section("log", notes), notes);
    Some(GatewayConfig {
        daemon: daemon?,
        identity: identity?,
        gateway: gateway?,
        catalog: catalog?,
        log: log?,
    })
}

fn daemon(mut table: Section<'_>, notes: &mut Notes) -> Option<Endpoint> {
    let id =
        table.need("spiffe_id", "\"spiffe://hpc.acme.example/leasehold\"", notes, str::parse::<SpiffeId>);
    let address = table.need("address", "\"leasehold.acme.example:8443\"", notes, |text| {
        // The daemon's ID is not known here yet, so only the address is checked.
        let any = "spiffe://example.org/daemon".parse::<SpiffeId>().map_err(|error| error.to_string())?;
        Endpoint::new(text, any).map_err(|error| error.to_string())?;
        Ok::<_, String>(text.to_owned())
    });
    table.finish(notes);
    Endpoint::new(&address?, id?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<GatewayConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        assert!(GatewayConfig::is_in(&file));
        GatewayConfig::load(&file).map(|loaded| loaded.config).map_err(|problems| {
            let lines = problems.problems().iter().map(|p| format!("{}: {}", p.line, p.what));
            lines.collect::<Vec<_>>().join("\n")
        })
    }

    const GOOD: &str = r#"
[daemon]
address = "leasehold.acme.example:8443"
spiffe_id = "spiffe://hpc.acme.example/leasehold"
[identity]
cert = "svid.pem"
key = "svid.key"
bundles = { "hpc.acme.example" = "hpc.pem" }
[gateway]
audience = "spiffe://hpc.acme.example/gateway"
catalog = "catalog.d"
[[gateway.store]]
location = "s3://acme-data/"
directory = "/srv/acme-data"
[[gateway.store]]
location = "s3://acme-models/"
endpoint = "https://s3.example:9000"
access_key_file = "store.id"
secret_key_file = "store.key"
"#;

    // A file is read whole, and each mistake is named with its line and what to write.
    #[test]
    fn a_gateway_has_a_file_of_its_own() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.daemon.address(), "leasehold.acme.example:8443");
        assert_eq!(config.gateway.listen.port(), 8446);
        assert_eq!(config.gateway.stores.len(), 2);
        assert!(config.catalog.ends_with("catalog.d"));

        let bad = GOOD
            .replace("leasehold.acme.example:8443", "https://leasehold")
            .replace("s3://acme-data/", "s3://acme-data")
            .replace("https://s3.example:9000", "http://s3.example:9000")
            .replace("catalog = \"catalog.d\"\n", "");
        let said = load(&bad).unwrap_err();
        for part in [
            "3: daemon.address: `https://leasehold` is not an address",
            "gateway.catalog is missing",
            "gateway.store.location: `s3://acme-data` does not end in a slash",
            "gateway.store.endpoint: `http://s3.example:9000` is plain HTTP to another machine",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        let twice = GOOD.replace("s3://acme-models/", "s3://acme-data/");
        assert!(load(&twice).unwrap_err().contains("two stores have"));
    }
}

//! The settings of a gateway: the section `[gateway]` of a configuration.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    bucket_client::{self, BucketSettings, S3Settings, StoreFault},
    direct_listener::WebCertificate,
    directory::DirectoryStore,
    pins::file_name,
    store::LocationStore,
    stores::Stores,
    walk_turns::WalkTurns,
};
use crate::{
    catalog::{Catalog, Resource},
    limits::GATEWAY_STORES_MAX,
    name::{Pin, SpiffeId},
    plain,
    written::{Notes, Section, path},
};

/// The settings of a gateway. Always valid once they exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// The address for S3 over mutual TLS.
    pub listen: SocketAddr,
    /// S3 for clients without an SVID. `None` if such clients are not served.
    pub direct: Option<DirectSettings>,
    /// The audience of the tokens that the gateway accepts: an `[[audience]]` of the catalog.
    pub audience: SpiffeId,
    /// The stores of the gateway. If there are none, it serves nothing.
    pub stores: Vec<StoreSettings>,
    /// The folder of the manifests that the catalog pins. `None` if the gateway does not compare data with its pin.
    pub manifests: Option<PathBuf>,
}

/// The listener for clients without an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectSettings {
    /// S3 over TLS.
    pub listen: SocketAddr,
    pub certificate: WebCertificate,
}

/// A store: the URL of a folder, and the place of the bytes that the folder has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The URL of a folder. It ends in a slash.
    pub location: String,
    pub kept_in: KeptIn,
}

/// The place of the bytes of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptIn {
    /// A directory of this machine.
    Directory(PathBuf),
    /// The bucket of the location, in an object store.
    Bucket(BucketSettings),
}

impl GatewaySettings {
    /// Reads the section `[gateway]`.
    pub(crate) fn read(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<Self> {
        let listen = table.or("listen", "0.0.0.0:8446", notes, address);
        let has_direct = table.has("direct");
        let direct = read_direct(&mut table, folder, notes);
        let example = "\"spiffe://hpc.acme.example/gateway\", the name of an [[audience]] of the catalog";
        let audience = table.need("audience", example, notes, str::parse::<SpiffeId>);
        let tables = table.list_of_sections("store", GATEWAY_STORES_MAX, notes);
        let mut stores: Vec<StoreSettings> = Vec::with_capacity(tables.len());
        let mut all_read = true;
        for mut table in tables {
            let line = table.line_of("location");
            match read_store(&mut table, folder, notes) {
                Some(store) if stores.iter().any(|other| other.location == store.location) => {
                    let shown = plain::value(&store.location);
                    notes.problem(
                        line,
                        format!("gateway.store: two stores have the location `{shown}`: remove one"),
                    );
                }
                Some(store) => stores.push(store),
                None => all_read = false,
            }
        }
        let manifests = table.text("manifests", notes, |text| path(text, folder));
        table.finish(notes);
        let stores = all_read.then_some(stores)?;
        if has_direct && direct.is_none() {
            return None;
        }
        Some(GatewaySettings { listen: listen?, direct, audience: audience?, stores, manifests })
    }

    /// Returns a line for each resource that the gateway should serve but cannot, and for each resource that it does not
    /// compare with its pin. Blocks.
    pub fn warnings(&self, catalog: &Catalog) -> Vec<String> {
        let resources = || catalog.resources().filter(|r| r.audience == self.audience);
        let mut lines = self.unserved(resources());
        lines.extend(resources().filter_map(|r| {
            let Pin::Manifest(digest) = &r.pin else { return None };
            let (declared, name) = (&r.declared, &r.name);
            let Some(folder) = &self.manifests else {
                return Some(format!(
                    "{declared}: [gateway] has no `manifests`, so `{name}` is not compared with its pin"
                ));
            };
            let file = folder.join(file_name(digest));
            let shown = plain::path(&file);
            (!file.is_file())
                .then(|| format!("{declared}: the manifest `{shown}` is missing, so `{name}` cannot be read"))
        }));
        lines.sort();
        lines
    }

    /// Returns a line for each resource for which the gateway has no store.
    fn unserved<'a>(&self, resources: impl Iterator<Item = &'a Resource>) -> Vec<String> {
        let has_store =
            |location: &str| self.stores.iter().any(|store| location.starts_with(&store.location));
        resources
            .filter(|r| !has_store(&r.location))
            .map(|r| {
                let location = plain::value(&r.location);
                format!(
                    "{}: no [[gateway.store]] has `{location}`, so `{}` cannot be read or written",
                    r.declared, r.name
                )
            })
            .collect()
    }

    /// Opens the stores.
    ///
    /// # Errors
    ///
    /// A file with a key cannot be read, or the client of a store refuses its settings.
    pub fn open_stores(&self) -> Result<Stores, StoreFault> {
        let walks = WalkTurns::default();
        let open = |settings: &StoreSettings| -> Result<(String, Arc<LocationStore>), StoreFault> {
            let store = match &settings.kept_in {
                KeptIn::Directory(directory) => {
                    LocationStore::Directory(DirectoryStore::new(directory.clone()).sharing_walks(&walks))
                }
                KeptIn::Bucket(bucket) => {
                    LocationStore::Bucket(bucket_client::open(&settings.location, bucket)?)
                }
            };
            Ok((settings.location.clone(), Arc::new(store)))
        };
        let stores = Stores::new(self.stores.iter().map(open).collect::<Result<Vec<_>, StoreFault>>()?);
        Ok(stores.with_manifests(self.manifests.clone()))
    }
}

/// Reads the address for clients without an SVID, if there is one, and the certificate for it.
fn read_direct(table: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<DirectSettings> {
    if !table.has("direct") {
        for key in ["direct_cert", "direct_key"] {
            if table.has(key) {
                table.wrong(
                    key,
                    "also write direct = \"IP:PORT\", the address for clients without an SVID",
                    notes,
                );
            }
        }
        return None;
    }
    let listen = table.text("direct", notes, address);
    let example = "\"gateway.pem\", a web certificate that names the host to which clients connect";
    let cert = table.need("direct_cert", example, notes, |text| path(text, folder));
    let key = table.need("direct_key", "\"gateway.key\"", notes, |text| path(text, folder));
    Some(DirectSettings { listen: listen?, certificate: WebCertificate { cert: cert?, key: key? } })
}

fn read_store(table: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<StoreSettings> {
    let location = table.need("location", "\"s3://acme-prod-data/\"", notes, location);
    let is_of = |scheme: &str| location.as_deref().is_some_and(|location| location.starts_with(scheme));
    let kept_in = if table.has("directory") || is_of("file://") {
        let directory = table.need("directory", "\"/srv/acme-prod-data\"", notes, |text| path(text, folder));
        directory.map(KeptIn::Directory)
    } else if is_of("gs://") {
        let file = table.need("service_account_file", "\"gcp.json\"", notes, |text| path(text, folder));
        file.map(|service_account_file| KeptIn::Bucket(BucketSettings::Google { service_account_file }))
    } else if is_of("az://") {
        let account = table.need("account", "\"acmestorage\"", notes, word);
        let key = table.need("access_key_file", "\"azure.key\"", notes, |text| path(text, folder));
        account.zip(key).map(|(account, access_key_file)| {
            KeptIn::Bucket(BucketSettings::Azure { account, access_key_file })
        })
    } else {
        let endpoint = table.text("endpoint", notes, endpoint);
        let endpoint_is_wrong = table.has("endpoint") && endpoint.is_none();
        let region = table.or("region", "us-east-1", notes, word);
        let example = "\"store.id\", or directory = \"/srv/acme-prod-data\"";
        let access = table.need("access_key_file", example, notes, |text| path(text, folder));
        let secret = table.need("secret_key_file", "\"store.key\"", notes, |text| path(text, folder));
        let s3 = region.zip(access.zip(secret)).filter(|_| !endpoint_is_wrong);
        s3.map(|(region, (access_key_file, secret_key_file))| {
            KeptIn::Bucket(BucketSettings::S3(S3Settings {
                endpoint,
                region,
                access_key_file,
                secret_key_file,
            }))
        })
    };
    table.finish(notes);
    Some(StoreSettings { location: location?, kept_in: kept_in? })
}

/// Reads a word of letters, digits and dashes.
fn word(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Ok(text.to_owned());
    }
    Err(format!("`{}` is not a word of letters, digits and dashes", plain::value(text)))
}

/// Reads the URL of an object store. Plain HTTP is only for a store on this machine.
fn endpoint(text: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("`{}` {why}: write https://HOST[:PORT]", plain::value(text)));
    let Ok(uri) = text.parse::<http::Uri>() else { return wrong("is not a URL") };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("it contains a user or a secret before `@`: write https://HOST[:PORT]".to_owned());
    }
    match uri.scheme_str() {
        Some("https") => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") if is_loopback => Ok(text.trim_end_matches('/').to_owned()),
        Some("http") => wrong("is plain HTTP to another machine"),
        _ => wrong("is not a URL"),
    }
}

/// Reads the URL of a bucket or a folder.
fn location(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let wrong =
        |why: &str| Err(format!("`{}` {why}: write s3://BUCKET/, or a folder in it", plain::value(text)));
    if !matches!(scheme, "s3" | "gs" | "az" | "file") {
        return wrong("does not begin with s3://, gs://, az:// or file://");
    }
    if !text.ends_with('/') {
        return wrong("does not end in a slash");
    }
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    if rest.split('/').any(|segment| matches!(segment, "." | ".."))
        || path.contains("//")
        || path.starts_with('/')
    {
        return wrong("contains a segment that is empty, `.` or `..`");
    }
    if scheme != "file" && rest.starts_with('/') {
        return wrong("names no bucket");
    }
    if rest.starts_with("leasehold/") && scheme == "s3" {
        return wrong(
            "is reserved, because every gateway has a bucket `leasehold` with the resources under their own names",
        );
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "`{}` is not an address: write IP:PORT, as \"0.0.0.0:8446\" or \"[::]:8446\"",
            plain::value(text)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::name::Digest;

    #[test]
    fn a_pin_that_is_not_compared_gets_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let pinned = Digest::of(b"manifest");
        let sha256 = pinned.to_string().split_off("sha256:".len());
        let catalog = format!(
            "[tenant.acme]\n[[principal]]\nmatch = \"spiffe://acme.example/gw\"\nkind = \"verifier\"\n\
             [[audience]]\nname = \"spiffe://acme.example/gw\"\nverifiers = [\"spiffe://acme.example/gw\"]\n\
             checks = \"feed\"\npresenter = \"mtls\"\n\
             [[dataset]]\nname = \"d@v1\"\nlocation = \"s3://d/\"\naudience = \"spiffe://acme.example/gw\"\n\
             pin = {{ kind = \"manifest\", sha256 = \"{sha256}\" }}\nclassification = \"internal\"\ndata_classes = []\n\
             source_trust = \"curated\"\npurposes = [\"p\"]\nowner = \"a\"\n"
        );
        fs::write(dir.path().join("acme.toml"), catalog).unwrap();
        let catalog = Catalog::load(dir.path()).unwrap();
        let store =
            StoreSettings { location: "s3://d/".into(), kept_in: KeptIn::Directory(dir.path().to_owned()) };
        let settings = |manifests| GatewaySettings {
            direct: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            audience: "spiffe://acme.example/gw".parse().unwrap(),
            stores: vec![store.clone()],
            manifests,
        };
        let one = |lines: Vec<String>, words: &str| {
            assert!(lines.len() == 1 && lines[0].contains(words), "{lines:?}");
        };
        one(settings(None).warnings(&catalog), "is not compared with its pin");
        let folder = Some(dir.path().to_owned());
        one(settings(folder.clone()).warnings(&catalog), "is missing, so `dataset:acme/d@v1` cannot be read");
        fs::write(dir.path().join(file_name(&pinned)), "manifest").unwrap();
        assert_eq!(settings(folder).warnings(&catalog), Vec::<String>::new());
    }
}

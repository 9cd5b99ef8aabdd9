//! The files and variables that lead unmodified programs to the local endpoint.
//!
//! No variable contains the local key. The key is in files of the credential folder, which are removed when access ends. Programs
//! find it through `AWS_SHARED_CREDENTIALS_FILE`, which comes before every other source except variables. Programs that read no
//! files (`object_store` and what is built on it) fetch the key from the container endpoint, with a token from another file. The
//! key never changes, so no program has to refresh it.

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    local_key::LocalKey,
    local_request::{HUB_PATH, KEY_PATH},
};
use crate::{
    agent::access::credential_dir::{CredentialDir, CredentialError},
    secret::SecretText,
};

const KEY_FILE: &str = "aws-credentials";
const CONFIG_FILE: &str = "aws-config";
const BEARER_FILE: &str = "local-token";
const RCLONE_FILE: &str = "rclone.conf";

/// The region that requests are signed for. The gateway has only one.
pub(super) const REGION: &str = "us-east-1";

/// A path at which no file can exist. Variables name this path, so that programs do not find a credential in the user's home
/// folder.
const NOTHING: &str = "/dev/null/leasehold";

/// Variables that would spoil or divert requests to the local endpoint.
pub(in crate::agent) const CLEARED: &[&str] =
    &["AWS_CA_BUNDLE", "HF_HUB_OFFLINE", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT"];

/// The files that lead to the local endpoint, and its address.
#[derive(Debug)]
pub(in crate::agent) struct LeadingFiles {
    address: SocketAddr,
    key: PathBuf,
    config: PathBuf,
    bearer: PathBuf,
    rclone: PathBuf,
}

impl LeadingFiles {
    pub(super) fn write(
        dir: &CredentialDir,
        address: SocketAddr,
        key: &LocalKey,
    ) -> Result<Self, CredentialError> {
        let credentials = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            key.id,
            key.secret.expose()
        );
        let config = format!(
            "[default]\nregion = {REGION}\nendpoint_url = http://{address}\ns3 =\n    addressing_style = path\n    signature_version = s3v4\n"
        );
        let rclone = format!(
            "[leasehold]\ntype = s3\nprovider = Other\nenv_auth = true\nendpoint = http://{address}\nregion = {REGION}\nno_check_bucket = true\n"
        );
        let put = |name: &str, text: String| dir.put(name, &SecretText::new(text));
        Ok(LeadingFiles {
            address,
            key: put(KEY_FILE, credentials)?,
            config: put(CONFIG_FILE, config)?,
            bearer: put(BEARER_FILE, key.bearer.expose().to_owned())?,
            rclone: put(RCLONE_FILE, rclone)?,
        })
    }

    /// The variables to set for the programs. A variable in `keep_env` is left out, so that the user's value stays.
    /// `inherited` looks up a variable of this process.
    pub(in crate::agent) fn variables(
        &self,
        keep: &[String],
        inherited: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<(OsString, OsString)> {
        let endpoint = format!("http://{}", self.address);
        let no_proxy = |name: &str| {
            let before = inherited(name).unwrap_or_default();
            let mut value = before.clone();
            value.push(if before.is_empty() { "" } else { "," });
            value.push("127.0.0.1,localhost");
            value
        };
        let file = |path: &PathBuf| OsString::from(path);
        let variables: Vec<(&str, OsString)> = vec![
            ("LEASEHOLD_S3_ENDPOINT", endpoint.clone().into()),
            ("AWS_ENDPOINT_URL", endpoint.clone().into()),
            ("AWS_ENDPOINT_URL_S3", endpoint.clone().into()),
            ("AWS_REGION", REGION.into()),
            ("AWS_DEFAULT_REGION", REGION.into()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
            ("AWS_CONFIG_FILE", file(&self.config)),
            ("AWS_SHARED_CREDENTIALS_FILE", file(&self.key)),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{endpoint}{KEY_PATH}").into()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file(&self.bearer)),
            ("BOTO_CONFIG", NOTHING.into()),
            ("CLOUDSDK_CONFIG", NOTHING.into()),
            ("RCLONE_CONFIG", file(&self.rclone)),
            ("RCLONE_S3_PROVIDER", "Other".into()),
            ("RCLONE_S3_ENV_AUTH", "true".into()),
            ("RCLONE_S3_ENDPOINT", endpoint.clone().into()),
            ("RCLONE_S3_NO_CHECK_BUCKET", "true".into()),
            ("HF_ENDPOINT", format!("{endpoint}{HUB_PATH}").into()),
            ("HF_TOKEN_PATH", file(&self.bearer)),
            ("HF_HUB_DISABLE_XET", "1".into()),
            ("HF_HUB_DISABLE_TELEMETRY", "1".into()),
            ("NO_PROXY", no_proxy("NO_PROXY")),
            ("no_proxy", no_proxy("no_proxy")),
        ];
        let is_wanted = |name: &str| keep.iter().all(|kept| kept != name);
        variables.into_iter().filter(|(name, _)| is_wanted(name)).map(|(n, v)| (n.into(), v)).collect()
    }
}

/// Reads the local key from a credential folder: its id and its secret.
///
/// # Errors
///
/// The folder has no such file, because the job uses no gateway or its access has ended, or the file cannot be read.
pub fn read_local_key(folder: &Path) -> io::Result<(String, SecretText)> {
    let text = SecretText::new(fs::read_to_string(folder.join(KEY_FILE))?);
    let field = |name: &str| {
        let mut lines = text.expose().lines().filter_map(|line| line.split_once(" = "));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let missing = || io::Error::other("the file has no key");
    let secret = field("aws_secret_access_key").map(SecretText::new).ok_or_else(missing)?;
    Ok((field("aws_access_key_id").ok_or_else(missing)?, secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent::access::folder::Readers, secret::Secret};

    fn scene() -> (tempfile::TempDir, CredentialDir, LeadingFiles, LocalKey) {
        let base = tempfile::tempdir().unwrap();
        let dir = CredentialDir::create(Some(base.path()), Readers::default()).unwrap();
        let key = LocalKey::of_session(&Secret::from_bytes(&[7; 32]).unwrap());
        let files = LeadingFiles::write(&dir, "127.0.0.1:9000".parse().unwrap(), &key).unwrap();
        (base, dir, files, key)
    }

    // The variables lead to the local endpoint and contain no secret, and the files are removed when access ends.
    #[test]
    fn the_variables_contain_no_key() {
        let (_base, dir, files, key) = scene();
        let variables = files.variables(&[], |_| None);
        let of = |name: &str| {
            let found =
                variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap().to_owned());
            found.unwrap_or_else(|| panic!("{name}"))
        };
        assert_eq!(of("AWS_ENDPOINT_URL_S3"), "http://127.0.0.1:9000");
        assert_eq!(of("HF_ENDPOINT"), "http://127.0.0.1:9000/_hub");
        assert_eq!(of("NO_PROXY"), "127.0.0.1,localhost");
        let all = format!("{variables:?}");
        assert!(!all.contains(key.secret.expose()) && !all.contains(key.bearer.expose()), "{all}");
        let text = std::fs::read_to_string(of("AWS_SHARED_CREDENTIALS_FILE")).unwrap();
        assert!(text.contains(&key.id) && text.contains(key.secret.expose()));
        let config = std::fs::read_to_string(of("AWS_CONFIG_FILE")).unwrap();
        // Without `signature_version`, boto3 and version 1 of the aws CLI sign URLs with Signature Version 2, which the gateway
        // refuses.
        assert!(
            config.contains("s3 =\n    addressing_style = path\n    signature_version = s3v4\n"),
            "{config}"
        );
        let (id, secret) = read_local_key(dir.path()).unwrap();
        assert_eq!((id.as_str(), secret.expose()), (key.id.as_str(), key.secret.expose()));
        dir.wipe();
        assert!(
            !Path::new(&of("AWS_SHARED_CREDENTIALS_FILE")).exists() && read_local_key(dir.path()).is_err()
        );
    }

    // A variable that the user keeps is not replaced, and a proxy list is only extended.
    #[test]
    fn what_the_user_keeps_is_not_replaced() {
        let (_base, _dir, files, _) = scene();
        let keep = ["HF_ENDPOINT".to_owned()];
        let variables = files.variables(&keep, |name| (name == "NO_PROXY").then(|| "a.example".into()));
        assert!(variables.iter().all(|(name, _)| name != "HF_ENDPOINT"));
        let no_proxy = variables.iter().find(|(name, _)| name == "NO_PROXY").unwrap();
        assert_eq!(no_proxy.1, "a.example,127.0.0.1,localhost");
    }
}

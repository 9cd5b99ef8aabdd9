//! The clients of buckets, made from the configuration. Long-lived keys come from files, and stay in the gateway.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use object_store::{
    CredentialProvider,
    aws::{AmazonS3Builder, AwsCredential},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
};

use super::bucket::BucketStore;
use crate::{plain, written::read_file};

/// The settings for the client of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketSettings {
    /// S3, or a compatible server.
    S3(S3Settings),
    /// Google Cloud Storage, with the key file of a service account.
    Google { service_account_file: PathBuf },
    /// Azure Blob Storage, with the key of an account.
    Azure { account: String, access_key_file: PathBuf },
}

/// The settings for the client of an S3 bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Settings {
    /// The URL of the server. `None` means the URL of AWS for the region.
    pub endpoint: Option<String>,
    pub region: String,
    /// The file with the id of the access key, in one line. The gateway reads a changed file again.
    pub access_key_file: PathBuf,
    /// The file with the secret access key, in one line. The gateway reads a changed file again.
    pub secret_key_file: PathBuf,
}

/// The reason for which a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the store of `{location}` cannot be opened: {why}")]
pub struct StoreFault {
    location: String,
    why: String,
}

/// Makes the client of a bucket. Does not connect.
pub(super) fn open(location: &str, settings: &BucketSettings) -> Result<BucketStore, StoreFault> {
    let fault = |why: String| StoreFault { location: plain::value(location), why };
    // The HTTP client uses the default crypto provider of the process. If another part of the program installed a
    // provider before, it is the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (bucket, root) =
        super::view::bucket_and_prefix(location).ok_or_else(|| fault("it is in no bucket".to_owned()))?;
    match settings {
        BucketSettings::S3(s3) => {
            let keys =
                KeyFiles::open(s3.access_key_file.clone(), s3.secret_key_file.clone()).map_err(fault)?;
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(bucket)
                .with_region(&s3.region)
                .with_credentials(Arc::new(keys))
                .with_virtual_hosted_style_request(false);
            if let Some(endpoint) = &s3.endpoint {
                builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
            }
            let client = builder.build().map_err(|e| fault(e.to_string()))?;
            Ok(BucketStore::new(client, root))
        }
        BucketSettings::Google { service_account_file } => {
            let client = GoogleCloudStorageBuilder::new()
                .with_bucket_name(bucket)
                .with_service_account_path(service_account_file.to_string_lossy())
                .build();
            Ok(BucketStore::new(client.map_err(|e| fault(e.to_string()))?, root))
        }
        BucketSettings::Azure { account, access_key_file } => {
            let client = MicrosoftAzureBuilder::new()
                .with_account(account)
                .with_container_name(bucket)
                .with_access_key(read_line(access_key_file).map_err(fault)?)
                .build();
            Ok(BucketStore::new(client.map_err(|e| fault(e.to_string()))?, root))
        }
    }
}

/// The key of a bucket in two files. They are read again when one of them changes. If that fails, the last good key stays.
struct KeyFiles {
    access_key: PathBuf,
    secret_key: PathBuf,
    read: Mutex<ReadKey>,
}

struct ReadKey {
    changed: [Option<SystemTime>; 2],
    key: Arc<AwsCredential>,
}

impl KeyFiles {
    fn open(access_key: PathBuf, secret_key: PathBuf) -> Result<Self, String> {
        let changed = [changed(&access_key), changed(&secret_key)];
        let key = Arc::new(read_key(&access_key, &secret_key)?);
        Ok(KeyFiles { access_key, secret_key, read: Mutex::new(ReadKey { changed, key }) })
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|seen| seen.modified()).ok()
}

fn read_key(access_key: &Path, secret_key: &Path) -> Result<AwsCredential, String> {
    Ok(AwsCredential { key_id: read_line(access_key)?, secret_key: read_line(secret_key)?, token: None })
}

fn read_line(path: &Path) -> Result<String, String> {
    let text = read_file(path).map_err(|_| format!("`{}` cannot be read", plain::path(path)))?;
    let line = text.trim();
    if line.is_empty() || line.contains(char::is_whitespace) {
        return Err(format!("`{}` must contain exactly one key, without blanks", plain::path(path)));
    }
    Ok(line.to_owned())
}

#[tonic::async_trait]
impl CredentialProvider for KeyFiles {
    type Credential = AwsCredential;

    /// Calls `stat` twice, and reads the files only after a change.
    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let now = [changed(&self.access_key), changed(&self.secret_key)];
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.changed != now {
            match read_key(&self.access_key, &self.secret_key) {
                Ok(key) => *read = ReadKey { changed: now, key: Arc::new(key) },
                Err(why) => {
                    tracing::error!(why, "the key of a store cannot be read: the last good one stays");
                }
            }
        }
        Ok(read.key.clone())
    }
}

impl fmt::Debug for KeyFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFiles({})", self.access_key.display())
    }
}

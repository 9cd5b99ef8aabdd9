//! The wrapper's client of the local endpoint. The wrapper uses it to fill folders and to upload their files.

use object_store::{
    ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector},
};

use super::{leading::REGION, listener::Forwarder};
use crate::{
    agent::access::present::{PresentAccess, STABLE_BUCKET},
    limits::{FORWARD_QUIET, HANDSHAKE},
    name::Object,
};

impl Forwarder {
    /// Whether a gateway of this run serves the resource.
    pub(in crate::agent) fn serves(&self, resource: &Object) -> bool {
        match &*self.present().borrow() {
            PresentAccess::Open(gateways) => gateways.iter().any(|g| g.resources.contains(resource)),
            PresentAccess::Away | PresentAccess::Ended(_) => false,
        }
    }

    /// Makes a client that reads and writes under the stable names. It uses the key that all programs of this run use.
    pub(in crate::agent) fn client(&self) -> Result<AmazonS3, String> {
        let key = self.key();
        // The forwarder already waits for the daemon and the gateway, so this client retries only a few times.
        let retry = RetryConfig { max_retries: 3, retry_timeout: FORWARD_QUIET, ..RetryConfig::default() };
        let builder = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address()))
            .with_allow_http(true)
            .with_bucket_name(STABLE_BUCKET)
            .with_region(REGION)
            .with_access_key_id(&key.id)
            .with_secret_access_key(key.secret.expose())
            .with_virtual_hosted_style_request(false)
            .with_http_connector(LocalConnector)
            .with_retry(retry);
        builder.build().map_err(|error| error.to_string())
    }
}

/// Makes an HTTP client that never uses a proxy, even if the environment names one, because the key must not leave this
/// machine.
#[derive(Debug)]
struct LocalConnector;

impl HttpConnector for LocalConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        // The HTTP client needs a crypto provider in this process, even for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(HANDSHAKE)
            .read_timeout(FORWARD_QUIET)
            .build();
        let failed = |error| object_store::Error::Generic { store: "S3", source: Box::new(error) };
        client.map(HttpClient::new).map_err(failed)
    }
}

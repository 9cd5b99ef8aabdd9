//! TLS with a web certificate, for clients that compare host names and not SPIFFE IDs.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use crate::plain;

/// A mistake in a web certificate or its key.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{file}: {what}")]
pub struct WebFault {
    /// `cert` or `key`.
    pub file: &'static str,
    pub what: String,
}

/// Loads a web certificate. The clients present none, and speak HTTP/1.1.
///
/// # Errors
///
/// A file cannot be read, or the two do not belong together.
pub(crate) fn web_tls(cert: &Path, key: &Path) -> Result<TlsAcceptor, WebFault> {
    let bad = |file: &'static str, path: &Path, what: String| WebFault {
        file,
        what: format!("`{}` cannot be used: {what}", plain::path(path)),
    };
    let bad_cert = |e: &dyn std::error::Error| bad("cert", cert, e.to_string());
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad_cert(&e))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            bad("key", key, "it contains no unencrypted private key in PEM".to_owned())
        }
        e => bad("key", key, e.to_string()),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad_cert(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|e| bad_cert(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

//! TLS to web servers, which are authenticated by host names and the certificate authorities in a file.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore};

use super::{
    load::{self, LoadError, LoadFault},
    svid_error::SvidError,
    tls::bundle_config_web,
};
use crate::{clock::Clock, limits};

/// Makes the TLS configuration of a client that speaks HTTP/1.1 over TLS 1.3 to servers under the authorities of a PEM file.
/// Without a file it trusts no server.
///
/// # Errors
/// The file cannot be read, or has a certificate that cannot be used.
pub(crate) fn web_client(ca: Option<&Path>, clock: Arc<dyn Clock>) -> Result<ClientConfig, LoadError> {
    let roots = ca.map_or_else(|| Ok(RootCertStore::empty()), web_roots)?;
    Ok(Arc::unwrap_or_clone(bundle_config_web(roots, clock)))
}

/// Reads web certificate authorities from a configured PEM file. The system store is never used, so that its roots
/// cannot vouch for an SVID.
fn web_roots(ca: &Path) -> Result<RootCertStore, LoadError> {
    let file = ca.display().to_string();
    let mut roots = RootCertStore::empty();
    for (der, number) in
        load::certificates(&file, &load::read(ca)?, limits::WEB_ROOTS_MAX)?.into_iter().zip(1..)
    {
        let bad = |_| LoadFault::Certificate { number, why: SvidError::Malformed }.in_file(&file);
        roots.add(der).map_err(bad)?;
    }
    Ok(roots)
}

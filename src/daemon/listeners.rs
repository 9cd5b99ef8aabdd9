//! The plain and the web-TLS listeners: probes, discovery and keys.

use std::{path::Path, sync::Arc};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    limits::{HANDSHAKE, WEB_CONNECTION, WEB_CONNECTIONS_MAX},
};

/// What is wrong with the issuer's certificate or key.
pub(super) struct WebFault {
    /// `issuer.cert` or `issuer.key`.
    pub(super) key: &'static str,
    pub(super) what: String,
}

/// Loads a web server's certificate: the issuer's listener is for clients that know names, not SPIFFE IDs.
pub(super) fn web_tls(cert: &Path, key: &Path) -> Result<TlsAcceptor, WebFault> {
    let bad = |key: &'static str, path: &Path, what: String| WebFault {
        key,
        what: format!("`{}` cannot be used: {what}", path.display()),
    };
    let bad_cert = |e: &dyn std::error::Error| bad("issuer.cert", cert, e.to_string());
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad_cert(&e))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            bad("issuer.key", key, "it holds no private key in PEM that is not encrypted".to_owned())
        }
        e => bad("issuer.key", key, e.to_string()),
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

/// Serves a router until `shutdown`, over TLS where an acceptor is given. HTTP/1.1 alone: whoever says nothing, or reads
/// nothing, is no probe and no verifier, and keeps its place no longer than [`WEB_CONNECTION`].
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let room = Arc::new(tokio::sync::Semaphore::new(WEB_CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { break };
        let tcp = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    clock.sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (router, tls, clock, shutdown) = (router.clone(), tls.clone(), clock.clone(), shutdown.clone());
        tasks.spawn(async move {
            let service = TowerToHyperService::new(router);
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
            let served = async {
                match tls {
                    None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
                    Some(tls) => {
                        let tls = tokio::select! {
                            tls = tls.accept(tcp) => tls,
                            () = clock.sleep(HANDSHAKE) => return,
                        };
                        if let Ok(tls) = tls {
                            drop(http.serve_connection(TokioIo::new(tls), service).await);
                        }
                    }
                }
            };
            tokio::select! {
                () = served => {}
                () = clock.sleep(WEB_CONNECTION) => {}
                () = shutdown.cancelled() => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

//! HTTP to an identity provider: bounded answers, a deadline, no redirects.

use std::{future::Future, pin::Pin};

use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};

use crate::limits::{CALL, PROVIDER_ANSWER_BYTES_MAX};

/// An HTTP client for one identity provider.
#[derive(Clone, Debug)]
pub struct ProviderHttp(reqwest::Client);

/// Why a request to the identity provider has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpFault {
    /// The connection, TLS or the answer failed.
    #[error("{0}")]
    Failed(String),
    /// The answer is larger than [`PROVIDER_ANSWER_BYTES_MAX`].
    #[error("its answer is larger than {PROVIDER_ANSWER_BYTES_MAX} bytes")]
    TooLarge,
}

impl ProviderHttp {
    /// Makes a client. `ca` holds the only roots that vouch for the provider, as PEM. `None`: the roots of this machine.
    ///
    /// # Errors
    ///
    /// The roots cannot be used.
    pub fn new(ca: Option<&[u8]>) -> Result<Self, HttpFault> {
        // The client takes the provider of the process. A second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(CALL)
            .user_agent(concat!("leasehold/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = ca {
            let roots =
                reqwest::Certificate::from_pem_bundle(pem).map_err(|e| HttpFault::Failed(causes(&e)))?;
            if roots.is_empty() {
                return Err(HttpFault::Failed("it contains no certificate in PEM".to_owned()));
            }
            builder = builder.tls_certs_only(roots);
        }
        builder.build().map(ProviderHttp).map_err(|e| HttpFault::Failed(causes(&e)))
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpFault> {
        let failed = |e: reqwest::Error| HttpFault::Failed(causes(&e.without_url()));
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let mut answer = self.0.execute(request).await.map_err(failed)?;
        let mut response = http::Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(answer.headers());
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len().saturating_add(chunk.len()) > PROVIDER_ANSWER_BYTES_MAX {
                return Err(HttpFault::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        response.body(body).map_err(|e| HttpFault::Failed(e.to_string()))
    }
}

impl<'c> AsyncHttpClient<'c> for ProviderHttp {
    type Error = HttpFault;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpFault>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

/// Returns an error with its causes on one line. The outer texts of HTTP clients rarely say what happened.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

//! HTTP requests to an identity provider: limited answers, a deadline, no redirects.

use std::{future::Future, pin::Pin};

use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse, url::Url};

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
    /// The issuer has no `https` and is not an address of this machine.
    #[error("an identity provider that is not at a loopback address needs https")]
    PlainIssuer,
    /// The answer is larger than [`PROVIDER_ANSWER_BYTES_MAX`].
    #[error("its answer is larger than {PROVIDER_ANSWER_BYTES_MAX} bytes")]
    TooLarge,
}

impl ProviderHttp {
    /// Makes a client for the provider with this issuer. If the issuer has `https`, the client sends every request over
    /// `https`, for keys and to all endpoints. `ca` contains the only roots that may certify the provider, in PEM. `None` means
    /// the roots of this machine.
    ///
    /// # Errors
    ///
    /// Fails if the roots cannot be used, or if the issuer has no `https` and is not at a loopback address.
    pub fn new(issuer: &str, ca: Option<&[u8]>) -> Result<Self, HttpFault> {
        if !has_https(issuer) && !is_plain_on_loopback(issuer) {
            return Err(HttpFault::PlainIssuer);
        }
        // The client uses the default crypto provider of the process. A second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .https_only(has_https(issuer))
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

/// Whether the issuer of a provider has `https`.
pub fn has_https(issuer: &str) -> bool {
    Url::parse(issuer).is_ok_and(|url| url.scheme() == "https")
}

/// Whether the issuer of a provider is a plain HTTP server at a loopback address. A name such as localhost could resolve to
/// another machine, so only addresses count.
pub fn is_plain_on_loopback(issuer: &str) -> bool {
    let Ok(url) = Url::parse(issuer) else { return false };
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    url.scheme() == "http" && host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns an error with its causes on one line, because the outer text of an HTTP client's error rarely says what happened.
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

#[cfg(test)]
mod tests {
    use super::*;

    // If an issuer has no https, only loopback addresses are accepted.
    #[test]
    fn an_issuer_without_https_is_a_loopback_address() {
        for issuer in
            ["https://id.example", "HTTPS://id.example/x", "http://127.0.0.1:5556/dex", "HTTP://[::1]:1"]
        {
            assert!(ProviderHttp::new(issuer, None).is_ok(), "{issuer}");
        }
        for issuer in [
            "http://id.example",
            "HTTP://id.example",
            "http://localhost:1",
            "ftp://127.0.0.1",
            "http://127.0.0.1.example",
            "",
        ] {
            assert!(matches!(ProviderHttp::new(issuer, None), Err(HttpFault::PlainIssuer)), "{issuer}");
        }
    }

    // A client of a provider with https sends nothing over plain HTTP, even if the discovery document has such a URL.
    #[tokio::test]
    async fn a_provider_with_https_is_asked_nothing_without_it() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", server.local_addr().unwrap());
        let request = || http::Request::get(&url).body(Vec::new()).unwrap();
        let strict = ProviderHttp::new("HTTPS://id.example", None).unwrap();
        tokio::select! {
            answer = strict.call(request()) => assert!(matches!(answer, Err(HttpFault::Failed(_)))),
            _ = server.accept() => unreachable!("it connected without https"),
        }
        let plain = ProviderHttp::new("http://127.0.0.1:1", None).unwrap();
        tokio::select! {
            _ = plain.call(request()) => unreachable!("no one answers"),
            connected = server.accept() => assert!(connected.is_ok()),
        }
    }
}

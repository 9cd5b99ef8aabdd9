//! The HTTP servers: the issuer's discovery and keys for verifiers that use OIDC, and the probes.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{broker::Broker, limits, reason::Reason};

/// A function that says whether the daemon accepts requests, or why it does not.
pub type Readiness = Arc<dyn Fn() -> Result<ReadyNotes, NotReady> + Send + Sync>;

/// Notes for the operator about a daemon that accepts requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadyNotes {
    /// The number of mistakes in the catalog files on disk. Files with mistakes are not in force.
    pub catalog_mistakes: usize,
}

/// Writes `ok`, then a line for each note. The text contains no names, because the probes' listener answers all
/// callers.
impl std::fmt::Display for ReadyNotes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "ok")?;
        match self.catalog_mistakes {
            0 => Ok(()),
            1 => writeln!(
                f,
                "catalog: 1 mistake. The affected file or entry is not in force. The log shows the mistake."
            ),
            n => writeln!(
                f,
                "catalog: {n} mistakes. The affected files or entries are not in force. The log shows the mistakes."
            ),
        }
    }
}

/// A function that makes the text of `/metrics` with the current values.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// The reason for which the daemon accepts no requests: a code, and a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    reason: Reason,
    why: Option<String>,
}

impl NotReady {
    pub fn new(reason: Reason) -> Self {
        NotReady { reason, why: None }
    }

    /// Adds the cause. The probes' listener shows the cause, so it must not contain a secret.
    #[must_use]
    pub fn because(self, why: String) -> Self {
        NotReady { why: Some(why), ..self }
    }
}

/// Writes the code on one line, then the cause.
impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.reason)?;
        self.why.as_ref().map_or(Ok(()), |why| writeln!(f, "{why}"))
    }
}

/// Returns the routes `/.well-known/openid-configuration` and `/keys` (RFC 8414, RFC 7517). Clients may cache the
/// answers for the longest time that a token checked offline can be valid.
pub fn issuer_routes(broker: Arc<Broker>) -> Router {
    let issuer = broker.settings().issuer.clone();
    let discovery = serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{}/keys", issuer.trim_end_matches('/')),
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["tls_client_auth"],
        "authorization_details_types_supported": [crate::token::DETAIL_TYPE],
        "tls_client_certificate_bound_access_tokens": true,
    })
    .to_string();
    Router::new()
        .route(
            "/.well-known/openid-configuration",
            get(move || {
                let discovery = discovery.clone();
                async move { json(discovery) }
            }),
        )
        .route(
            "/keys",
            get(move || {
                let jwks = broker.verifiers.jwks();
                async move { json(jwks) }
            }),
        )
}

/// Returns the routes `/livez`, `/readyz` and `/metrics`.
pub fn probe_routes(ready: Readiness, metrics: MetricsText) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let ready = ready();
                async move {
                    match ready {
                        Ok(notes) => notes.to_string().into_response(),
                        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_string()).into_response(),
                    }
                }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                let text = metrics();
                async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
            }),
        )
}

fn json(body: String) -> Response {
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    let age = format!("public, max-age={}", limits::OFFLINE_TOKEN_TTL_MAX.as_secs());
    if let Ok(age) = HeaderValue::from_str(&age) {
        response.headers_mut().insert(header::CACHE_CONTROL, age);
    }
    response
}

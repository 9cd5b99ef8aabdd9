//! The HTTP server for people who log in. Its listener does not require client certificates, because the people have
//! none yet.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    broker::{Broker, LoggedIn, LoginOrder},
    limits::LOGIN_BODY_BYTES_MAX,
    people::{LoginAnswer, LoginBody, LoginProblem, LoginTerms},
    reason::{Reason, Refusal},
    secret::SecretText,
};

/// Returns the routes of `/login`. `GET` returns the identity provider at which people log in. `POST` returns an SVID
/// for an ID token.
pub fn login_routes(broker: Arc<Broker>) -> Router {
    let terms = broker.logins.people().map(|people| {
        let options = people.provider.options();
        LoginTerms {
            issuer: options.issuer.clone(),
            client_id: options.client_id.clone(),
            device_flow: people.rules.device_flow,
        }
    });
    let log_in = move |body: Bytes| {
        let broker = broker.clone();
        // The login completes even if the client disconnects, so that each recorded login also gets a record of its end.
        async move {
            let done =
                tokio::spawn(async move { log_in(&broker, Zeroizing::new(body.to_vec())).await }).await;
            match done {
                Ok(Ok(answer)) => json(Reason::Internal, Some(&answer)),
                Ok(Err(refusal)) => refused(&refusal),
                Err(_) => {
                    refused(&Refusal::new(Reason::Internal, "a fault of the daemon: its log has the cause"))
                }
            }
        }
    };
    let routes = get(move || {
        let answer = json(Reason::NotSupported, terms.as_ref());
        async move { answer }
    });
    Router::new().route("/login", routes.post(log_in)).layer(DefaultBodyLimit::max(LOGIN_BODY_BYTES_MAX))
}

async fn log_in(broker: &Broker, body: Zeroizing<Vec<u8>>) -> Result<LoginAnswer, Refusal> {
    let read: LoginBody = serde_json::from_slice(&body).map_err(|_| {
        Refusal::new(Reason::FieldInvalid, "the body is not JSON with `id_token`, `key_request` and `group`")
    })?;
    let order = LoginOrder {
        id_token: SecretText::new(read.id_token),
        key_request: read.key_request,
        group: Some(read.group).filter(|group| !group.is_empty()),
    };
    let LoggedIn { login, kind, group, svid, bundle, until } = broker.logins.log_in(order).await?;
    Ok(LoginAnswer {
        spiffe_id: login.id.to_string(),
        svid,
        bundle,
        kind: kind.to_string(),
        human: login.human.to_string(),
        group: group.map(|group| group.to_string()).unwrap_or_default(),
        groups: login.groups,
        amr: login.amr,
        until: until.to_string(),
    })
}

fn refused(refusal: &Refusal) -> Response {
    let mut response = json(refusal.reason, Some(&LoginProblem::from(refusal)));
    *response.status_mut() = refusal.reason.http_status();
    response
}

/// Makes an answer with JSON that caches do not keep. If there is no JSON, the answer has only the status of the reason
/// `otherwise`.
fn json(otherwise: Reason, value: Option<&impl Serialize>) -> Response {
    match value.and_then(|value| serde_json::to_string(value).ok()) {
        Some(body) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, body).into_response()
        }
        None => otherwise.http_status().into_response(),
    }
}

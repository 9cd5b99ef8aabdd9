//! Login with a browser on another machine: the device authorization grant (RFC 8628).

use std::{sync::Arc, time::Duration};

use openidconnect::{
    ClientId, DeviceCodeErrorResponseType, Nonce, RequestTokenError, Scope, TokenResponse,
    core::{CoreClient, CoreDeviceAuthorizationResponse},
};

use super::{
    exchange::LoginTerms,
    flow::{Endpoints, FlowFault, SCOPES, endpoints},
    provider_http::{ProviderHttp, causes},
};
use crate::{clock::Clock, plain, secret::SecretText};

/// A login that waits for a person who types a code.
pub struct DeviceFlow {
    endpoints: Endpoints,
    client_id: ClientId,
    details: CoreDeviceAuthorizationResponse,
    nonce: Nonce,
}

impl DeviceFlow {
    /// Begins a login, and gets a code. Some providers put our nonce into the ID token, but many do not.
    ///
    /// # Errors
    ///
    /// Fails if the provider has no device flow, or gives no usable answer.
    pub async fn begin(http: &ProviderHttp, terms: &LoginTerms, nonce: &str) -> Result<Self, FlowFault> {
        let endpoints = endpoints(http, terms).await?;
        let device = endpoints.additional_metadata().device_authorization_endpoint.clone();
        let device = device.ok_or(FlowFault::NoDeviceFlow)?;
        let client_id = ClientId::new(terms.client_id.clone());
        let details = CoreClient::from_provider_metadata(endpoints.clone(), client_id.clone(), None)
            .set_device_authorization_url(device)
            .exchange_device_code()
            .add_scopes(SCOPES.map(|scope| Scope::new(scope.to_owned())))
            .add_extra_param("nonce", nonce.to_owned())
            .request_async(http)
            .await
            .map_err(|e| FlowFault::Provider(causes(&e)))?;
        Ok(DeviceFlow { endpoints, client_id, details, nonce: Nonce::new(nonce.to_owned()) })
    }

    /// Returns the URL of the page on which the person types the code. The text is safe to show.
    pub fn url(&self) -> String {
        plain::line(self.details.verification_uri().as_str()).into_owned()
    }

    /// Returns the URL of a page that already has the code, if the provider offers one. The text is safe to show.
    pub fn url_with_code(&self) -> Option<String> {
        self.details.verification_uri_complete().map(|url| plain::line(url.secret()).into_owned())
    }

    /// Returns the code that the person types. The text is safe to show.
    pub fn code(&self) -> String {
        plain::line(self.details.user_code().secret()).into_owned()
    }

    /// Asks for the ID token at the interval that the provider wants, until the person has finished or the code expires.
    ///
    /// # Errors
    ///
    /// Fails if the person refused, if no one typed the code in time, or if the ID token is not the answer to this login.
    pub async fn finish(
        self,
        http: &ProviderHttp,
        clock: Arc<dyn Clock>,
        wait: Duration,
    ) -> Result<SecretText, FlowFault> {
        let client = CoreClient::from_provider_metadata(self.endpoints, self.client_id, None);
        let sleep = |span: Duration| {
            let clock = clock.clone();
            async move { clock.sleep(span).await }
        };
        let answer = client
            .exchange_device_access_token(&self.details)
            .map_err(|e| FlowFault::Provider(e.to_string()))?
            .request_async(http, sleep, Some(wait))
            .await
            .map_err(|e| match e {
                RequestTokenError::ServerResponse(said) => match said.error() {
                    DeviceCodeErrorResponseType::ExpiredToken => FlowFault::TimedOut,
                    DeviceCodeErrorResponseType::AccessDenied => {
                        FlowFault::Refused("the login was denied".to_owned())
                    }
                    other => FlowFault::Refused(plain::value(other.as_ref())),
                },
                other => FlowFault::Provider(causes(&other)),
            })?;
        let token =
            answer.id_token().ok_or_else(|| FlowFault::OtherToken("the provider sent none".to_owned()))?;
        let wanted = self.nonce;
        let is_ours = |found: Option<&Nonce>| match found {
            None => Ok(()),
            Some(_) => openidconnect::NonceVerifier::verify(&wanted, found),
        };
        token.claims(&client.id_token_verifier(), is_ours).map_err(|e| FlowFault::OtherToken(causes(&e)))?;
        Ok(SecretText::new(token.to_string()))
    }
}

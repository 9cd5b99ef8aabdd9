//! What the browser flow and the device flow share: the provider's endpoints, and the faults of a login.

use openidconnect::{
    AdditionalProviderMetadata, DeviceAuthorizationUrl, IssuerUrl, ProviderMetadata, TokenUrl,
    core::{
        CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreJsonWebKey,
        CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreResponseMode, CoreResponseType,
        CoreSubjectIdentifierType,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    exchange::LoginTerms,
    provider_http::{ProviderHttp, causes, has_https},
};

/// The part of the discovery document that is about the device flow.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct DeviceEndpoint {
    #[serde(default)]
    pub(super) device_authorization_endpoint: Option<DeviceAuthorizationUrl>,
}

impl AdditionalProviderMetadata for DeviceEndpoint {}

pub(super) type Endpoints = ProviderMetadata<
    DeviceEndpoint,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// The scopes that the client requests. A provider ignores scopes that it does not know.
pub(super) const SCOPES: [&str; 3] = ["profile", "email", "groups"];

/// Why a person got no ID token.
#[derive(Debug, thiserror::Error)]
pub enum FlowFault {
    /// The provider cannot be reached, or its answer cannot be used.
    #[error("the identity provider gave no usable answer: {0}")]
    Provider(String),
    /// The provider has no device flow.
    #[error("the identity provider has no device flow")]
    NoDeviceFlow,
    /// No port on this machine is free for the answer of the browser.
    #[error("the command cannot listen on a port of this machine: {0}")]
    Listen(#[from] std::io::Error),
    /// The person or the provider refused the login.
    #[error("the identity provider refused the login: {0}")]
    Refused(String),
    /// No one finished the login in time.
    #[error("the login was not finished in time")]
    TimedOut,
    /// The ID token is not the answer to this login.
    #[error("the ID token does not belong to this login: {0}")]
    OtherToken(String),
}

/// Fetches the provider's endpoints. If the provider has `https`, its endpoints must have `https` too.
pub(super) async fn endpoints(http: &ProviderHttp, terms: &LoginTerms) -> Result<Endpoints, FlowFault> {
    let issuer = IssuerUrl::new(terms.issuer.clone()).map_err(|e| FlowFault::Provider(e.to_string()))?;
    let found: Endpoints =
        ProviderMetadata::discover_async(issuer, http).await.map_err(|e| FlowFault::Provider(causes(&e)))?;
    let device = found.additional_metadata().device_authorization_endpoint.as_ref();
    let urls = [
        Some(found.authorization_endpoint().url()),
        found.token_endpoint().map(TokenUrl::url),
        device.map(DeviceAuthorizationUrl::url),
    ];
    let is_weak = |url: &openidconnect::url::Url| has_https(&terms.issuer) && url.scheme() != "https";
    if urls.into_iter().flatten().any(is_weak) {
        return Err(FlowFault::Provider("one of its endpoints has no https".to_owned()));
    }
    Ok(found)
}

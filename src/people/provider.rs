//! The identity provider of people: its keys, and the check of an ID token.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use openidconnect::{
    AdditionalClaims, ClaimsVerificationError, ClientId, IdToken, IdTokenClaims, IssuerUrl, Nonce,
    SignatureVerificationError,
    core::{
        CoreGenderClaim, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm, CoreProviderMetadata,
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{
    fault::LoginFault,
    provider_http::{ProviderHttp, causes},
};
use crate::{
    clock::{BootTime, Now, Wall},
    limits::{
        ID_TOKEN_AGE_MAX, ID_TOKEN_BYTES_MAX, ID_TOKEN_EARLY_MAX, LOGIN_METHODS_MAX, LOGIN_WORD_BYTES_MAX,
        PROVIDER_KEYS_KEPT, PROVIDER_KEYS_RETRY,
    },
    plain,
    secret::SecretText,
};

/// The algorithms that are accepted. All of them use public keys, so `none` and HMAC are not accepted.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// All claims that OpenID Connect does not define.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct OtherClaims(HashMap<String, serde_json::Value>);

impl AdditionalClaims for OtherClaims {}

pub(super) type PersonToken =
    IdToken<OtherClaims, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;

/// The provider's settings in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderOptions {
    /// The `iss` of the provider's tokens. Its discovery document is below this URL.
    pub issuer: String,
    /// The name that the provider has for this daemon's client.
    pub client_id: String,
    /// The claim that lists the groups of a person.
    pub groups_claim: String,
}

/// The claims of a valid ID token about a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonClaims {
    /// The subject: the provider's name for the person.
    pub sub: String,
    /// The values of the claim of groups, as the provider writes them.
    pub groups: Vec<String>,
    /// The methods by which the person proved their identity (`amr`, RFC 8176).
    pub amr: Vec<String>,
    /// When the token was issued.
    pub issued: Wall,
    /// Whether the token is bound to the key of the login by its nonce.
    pub is_bound: bool,
}

/// The identity provider of people.
pub struct IdentityProvider {
    http: ProviderHttp,
    options: ProviderOptions,
    keys: Mutex<FetchedKeys>,
}

/// The keys of the provider, and when they were fetched.
#[derive(Default)]
struct FetchedKeys {
    keys: Option<Arc<CoreJsonWebKeySet>>,
    fetched: Option<BootTime>,
    tried: Option<BootTime>,
}

impl IdentityProvider {
    /// Makes a provider. Fetches nothing until the first login.
    pub fn new(http: ProviderHttp, options: ProviderOptions) -> Self {
        IdentityProvider { http, options, keys: Mutex::default() }
    }

    /// Returns the provider's settings in the configuration.
    pub fn options(&self) -> &ProviderOptions {
        &self.options
    }

    /// Checks an ID token: signature, algorithm, issuer, audience, authorized party, expiry, age and nonce. `nonce` is the
    /// expected nonce, which is computed from the key of the login.
    ///
    /// A token without a nonce is accepted, but it is not [bound](PersonClaims::is_bound).
    ///
    /// # Errors
    ///
    /// Fails if a check fails, or if the keys of the provider cannot be fetched.
    pub async fn check(&self, token: &SecretText, nonce: &str, now: Now) -> Result<PersonClaims, LoginFault> {
        if token.expose().len() > ID_TOKEN_BYTES_MAX {
            return Err(LoginFault::NotAToken);
        }
        let token = PersonToken::from_str(token.expose()).map_err(|_| LoginFault::NotAToken)?;
        let keys = self.keys(now.boot, false).await?;
        match self.check_by(&token, &keys, nonce, now.wall) {
            // The provider may have a new key. Fetch the keys again, but not for each bad token.
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey,
            )) => {
                let keys = self.keys(now.boot, true).await?;
                self.check_by(&token, &keys, nonce, now.wall)
            }
            checked => checked,
        }
        .map_err(fault_of)
        .and_then(|claims| self.read(claims, now.wall))
    }

    fn check_by<'t>(
        &self,
        token: &'t PersonToken,
        keys: &CoreJsonWebKeySet,
        nonce: &str,
        now: Wall,
    ) -> Result<&'t IdTokenClaims<OtherClaims, CoreGenderClaim>, ClaimsVerificationError> {
        let issuer = IssuerUrl::new(self.options.issuer.clone())
            .map_err(|e| ClaimsVerificationError::InvalidIssuer(e.to_string()))?;
        let client = ClientId::new(self.options.client_id.clone());
        let clock = UNIX_EPOCH + Duration::from_secs(now.seconds());
        let verifier = CoreIdTokenVerifier::new_public_client(client, issuer, keys.clone())
            .set_allowed_algs(ALGORITHMS)
            .set_time_fn(move || clock.into());
        let wanted = Nonce::new(nonce.to_owned());
        let claims = token.claims(&verifier, move |found: Option<&Nonce>| match found {
            None => Ok(()),
            Some(_) => openidconnect::NonceVerifier::verify(&wanted, found),
        })?;
        // These are items 4 and 5 of OpenID Connect Core, section 3.1.3.7. The library does not check them.
        let is_ours = |party: &ClientId| party.as_str() == self.options.client_id;
        match claims.authorized_party() {
            Some(party) if !is_ours(party) => {
                let party = plain::value(party.as_str());
                Err(ClaimsVerificationError::InvalidAudience(format!(
                    "the authorized party (azp) is `{party}`"
                )))
            }
            None if claims.audiences().len() > 1 => Err(ClaimsVerificationError::InvalidAudience(
                "there are several audiences (aud) and no authorized party (azp)".to_owned(),
            )),
            _ => Ok(claims),
        }
    }

    /// Reads the claims of a valid token.
    fn read(
        &self,
        claims: &IdTokenClaims<OtherClaims, CoreGenderClaim>,
        now: Wall,
    ) -> Result<PersonClaims, LoginFault> {
        let issued = Wall::from_seconds(u64::try_from(claims.issue_time().timestamp()).unwrap_or(0));
        if now.since(issued) > ID_TOKEN_AGE_MAX || issued.since(now) > ID_TOKEN_EARLY_MAX {
            return Err(LoginFault::TokenNotFresh);
        }
        let is_short = |word: &String| word.len() <= LOGIN_WORD_BYTES_MAX;
        let methods = claims.auth_method_refs().into_iter().flatten();
        let amr = methods.map(|method| method.to_string()).filter(is_short).take(LOGIN_METHODS_MAX).collect();
        let groups = match claims.additional_claims().0.get(&self.options.groups_claim) {
            Some(serde_json::Value::Array(all)) => {
                all.iter().filter_map(|group| group.as_str().map(str::to_owned)).collect()
            }
            Some(serde_json::Value::String(one)) => vec![one.clone()],
            _ => Vec::new(),
        };
        Ok(PersonClaims {
            sub: claims.subject().to_string(),
            groups,
            amr,
            issued,
            is_bound: claims.nonce().is_some(),
        })
    }

    /// Returns the keys of the provider. Fetches them first if they are too old. `again` asks for keys that are newer than the
    /// present keys.
    async fn keys(&self, now: BootTime, again: bool) -> Result<Arc<CoreJsonWebKeySet>, LoginFault> {
        // Only one task fetches at a time. The others wait for its keys.
        let mut held = self.keys.lock().await;
        let within = |at: Option<BootTime>, span| at.is_some_and(|at| now.since(at) < span);
        if let Some(keys) = &held.keys
            && (if again {
                within(held.tried, PROVIDER_KEYS_RETRY)
            } else {
                within(held.fetched, PROVIDER_KEYS_KEPT)
            })
        {
            return Ok(keys.clone());
        }
        // If the provider cannot be reached, try once a second, not for each token. Keys that are too old are not used
        // meanwhile.
        if within(held.tried, Duration::from_secs(1)) {
            return Err(LoginFault::Provider {
                why: "its keys could not be fetched a moment ago".to_owned(),
            });
        }
        held.tried = Some(now);
        let found = self.discover().await?;
        let keys = Arc::new(found.jwks().clone());
        held.keys = Some(keys.clone());
        held.fetched = Some(now);
        Ok(keys)
    }

    /// Fetches the discovery document and the keys that it names. The issuer in the document must be the configured issuer.
    async fn discover(&self) -> Result<CoreProviderMetadata, LoginFault> {
        let issuer = IssuerUrl::new(self.options.issuer.clone())
            .map_err(|e| LoginFault::Provider { why: e.to_string() })?;
        CoreProviderMetadata::discover_async(issuer, &self.http)
            .await
            .map_err(|e| LoginFault::Provider { why: causes(&e) })
    }
}

fn fault_of(error: ClaimsVerificationError) -> LoginFault {
    match error {
        ClaimsVerificationError::Expired(_) => LoginFault::TokenExpired,
        ClaimsVerificationError::InvalidNonce(_) => LoginFault::OtherKey,
        other => LoginFault::TokenRefused { why: causes(&other) },
    }
}

impl std::fmt::Debug for IdentityProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityProvider({})", self.options.issuer)
    }
}

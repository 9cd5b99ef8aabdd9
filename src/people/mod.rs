//! People who log in: an ID token of their identity provider becomes a short-lived X.509-SVID.
//!
//! This module owns the check of an ID token (OpenID Connect), and the two ways to get an ID token. It also owns the person's
//! name and SPIFFE ID, and the authority that signs SVIDs of people. It decides only who a person is and which SVID the person
//! gets. It keeps no login: the broker records a login, and the state ends it.
//!
//! | File | Contains |
//! |---|---|
//! | `person` | the name and the SPIFFE ID of a person |
//! | `key_request` | [`KeyRequest`]: a public key, with the proof that the sender has its private key |
//! | `authority` | [`PeopleAuthority`]: signs the SVIDs of people |
//! | `provider` | [`IdentityProvider`]: checks ID tokens; [`PersonClaims`]: the claims of a valid ID token |
//! | `provider_http` | [`ProviderHttp`]: bounded HTTP to the identity provider |
//! | `rules` | [`LoginRules`]: who may log in, and with which groups |
//! | `spent_tokens` | [`SpentTokens`]: makes sure that no ID token is used twice |
//! | `fault` | [`LoginFault`]: why a login is refused |
//! | `service` | [`People`]: everything that a daemon needs for logins |
//! | `browser_flow` `device_flow` `flow` | the two ways to get an ID token, for the command, and their common part |
//! | `exchange` | the messages of a login between a client and the daemon |

mod authority;
#[cfg(feature = "cli")]
mod browser_flow;
#[cfg(feature = "cli")]
mod device_flow;
mod exchange;
mod fault;
#[cfg(feature = "cli")]
mod flow;
mod key_request;
mod person;
mod provider;
mod provider_http;
mod rules;
mod service;
mod spent_tokens;

pub use authority::{AuthorityFault, PeopleAuthority};
#[cfg(feature = "cli")]
pub use browser_flow::BrowserFlow;
#[cfg(feature = "cli")]
pub use device_flow::DeviceFlow;
pub use exchange::{LoginAnswer, LoginBody, LoginProblem, LoginTerms};
pub use fault::LoginFault;
#[cfg(feature = "cli")]
pub use flow::FlowFault;
pub use key_request::KeyRequest;
pub use person::{PERSON_SEGMENT, human_of_subject, person_id};
pub use provider::{IdentityProvider, PersonClaims, ProviderOptions};
pub use provider_http::{HttpFault, ProviderHttp, has_https, is_plain_on_loopback};
pub use rules::LoginRules;
pub use service::People;
pub use spent_tokens::SpentTokens;

//! The faults for which a login is refused.

use crate::{
    limits,
    reason::{Reason, Refusal},
};

/// Why a login is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginFault {
    /// The ID token is not a JWT, or is too long.
    #[error("the ID token is not a signed token of at most {} bytes", limits::ID_TOKEN_BYTES_MAX)]
    NotAToken,
    /// A check of OpenID Connect failed. The text is only for the log, because it may quote claims.
    #[error("the ID token is not accepted: {why}")]
    TokenRefused {
        /// The check that failed, for the log.
        why: String,
    },
    /// The ID token has expired.
    #[error("the ID token has expired")]
    TokenExpired,
    /// The ID token is older than [`limits::ID_TOKEN_AGE_MAX`], from the future, or older than this run of the daemon.
    #[error("the ID token was not issued just now")]
    TokenNotFresh,
    /// The token's nonce is not the digest of the key in the login.
    #[error("the ID token was issued for another login")]
    OtherKey,
    /// The token has no nonce, and the configuration requires one.
    #[error("the ID token has no nonce, and the device flow is not allowed here")]
    DeviceFlowOff,
    /// The token was already used for a login.
    #[error("the ID token was used for a login before")]
    TokenSpent,
    /// The subject cannot be the name of a person.
    #[error("the subject of the ID token is not 1 to 255 ASCII characters")]
    Subject,
    /// The certificate signing request is malformed, or is not signed by the key in it.
    #[error("the certificate signing request is not for a P-256 key, or is not signed by that key")]
    KeyRequest,
    /// The person logged in without a method that is required.
    #[error("you logged in without {method}, which this daemon requires")]
    MethodMissing {
        /// A value of `amr`.
        method: String,
    },
    /// The person named a group, but is not its member.
    #[error("the identity provider does not have you in the group {group}")]
    NotInGroup {
        /// The group, by Leasehold's name.
        group: String,
    },
    /// The identity provider cannot be reached, or its answer cannot be used.
    #[error("the identity provider gave no usable answer: {why}")]
    Provider {
        /// The cause, for the log.
        why: String,
    },
    /// The person logged in too often.
    #[error(
        "you logged in {} times within {} minutes, and more is not allowed",
        limits::ID_TOKENS_PER_PERSON_MAX,
        limits::ID_TOKEN_AGE_MAX.as_secs() / 60
    )]
    TooOften,
    /// Too many other logins of this person wait, because their ID tokens are dated ahead of the daemon's clock.
    #[error(
        "{} of your logins wait, because their ID tokens are dated ahead of this daemon's clock",
        limits::LOGINS_AHEAD_PER_PERSON_MAX
    )]
    Ahead,
    /// There are too many logins at once.
    #[error("there are too many logins at once")]
    Busy,
}

impl LoginFault {
    /// Makes the refusal for the person. It does not quote the provider or the token.
    pub fn refusal(&self) -> Refusal {
        let again = "log in again: leasehold login";
        match self {
            LoginFault::TokenRefused { .. } => Refusal::new(
                Reason::LoginRefused,
                "the ID token is not from the identity provider of this daemon, or not for this daemon",
            )
            .fix("log in again; if it is refused again, an operator finds the failed check in the daemon's log"),
            LoginFault::Provider { .. } => Refusal::new(
                Reason::ProviderUnavailable,
                "the daemon got no usable answer from the identity provider",
            )
            .fix("try again; if it lasts, an operator finds the cause in the daemon's log"),
            LoginFault::Busy => Refusal::new(Reason::Overloaded, self.to_string()).fix("try again in a few seconds"),
            LoginFault::Ahead => Refusal::new(Reason::Overloaded, self.to_string())
                .fix("try again in a minute; if it lasts, have the clocks of the identity provider and the daemon compared"),
            LoginFault::TooOften => {
                Refusal::new(Reason::Overloaded, self.to_string()).fix("try again in some minutes")
            }
            LoginFault::DeviceFlowOff => Refusal::new(Reason::LoginRefused, self.to_string())
                .fix("log in without --device, or have an operator set people.device_flow = true"),
            LoginFault::MethodMissing { method } => Refusal::new(Reason::LoginRefused, self.to_string())
                .fix(format!("sign in with {method} at the identity provider, then: leasehold login")),
            LoginFault::NotInGroup { .. } => Refusal::new(Reason::LoginRefused, self.to_string())
                .fix("have yourself added to the group at the identity provider, or name another one with --group"),
            LoginFault::NotAToken
            | LoginFault::TokenExpired
            | LoginFault::TokenNotFresh
            | LoginFault::OtherKey
            | LoginFault::TokenSpent
            | LoginFault::Subject
            | LoginFault::KeyRequest => Refusal::new(Reason::LoginRefused, self.to_string()).fix(again),
        }
    }
}

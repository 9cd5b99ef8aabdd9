//! Audiences: the resource servers that check credentials.

use std::collections::BTreeSet;

use crate::name::{SpiffeId, TenantName};

super::words! {
    /// The method by which an audience checks a token before it serves a request.
    Checks {
        /// The audience verifies offline and follows the fence feed.
        Feed = "feed",
        /// The audience asks the daemon about each token.
        Introspect = "introspect",
        /// The audience verifies only the signature, with the keys of `/keys`. A revocation has no effect until the
        /// token expires.
        Jwt = "jwt",
    }
}

super::words! {
    /// Whether an audience sees the caller's SVID.
    Presenter {
        /// The audience compares the token's subject with the presenter's SVID.
        Mtls = "mtls",
        /// The audience does not see the SVID, so every caller that has the token can use it.
        None = "none",
    }
}

/// The address of an audience's S3 gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Endpoint {
    /// The address of the gateway: `HOST:PORT`.
    pub address: String,
    /// The SPIFFE ID of the gateway, which is one of the verifiers.
    pub server_id: SpiffeId,
}

/// One `[[audience]]`: a resource server by name.
#[derive(Clone, Debug)]
pub struct Audience {
    /// The tenant whose file declares the audience.
    pub tenant: TenantName,
    /// The value of `aud` in tokens for the audience.
    pub name: SpiffeId,
    /// The identities that verify tokens for the audience. Never empty.
    pub verifiers: BTreeSet<SpiffeId>,
    pub checks: Checks,
    pub presenter: Presenter,
    /// The S3 gateway of the audience. Wrappers pass the requests of unmodified programs to it.
    pub s3: Option<S3Endpoint>,
    /// The tenants whose resources may name the audience.
    pub serves: BTreeSet<TenantName>,
    /// The tenants that can have leases at the audience: the tenants that it serves, and the tenants with which its
    /// resources are shared. The fence feed of the audience has the lowerings of these tenants.
    pub reached_by: BTreeSet<TenantName>,
    /// The file and line of the entry, for example `acme.toml:30`.
    pub declared: String,
}

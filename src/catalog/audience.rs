//! Audiences: who checks credentials, and how.

use std::collections::BTreeSet;

use crate::name::{SpiffeId, TenantName};

super::words! {
    /// How an audience checks a token before it serves a request.
    Checks {
        /// Verifies offline and follows the fence feed.
        Feed = "feed",
        /// Asks the daemon each time.
        Introspect = "introspect",
        /// Verifies only the signature, by `/keys`: a revocation has no effect until the token expires.
        Jwt = "jwt",
    }
}

super::words! {
    /// Whether an audience sees the caller's SVID.
    Presenter {
        /// The audience compares the token's subject with the presenter's SVID.
        Mtls = "mtls",
        /// The audience does not see the SVID, so anyone who has the token can use it.
        None = "none",
    }
}

/// Where the S3 gateway of an audience is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Endpoint {
    /// `HOST:PORT`.
    pub address: String,
    /// The SPIFFE ID of the server there. One of the verifiers.
    pub server_id: SpiffeId,
}

/// One `[[audience]]`: a resource server by name.
#[derive(Clone, Debug)]
pub struct Audience {
    /// The tenant whose file declares it.
    pub tenant: TenantName,
    /// The value of `aud` in its tokens.
    pub name: SpiffeId,
    /// The identities that verify tokens for it. Never empty.
    pub verifiers: BTreeSet<SpiffeId>,
    pub checks: Checks,
    pub presenter: Presenter,
    /// Its S3 gateway, to which wrappers pass the requests of unmodified programs.
    pub s3: Option<S3Endpoint>,
    /// The tenants whose resources may name it.
    pub serves: BTreeSet<TenantName>,
    /// The tenants whose leases can reach it: those it serves, and those that a resource kept here is shared with. Its fence feed
    /// carries their lowerings.
    pub reached_by: BTreeSet<TenantName>,
    /// The file and line of its entry, for example `acme.toml:30`.
    pub declared: String,
}

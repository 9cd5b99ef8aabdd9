//! The endpoint of a foreign bundle, and the authentication of its server.

use std::{fmt, path::PathBuf, str::FromStr};

use http::Uri;

use crate::name::{SpiffeId, TrustDomain};

/// A bundle endpoint. All fields are configured, because a URL does not imply a trust domain (SPIFFE Federation,
/// section 7.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// The trust domain of the bundle.
    pub trust_domain: TrustDomain,
    /// The URL of the bundle.
    pub url: EndpointUrl,
    /// The authentication of the server.
    pub profile: EndpointProfile,
}

/// The authentication of the server of a bundle endpoint (section 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// `https_web`: by host name, with the roots of a PEM file, such as the file of the system.
    Web {
        /// The PEM file with the roots.
        ca: PathBuf,
    },
    /// `https_spiffe`: by SPIFFE ID, with the roots in `bundle`. If the endpoint serves its own trust domain, the roots
    /// that it served last replace the configured roots.
    Spiffe {
        /// The SPIFFE ID of the server.
        id: SpiffeId,
        /// The file with the first roots: PEM or a SPIFFE bundle document.
        bundle: PathBuf,
    },
}

/// An `https` URL with a host, without a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) target: String,
    text: String,
}

/// The fault of the URL of a bundle endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlFault {
    /// The URL has no scheme, no host or port 0, or cannot be parsed.
    #[error("is not a URL: write https://HOST/PATH")]
    NotAUrl,
    /// The scheme is not `https`.
    #[error("is not https: a bundle is fetched only over https")]
    NotHttps,
    /// The authority has an `@`.
    #[error("names a user: remove the part before `@`")]
    User,
    /// The URL has a `#`.
    #[error("has a fragment: remove `#` and the part after it")]
    Fragment,
}

impl FromStr for EndpointUrl {
    type Err = EndpointUrlFault;

    fn from_str(text: &str) -> Result<Self, EndpointUrlFault> {
        use EndpointUrlFault as F;
        if text.contains('#') {
            return Err(F::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| F::NotAUrl)?;
        let authority = uri.authority().ok_or(F::NotAUrl)?;
        if uri.scheme_str() != Some("https") {
            return Err(F::NotHttps);
        }
        if authority.as_str().contains('@') {
            return Err(F::User);
        }
        let host = authority.host();
        let is_port_written = authority.as_str().len() > host.len();
        if host.is_empty() || (is_port_written && authority.port_u16().is_none_or(|port| port == 0)) {
            return Err(F::NotAUrl);
        }
        Ok(EndpointUrl {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(443),
            target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl EndpointProfile {
    /// Returns the name of the profile in the standard.
    pub fn as_str(&self) -> &'static str {
        match self {
            EndpointProfile::Web { .. } => "https_web",
            EndpointProfile::Spiffe { .. } => "https_spiffe",
        }
    }
}

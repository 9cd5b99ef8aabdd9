//! One receiver of notices, from the configuration.

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

use http::Uri;

use super::{occasion::Occasion, signature::SigningSecrets};
use crate::{limits::WEBHOOK_FILE_BYTES_MAX, name::TenantName, written::read_regular_text};

/// A receiver of notices.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// A short name for the log, and for the file with the webhook's place in the ledger.
    pub name: String,
    pub url: UrlFrom,
    /// The file with the authorities that may certify the receiver's host name. It is needed for https.
    pub ca: Option<PathBuf>,
    /// The file with the secrets that sign notices.
    pub secret: Option<PathBuf>,
    pub occasions: BTreeSet<Occasion>,
    pub tenants: TenantsHeard,
    pub format: LetterFormat,
}

/// Where the URL of a receiver is written.
#[derive(Clone, Debug)]
pub enum UrlFrom {
    /// The URL is in the configuration.
    Written(WebhookUrl),
    /// The URL is in a file, because it is a secret, as with Slack.
    File(PathBuf),
}

/// The tenants whose notices a receiver gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantsHeard {
    /// The receiver gets the notices of all tenants, and notices that belong to no tenant.
    All,
    /// The receiver gets only the notices of these tenants. It gets a notice that belongs to no tenant or to several tenants only
    /// if the notice is about a person on whom open jobs of these tenants depend.
    Only(BTreeSet<TenantName>),
}

impl TenantsHeard {
    /// Whether the receiver gets a notice that belongs to this tenant, or to no tenant.
    pub fn hears(&self, tenant: Option<&TenantName>) -> bool {
        match (self, tenant) {
            (TenantsHeard::All, _) => true,
            (TenantsHeard::Only(some), Some(tenant)) => some.contains(tenant),
            (TenantsHeard::Only(_), None) => false,
        }
    }
}

/// The format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterFormat {
    /// `CloudEvents` 1.0 in structured mode, as JSON.
    CloudEvents,
    /// A JSON object with one text, as Slack and similar services accept it.
    Slack,
}

/// The URL of a receiver: https, or http on this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    text: String,
    is_https: bool,
}

/// A mistake in the URL of a receiver. The text contains no part of the URL, which may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookUrlFault {
    #[error("is not a URL: write https://HOST/PATH")]
    NotAUrl,
    #[error(
        "is plain HTTP to another machine: write https://, or http://127.0.0.1 for a receiver beside the daemon"
    )]
    Plain,
    #[error("names a user: remove the part before `@`")]
    User,
    #[error("has a fragment: remove `#` and the part after it")]
    Fragment,
}

/// A mistake in a file of a receiver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct WebhookFault {
    /// The key in the configuration: `secret_file` or `url_file`.
    pub key: &'static str,
    pub what: String,
}

impl FromStr for WebhookUrl {
    type Err = WebhookUrlFault;

    fn from_str(text: &str) -> Result<Self, WebhookUrlFault> {
        if text.contains('#') {
            return Err(WebhookUrlFault::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| WebhookUrlFault::NotAUrl)?;
        let authority = uri.authority().ok_or(WebhookUrlFault::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(WebhookUrlFault::User);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(WebhookUrlFault::NotAUrl);
        }
        // A name such as localhost could resolve to another machine, so only addresses count.
        let is_here = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_here => false,
            Some("http") => return Err(WebhookUrlFault::Plain),
            _ => return Err(WebhookUrlFault::NotAUrl),
        };
        Ok(WebhookUrl { text: text.to_owned(), is_https })
    }
}

impl WebhookUrl {
    /// Returns the URL. It may be a secret, so do not show it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether the URL has a query, in which people put tokens.
    pub fn has_query(&self) -> bool {
        self.text.contains('?')
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookUrl([redacted])")
    }
}

impl Webhook {
    /// Returns the URL. Reads its file, if the URL is in a file, so that a new URL needs no restart. Blocks.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or has no URL that may be used.
    pub fn read_url(&self) -> Result<WebhookUrl, WebhookFault> {
        let file = match &self.url {
            UrlFrom::Written(url) => return Ok(url.clone()),
            UrlFrom::File(file) => file,
        };
        let fault = |what: String| WebhookFault { key: "url_file", what };
        let text = read_regular_text(file, WEBHOOK_FILE_BYTES_MAX).map_err(fault)?;
        let url: WebhookUrl = text.trim().parse().map_err(|why| fault(format!("its URL {why}")))?;
        if url.is_https() && self.ca.is_none() {
            return Err(fault("its URL is https: name the receiver's authorities in ca".to_owned()));
        }
        Ok(url)
    }

    /// Reads the secrets, so that new secrets need no restart. `None` if the receiver checks no signature. Blocks.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or has no valid secret.
    pub(super) fn read_secrets(&self) -> Result<Option<SigningSecrets>, WebhookFault> {
        let Some(file) = &self.secret else { return Ok(None) };
        SigningSecrets::load(file).map(Some).map_err(|what| WebhookFault { key: "secret_file", what })
    }

    /// Reads the files with the URL and the secrets, as a delivery does, and returns the mistakes. Blocks.
    pub fn faults(&self) -> Vec<WebhookFault> {
        let url = self.read_url().err();
        let secrets = self.read_secrets().err();
        url.into_iter().chain(secrets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_this_machine_is_a_receiver() {
        for good in ["https://hooks.example/x?t=1", "http://127.0.0.1:9/x", "http://[::1]:9/"] {
            assert!(good.parse::<WebhookUrl>().is_ok(), "{good}");
        }
        for bad in [
            "http://hooks.example/x",
            "http://localhost/x",
            "ftp://127.0.0.1/",
            "https:///x",
            "/x",
            "https://u:p@h/x",
            "https://h/x#y",
        ] {
            assert!(bad.parse::<WebhookUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_is_not_in_a_debug() {
        let url: WebhookUrl = "https://hooks.example/services/T0/B0/hunter2".parse().unwrap();
        assert!(!format!("{:?}", UrlFrom::Written(url)).contains("hunter2"));
    }

    #[test]
    fn a_tenants_webhook_hears_of_no_other_tenant() {
        let (acme, globex): (TenantName, TenantName) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        let heard = TenantsHeard::Only([acme.clone()].into());
        assert!(heard.hears(Some(&acme)));
        assert!(!heard.hears(Some(&globex)) && !heard.hears(None));
        assert!(TenantsHeard::All.hears(None));
        assert!(!TenantsHeard::Only(BTreeSet::new()).hears(Some(&acme)));
    }
}

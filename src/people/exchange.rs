//! The messages of a login between a client and the daemon: JSON over HTTP/1.1 and TLS, at `/login`.

use serde::{Deserialize, Serialize};

use crate::reason::{Reason, Refusal};

/// The answer to `GET /login`: the identity provider, and the ways to log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginTerms {
    /// The issuer of the identity provider.
    pub issuer: String,
    /// The name that the provider has for the client.
    pub client_id: String,
    /// Whether the device flow is allowed.
    pub device_flow: bool,
}

/// The body of `POST /login`. It has no `Debug`, because the token is a secret.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginBody {
    /// The ID token.
    pub id_token: String,
    /// A certificate signing request for a P-256 key, in PEM.
    pub key_request: String,
    /// The group for the login. The person logs in as its member. If it is empty, the daemon takes the first of the person's
    /// groups.
    #[serde(default)]
    pub group: String,
}

/// The answer to `POST /login`: an SVID, and information about the person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginAnswer {
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// The certificate chain of the SVID in PEM, with the leaf first.
    pub svid: String,
    /// The roots of the people trust domain, in PEM.
    pub bundle: String,
    /// The kind of principal that the catalog has for the person.
    pub kind: String,
    /// The name of the person, as in `human:NAME`.
    pub human: String,
    /// The group of the login. Empty if the person logged in as a member of no group.
    pub group: String,
    /// All groups of the person that Leasehold knows.
    pub groups: Vec<String>,
    /// The methods by which the person proved their identity.
    pub amr: Vec<String>,
    /// The end of the login, as in RFC 3339.
    pub until: String,
}

/// A refused login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginProblem {
    /// The code of the reason.
    pub reason: String,
    /// One line that says what is wrong.
    pub text: String,
    /// Lines with labels, which are shown below the text.
    #[serde(default)]
    pub facts: Vec<(String, String)>,
}

impl From<&Refusal> for LoginProblem {
    fn from(refusal: &Refusal) -> Self {
        let facts = refusal.facts.iter().map(|(label, value)| (label.to_string(), value.clone())).collect();
        LoginProblem { reason: refusal.reason.code().to_owned(), text: refusal.text.to_string(), facts }
    }
}

impl LoginProblem {
    /// Makes the refusal that the client shows.
    pub fn refusal(self) -> Refusal {
        let reason = Reason::parse(&self.reason).unwrap_or(Reason::LoginRefused);
        let refusal = Refusal::new(reason, self.text);
        self.facts.into_iter().fold(refusal, |refusal, (label, value)| refusal.with(label, value))
    }
}

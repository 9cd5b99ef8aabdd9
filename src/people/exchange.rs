//! The messages of a login between a client and the daemon: JSON over HTTP/1.1 and TLS, at `/login`.

use serde::{Deserialize, Serialize};

use crate::reason::{Reason, Refusal};

/// The answer to `GET /login`: where people log in, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginTerms {
    /// The issuer of the identity provider.
    pub issuer: String,
    /// What the provider calls the client.
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
    /// A certificate signing request for a P-256 key, as PEM.
    pub key_request: String,
    /// The group as whose member the person logs in. If it is empty, the daemon takes the first of the person's groups.
    #[serde(default)]
    pub group: String,
}

/// The answer to `POST /login`: an SVID, and who the person is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginAnswer {
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// The SVID's chain as PEM, leaf first.
    pub svid: String,
    /// The roots of the people trust domain as PEM.
    pub bundle: String,
    /// The kind of principal that the catalog lists for the person.
    pub kind: String,
    /// The name of the person, as in `human:NAME`.
    pub human: String,
    /// The group as whose member the person logged in. Empty if there is none.
    pub group: String,
    /// All groups of the person that Leasehold knows.
    pub groups: Vec<String>,
    /// How the person proved who they are.
    pub amr: Vec<String>,
    /// The end of the login, as in RFC 3339.
    pub until: String,
}

/// A refused login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginProblem {
    /// The code of the reason.
    pub reason: String,
    /// One line that says what was wrong.
    pub text: String,
    /// Labelled lines below it.
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
    /// Returns the refusal, as the client shows it.
    pub fn refusal(self) -> Refusal {
        let reason = Reason::parse(&self.reason).unwrap_or(Reason::LoginRefused);
        let refusal = Refusal::new(reason, self.text);
        self.facts.into_iter().fold(refusal, |refusal, (label, value)| refusal.with(label, value))
    }
}

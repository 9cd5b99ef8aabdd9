//! Secrets: bytes that no log, error or `Debug` shows and that are wiped when they are dropped.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Text that must not be shown: a token, a ticket.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over. It is wiped when the last copy is dropped.
    pub fn new(text: String) -> Self {
        SecretText(Zeroizing::new(text))
    }

    /// Returns the text itself. With each call, a secret leaves its wrapper.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// 256 random bits.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

/// The system could not give random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

impl Secret {
    /// Draws one from the random bytes of the system.
    ///
    /// # Errors
    ///
    /// The system gave none.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Secret(bytes))
    }

    /// `None` unless there are 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Secret(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// Returns the bytes themselves. With each call, a secret leaves its wrapper.
    pub fn expose(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// base64url without padding, 43 characters.
    pub fn to_text(&self) -> SecretText {
        SecretText::new(URL_SAFE_NO_PAD.encode(self.0.as_ref()))
    }

    /// Reads what [`Secret::to_text`] wrote. `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Self::from_bytes(&bytes)
    }

    /// Returns its SHA-256, which may be stored and compared in its place.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(sha256(self.0.as_ref()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// SHA-256 of a secret. Compared in constant time.
#[derive(Clone, Copy)]
pub struct SecretDigest(pub [u8; 32]);

impl SecretDigest {
    /// `None` unless there are 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(SecretDigest(bytes.try_into().ok()?))
    }
}

impl PartialEq for SecretDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
impl Eq for SecretDigest {}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[digest]")
    }
}

/// How the tokens of well-known systems begin, and how many letters and digits follow at least.
const TOKEN_BEGINNINGS: &[(&str, usize)] = &[
    ("AGE-SECRET-KEY-1", 20),
    ("AIza", 30),
    ("AKIA", 16),
    ("ASIA", 16),
    ("dapi", 32),
    ("dckr_pat_", 16),
    ("eyJ", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghs_", 20),
    ("ghu_", 20),
    ("github_pat_", 16),
    ("glpat-", 12),
    ("hf_", 24),
    ("hvb.", 20),
    ("hvs.", 20),
    ("lh_", 20),
    ("npm_", 24),
    ("pypi-", 24),
    ("sk-ant-", 4),
    ("sk-proj-", 4),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("ya29.", 10),
];

/// Whether a text has the form of a secret: a PEM block of a private key, the token of a well-known system, a URL with a
/// password.
pub(crate) fn has_secret_form(text: &str) -> bool {
    let is_token = |(begin, least): &(&str, usize)| {
        text.match_indices(begin).any(|(at, _)| {
            let is_start = text.get(..at).is_some_and(|b| !b.ends_with(|c: char| c.is_ascii_alphanumeric()));
            let tail = text.get(at + begin.len()..).unwrap_or_default();
            is_start && tail.bytes().take_while(u8::is_ascii_alphanumeric).count() >= *least
        })
    };
    let has_password = text.match_indices("://").any(|(at, mark)| {
        let rest = text.get(at + mark.len()..).unwrap_or_default();
        let authority = rest.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
    });
    text.contains("-----BEGIN")
        || text.contains("PRIVATE KEY")
        || has_password
        || TOKEN_BEGINNINGS.iter().any(is_token)
}

/// Whether a text looks like a secret: it has the form of one, or a long run of letters and digits like an encoded key.
/// Error messages do not quote such a text, because people paste keys instead of paths and names.
pub(crate) fn looks_secret(text: &str) -> bool {
    /// Shorter runs are names, ULIDs and UUIDs.
    const RUN: usize = 32;
    /// A run with slashes may be a path.
    const RUN_WITH_SLASHES: usize = 40;
    let ends_run = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_' | '-'));
    has_secret_form(text)
        || text.split(ends_run).any(|run| run.len() >= RUN && is_encoded(run, 4))
        || text
            .split(|c| ends_run(c) && c != '/')
            .any(|run| run.len() >= RUN_WITH_SLASHES && !run.starts_with('/') && is_encoded(run, 3))
}

/// Whether a run of letters and digits is encoded bytes: these change between the kinds of characters all the time, and names
/// do not. One change in `one_in` characters is enough.
fn is_encoded(run: &str, one_in: usize) -> bool {
    let kind = |c: u8| match c {
        b'A'..=b'Z' => Some(0),
        b'a'..=b'z' => Some(1),
        b'0'..=b'9' => Some(2),
        _ => None,
    };
    let count = |wanted| run.bytes().filter(|c| kind(*c) == Some(wanted)).count();
    let (upper, lower, digits) = (count(0), count(1), count(2));
    let pairs = run.as_bytes().windows(2);
    let changes = pairs.filter(
        |two| matches!(two, [a, b] if kind(*a).is_some() && kind(*b).is_some() && kind(*a) != kind(*b)),
    );
    upper > 0
        && lower > 0
        && digits > 0
        && (upper + digits) * 4 >= run.len()
        && changes.count() * one_in >= run.len()
}

/// Returns what an error shows instead of a text that looks like a secret.
pub(crate) fn withheld(text: &str) -> String {
    format!("({} characters, not shown: they look like a key or a token)", text.chars().count())
}

/// Replaces each part of a text that looks like a secret: a PEM block, or a word between blanks, quotes and brackets.
pub(crate) fn redacted(text: &str) -> Cow<'_, str> {
    if !looks_secret(text) {
        return Cow::Borrowed(text);
    }
    const BEGIN: &str = "-----BEGIN";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, block)) = rest.split_once(BEGIN) {
        redact_words(before, &mut out);
        let end = pem_end(block);
        let (block, after) = block.split_at_checked(end).unwrap_or((block, ""));
        out.push_str(&withheld(&format!("{BEGIN}{block}")));
        rest = after;
    }
    redact_words(rest, &mut out);
    Cow::Owned(out)
}

/// Where a PEM block ends whose beginning was read. A block without an end goes to the next quote.
fn pem_end(block: &str) -> usize {
    const END: &str = "-----END";
    const DASHES: &str = "-----";
    let end = block.find(END).and_then(|at| {
        let label = at + END.len();
        Some(label + block.get(label..)?.find(DASHES)? + DASHES.len())
    });
    end.or_else(|| block.find(['`', '\'', '"'])).unwrap_or(block.len())
}

fn redact_words(text: &str, out: &mut String) {
    let is_between = |c: char| c.is_whitespace() || "`'\"()<>[]{},;".contains(c);
    for part in text.split_inclusive(is_between) {
        let word = part.trim_end_matches(is_between);
        match looks_secret(word) {
            true => {
                out.push_str(&withheld(word));
                out.push_str(part.get(word.len()..).unwrap_or_default());
            }
            false => out.push_str(part),
        }
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0u8; 32];
    let d = digest::digest(&digest::SHA256, bytes);
    for (o, b) in out.iter_mut().zip(d.as_ref()) {
        *o = *b;
    }
    out
}

/// 128 random bits, for identifiers.
pub(crate) fn random_u128() -> Result<u128, NoRandomness> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(u128::from_be_bytes(bytes))
}

/// Draws a number from 0 to 1, to spread what many clients would do at the same moment. 1 if the system has no randomness.
pub(crate) fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map_or(1.0, |()| f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_byte_is_in_a_debug() {
        let s = Secret::random().unwrap();
        let text = s.to_text();
        let shown = format!("{s:?} {text:?} {:?}", s.digest());
        assert!(!shown.contains(text.expose()));
        assert_eq!(shown, "[redacted] [redacted] [digest]");
    }

    #[test]
    fn pasted_keys_look_secret_and_names_do_not() {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = key.serialize_pem();
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        for secret in [
            pem.as_str(),
            &body,
            "hf_AbCdEfGhIjKlMnOpQrStUvWxYzabcdefgh",
            "key: -----BEGIN EC",
            "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJpc3MiOiJodHRwIn0.c2ln",
            "hvs.CAESIJ0p3kX9cQ2mZr7bT5wYv1LsNd8HfGa4",
            "ghp_0123456789abcdefABCDEF0123456789abcd",
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYz9Q2kLpe8T",
            "postgres://ml:hunter2@db.acme.example/features",
            Secret::from_bytes(&sha256(b"a")).unwrap().to_text().expose(),
        ] {
            assert!(looks_secret(secret), "{secret}");
            assert!(!withheld(secret).contains(secret));
            for text in
                [format!("cannot open `{secret}`: gone"), format!("--key={secret}"), secret.to_owned()]
            {
                let shown = redacted(&text);
                assert!(shown.contains("not shown") && !looks_secret(&shown), "{shown}");
            }
        }
        for plain in [
            "/run/leasehold/svid.key",
            "/home/Ada/Projects2/support-tuning-of-October/leasehold.toml",
            "spiffe://k8s.acme.example/ns/ml/job/01JD3M8TZZZZZZZZZZZZZZZZZZ",
            "7f3c9a00-1111-4222-8333-444455556666",
            "sha256:4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de",
            "a_test_name_of_many_words_that_says_what_it_holds",
            "/scratch/US1/GPU8/Experiment-2026-11-29-LLAMA3-70B-Instruct-v2/checkpoints-of-Ada",
            "https://leasehold.acme.example:8443/keys?of=ada@acme.example",
            "/data/sk-learn-experiments/hf_datasets_cache_2026/glpat-notes",
            "sha256:4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de4be1c0de is no key",
        ] {
            assert!(!looks_secret(plain), "{plain}");
            assert_eq!(redacted(plain), plain);
        }
    }

    #[test]
    fn only_the_secret_part_of_a_message_is_replaced() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let text = format!("cannot open '{key}' for job j-1: AKIAIOSFODNN7EXAMPLE, no such file");
        let shown = redacted(&text);
        assert!(shown.starts_with("cannot open '(") && shown.ends_with("token), no such file"), "{shown}");
        assert!(shown.contains("for job j-1: (20 characters"), "{shown}");
        let cut = format!("`{}`: cut", key.get(..60).unwrap());
        assert!(redacted(&cut).ends_with("`: cut"), "{}", redacted(&cut));
    }

    #[test]
    fn text_reads_back_and_its_digest_is_equal() {
        let s = Secret::random().unwrap();
        assert_eq!(Secret::from_text(s.to_text().expose()).unwrap().digest(), s.digest());
        assert!(Secret::from_text("short").is_none());
    }
}

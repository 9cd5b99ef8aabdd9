//! Finds texts that look like secrets, and removes them from texts.

use std::{borrow::Cow, ops::Range};

/// The prefixes of tokens of well-known systems, and the lowest number of letters and digits after the prefix.
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

/// The parameters that sign a URL, in lower case. Their names contain the prefix of the store, so no other parameter
/// has them.
const SIGNATURES: &[&str] =
    &["x-amz-security-token", "x-amz-signature", "x-goog-signature", "x-oss-signature", "q-signature"];

/// The parameters that sign a URL if their value is long, or if the same URL has a parameter of `SIGNED_WITH`.
const SHORT_SIGNATURES: &[&str] = &["sig", "signature"];

/// The other parameters of a signed URL, in lower case.
const SIGNED_WITH: &[&str] = &[
    "awsaccesskeyid",
    "expires",
    "googleaccessid",
    "key-pair-id",
    "ossaccesskeyid",
    "se",
    "sp",
    "sr",
    "ss",
    "sv",
];

/// The settings of a connection string that are keys, in lower case.
const KEY_SETTINGS: &[&str] = &["accountkey", "sharedaccesskey", "sharedaccesssignature"];

/// The settings of a connection string that are passwords. They count if a `;` ends them, or if the same text has a
/// setting of `STORE_SETTINGS`.
const PASSWORD_SETTINGS: &[&str] = &["password", "pwd"];

/// The last words of other settings of a connection string, such as `User Id`.
const STORE_SETTINGS: &[&str] = &[
    "address", "catalog", "database", "dbname", "driver", "dsn", "endpoint", "host", "id", "server",
    "source", "ssl", "uid", "user", "username",
];

/// The schemes of an `Authorization` header whose credential can be used again.
const SCHEMES: &[&str] = &["basic ", "bearer "];

/// Whether a character separates the words of a message.
fn is_between(c: char) -> bool {
    c.is_whitespace() || "`'\"()<>[]{},;\\".contains(c)
}

/// Whether a text has a signed URL, or the query of a signed URL. A person who has such a URL can use it.
fn has_signed_url(text: &str) -> bool {
    /// The lowest number of characters of a signature, which has at least 128 bits.
    const LONG: usize = 16;
    if !text.contains(['?', '&']) {
        return false;
    }
    text.split(is_between).filter(|word| word.contains(['?', '&'])).any(|word| {
        let parameters: Vec<_> = word
            .split(['?', '&', '#'])
            .filter_map(|one| one.split_once('='))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let is_signed_with = parameters.iter().any(|(name, _)| SIGNED_WITH.contains(&name.as_str()));
        parameters.iter().any(|(name, value)| {
            let is_signature = SIGNATURES.contains(&name.as_str());
            let may_be = SHORT_SIGNATURES.contains(&name.as_str()) && (is_signed_with || value.len() >= LONG);
            !value.is_empty() && (is_signature || may_be)
        })
    })
}

/// Returns the positions of secrets that only the words before them reveal, as in a connection string or an
/// `Authorization` header.
fn named_secrets(text: &str) -> Vec<Range<usize>> {
    const HEADER: &str = "authorization";
    let mut found = Vec::new();
    for (at, value) in settings(text, KEY_SETTINGS) {
        found.push(at..setting_end(text, value));
    }
    let passwords = settings(text, PASSWORD_SETTINGS);
    let has_store = !passwords.is_empty() && !settings(text, STORE_SETTINGS).is_empty();
    for (at, value) in passwords {
        let end = setting_end(text, value);
        let is_ended = text.get(end..).is_some_and(|rest| rest.starts_with(';'));
        // `PWD` is also the variable with the directory of a shell.
        let is_path = begins_with(text, at, "pwd=/");
        if (has_store || is_ended) && !is_path {
            found.push(at..end);
        }
    }
    let headers = text.match_indices(['a', 'A']).filter(|(at, _)| begins_with(text, *at, HEADER));
    let after_name = |at: usize| {
        let rest = text.get(at..).unwrap_or_default();
        text.len() - rest.trim_start_matches(|c: char| c == ' ' || "=:'\"\\".contains(c)).len()
    };
    let is_whole = |at: usize| text.get(at..).is_some_and(|token| !token.contains(char::is_whitespace));
    let places = headers.map(|(at, _)| (after_name(at + HEADER.len()), false)).chain([(0, true)]);
    found.extend(places.filter_map(|(at, must_be_whole)| {
        let token = bearer_token(text, at)?;
        (!must_be_whole || is_whole(token.start)).then_some(token)
    }));
    found.sort_by_key(|range| range.start);
    found
}

/// Whether the part of the text from `at` on begins with these ASCII characters, in upper or lower case.
fn begins_with(text: &str, at: usize, beginning: &str) -> bool {
    let found = text.as_bytes().get(at..at.saturating_add(beginning.len()));
    found.is_some_and(|found| found.eq_ignore_ascii_case(beginning.as_bytes()))
}

/// Finds the settings with these names in a text. Returns the positions of the names and the values.
fn settings(text: &str, names: &[&str]) -> Vec<(usize, usize)> {
    let is_in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut found = Vec::new();
    for (sign, _) in text.match_indices('=') {
        let before = text.get(..sign).unwrap_or_default().trim_end_matches(' ');
        let begin = |name: &&str| {
            let at = before.len().checked_sub(name.len()).filter(|at| begins_with(before, *at, name))?;
            before.get(..at).is_some_and(|before| !before.ends_with(is_in_name)).then_some(at)
        };
        let Some(at) = names.iter().find_map(begin) else { continue };
        let value = text.get(sign + 1..).unwrap_or_default().trim_start_matches(' ');
        // In the JSON of a log, a quote directly after the `=` may end the field. Then the setting has no value.
        let ends_field = || {
            let rest = value.strip_prefix('"');
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([',', '}', ']', ':']))
        };
        if !value.is_empty() && !value.starts_with([';', '&', ',', '`']) && !ends_field() {
            found.push((at, text.len() - value.len()));
        }
    }
    found
}

/// Returns the end of a setting's value: at its closing quote or brace, or else at a `;`, a blank, or the quote that the message
/// puts around it.
fn setting_end(text: &str, start: usize) -> usize {
    let value = text.get(start..).unwrap_or_default();
    let before = |at: usize| value.get(..at).unwrap_or_default();
    // In the JSON of a log, a quote of the value has a backslash before it. A quote that ends the field has none.
    let is_escaped = |at: usize| (at - before(at).trim_end_matches('\\').len()) % 2 == 1;
    let quote = if value.starts_with('"') { Some(1) } else { value.starts_with("\\\"").then_some(2) };
    if let Some(open) = quote {
        let close = value.get(open..).and_then(|body| body.find('"')).map(|at| open + at);
        return start
            + match close {
                Some(at) if open == 1 || is_escaped(at) => at + 1,
                Some(at) => at,
                None => value.len(),
            };
    }
    let stop = value.find(['"', '`', '\n']).unwrap_or(value.len());
    let head = before(stop);
    let closing = |close: char| head.get(1..).and_then(|body| body.find(close)).map_or(stop, |at| at + 2);
    let end = match head.chars().next() {
        Some('{') => closing('}'),
        Some('\'') => closing('\''),
        _ => head.find(';').or_else(|| head.find(|c: char| c.is_whitespace() || c == '\'')).unwrap_or(stop),
    };
    start + if end == stop { head.trim_end_matches('\\').len() } else { end }
}

/// Finds the credential after `Basic` or `Bearer`, which begins at `at`.
fn bearer_token(text: &str, at: usize) -> Option<Range<usize>> {
    /// The lowest length of a credential. Shorter words are prose.
    const LEAST: usize = 7;
    let scheme = SCHEMES.iter().find(|scheme| begins_with(text, at, scheme))?;
    let start = at + scheme.len();
    let token = text.get(start..)?.split(is_between).next()?;
    let is_encoded = token.contains(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '=');
    (token.len() >= LEAST && is_encoded).then(|| start..start + token.len())
}

/// Whether a text has the form of a secret. Such forms are a PEM block of a private key, a token of a well-known
/// system, a signed URL, a URL or connection string with a password, and an `Authorization` header.
pub(crate) fn has_secret_form(text: &str) -> bool {
    let is_token = |word: &[u8]| {
        let may_begin = |(begin, _): &&(&str, usize)| begin.as_bytes().first() == word.first();
        TOKEN_BEGINNINGS.iter().filter(may_begin).any(|(begin, least)| {
            let tail = word.strip_prefix(begin.as_bytes());
            let run = |tail: &[u8]| tail.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            tail.is_some_and(|tail| run(tail) >= *least)
        })
    };
    // A token begins at the start of the text, or after a character that is not an ASCII letter or digit.
    let bytes = text.as_bytes();
    let mut words = std::iter::once(0)
        .chain(bytes.windows(2).zip(1..).filter_map(|(two, at)| {
            matches!(two, [before, _] if !before.is_ascii_alphanumeric()).then_some(at)
        }))
        .filter_map(|at| bytes.get(at..));
    let has_password = text.match_indices("://").any(|(at, mark)| {
        let rest = text.get(at + mark.len()..).unwrap_or_default();
        let authority = rest.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
    });
    text.contains("-----BEGIN")
        || text.contains("PRIVATE KEY")
        || has_password
        || has_signed_url(text)
        || !named_secrets(text).is_empty()
        || words.any(is_token)
}

/// Whether a text looks like a secret: it has the form of a secret, or a long run of letters and digits like an encoded
/// key. Error messages do not quote such a text, because people paste keys instead of paths and names.
pub(crate) fn looks_secret(text: &str) -> bool {
    /// The lowest length of an encoded run. Shorter runs are names, ULIDs and UUIDs.
    const RUN: usize = 32;
    /// The lowest length of an encoded run with slashes. Such a run may be a path, so it must be longer.
    const RUN_WITH_SLASHES: usize = 40;
    let ends_run = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_' | '-'));
    has_secret_form(text)
        || text.split(ends_run).any(|run| run.len() >= RUN && is_encoded(run, 4))
        || text
            .split(|c| ends_run(c) && c != '/')
            .any(|run| run.len() >= RUN_WITH_SLASHES && !run.starts_with('/') && is_encoded(run, 3))
}

/// Whether a run of letters and digits is encoded bytes. In encoded bytes, the kind of character changes often. In names it
/// seldom changes. One change in `one_in` characters is enough.
pub(super) fn is_encoded(run: &str, one_in: usize) -> bool {
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

/// Returns the replacement in an error for a text that looks like a secret.
pub(crate) fn withheld(text: &str) -> String {
    format!("({} characters, not shown: they look like a key or a token)", text.chars().count())
}

/// Replaces each part of a text that looks like a secret: a password of a connection string, a PEM block, or a word between
/// blanks, quotes and brackets.
pub(crate) fn redacted(text: &str) -> Cow<'_, str> {
    if !looks_secret(text) {
        return Cow::Borrowed(text);
    }
    const BEGIN: &str = "-----BEGIN";
    let named = redact_named(text);
    let mut out = String::with_capacity(named.len());
    let mut rest = named.as_str();
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

/// Returns the end of a PEM block, after its beginning was read. A block without an end goes to the next quote.
fn pem_end(block: &str) -> usize {
    const END: &str = "-----END";
    const DASHES: &str = "-----";
    let end = block.find(END).and_then(|at| {
        let label = at + END.len();
        Some(label + block.get(label..)?.find(DASHES)? + DASHES.len())
    });
    // In JSON, a quote has a backslash before it. The backslash stays with the quote.
    let quote = || {
        let before = block.get(..block.find(['`', '\'', '"'])?)?;
        Some(before.trim_end_matches('\\').len())
    };
    end.or_else(quote).unwrap_or(block.len())
}

/// Withholds the secrets that [`named_secrets`] finds. The name of a setting is withheld together with its value.
fn redact_named(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for range in named_secrets(text) {
        // Two secrets may overlap. The second is then withheld together with the first, or from the end of the first.
        let start = range.start.max(done);
        if let Some(secret) = text.get(start..range.end)
            && !secret.is_empty()
        {
            out.push_str(text.get(done..start).unwrap_or_default());
            out.push_str(&withheld(secret));
            done = range.end;
        }
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

fn redact_words(text: &str, out: &mut String) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Secret, sha256};

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
            "https://acme.blob.core.windows.net/data/train?sv=2024-11-04&sp=r&sig=Zm9vYmFy%2Bx%3D",
            "sv=2024-11-04&ss=b&sig=Zm9vYmFy%2Bx%3D",
            "https://s3.acme.example/b/k?AWSAccessKeyId=ada&Signature=Zm9v%3D&Expires=1795148000",
            "https://s3.acme.example/b/k?X-Amz-Expires=60&X-Amz-Signature=4be1c0de",
            "https://storage.googleapis.com/b/k?X-Goog-Expires=60&X-Goog-Signature=4be1c0de",
            "AccountName=acme;AccountKey=Zm9vYmFy==;EndpointSuffix=core.windows.net",
            "Endpoint=sb://acme.example/;SharedAccessKeyName=root;SharedAccessKey=Zm9vYmFy=",
            "Server=db.acme.example;User Id=ml;Password=hunter2;",
            "Driver={ODBC Driver 18 for SQL Server};Server=db;UID=ml;PWD={hunter;2}",
            "host=db.acme.example user=ml password=hunter2",
            "Authorization: Basic bWw6aHVudGVyMg==",
            "Authorization: Bearer hunter2-and-more",
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
            "https://data.acme.example/tickets?version=3&format=parquet&sig=none",
            "https://docs.acme.example/signature?expires=never#password",
            "the password of the user is wrong; write password=… in the file",
            "PWD=/home/ada USER=ada",
            "authorization: bearer token is missing",
            "Basic authentication",
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
    fn a_password_is_replaced_and_json_stays_json() {
        for (password, quoted) in [
            ("hunter2", "hunter2"),
            ("hunter2 and more", "\"hunter2 and more\""),
            ("hunter2;more", "{hunter2;more}"),
            ("hunter2", "hunter2\""),
            ("hunter2", "\"hunter2"),
            ("hunter2\\", "hunter2\\"),
            ("hunter2", "hunter2;Pwd="),
            ("hunter2", "hunter2;Pwd=\""),
            ("hunter2", "hunter2;Pwd={"),
        ] {
            let text = format!("Server=db;Uid=ml;Pwd={quoted}");
            let shown = redacted(&text);
            assert!(shown.starts_with("Server=db;Uid=ml;(") && !shown.contains(password), "{shown}");
            let json = serde_json::json!({ "job": "j-1", "reason": text, "target": "x" }).to_string();
            let read: serde_json::Value = serde_json::from_str(&redacted(&json)).unwrap();
            assert!(read["job"] == "j-1" && read["target"] == "x", "{read}");
            assert!(!read.to_string().contains("hunter2"), "{read}");
        }
        let json = serde_json::json!({ "reason": "AKIAIOSFODNN7EXAMPLE\"x", "job": "j-1" }).to_string();
        let read: serde_json::Value = serde_json::from_str(&redacted(&json)).unwrap();
        assert_eq!(read["job"], "j-1");
    }
}

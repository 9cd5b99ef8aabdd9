//! Finds secrets in texts that people write for others: a reason, a justification, a ticket.
//!
//! Such a text is recorded for years, so this check is stricter than the check of messages. It also finds a value that is
//! secret only because of the name before it, as in `password=…`, and long random digits. A text that only mentions a
//! secret, a digest or a commit does not contain a secret.

use unicode_normalization::UnicodeNormalization;

use super::redaction::{is_encoded, looks_secret};
use crate::plain::is_plain;

/// The endings of names whose values are secrets, in lower case and without separators between words.
const NAME_ENDS: &[&str] = &[
    "accesskey",
    "accountkey",
    "apikey",
    "credential",
    "credentials",
    "encryptionkey",
    "masterkey",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "pwd",
    "secret",
    "secretkey",
    "signingkey",
    "token",
];

/// The last words of other names whose values are secrets. As a part of a word, they mean something else.
const NAME_WORDS: &[&str] = &["pass", "pw"];

/// The words before `key` that make its value a secret.
const KEY_KINDS: &[&str] =
    &["access", "account", "api", "encryption", "master", "private", "secret", "signing"];

/// The separators between a name and its value, longest first.
const SEPARATORS: &[&str] = &[":=", "=>", "==", "="];

/// The words before hex digits that say that they are a digest, a commit or an id.
const HEX_LABELS: &[&str] = &[
    "blake3", "checksum", "commit", "digest", "etag", "hash", "id", "manifest", "md5", "ref", "rev",
    "revision", "sha", "sha1", "sha224", "sha256", "sha384", "sha512", "tree", "uid", "uuid", "versions",
];

/// The words of a text about commits, whose hashes are 40 hex digits.
const COMMIT_WORDS: &[&str] =
    &["commit", "commits", "git", "head", "merge", "rev", "revision", "revisions", "sha"];

/// The prefixes of tokens of well-known systems, and the lowest number of characters after the prefix. The characters
/// include a digit, and `_` and `-` count.
const TOKENS: &[(&str, usize)] = &[
    ("AGE-SECRET-KEY-", 8),
    ("AKIA", 12),
    ("ASIA", 12),
    ("GOCSPX-", 8),
    ("SG.", 16),
    ("dckr_pat_", 8),
    ("dop_v1_", 16),
    ("eyJ", 12),
    ("gho_", 8),
    ("ghp_", 8),
    ("ghr_", 8),
    ("ghs_", 8),
    ("ghu_", 8),
    ("github_pat_", 8),
    ("glpat-", 8),
    ("hvb.", 8),
    ("hvr.", 8),
    ("hvs.", 8),
    ("nvapi-", 16),
    ("rk_live_", 8),
    ("sk_live_", 8),
    ("sk_test_", 8),
    ("whsec_", 8),
    ("xapp-", 8),
    ("xoxa-", 8),
    ("xoxb-", 8),
    ("xoxp-", 8),
    ("xoxr-", 8),
    ("xoxs-", 8),
    ("ya29.", 8),
];

/// The prefixes of tokens that can be confused with names. Each has the number of letters and digits that must follow.
const SHORT_TOKENS: &[(&str, usize)] = &[
    ("dapi", 24),
    ("gsk_", 16),
    ("hf_", 16),
    ("lh_", 16),
    ("npm_", 16),
    ("pypi-", 16),
    ("r8_", 16),
    ("sk-", 16),
];

/// The lowest length of a random run. Shorter runs of letters and digits are names and ids.
const RUN: usize = 32;
/// The number of hex digits of a commit, and of characters of an AWS secret key.
const COMMIT: usize = 40;
/// The lowest length of a secret value. Shorter values are numbers and words.
const VALUE: usize = 6;

/// The commands that take a password among their words: their names, the flags of the password, and its position.
const COMMANDS: &[(&[&str], &[&str], PasswordPlace)] = &[
    (&["curl"], &["-u", "--user", "-U", "--proxy-user"], PasswordPlace::After(':')),
    (&["http", "https", "xh"], &["-a", "--auth"], PasswordPlace::After(':')),
    (&["smbclient", "rpcclient"], &["-U", "--user"], PasswordPlace::After('%')),
    (&["openssl"], &["-pass", "-passin", "-passout"], PasswordPlace::After(':')),
    (&["sshpass"], &["-p"], PasswordPlace::Whole),
    (&["redis-cli"], &["-a"], PasswordPlace::Whole),
    (&["ldapsearch", "ldapmodify", "ldapadd", "ldapdelete", "ldappasswd"], &["-w"], PasswordPlace::Whole),
    (&["mysql", "mysqldump", "mysqladmin", "mariadb"], &["-p"], PasswordPlace::Attached),
];

/// The place of the password of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PasswordPlace {
    /// After this character, in the next word or in the rest of the flag's word.
    After(char),
    /// The next word, or the rest of the flag's word.
    Whole,
    /// The rest of the flag's word.
    Attached,
}

/// Returns a text as people read it: without invisible characters, and with wide and decorated letters as plain letters.
/// People can still read and use a secret that is spelled in such a way.
pub(crate) fn as_read(text: &str) -> String {
    text.nfkc().filter(|c| is_plain(*c) || c.is_whitespace()).collect()
}

/// Whether a text that people write contains a secret.
pub(crate) fn holds_secret(text: &str) -> bool {
    let text = as_read(text);
    is_secret_as_read(&text)
}

fn is_secret_as_read(text: &str) -> bool {
    looks_secret(text)
        || has_password_of_command(text)
        || has_token(text, TOKENS, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        || has_token(text, SHORT_TOKENS, |c| c.is_ascii_alphanumeric())
        || runs(text, |c| c.is_ascii_alphanumeric()).any(|(at, run)| is_random(text, at, run))
        || runs(text, |c| c.is_ascii_alphanumeric() || "/+=".contains(c)).any(|(_, run)| is_base64(run))
        || runs(text, is_in_name).any(|(at, name)| is_followed_by_secret(text, at, name))
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Returns the runs of characters for which `is_in` is true, each with its position.
fn runs(text: &str, is_in: impl Fn(char) -> bool + Copy) -> impl Iterator<Item = (usize, &str)> {
    let mut next = 0;
    text.split_inclusive(move |c| !is_in(c)).filter_map(move |part| {
        let at = next;
        next += part.len();
        let run = part.trim_end_matches(|c| !is_in(c));
        (!run.is_empty()).then_some((at, run))
    })
}

fn has_token(text: &str, tokens: &[(&str, usize)], counts: impl Fn(char) -> bool) -> bool {
    tokens.iter().any(|(begin, least)| {
        text.match_indices(begin).any(|(at, _)| {
            let before = text.get(..at).unwrap_or_default();
            let tail = text.get(at + begin.len()..).unwrap_or_default();
            let tail = tail.split(|c| !counts(c)).next().unwrap_or_default();
            !before.ends_with(|c: char| c.is_ascii_alphanumeric())
                && tail.len() >= *least
                && tail.contains(|c: char| c.is_ascii_digit())
        })
    })
}

/// Whether a command in a text has a password among its words, as in `curl -u ada:hunter2`.
fn has_password_of_command(text: &str) -> bool {
    text.split(['\n', '|', ';', '&']).any(|line| {
        let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches(is_quote)).collect();
        COMMANDS.iter().any(|(commands, flags, place)| {
            let is_command = |word: &&str| commands.contains(&word.rsplit('/').next().unwrap_or_default());
            let Some(at) = words.iter().position(is_command) else { return false };
            let after = words.get(at + 1..).unwrap_or_default();
            after.iter().enumerate().any(|(i, word)| {
                let next = after.get(i + 1).copied().unwrap_or_default();
                flags.iter().filter_map(|flag| value_of_flag(flag, word, next)).any(|(value, is_next)| {
                    let password = match place {
                        PasswordPlace::After(mark) => value.split_once(*mark).map(|(_, password)| password),
                        PasswordPlace::Whole => Some(value),
                        PasswordPlace::Attached => (!is_next).then_some(value),
                    };
                    let password = password.map(|p| p.trim_matches(is_quote)).unwrap_or_default();
                    !password.is_empty() && !password.starts_with('-') && !is_reference(password)
                })
            })
        })
    })
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`' | '(' | ')' | ',')
}

/// Returns the value of a flag, and whether the value is the next word. Otherwise it is a part of this word. A flag of one
/// letter may stand behind others, as in `-su`.
fn value_of_flag<'t>(flag: &str, word: &'t str, next: &'t str) -> Option<(&'t str, bool)> {
    if word == flag {
        return Some((next, true));
    }
    if let Some(value) = word.strip_prefix(flag) {
        let is_long = flag.len() > 2;
        return match value.strip_prefix('=') {
            Some(value) if is_long => Some((value, false)),
            _ => (!is_long).then_some((value, false)),
        };
    }
    let letter = flag.strip_prefix('-').filter(|letter| letter.len() == 1)?;
    let (before, value) = word.strip_prefix('-')?.split_once(letter)?;
    let is_cluster = before.chars().all(|c| c.is_ascii_alphabetic());
    is_cluster.then_some(if value.is_empty() { (next, true) } else { (value, false) })
}

/// Whether a run of letters and digits is random: hex digits without a label before them, or letters and digits that often
/// alternate.
fn is_random(text: &str, at: usize, run: &str) -> bool {
    let has = |is: fn(&char) -> bool| run.chars().any(|c| is(&c));
    if run.len() < RUN || !has(char::is_ascii_digit) || !has(char::is_ascii_alphabetic) {
        return false;
    }
    if !run.chars().all(|c| c.is_ascii_hexdigit()) {
        let kinds: Vec<bool> = run.chars().map(|c| c.is_ascii_digit()).collect();
        let changes = kinds.windows(2).filter(|two| two.first() != two.last()).count();
        return is_encoded(run, 4) || changes * 3 >= run.len();
    }
    let before = text.get(..at).unwrap_or_default();
    let is_of_commits = || {
        runs(text, |c| c.is_ascii_alphanumeric())
            .any(|(_, word)| COMMIT_WORDS.contains(&word.to_ascii_lowercase().as_str()))
    };
    !(before.ends_with('@') || is_labelled(before) || run.len() == COMMIT && is_of_commits())
}

/// Whether a run may be base64 of at least 240 bits. A path changes less often between kinds of characters.
fn is_base64(run: &str) -> bool {
    run.len() >= COMMIT && !run.starts_with('/') && is_encoded(run, 4)
}

/// Whether the last word of a text says that a digest or an id follows.
fn is_labelled(before: &str) -> bool {
    let before = before.trim_end_matches(|c: char| c.is_whitespace() || ":=/#(\"'`".contains(c));
    let word = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    HEX_LABELS.contains(&word.to_ascii_lowercase().as_str())
}

/// Whether a word names a secret, and its value follows.
fn is_followed_by_secret(text: &str, at: usize, word: &str) -> bool {
    let name = word.trim_matches(['-', '.']);
    let before = text.get(..at).unwrap_or_default();
    if !(names_secret(name) || name.eq_ignore_ascii_case("key") && is_kind_of_key(before)) {
        return false;
    }
    let rest = text.get(at + word.len()..).unwrap_or_default();
    let Some((value, is_assigned)) = value_after(rest, word.starts_with('-')) else { return false };
    let is_number = value.chars().all(|c| c.is_ascii_digit() || ".:-_".contains(c));
    // This is a number of tokens, or the date of a token.
    let is_count = is_number && name.to_ascii_lowercase().ends_with("token");
    value.chars().count() >= VALUE
        && !is_reference(value)
        && !is_count
        && (is_assigned || is_unlike_prose(value))
}

fn names_secret(name: &str) -> bool {
    let letters: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let word = name.rsplit(['_', '-', '.']).next().unwrap_or_default().to_ascii_lowercase();
    NAME_ENDS.iter().any(|end| letters.ends_with(end)) || NAME_WORDS.contains(&word.as_str())
}

/// Whether a text ends in a word that makes a following `key` a secret, as in `api key`.
fn is_kind_of_key(before: &str) -> bool {
    let word = before.strip_suffix(' ').and_then(|b| b.rsplit(|c| !is_in_name(c)).next()).unwrap_or_default();
    KEY_KINDS.contains(&word.to_ascii_lowercase().as_str())
}

/// Returns the value after a name, and whether the text assigns the value. A sentence about the name is not an
/// assignment.
fn value_after(rest: &str, is_flag: bool) -> Option<(&str, bool)> {
    let unquoted = rest.trim_start_matches(['"', '\'', '\\', '`', ']']);
    let is_quoted = unquoted.len() < rest.len();
    let found = unquoted.trim_start();
    let is_apart = found.len() < unquoted.len();
    let assigned = SEPARATORS.iter().find_map(|separator| found.strip_prefix(separator));
    let (found, is_assigned) = if let Some(found) = assigned {
        (found, true)
    } else if let Some(found) = found.strip_prefix(':').filter(|found| !found.starts_with("//")) {
        (found, is_quoted)
    } else if let Some(found) = found.strip_prefix("is ").or_else(|| found.strip_prefix("was ")) {
        (found, false)
    } else if is_flag && is_apart {
        (found, false)
    } else {
        return None;
    };
    let found = found.trim_start().trim_start_matches('\\');
    let value = match found.chars().next() {
        Some(quote @ ('"' | '\'' | '`')) => found.split(quote).nth(1),
        _ => found.split(|c: char| c.is_whitespace() || ",;&)}]\"'`\\".contains(c)).next(),
    };
    Some((value?.trim_end_matches(['.', ':']), is_assigned))
}

/// Whether a value only refers to a secret or stands for an omitted one: a variable, a placeholder, a path, a URL, a
/// ticket.
fn is_reference(value: &str) -> bool {
    let is_ticket = || {
        value.split_once('-').is_some_and(|(project, number)| {
            project.chars().all(|c| c.is_ascii_uppercase()) && number.chars().all(|c| c.is_ascii_digit())
        })
    };
    let first = value.chars().next();
    value.starts_with(['$', '<', '[', '{', '%', '/', '~'])
        || value.starts_with("./")
        || value.contains("://")
        || value.chars().all(|c| Some(c) == first)
        || is_ticket()
}

/// Whether a value is not a word of a sentence: it has letters and digits, or a character that words do not have.
fn is_unlike_prose(value: &str) -> bool {
    let has = |is: fn(&char) -> bool| value.chars().any(|c| is(&c));
    has(char::is_ascii_digit) && has(char::is_ascii_alphabetic)
        || value.contains(|c: char| "!#$%^&*+=~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_of_a_command_is_found() {
        for secret in [
            "curl -u ada:hunter2 https://files.acme.example/x",
            "curl -u user:pass https://files.acme.example",
            "it worked with `curl -sSu ada:hunter2 https://x`",
            "/usr/bin/curl --user=ada:hunter2 x",
            "curl --proxy-user 'ada:hunter2' x",
            "curl https://x -uada:hunter2",
            "http -a ada:hunter2 files.acme.example",
            "smbclient //files/x -U ada%hunter2",
            "openssl pkcs12 -in x.p12 -passin pass:hunter2",
            "sshpass -p hunter2 ssh node7",
            "cd /x && redis-cli -a hunter2 ping",
            "ldapsearch -x -w hunter2",
            "mysql -u ada -phunter2 features",
        ] {
            assert!(holds_secret(secret), "{secret}");
        }
        for plain in [
            "curl -u $USER:$PASS https://x",
            "curl -u ada https://files.acme.example",
            "curl -u ada:<password> https://x",
            "curl -o out:1 -X PUT https://x",
            "we use curl; the key is -u user",
            "mysql -u ada -p features",
            "http -a $AUTH files.acme.example",
            "see ticket CHG-1412: data:v3, at 10:30",
            "ssh -p 2222 node7",
            "docker run -p 8080:80 image",
        ] {
            assert!(!holds_secret(plain), "{plain}");
        }
    }

    #[test]
    fn a_secret_in_other_spelling_is_found() {
        let key = "AKIAIOSFODNN7EXAMPLE";
        let between = |c: char| key.chars().flat_map(|k| [k, c]).collect::<String>();
        for hidden in [
            '\u{200b}',
            '\u{200d}',
            '\u{2060}',
            '\u{feff}',
            '\u{ad}',
            '\u{fe0f}',
            '\u{34f}',
            '\u{e0041}',
            '\u{202e}',
            '\u{3164}',
        ] {
            let spelled = between(hidden);
            assert!(holds_secret(&spelled) && looks_secret(&as_read(&spelled)), "{hidden:?}");
            assert!(holds_secret(&format!("pass{hidden}word=hunter2")), "{hidden:?}");
        }
        let wide = |text: &str| -> String {
            text.chars()
                .map(|c| char::from_u32(u32::from(c) + 0xfee0).filter(|_| c.is_ascii_graphic()).unwrap_or(c))
                .collect()
        };
        for text in ["AKIAIOSFODNN7EXAMPLE", "password=hunter2", "curl -u ada:hunter2"] {
            assert!(holds_secret(&wide(text)), "{}", wide(text));
        }
        // Mathematical letters.
        assert!(holds_secret(
            "\u{1d429}\u{1d41a}\u{1d42c}\u{1d42c}\u{1d430}\u{1d428}\u{1d42b}\u{1d41d}=hunter2"
        ));
        for plain in
            ["ｗｉｄｅ words", "Müller, naïve café", "one\nline\tmore", "ﬁne-tuning №5", "日本語の理由"]
        {
            assert!(!holds_secret(plain), "{plain}");
        }
    }
}

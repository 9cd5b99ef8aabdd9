//! The text of a file.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::OFlag;

use super::problem::Problems;
use crate::{
    limits::{FILE_BYTES_MAX, NEAREST_EDITS_MAX, NEAREST_STEPS_MAX},
    plain,
    secret::looks_secret,
};

/// Reads a file of at most [`FILE_BYTES_MAX`] bytes.
pub(crate) fn read_file(path: &Path) -> Result<String, Problems> {
    read_text(path, FILE_BYTES_MAX).map_err(|what| Problems::whole(path, what))
}

/// Reads a text file of at most `bytes_max` bytes. The error is a text that follows the file's name: `cannot be read:
/// …`.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> Result<String, String> {
    text_of(File::open(path), bytes_max)
}

/// Reads a text file that other users may replace. It must be a regular file, because a named pipe would block the
/// reader.
pub(crate) fn read_regular_text(path: &Path, bytes_max: u64) -> Result<String, String> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    if let Ok(file) = &file
        && !file.metadata().is_ok_and(|m| m.is_file())
    {
        return Err("is not a regular file".to_owned());
    }
    text_of(file, bytes_max)
}

fn text_of(file: io::Result<File>, bytes_max: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    file.and_then(|f| f.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is longer than {bytes_max} bytes"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("is UTF-16 text: save it as UTF-8".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text: save it as UTF-8".to_owned())?;
    // A byte order mark has no meaning in UTF-8, and parsers refuse it.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The beginnings of the lines of a text.
pub(crate) struct Lines(Vec<usize>);

impl Lines {
    pub(crate) fn of(text: &str) -> Self {
        Lines(text.match_indices('\n').map(|(i, _)| i + 1).collect())
    }

    /// Returns the line of a byte offset, counted from 1.
    pub(crate) fn at(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|start| *start <= offset)
    }
}

/// Returns the path of a private key, if such a file exists or if the text can only be a path. Otherwise returns a note
/// without the text, because the user may have pasted the key itself.
pub(crate) fn shown_key_path(path: &Path) -> String {
    match path.try_exists() {
        Ok(true) => plain::path(path),
        Ok(false) if is_named_as_file(path) => plain::path(path),
        _ => "(not shown: no file is there, and a pasted key must not be printed)".to_owned(),
    }
}

/// Whether a path has the extension of a key file and does not look like a key. The text of a key has no dot before an
/// extension: base64 and hexadecimal digits have no dots, and PEM has blanks.
fn is_named_as_file(path: &Path) -> bool {
    const ENDINGS: [&str; 4] = ["key", "pem", "der", "p8"];
    let is_plain = |text: &str| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-@+".contains(c)) && !looks_secret(text)
    };
    path.to_str().is_some_and(is_plain)
        && path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e))
}

/// Returns a parser's message as one line.
pub(crate) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the known word that differs from a mistyped word in the fewest letters, if these are few.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let most = (word.chars().count() / 4).clamp(2, NEAREST_EDITS_MAX);
    let near = known.into_iter().filter(|name| name.len().abs_diff(word.len()) <= most);
    // The comparison of two words takes as many steps as the product of their lengths. So a long word is compared with fewer
    // known words.
    let steps = word.len().saturating_mul(word.len().saturating_add(most)).max(1);
    let counted = near.take(NEAREST_STEPS_MAX / steps).map(|name| (strsim::osa_distance(word, name), name));
    counted.filter(|(edits, _)| *edits <= most).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_is_shown_only_if_it_is_a_path() {
        for path in ["/etc/leasehold/svid.key", "svid/operator-1.pem"] {
            assert_eq!(shown_key_path(Path::new(path)), path);
        }
        let base64 = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2";
        for pasted in [
            base64.to_owned(),
            format!("/etc/{base64}"),
            format!("{base64}.key"),
            "-----BEGIN PRIVATE KEY-----\nx.key".to_owned(),
            "hunter2".to_owned(),
        ] {
            assert!(shown_key_path(Path::new(&pasted)).starts_with("(not shown"), "{pasted}");
        }
    }

    #[test]
    fn the_nearest_word_is_one_of_few_edits() {
        let names = ["dataset:dev/data", "dataset:dev/people", "tenant:dev"];
        assert_eq!(nearest("dataset:dev/dta", names), Some("dataset:dev/data"));
        assert_eq!(nearest("dataset:dve/data", names), Some("dataset:dev/data"));
        assert_eq!(nearest("tenant:nosuch", names), None);
    }

    #[test]
    fn a_search_for_the_nearest_word_has_a_bound() {
        let seen = std::cell::Cell::new(0);
        let alike = vec!["x".repeat(1_000); 10_000];
        let counted = alike.iter().inspect(|_| seen.set(seen.get() + 1)).map(String::as_str);
        assert_eq!(nearest(&"y".repeat(1_000), counted), None);
        assert!(seen.get() <= NEAREST_STEPS_MAX / 1_000_000 + 1, "{} were compared", seen.get());
    }

    #[test]
    fn an_offset_is_on_its_line() {
        let lines = Lines::of("a\n\nb");
        assert_eq!([0, 1, 2, 3, 4].map(|at| lines.at(at)), [1, 1, 2, 3, 3]);
    }

    #[test]
    fn a_file_past_its_bound_or_not_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        assert_eq!(read_text(&path, 3).unwrap_err(), "is longer than 3 bytes");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 4).unwrap_err().starts_with("is not UTF-8"));
        std::fs::write(&path, "\u{feff}a = 1").unwrap();
        assert_eq!(read_text(&path, 10).unwrap(), "a = 1", "the mark of some editors is no text");
        std::fs::write(&path, b"\xff\xfea\0").unwrap();
        assert_eq!(read_text(&path, 4).unwrap_err(), "is UTF-16 text: save it as UTF-8");
        assert!(read_text(&dir.path().join("none"), 4).unwrap_err().starts_with("cannot be read: "));
    }

    #[test]
    fn a_pasted_key_is_never_shown() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for text in [key.clone(), key.replace('\n', ""), key.lines().nth(1).unwrap().to_owned()] {
            assert!(plain::value(&text).ends_with("not shown: they look like a key or a token)"), "{text}");
            assert!(shown_key_path(Path::new(&text)).starts_with("(not shown"));
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("svid.key");
        std::fs::write(&file, &key).unwrap();
        assert_eq!(shown_key_path(&file), file.display().to_string());
    }
}

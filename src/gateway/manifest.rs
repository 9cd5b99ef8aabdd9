//! The manifest of a pinned resource: each object with its size and its SHA-256.
//!
//! ```text
//! leasehold manifest 1
//! 03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4 4 train/part-0.jsonl
//! ```
//!
//! The lines are sorted by key. The SHA-256 of this text is the pin of the catalog, so a manifest proves itself,
//! regardless of its storage.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    limits::{GATEWAY_KEY_BYTES_MAX, MANIFEST_OBJECTS_MAX},
    name::Digest,
    plain,
};

const HEAD: &str = "leasehold manifest 1";

/// All objects of a pinned resource, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinManifest {
    objects: BTreeMap<String, PinnedObject>,
}

/// The size and digest that an object must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedObject {
    pub size: u64,
    pub sha256: Digest,
}

impl PinManifest {
    /// Adds an object.
    ///
    /// # Errors
    ///
    /// The key cannot be in a manifest, or there are too many objects.
    pub fn add(&mut self, key: &str, object: PinnedObject) -> Result<(), String> {
        if key.is_empty() || key.len() > GATEWAY_KEY_BYTES_MAX || key.chars().any(char::is_control) {
            return Err(format!("`{}` cannot be the key of a pinned object", plain::value(key)));
        }
        if self.objects.len() >= MANIFEST_OBJECTS_MAX {
            return Err(format!("a manifest has at most {MANIFEST_OBJECTS_MAX} objects"));
        }
        self.objects.insert(key.to_owned(), object);
        Ok(())
    }

    /// Reads the text of a manifest.
    ///
    /// # Errors
    ///
    /// The first line that differs from the form of [`text`](Self::text).
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(format!("its first line is not `{HEAD}`"));
        }
        let mut manifest = PinManifest::default();
        for (number, line) in lines.enumerate() {
            let wrong = || format!("line {} is not `SHA256 SIZE KEY`", number.saturating_add(2));
            let (sha256, rest) = line.split_once(' ').ok_or_else(wrong)?;
            let (size, key) = rest.split_once(' ').ok_or_else(wrong)?;
            let sha256 = format!("sha256:{sha256}").parse().map_err(|_| wrong())?;
            manifest.add(key, PinnedObject { size: size.parse().map_err(|_| wrong())?, sha256 })?;
        }
        // So one set of objects has only one text and only one pin.
        if manifest.text() == text {
            Ok(manifest)
        } else {
            Err("its lines are not sorted by key, or a line is not exactly `SHA256 SIZE KEY`".to_owned())
        }
    }

    /// Returns the text. Its SHA-256 is the pin.
    pub fn text(&self) -> String {
        let mut text = format!("{HEAD}\n");
        for (key, PinnedObject { size, sha256 }) in &self.objects {
            let sha256 = sha256.to_string();
            let digits = sha256.strip_prefix("sha256:").unwrap_or_default();
            let _ = writeln!(text, "{digits} {size} {key}");
        }
        text
    }

    /// Returns the pin of this manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(self.text().as_bytes())
    }

    /// Returns the size and digest that the object with this key must have.
    pub(super) fn object(&self, key: &str) -> Option<&PinnedObject> {
        self.objects.get(key)
    }

    /// Whether a key begins with this prefix.
    pub(super) fn has_below(&self, prefix: &str) -> bool {
        self.objects.range(prefix.to_owned()..).next().is_some_and(|(key, _)| key.starts_with(prefix))
    }

    /// Returns the number of objects, and their total size in bytes.
    pub fn totals(&self) -> (usize, u64) {
        (self.objects.len(), self.objects.values().map(|object| object.size).fold(0, u64::saturating_add))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> PinManifest {
        let mut manifest = PinManifest::default();
        manifest.add("train/b c", PinnedObject { size: 4, sha256: Digest::of(b"1234") }).unwrap();
        manifest.add("a", PinnedObject { size: 0, sha256: Digest::of(b"") }).unwrap();
        manifest
    }

    #[test]
    fn a_manifest_reads_back() {
        let text = two().text();
        assert_eq!(PinManifest::parse(&text).unwrap(), two());
        assert!(
            text.ends_with("03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4 4 train/b c\n")
        );
        assert!(two().has_below("train/") && !two().has_below("b"));
        assert_eq!(two().totals(), (2, 4));
        let swapped: String =
            [0, 2, 1].iter().map(|n| format!("{}\n", text.lines().nth(*n).unwrap())).collect();
        for bad in [
            "",
            "leasehold manifest 2\n",
            &text.replace(" 4 ", " four "),
            &swapped,
            &text.replace("03ac", "03AC"),
        ] {
            assert!(PinManifest::parse(bad).is_err(), "{bad}");
        }
        assert!(two().add("a\nb", PinnedObject { size: 0, sha256: Digest::ZERO }).is_err());
    }
}

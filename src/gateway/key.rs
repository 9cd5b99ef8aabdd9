//! The part of an object's key after a leased prefix.

use crate::limits::{GATEWAY_KEY_BYTES_MAX, GATEWAY_KEY_DEPTH_MAX, GATEWAY_SEGMENT_BYTES_MAX};

/// The folder of unfinished uploads at the root of each store in a directory. Keys must not contain this name.
pub(super) const STAGING: &str = ".leasehold-uploads";

/// A key below a leased prefix: plain names between slashes. It can be opened in every store, and it never leaves the
/// prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SubKey {
    text: String,
    is_folder: bool,
}

/// The reason for which a text is not such a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyFault {
    #[error("the key names the leased folder itself: name an object below it")]
    Empty,
    #[error("a part of the key between two slashes is empty, `.` or `..`")]
    Dots,
    #[error("the key contains a control character")]
    Control,
    #[error("the key is longer than {GATEWAY_KEY_BYTES_MAX} bytes")]
    TooLong,
    #[error("a part of the key is longer than {GATEWAY_SEGMENT_BYTES_MAX} bytes")]
    LongSegment,
    #[error("the key has more than {GATEWAY_KEY_DEPTH_MAX} slashes")]
    TooDeep,
    #[error("the gateway keeps unfinished uploads under `{STAGING}`: choose another name")]
    Reserved,
}

/// The name of an object in a store: the folder of a location, and the key below it.
#[derive(Clone, Debug)]
pub(super) struct ObjectPath {
    /// The folder below the root of the store. It ends in a slash, or is empty for the root itself.
    pub(super) folder: String,
    pub(super) key: SubKey,
}

impl SubKey {
    /// Checks the bytes without decoding, joining or removing parts. A slash at the end marks a folder.
    pub(super) fn parse(text: &str) -> Result<Self, KeyFault> {
        if text.len() > GATEWAY_KEY_BYTES_MAX {
            return Err(KeyFault::TooLong);
        }
        let (names, is_folder) = match text.strip_suffix('/') {
            Some(names) => (names, true),
            None => (text, false),
        };
        if names.is_empty() {
            return Err(if is_folder { KeyFault::Dots } else { KeyFault::Empty });
        }
        let mut depth = 0usize;
        for segment in names.split('/') {
            check_segment(segment)?;
            depth = depth.saturating_add(1);
        }
        if depth > GATEWAY_KEY_DEPTH_MAX {
            return Err(KeyFault::TooDeep);
        }
        Ok(SubKey { text: names.to_owned(), is_folder })
    }

    /// Returns the key without the slash that marks a folder.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the key ends in a slash. Clients make a folder by storing an empty object with such a key.
    pub(super) fn is_folder(&self) -> bool {
        self.is_folder
    }
}

fn check_segment(segment: &str) -> Result<(), KeyFault> {
    if matches!(segment, "" | "." | "..") {
        return Err(KeyFault::Dots);
    }
    if segment.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(KeyFault::Control);
    }
    if segment.len() > GATEWAY_SEGMENT_BYTES_MAX {
        return Err(KeyFault::LongSegment);
    }
    if segment == STAGING {
        return Err(KeyFault::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // A key is used literally: its parts are not decoded, removed or joined.
    #[test]
    fn a_key_is_taken_literally_or_refused() {
        for text in ["a", "a/b.parquet", "a b", "%2e%2e/x", "a%2Fb", "...", "日本/é", "a\u{202e}b", "-"] {
            assert_eq!(SubKey::parse(text).unwrap().as_str(), text);
        }
        let folder = SubKey::parse("a/b/").unwrap();
        assert_eq!((folder.as_str(), folder.is_folder()), ("a/b", true));
        for (text, fault) in [
            ("", KeyFault::Empty),
            ("/", KeyFault::Dots),
            ("/a", KeyFault::Dots),
            ("a//b", KeyFault::Dots),
            ("a//", KeyFault::Dots),
            ("..", KeyFault::Dots),
            ("a/../b", KeyFault::Dots),
            ("a/./b", KeyFault::Dots),
            ("a\0b", KeyFault::Control),
            ("a\nb", KeyFault::Control),
            (".leasehold-uploads/x", KeyFault::Reserved),
            ("a/.leasehold-uploads", KeyFault::Reserved),
        ] {
            assert_eq!(SubKey::parse(text), Err(fault), "{text:?}");
        }
        assert_eq!(SubKey::parse(&"a".repeat(256)), Err(KeyFault::LongSegment));
        assert_eq!(SubKey::parse(&"a/".repeat(GATEWAY_KEY_DEPTH_MAX + 1)), Err(KeyFault::TooDeep));
        assert_eq!(SubKey::parse(&"a".repeat(2_000)), Err(KeyFault::TooLong));
    }
}

//! One page of a listing with its keys and common prefixes, without I/O.

use std::collections::BTreeSet;

/// A client's request for a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListQuery {
    pub(super) prefix: String,
    /// The delimiter. It is not empty: an empty delimiter in a request counts as no delimiter.
    pub(super) delimiter: Option<String>,
    /// Only keys after this text are listed. If it is a common prefix of an earlier page, the keys below it are left
    /// out.
    pub(super) after: String,
    pub(super) max: usize,
}

/// A page under construction. Keys arrive in ascending order of their bytes.
#[derive(Debug)]
pub(super) struct ListPage<T> {
    query: ListQuery,
    pub(super) objects: Vec<(String, T)>,
    pub(super) prefixes: BTreeSet<String>,
    /// The last key or common prefix of the page.
    last: Option<String>,
    /// Whether there are more entries after this page.
    pub(super) is_truncated: bool,
}

/// The result for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyOutcome {
    /// The key is on the page or before the page.
    Continue,
    /// The key is below this common prefix. All keys with this prefix can be skipped.
    SkipBelow(String),
    /// The page was full before this key.
    Full,
}

impl<T> ListPage<T> {
    pub(super) fn new(query: ListQuery) -> Self {
        ListPage { query, objects: Vec::new(), prefixes: BTreeSet::new(), last: None, is_truncated: false }
    }

    pub(super) fn query(&self) -> &ListQuery {
        &self.query
    }

    /// Returns the number of keys and common prefixes on the page.
    pub(super) fn len(&self) -> usize {
        self.objects.len().saturating_add(self.prefixes.len())
    }

    /// Returns the position at which the next page begins, if there is one.
    pub(super) fn next_after(&self) -> Option<&str> {
        self.is_truncated.then_some(self.last.as_deref()).flatten()
    }

    /// Returns the common prefix of a key.
    pub(super) fn common_prefix(&self, key: &str) -> Option<String> {
        let delimiter = self.query.delimiter.as_deref()?;
        let rest = key.strip_prefix(self.query.prefix.as_str())?;
        let end = rest.find(delimiter)?.checked_add(delimiter.len())?;
        Some(format!("{}{}", self.query.prefix, rest.get(..end)?))
    }

    /// Adds a key, or its common prefix.
    pub(super) fn add(&mut self, key: String, value: T) -> KeyOutcome {
        if !key.starts_with(&self.query.prefix) {
            return KeyOutcome::Continue;
        }
        if let Some(prefix) = self.common_prefix(&key) {
            return self.add_prefix(prefix);
        }
        if key.as_str() <= self.query.after.as_str() {
            return KeyOutcome::Continue;
        }
        if self.is_full() {
            return KeyOutcome::Full;
        }
        self.last = Some(key.clone());
        self.objects.push((key, value));
        KeyOutcome::Continue
    }

    /// Adds a common prefix.
    pub(super) fn add_prefix(&mut self, prefix: String) -> KeyOutcome {
        // If the last page ended with this prefix, this page begins after all keys with the prefix.
        let is_before = self.query.after.starts_with(&prefix) || prefix.as_str() <= self.query.after.as_str();
        if is_before || self.prefixes.contains(&prefix) {
            return KeyOutcome::SkipBelow(prefix);
        }
        if self.is_full() {
            return KeyOutcome::Full;
        }
        self.last = Some(prefix.clone());
        self.prefixes.insert(prefix.clone());
        KeyOutcome::SkipBelow(prefix)
    }

    /// Whether the page is full. If so, marks that there are more entries.
    fn is_full(&mut self) -> bool {
        let is_full = self.len() >= self.query.max;
        self.is_truncated |= is_full;
        is_full
    }
}

/// Percent-encodes a path for a URL, or a key for `encoding-type=url`: all characters except letters, digits and
/// `-._~/`.
pub fn encode_path(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 7] = ["a-b", "a/1", "a/2", "a0", "b/c/1", "b/d", "c"];

    /// All pages of a listing, each as one line.
    fn pages(prefix: &str, delimiter: Option<&str>, max: usize) -> Vec<String> {
        let (mut out, mut after) = (Vec::new(), String::new());
        loop {
            let mut page = ListPage::new(ListQuery {
                prefix: prefix.to_owned(),
                delimiter: delimiter.map(str::to_owned),
                after: after.clone(),
                max,
            });
            for key in KEYS {
                if page.add(key.to_owned(), ()) == KeyOutcome::Full {
                    break;
                }
            }
            let mut names: Vec<&str> = page.objects.iter().map(|(key, ())| key.as_str()).collect();
            names.extend(page.prefixes.iter().map(String::as_str));
            names.sort_unstable();
            out.push(names.join(" "));
            match page.next_after() {
                Some(next) => after = next.to_owned(),
                None => return out,
            }
        }
    }

    // The pages of a listing together name each key or common prefix once, for all page sizes.
    #[test]
    fn pages_name_everything_once_and_in_order() {
        assert_eq!(pages("", None, 1_000), ["a-b a/1 a/2 a0 b/c/1 b/d c"]);
        assert_eq!(pages("", Some("/"), 1_000), ["a-b a/ a0 b/ c"]);
        assert_eq!(pages("b/", Some("/"), 1_000), ["b/c/ b/d"]);
        assert_eq!(pages("a", Some("/"), 1_000), ["a-b a/ a0"]);
        assert_eq!(pages("x", Some("/"), 1_000), [""]);
        for max in 1..=8 {
            for (prefix, delimiter) in
                [("", None), ("", Some("/")), ("b/", Some("/")), ("a", None), ("", Some("-"))]
            {
                let whole = pages(prefix, delimiter, 1_000).join(" ");
                assert_eq!(pages(prefix, delimiter, max).join(" "), whole, "{prefix} {delimiter:?} {max}");
            }
        }
    }

    // A page that begins at a common prefix leaves out all keys with that prefix.
    #[test]
    fn a_page_that_starts_inside_a_prefix_goes_on_after_it() {
        let query =
            ListQuery { delimiter: Some("/".into()), after: "a/".into(), max: 10, ..ListQuery::default() };
        let mut page = ListPage::new(query);
        for key in KEYS {
            page.add(key.to_owned(), ());
        }
        assert_eq!(page.objects.iter().map(|o| o.0.as_str()).collect::<Vec<_>>(), ["a0", "c"]);
        assert_eq!(page.prefixes.iter().collect::<Vec<_>>(), ["b/"]);
    }

    #[test]
    fn keys_are_encoded_for_xml() {
        assert_eq!(encode_path("a b/ü%\u{1}.txt"), "a%20b/%C3%BC%25%01.txt");
    }
}

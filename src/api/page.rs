//! A page of a list: bounded in entries and in bytes.

use prost::Message;

use crate::limits;

/// How many entries a page has: as many as asked, within the bound.
pub(super) fn page_size(asked: u32) -> usize {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => limits::PAGE_DEFAULT,
        n => n.min(limits::PAGE_MAX),
    }
}

/// As many of the entries as fit into the bytes of a page, and at least one, since each has its own bound.
pub(super) fn fitting<T: Message>(entries: impl Iterator<Item = T>) -> Vec<T> {
    let mut left = limits::PAGE_BYTES_MAX;
    let mut fitting = Vec::new();
    for entry in entries {
        let bytes = entry.encoded_len();
        if bytes > left && !fitting.is_empty() {
            break;
        }
        left = left.saturating_sub(bytes);
        fitting.push(entry);
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn a_page_ends_at_its_bytes_and_has_one_entry_at_least() {
        let lock = |bytes| v1::Lock { reason: "x".repeat(bytes), ..Default::default() };
        assert_eq!(fitting((0..5).map(|_| lock(10))).len(), 5);
        assert_eq!(fitting((0..5).map(|_| lock(limits::PAGE_BYTES_MAX / 3))).len(), 2);
        assert_eq!(fitting((0..5).map(|_| lock(limits::PAGE_BYTES_MAX * 2))).len(), 1);
        assert_eq!(fitting(std::iter::empty::<v1::Lock>()).len(), 0);
    }
}

//! Texts that people wrote, made safe and short.

use serde_json::{Value, json};

use crate::{
    limits::{NOTICE_LIST_MAX, NOTICE_TEXT_CHARS_MAX},
    plain,
};

/// Shows a text on one line. Withholds parts that look like secrets, and cuts a long text.
pub(super) fn short(text: &str) -> String {
    let safe = plain::message(text);
    match safe.char_indices().nth(NOTICE_TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", safe.get(..end).unwrap_or_default()),
        None => safe.into_owned(),
    }
}

/// Shows the first entries of a list, and the number of all entries if some are left out.
pub(super) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> Value {
    let all: Vec<String> = items.into_iter().map(|item| short(&item.to_string())).collect();
    match all.len() {
        n if n <= NOTICE_LIST_MAX => json!(all),
        n => {
            let mut shown: Vec<String> = all.into_iter().take(NOTICE_LIST_MAX).collect();
            shown.push(format!("and {} more", n - NOTICE_LIST_MAX));
            json!(shown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_line_bounded_and_without_secrets() {
        assert_eq!(short("a\nb\u{202e}"), r"a\nb\u{202e}");
        assert_eq!(short(&"x".repeat(10_000)).chars().count(), NOTICE_TEXT_CHARS_MAX + 1);
        let secret = "key AKIAIOSFODNN7EXAMPLE";
        assert!(!short(secret).contains("AKIA"), "{}", short(secret));
    }

    #[test]
    fn a_long_list_says_how_much_is_missing() {
        assert_eq!(list(["a", "b"]), json!(["a", "b"]));
        let long = list(0..NOTICE_LIST_MAX + 7);
        assert_eq!(long.as_array().unwrap().len(), NOTICE_LIST_MAX + 1);
        assert_eq!(long[NOTICE_LIST_MAX], "and 7 more");
    }
}

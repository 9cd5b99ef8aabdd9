//! Makes text from outside safe to show on a terminal, in a log or in a table.
//!
//! Names, reasons and details come from launchers, agents and files. Some characters move the cursor, reverse the
//! reading direction or are invisible. Each of these is shown as an escape of Rust: `\n`, `\u{202e}`.

use std::{borrow::Cow, path::Path};

use crate::{
    limits::{HEX_SECRET_MIN, MARKS_IN_A_ROW_MAX, SHOWN_CHARS_MAX},
    secret::{looks_secret, redacted, withheld},
};

/// Shows a text as one line. Quotes, backslashes and the combining marks of scripts stay as they are.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_plain, |c, out| match c.is_control() {
        true => out.extend(c.escape_debug()),
        false => out.extend(c.escape_unicode()),
    })
}

/// Writes characters that are not plain as JSON escapes. The value of the JSON text stays the same.
pub fn json(text: &str) -> Cow<'_, str> {
    // Line breaks between the tokens of JSON stay. Inside strings they are escaped already.
    escape(
        text,
        |c| c == '\n' || is_plain(c),
        |c, out| {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        },
    )
}

/// Shows an error or another message as one line. Parts that look like secrets are withheld.
///
/// Every message that leaves the program passes through this function, because people paste tokens and keys instead of
/// a path, a name or a command.
pub fn message(text: &str) -> Cow<'_, str> {
    match redacted(text) {
        Cow::Borrowed(text) => line(text),
        Cow::Owned(text) => Cow::Owned(line(&text).into_owned()),
    }
}

/// Shows a value from outside in a message. The value is bounded, on one line, and withheld if it looks like a secret.
pub fn value(text: &str) -> String {
    bounded(text, |head| line(head).into_owned())
}

/// Shows a value whose valid form is ASCII. Escapes all other characters, so that similar characters are visible.
pub(crate) fn ascii_value(text: &str) -> String {
    bounded(text, |head| head.escape_default().to_string())
}

/// Shows a path in a message. The path is complete, on one line, and withheld if it looks like a secret.
pub fn path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if looks_secret(&text) { withheld(&text) } else { line(&text).into_owned() }
}

/// Returns a number of bytes for people, with one digit after the point.
pub fn bytes_shown(bytes: u64) -> String {
    let unit = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter().find(|(_, s)| bytes >> s > 0);
    match unit {
        Some((name, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

fn bounded(text: &str, show: impl Fn(&str) -> String) -> String {
    if looks_secret(text) || is_bare_hex(text) {
        return withheld(text);
    }
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", show(text.get(..end).unwrap_or_default())),
        None => show(text),
    }
}

/// Whether a whole value is hexadecimal digits, as the keys of some services are. Our own digests say what they are: `sha256:…`.
fn is_bare_hex(text: &str) -> bool {
    text.len() >= HEX_SECRET_MIN
        && text.bytes().all(|b| b.is_ascii_hexdigit())
        && text.bytes().any(|b| b.is_ascii_digit())
}

/// Calls `write` for each character that may not stay. This includes marks after the first few in a row, because many
/// marks on one letter cover the lines above and below.
fn escape(text: &str, may_stay: impl Fn(char) -> bool, write: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    // A mark at the beginning would be drawn onto the text before.
    let mut marks = MARKS_IN_A_ROW_MAX;
    for c in text.chars() {
        marks = if is_mark(c) { marks.saturating_add(1) } else { 0 };
        match may_stay(c) && marks <= MARKS_IN_A_ROW_MAX {
            true => out.push(c),
            false => write(c, &mut out),
        }
    }
    if out == text { Cow::Borrowed(text) } else { Cow::Owned(out) }
}

/// Whether a character is drawn onto the previous character.
fn is_mark(c: char) -> bool {
    // If a mark is the first character of a text, `escape_debug` escapes it. `c` is the first character.
    !c.is_ascii() && is_plain(c) && c.escape_debug().count() > 1
}

/// Whether a character can be shown as it is: it is visible or a blank, and does not control a terminal.
pub fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // After a letter, std escapes only what Unicode calls unprintable: controls, formats, separators, private, unassigned.
    let printable = || String::from_iter(['a', c]).escape_debug().count() == 2;
    !is_blank_mark(c) && printable()
}

/// Whether this is an invisible character that Unicode counts as a letter or a mark. Two names may differ only in such a
/// character and look the same.
const fn is_blank_mark(c: char) -> bool {
    matches!(
        c,
        '\u{034f}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{ffa0}'
            | '\u{16fe4}'
            | '\u{1d159}'
            | '\u{e0100}'..='\u{e01ef}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_one_digit_after_the_point() {
        let shown = [0, 1023, 1024, 1_600_000, 5_798_205_849, u64::MAX].map(bytes_shown);
        assert_eq!(shown, ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "5.3 GiB", "16777215.9 TiB"]);
    }

    #[test]
    fn text_that_people_write_stays_as_it_is() {
        for text in ["", "plain", "é e\u{301} नमस्ते 日本語 \u{1f980}", r#"C:\dir "quoted" 'x'"#]
        {
            assert_eq!(line(text), text);
        }
    }

    #[test]
    fn what_speaks_to_a_terminal_is_escaped() {
        for (text, shown) in [
            ("a\nb\tc\r", r"a\nb\tc\r"),
            ("\u{1b}[2J\0\u{7f}", r"\u{1b}[2J\0\u{7f}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("safe\u{202e}txt.exe\u{2066}", r"safe\u{202e}txt.exe\u{2066}"),
            (
                "a\u{200b}\u{feff}\u{2028}\u{2029}\u{ad}\u{61c}",
                r"a\u{200b}\u{feff}\u{2028}\u{2029}\u{ad}\u{61c}",
            ),
            ("a\u{a0}b\u{3164}\u{e0041}\u{e000}", r"a\u{a0}b\u{3164}\u{e0041}\u{e000}"),
        ] {
            assert_eq!(line(text), shown);
            assert_eq!(line(shown), shown, "a second escape changes nothing");
        }
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({ "why": "x\u{202e}\u{9b}\u{e0041}\n\"y\" é", "a\u{200b}": [1] });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = json(&text);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            assert!(shown.chars().all(|c| c == '\n' || is_plain(c)), "{shown}");
        }
    }

    #[test]
    fn marks_are_bounded_and_stand_on_a_letter_of_the_text() {
        let heap = |count: usize| format!("e{}", "\u{301}".repeat(count));
        assert_eq!(line(&heap(MARKS_IN_A_ROW_MAX)), heap(MARKS_IN_A_ROW_MAX));
        let shown = line(&heap(5_000)).into_owned();
        assert_eq!(shown.matches('\u{301}').count(), MARKS_IN_A_ROW_MAX);
        assert_eq!(line(&shown), shown, "a second escape changes nothing");
        assert_eq!(line("\u{301}e"), r"\u{301}e");
        let value = serde_json::json!(heap(50)).to_string();
        assert_eq!(json(&value).matches(r"\u0301").count(), 50 - MARKS_IN_A_ROW_MAX);
    }

    #[test]
    fn a_quoted_value_is_bounded_and_a_token_is_withheld() {
        assert_eq!(value("a\u{1b}[2J\nb"), r"a\u{1b}[2J\nb");
        let long = value(&"x".repeat(1_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (SHOWN_CHARS_MAX + 1, true));
        assert_eq!(ascii_value("dаta"), r"d\u{430}ta");
        let token = "hvs.CAESIJ0p3kX9cQ2mZr7bT5wYv1LsNd8HfGa4";
        let text = format!("cannot open `/run/{token}`: no such file\u{202e}");
        for shown in [value(token), ascii_value(token), path(Path::new(token)), message(&text).into_owned()] {
            assert!(!shown.contains(token) && shown.contains("not shown"), "{shown}");
        }
        assert!(message(&text).starts_with("cannot open `(") && message(&text).ends_with(r"\u{202e}"));
    }

    #[test]
    fn no_character_that_moves_or_hides_is_plain() {
        let hidden = (0..=0x10_ffff).filter_map(char::from_u32).filter(|c| c.is_control());
        assert!(hidden.into_iter().all(|c| !is_plain(c)));
        for range in [
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{202e}',
            '\u{2060}'..='\u{206f}',
            '\u{fff9}'..='\u{fffb}',
            // The other characters with the Unicode property Default_Ignorable_Code_Point.
            '\u{ad}'..='\u{ad}',
            '\u{34f}'..='\u{34f}',
            '\u{61c}'..='\u{61c}',
            '\u{115f}'..='\u{1160}',
            '\u{17b4}'..='\u{17b5}',
            '\u{180b}'..='\u{180f}',
            '\u{3164}'..='\u{3164}',
            '\u{fe00}'..='\u{fe0f}',
            '\u{feff}'..='\u{feff}',
            '\u{ffa0}'..='\u{ffa0}',
            '\u{fff0}'..='\u{fff8}',
            '\u{1bca0}'..='\u{1bca3}',
            '\u{1d173}'..='\u{1d17a}',
            '\u{e0000}'..='\u{e0fff}',
        ] {
            assert!(range.into_iter().all(|c| !is_plain(c)));
        }
    }
}

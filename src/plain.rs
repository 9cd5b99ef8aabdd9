//! Text from outside, made safe to show: on a terminal, in a log, in a table.
//!
//! Names, reasons and details come from launchers, agents and files. Some characters move the cursor, turn the reading
//! direction around or cannot be seen at all. Each of them is shown as Rust writes it: `\n`, `\u{202e}`.

use std::borrow::Cow;

/// Shows a text as one line. Marks of scripts that combine, quotes and backslashes stay as they are.
pub fn line(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_plain(c) {
            true => out.push(c),
            false if c.is_control() => out.extend(c.escape_debug()),
            false => out.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(out)
}

/// Writes what is not plain as JSON escapes. The value of the JSON text stays the same.
pub fn json(text: &str) -> Cow<'_, str> {
    // Line breaks between the tokens of JSON stay: inside its strings they are escaped already.
    let stays = |c: char| c == '\n' || is_plain(c);
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match stays(c) {
            true => out.push(c),
            false => {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    Cow::Owned(out)
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

/// What Unicode counts as a letter or a mark and no one can see: two names may differ in it and look the same.
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
            | '\u{e0100}'..='\u{e01ef}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(line(shown), shown, "it may be escaped twice");
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
    fn no_character_that_moves_or_hides_is_plain() {
        let hidden = (0..=0x10_ffff).filter_map(char::from_u32).filter(|c| c.is_control());
        assert!(hidden.into_iter().all(|c| !is_plain(c)));
        for range in [
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{202e}',
            '\u{2060}'..='\u{206f}',
            '\u{fff9}'..='\u{fffb}',
        ] {
            assert!(range.into_iter().all(|c| !is_plain(c)));
        }
    }
}

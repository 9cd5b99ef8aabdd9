//! Measures how deep the expressions of a policy are nested, before Cedar reads them. Cedar reads expressions by
//! recursion, so a deep expression would overflow a thread's stack and end the process.

use crate::limits::{POLICY_BRACKETS_MAX, POLICY_CHAIN_MAX, POLICY_OPERATORS_MAX};

/// The counts in one policy. In Cedar's parser, each counted token can add one level of recursion.
#[derive(Default)]
struct NestingCounts {
    /// The number of brackets that are open now.
    open: usize,
    /// The number of `||`, `&&`, `+`, `-`, `*` and `if`.
    operators: usize,
    /// The number of dots, as in `a.b.c`, since the last operator or comma.
    chain: usize,
}

impl NestingCounts {
    fn fault(&self) -> Option<String> {
        let too_many = |what: &str, found: usize, most: usize, fix: &str| {
            (found > most).then(|| format!("this policy has more than {most} {what}: {fix}"))
        };
        too_many("brackets inside each other", self.open, POLICY_BRACKETS_MAX, "remove some")
            .or_else(|| {
                let fix = "write [\"a\", \"b\"].contains(x) instead of x == \"a\" || x == \"b\", or several policies";
                too_many("operators (||, &&, +, -, *, if)", self.operators, POLICY_OPERATORS_MAX, fix)
            })
            .or_else(|| too_many("attributes in one chain", self.chain, POLICY_CHAIN_MAX, "shorten it"))
    }
}

/// Checks each policy of a text. The error has the byte offset and the mistake.
pub(super) fn check(text: &str) -> Result<(), (usize, String)> {
    let mut counts = NestingCounts::default();
    let mut rest = text.char_indices().peekable();
    let mut word = String::new();
    while let Some((at, c)) = rest.next() {
        let next = rest.peek().map(|(_, next)| *next);
        if c.is_ascii_alphanumeric() || c == '_' {
            // Three letters are enough to recognize the word `if`.
            if word.len() < 3 {
                word.push(c);
            }
            continue;
        }
        if std::mem::take(&mut word) == "if" {
            counts.operators = counts.operators.saturating_add(1);
            counts.chain = 0;
        }
        match c {
            '"' => skip_text(&mut rest),
            '/' if next == Some('/') => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
            '(' | '[' | '{' => counts.open = counts.open.saturating_add(1),
            ')' | ']' | '}' => counts.open = counts.open.saturating_sub(1),
            '|' | '&' if next == Some(c) => {
                rest.next();
                counts.operators = counts.operators.saturating_add(1);
                counts.chain = 0;
            }
            '+' | '-' | '*' => {
                counts.operators = counts.operators.saturating_add(1);
                counts.chain = 0;
            }
            ',' | '=' | '<' | '>' | '!' => counts.chain = 0,
            '.' => counts.chain = counts.chain.saturating_add(1),
            ';' => counts = NestingCounts::default(),
            _ => {}
        }
        if let Some(what) = counts.fault() {
            return Err((at, what));
        }
    }
    Ok(())
}

/// Skips the rest of a text in quotes.
fn skip_text(rest: &mut impl Iterator<Item = (usize, char)>) {
    while let Some((_, c)) = rest.next() {
        match c {
            '"' => return,
            '\\' => drop(rest.next()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(text: &str) -> String {
        check(text).unwrap_err().1
    }

    #[test]
    fn deep_expressions_are_named_and_ordinary_ones_pass() {
        let ordinary = |n: usize| vec!["context.purpose == \"(((\""; n].join(" || ");
        assert_eq!(
            check(&format!("forbid(principal, action, resource) when {{ {} }};", ordinary(40))),
            Ok(())
        );
        assert_eq!(check(&format!("{};{};", ordinary(40), ordinary(40))), Ok(()), "each policy by itself");
        assert!(what(&ordinary(60)).contains("operators"));
        assert!(what(&vec!["a"; 60].join(" + ")).contains("operators"));
        assert!(what(&"if a then b else ".repeat(60)).contains("operators"));
        assert!(what(&format!("{}true{}", "(".repeat(20_000), ")".repeat(20_000))).contains("brackets"));
        assert!(what(&"[{".repeat(200)).contains("brackets"));
        assert!(what(&format!("context{}", ".a".repeat(1_000))).contains("chain"));
        let set = vec!["\"a\""; 2_000].join(", ");
        assert_eq!(
            check(&format!("permit(principal, action, resource) when {{ [{set}].contains(x) }};")),
            Ok(())
        );
        assert_eq!(
            check("// ((((((((((((((((((((((((((((((((((((((((\npermit(principal, action, resource);"),
            Ok(())
        );
        assert_eq!(check("\"\\\"(((((((((((((((((((((((((((((((((((((((((\";"), Ok(()));
    }
}

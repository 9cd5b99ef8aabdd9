//! The difference of two short texts, line by line.

/// The limit for the product of both line counts, which is the size of a table in memory. Of larger texts, each line of the first
/// text is shown as removed, and each line of the second text as added.
const CELLS_MAX: usize = 1 << 20;

/// Returns the lines of both texts. A line that is only in the first text has `-` before it, and a line that is only in the
/// second text has `+`.
pub(super) fn line_diff(before: &str, after: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    if old.len().saturating_mul(new.len()) > CELLS_MAX {
        let removed = old.iter().map(|line| format!("- {line}"));
        return removed.chain(new.iter().map(|line| format!("+ {line}"))).collect();
    }
    let common = common_lengths(&old, &new);
    let at = |i: usize, j: usize| common.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0);
    let (mut i, mut j, mut out) = (0usize, 0usize, Vec::new());
    loop {
        match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => {
                out.push(format!("  {a}"));
                (i, j) = (i.saturating_add(1), j.saturating_add(1));
            }
            (Some(a), _) if j >= new.len() || at(i.saturating_add(1), j) >= at(i, j.saturating_add(1)) => {
                out.push(format!("- {a}"));
                i = i.saturating_add(1);
            }
            (_, Some(b)) => {
                out.push(format!("+ {b}"));
                j = j.saturating_add(1);
            }
            (_, None) => return out,
        }
    }
}

/// Computes, for each pair of lines, the length of the longest common subsequence of both texts from these lines on.
fn common_lengths(old: &[&str], new: &[&str]) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::with_capacity(old.len().saturating_add(1));
    rows.push(vec![0; new.len().saturating_add(1)]);
    for a in old.iter().rev() {
        let below = rows.last().cloned().unwrap_or_default();
        let mut row = vec![0u32; new.len().saturating_add(1)];
        let mut right = 0u32;
        for (j, b) in new.iter().enumerate().rev() {
            let get = |row: &[u32], j: usize| row.get(j).copied().unwrap_or(0);
            let here = match a == b {
                true => get(&below, j.saturating_add(1)).saturating_add(1),
                false => get(&below, j).max(right),
            };
            if let Some(cell) = row.get_mut(j) {
                *cell = here;
            }
            right = here;
        }
        rows.push(row);
    }
    rows.reverse();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_both_texts_have_stay() {
        assert_eq!(line_diff("a\nb\nc", "a\nx\nc"), ["  a", "- b", "+ x", "  c"]);
        assert_eq!(line_diff("", "a\nb"), ["+ a", "+ b"]);
        assert_eq!(line_diff("a\nb", ""), ["- a", "- b"]);
        assert_eq!(line_diff("a\nb\nc", "b\nc\nd"), ["- a", "  b", "  c", "+ d"]);
        assert_eq!(line_diff("a", "a"), ["  a"]);
    }
}

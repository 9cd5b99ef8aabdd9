//! Writes `docs/controls.md`: a table of the governance controls in `controls.toml`, and the tests and commands that
//! check each one.

use super::list::{Control, ControlList, Standing, Step};

/// Writes the page: a table of all controls, and then each control with its tests and commands.
pub fn page(list: &ControlList) -> String {
    let count = |standing| list.control.iter().filter(|c| c.standing() == standing).count();
    let (held, part) = (count(Standing::Held), count(Standing::Part));
    let mut out = format!(
        "# Controls\n\n\
         `leasehold controls --markdown` writes this page from [controls.toml](controls.toml). It is for the person who must show that a tuning \
         pipeline\nis governed. It names {} controls: {held} are held, {part} in part, {} not.\n\n\
         `leasehold controls --run` starts a daemon with the shipped catalogs and policy, runs the steps below, and says which controls held. It runs\n\
         each step as the person or workload that `--context` names. It exits with 0 if all controls held. It needs no network, and removes its files.\n\n\
         | Control | Standing |\n|---|---|\n",
        list.control.len(),
        count(Standing::NotHere)
    );
    for Control { number, name, .. } in &list.control {
        let standing =
            list.control.iter().find(|c| c.number == *number).map_or("", |c| c.standing().as_str());
        out.push_str(&format!("| {number}. {name} | {standing} |\n"));
    }
    for control in &list.control {
        out.push_str(&section(control));
    }
    out
}

fn section(control: &Control) -> String {
    let Control { number, name, feature, tests, step, lacks, not_here } = control;
    let mut out = format!("\n## {number}. {name}\n\n");
    if let Some(why) = not_here {
        out.push_str(&format!("Not here: {why}\n"));
        return out;
    }
    out.push_str(&format!("{feature}\n"));
    if let Some(lacks) = lacks {
        out.push_str(&format!("\n**Missing:** {lacks}\n"));
    }
    let tests: Vec<String> = tests.iter().map(|t| format!("`{t}`")).collect();
    out.push_str(&format!("\nTests: {}\n\n```text\n", tests.join(", ")));
    for step in step {
        out.push_str(&line(step));
    }
    out.push_str("```\n");
    out
}

/// Writes a step as a shell command.
fn line(step: &Step) -> String {
    if let (Some(write), Some(from)) = (&step.write, &step.from) {
        let swaps: Vec<String> = step.swap.iter().map(|(a, b)| format!(" -e 's|{a}|{b}|'")).collect();
        return format!("$ sed{} {from} > {write}\n", swaps.concat());
    }
    if let Some(name) = &step.ends {
        return format!("# {name} ends, exit {}\n", step.exit);
    }
    let context = step.by.as_ref().map(|by| format!(" --context {by}")).unwrap_or_default();
    let mut out = format!("$ leasehold{context} {}", step.run.as_deref().unwrap_or_default());
    if let Some(name) = &step.stays {
        return format!("{out} &    # {name}\n");
    }
    let mut notes = Vec::new();
    if step.exit != 0 {
        notes.push(format!("exit {}", step.exit));
    }
    notes.extend(step.says.as_ref().map(|says| format!("says `{says}`")));
    notes.extend(step.hides.as_ref().map(|hides| format!("does not say `{hides}`")));
    notes
        .extend(step.keep.as_ref().map(|keep| format!("${{{keep}}} is set to the first word of the output")));
    if !notes.is_empty() {
        out.push_str(&format!("    # {}", notes.join(", ")));
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_one_in_docs() {
        let made = page(&ControlList::shipped().unwrap());
        let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/controls.md")).unwrap();
        assert!(made == kept, "run: leasehold controls --markdown > docs/controls.md");
    }
}

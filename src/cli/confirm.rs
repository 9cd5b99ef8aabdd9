//! Questions before something large ends: the user types its name.

use std::io::{self, BufRead, IsTerminal};

use super::{Failure, output::note};

/// Whether the user has confirmed by an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    ByOption,
    NotYet,
}

impl Confirmed {
    pub(super) fn of_option(yes: bool) -> Self {
        if yes { Confirmed::ByOption } else { Confirmed::NotYet }
    }
}

/// Asks the user to type `name`, after it was said what will end. Without a terminal, only `--yes` confirms.
pub(super) fn confirm(name: &str, ends: &str, confirmed: Confirmed) -> Result<(), Failure> {
    if confirmed == Confirmed::ByOption {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let failure = Failure::usage(format!("this must be confirmed: {ends}"));
        return Err(failure.fix("add --yes, or look first with --dry-run"));
    }
    note(&format!("{ends}. Type {name} to go on:"));
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    check_typed(name, read.map(|_| typed.trim()).unwrap_or_default())
}

fn check_typed(name: &str, typed: &str) -> Result<(), Failure> {
    if typed == name {
        return Ok(());
    }
    Err(Failure::usage("the name was not typed as it is written, so nothing was changed").with("asked", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_confirms() {
        assert!(check_typed("dataset:acme/tickets", "dataset:acme/tickets").is_ok());
        for typed in ["", "y", "yes", "dataset:acme/ticket"] {
            assert_eq!(check_typed("dataset:acme/tickets", typed).unwrap_err().exit.code(), 64);
        }
        assert!(confirm("tenant:acme", "2 leases end", Confirmed::of_option(true)).is_ok());
    }
}

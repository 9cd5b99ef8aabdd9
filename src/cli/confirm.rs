//! Questions before something large ends: the user must type its name.

use std::{
    future::Future,
    io::{self, BufRead, IsTerminal},
};

use super::{Failure, output::note};
use crate::proto::v1;

/// An ending is large if it ends this many leases.
const LARGE_LEASES: u64 = 100;
/// An ending is also large if it closes this many jobs.
const LARGE_JOBS: u64 = 10;

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

/// The last line of every dry run.
pub(super) const NOTHING_CHANGED: &str = "Dry run: nothing was changed.";

/// Asks the user to type `name`, which may be a number, after a message about what will end. If there is no terminal, only
/// `--yes` confirms.
pub(super) fn confirm(name: &str, ends: &str, confirmed: Confirmed) -> Result<(), Failure> {
    if confirmed == Confirmed::ByOption {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let failure = Failure::usage(format!("this must be confirmed, but there is no terminal: {ends}"));
        return Err(failure.fix("add --yes, or look first with --dry-run"));
    }
    note(&format!("{ends}. Type {name} to go on:"));
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    check_typed(name, read.map(|_| typed.trim()).unwrap_or_default())
}

/// Whether an ending is so large that a person at a terminal is asked first. A script is not asked, because it cannot answer.
fn is_large(ending: Option<&v1::Ending>, jobs: u64) -> bool {
    ending.is_some_and(|e| e.behind >= LARGE_LEASES) || jobs >= LARGE_JOBS
}

/// Asks a person at a terminal before a large ending. `count` returns what would end: the leases, and the number of jobs.
pub(super) async fn confirm_if_large(
    name: &str,
    confirmed: Confirmed,
    count: impl Future<Output = Result<(Option<v1::Ending>, u64), Failure>>,
) -> Result<(), Failure> {
    if confirmed == Confirmed::ByOption || !io::stdin().is_terminal() {
        return Ok(());
    }
    let (ending, jobs) = count.await?;
    match is_large(ending.as_ref(), jobs) {
        true => confirm(name, &would_end(ending.as_ref(), jobs), confirmed),
        false => Ok(()),
    }
}

/// Describes what will end, for the question.
pub(super) fn would_end(ending: Option<&v1::Ending>, jobs: u64) -> String {
    let leases = ending.map_or(0, |e| e.behind);
    format!("{leases} lease(s) end and {jobs} job(s) are closed")
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
        let ending = |behind| v1::Ending { behind, ..Default::default() };
        assert!(!is_large(Some(&ending(99)), 9) && !is_large(None, 0));
        assert!(is_large(Some(&ending(100)), 0) && is_large(None, 10));
        assert!(confirm("tenant:acme", "2 leases end", Confirmed::of_option(true)).is_ok());
    }
}

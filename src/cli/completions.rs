//! Implements `leasehold completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{
    Cli, Exit, Failure,
    output::{Page, print},
};

/// Prints a script that completes leasehold commands in your shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold completions bash > ~/.local/share/bash-completion/completions/leasehold
  leasehold completions zsh > ~/.zfunc/_leasehold
  leasehold completions fish > ~/.config/fish/completions/leasehold.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "leasehold", &mut script);
        print(&Page::verbatim(String::from_utf8_lossy(&script)))?;
        Ok(Exit::Ok)
    }
}

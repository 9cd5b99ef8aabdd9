//! `leasehold config`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session,
    output::{columns, note, print, print_json},
};
use crate::config::{Config, ConfiguredPath, PathFault};

/// Checks the daemon's configuration.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold config check /etc/leasehold/leasehold.toml
  leasehold config check leasehold.toml -o json | jq .defaults")]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Says all that is wrong with a file, resolves every path in it, and lists every default that it uses. Offline.
    ///
    /// What stands in the catalog and the policies that it names is for `catalog check` and `policy check`.
    #[command(after_help = "\
Examples:
  leasehold config check /etc/leasehold/leasehold.toml
  leasehold config check leasehold.toml -o json | jq .defaults")]
    Check {
        /// The daemon's configuration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl ConfigArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let ConfigCommand::Check { file } = self.command;
        check(&file, session)
    }
}

fn check(file: &Path, session: &Session) -> Result<Exit, Failure> {
    let loaded = Config::load(file).map_err(|e| Failure { exit: Exit::Failure, ..Failure::from(e) })?;
    let paths: Vec<(ConfiguredPath, Result<(), PathFault>)> = loaded
        .config
        .paths()
        .into_iter()
        .map(|path| {
            let checked = path.check();
            (path, checked)
        })
        .collect();
    let resolved = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let faults: Vec<_> = paths
        .iter()
        .filter_map(|(path, checked)| {
            let fault = checked.as_ref().err()?;
            Some(format!("{}: `{}` {fault}", path.key, resolved(&path.path).display()))
        })
        .collect();
    if session.is_json() {
        let paths = paths.iter().map(|(path, checked)| {
            json!({
                "key": path.key, "path": resolved(&path.path).display().to_string(), "ok": checked.is_ok(),
                "fault": checked.as_ref().err().map(ToString::to_string),
            })
        });
        let defaults = loaded.defaults.iter().map(|d| json!({ "key": d.key, "value": d.value }));
        print_json(&json!({
            "good": faults.is_empty(), "paths": paths.collect::<Vec<_>>(), "defaults": defaults.collect::<Vec<_>>(),
        }))?;
    } else {
        let rows = paths.iter().map(|(path, checked)| {
            let state = if checked.is_ok() { "ok" } else { "FAIL" };
            vec![state.to_owned(), path.key.clone(), resolved(&path.path).display().to_string()]
        });
        let paths = columns(&["", "PATH", "RESOLVED"], rows);
        let rows = loaded.defaults.iter().map(|d| vec![d.key.clone(), d.value.clone()]);
        print(&match loaded.defaults.is_empty() {
            true => paths,
            false => paths.below(&columns(&["DEFAULT USED", "VALUE"], rows)),
        })?;
    }
    if !faults.is_empty() {
        let what = match faults.len() {
            1 => format!("a path of {} cannot be used", file.display()),
            n => format!("{n} paths of {} cannot be used", file.display()),
        };
        return Err(Failure { exit: Exit::Failure, ..Failure::of_problems(what, faults.into_iter()) });
    }
    note("The configuration is good.");
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Format;

    #[test]
    fn a_configuration_whose_files_are_not_there_is_not_good() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("leasehold.toml");
        let text = "[server]\nstate = \"state\"\n[issuer]\nurl = \"http://127.0.0.1:1\"\n[identity]\ncert = \"c\"\nkey = \"k\"\n\
                    bundles = { \"td.example\" = \"b\" }\n[policy]\ndir = \"p\"\ncatalog = \"d\"\n";
        std::fs::write(&file, text).unwrap();
        let session = Session::new(Format::Json, None, None);
        let failure = check(&file, &session).unwrap_err();
        assert_eq!((failure.exit, failure.facts.len()), (Exit::Failure, 5));
        for name in ["c", "k", "b"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path().join("k"), std::fs::Permissions::from_mode(0o600)).unwrap();
        for name in ["p", "d"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(check(&file, &session).unwrap(), Exit::Ok);
    }
}

//! `leasehold policy`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session, catalog,
    failure::mistakes,
    output::{columns, fields, note, print, print_json},
};
use crate::{
    catalog::Catalog,
    policy::{Engine, Explain, PolicySource},
};

/// Checks the rules that everything is decided by.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold policy check                        the set that is built in
  leasehold policy check /etc/leasehold/policy --catalog /etc/leasehold/catalog.d
  leasehold policy check policy -o json | jq -r '.rules[] | select(.gate) | .id'")]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Reads and strictly validates policies, and says all that is wrong with them. Offline.
    #[command(after_help = "\
Examples:
  leasehold policy check
  leasehold policy check /etc/leasehold/policy --catalog /etc/leasehold/catalog.d")]
    Check {
        /// A directory of .cedar files; the set that is built in otherwise.
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Look also whether what they name is in this catalog.
        #[arg(long, value_name = "DIR")]
        catalog: Option<PathBuf>,
    },
}

impl PolicyArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let PolicyCommand::Check { dir, catalog } = self.command;
        check(dir, catalog.as_deref(), session)
    }
}

fn check(dir: Option<PathBuf>, catalog: Option<&Path>, session: &Session) -> Result<Exit, Failure> {
    let shown = dir.as_ref().map_or_else(|| "the built-in policies".to_owned(), |d| d.display().to_string());
    let known = catalog.map(catalog::load).transpose()?;
    let source = dir.map_or(PolicySource::Default, PolicySource::Dir);
    let engine = Engine::load(&source, known.as_ref().unwrap_or(&Catalog::empty()), Explain::Requester)
        .map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            let what = mistakes(&shown, lines.len());
            Failure { exit: Exit::Failure, ..Failure::of_problems(what, lines.into_iter()) }
        })?;
    // Without a catalog nothing that a rule names is there, which says nothing of the rule.
    let warnings: Vec<String> = match known {
        Some(_) => engine.warnings().iter().cloned().chain(engine.gaps()).collect(),
        None => Vec::new(),
    };
    if session.is_json() {
        let rules = engine.rules().map(|rule| {
            json!({
                "id": rule.id, "permits": rule.permits, "explain": rule.explain, "place": rule.place,
                "gate": rule.gate.as_ref().map(|gate| gate.id.clone()),
            })
        });
        print_json(&json!({
            "digest": engine.digest().to_string(), "rules": rules.collect::<Vec<_>>(), "warnings": warnings,
        }))?;
        return Ok(Exit::Ok);
    }
    let rows = engine.rules().map(|rule| {
        let effect = match (&rule.gate, rule.permits) {
            (Some(_), _) => "wait",
            (None, true) => "permit",
            (None, false) => "forbid",
        };
        vec![effect.to_owned(), rule.id.clone(), rule.place.clone(), rule.explain.clone().unwrap_or_default()]
    });
    let about = fields([("good", shown), ("digest", engine.digest().to_string())]);
    print(&about.below(&columns(&["EFFECT", "RULE", "PLACE", "SAYS"], rows)))?;
    for warning in warnings {
        note(&format!("leasehold: warning: {warning}"));
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Format;

    #[test]
    fn the_built_in_policies_are_good_and_a_typo_is_told_with_its_place() {
        let session = Session::new(Format::Json, None, None);
        assert_eq!(check(None, None, &session).unwrap(), Exit::Ok);
        let folder = tempfile::tempdir().unwrap();
        let rule =
            "@id(\"typo\")\npermit (principal, action == Leasehold::Action::\"creat_job\", resource);\n";
        std::fs::write(folder.path().join("a.cedar"), rule).unwrap();
        let failure = check(Some(folder.path().to_owned()), None, &session).unwrap_err();
        assert_eq!(failure.exit, Exit::Failure);
        assert!(failure.render().contains("a.cedar"), "{}", failure.render());
    }
}

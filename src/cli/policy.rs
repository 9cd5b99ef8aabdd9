//! Implements `leasehold policy`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session, catalog,
    failure::mistakes,
    output::{Page, columns, fields, note, print},
    policy_apply::{PolicyApplyArgs, PolicyApproveArgs, PolicyDiffArgs, PolicyRollbackArgs, history},
    policy_close::{PolicyRejectArgs, PolicyWithdrawArgs},
    policy_explain::PolicyExplainArgs,
    policy_sign::{PolicyKeygenArgs, PolicySignArgs},
    policy_test::PolicyTestArgs,
};
use crate::{
    catalog::Catalog,
    plain,
    policy::{Engine, Explain, PolicyBundle, PolicyErrors, PolicySource, stale_signature},
};

/// Shows, checks and tests the policies: the rules that decide who gets access.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold policy show trainer-reads-own-or-shared-data
  leasehold policy check /etc/leasehold/policy --catalog /etc/leasehold/catalog.d
  leasehold policy test --config /etc/leasehold/leasehold.toml")]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Reads policies and lists every mistake in them. Needs no daemon.
    #[command(after_help = "\
Examples:
  leasehold policy check
  leasehold policy check /etc/leasehold/policy --catalog /etc/leasehold/catalog.d")]
    Check {
        /// A directory of .cedar files [default: the built-in policies]
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Also check that the names in the policies are in this catalog
        #[arg(long, value_name = "DIR")]
        catalog: Option<PathBuf>,
    },
    /// Prints the text of all policies, or of one rule. Needs no daemon.
    #[command(after_help = "\
Examples:
  leasehold policy show > policy/leasehold.cedar     a copy to change
  leasehold policy show guard-ttl
  leasehold policy show operators-look --dir /etc/leasehold/policy")]
    Show {
        /// The id of a rule, as a refusal names it [default: all]
        #[arg(value_name = "RULE")]
        rule: Option<String>,
        /// A directory of .cedar files [default: the built-in policies]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Runs the cases of a policy directory: requests, and the answers that you expect. Needs no daemon.
    Test(PolicyTestArgs),
    /// Explains the decisions about a job or a lease, decides again, and shows differences.
    Explain(PolicyExplainArgs),
    /// Compares a policy directory with the policy in force, and counts the leases that it would end.
    Diff(PolicyDiffArgs),
    /// Puts a policy directory in force, if policy.source of the daemon is "applied".
    Apply(PolicyApplyArgs),
    /// Approves a proposed policy. The last approval that it needs puts it in force.
    Approve(PolicyApproveArgs),
    /// Rejects a change that someone else proposed.
    Reject(PolicyRejectArgs),
    /// Withdraws a change that you proposed.
    Withdraw(PolicyWithdrawArgs),
    /// Puts an earlier policy in force again, if policy.source of the daemon is "applied".
    Rollback(PolicyRollbackArgs),
    /// Signs the files of a policy directory. Needs no daemon.
    Sign(PolicySignArgs),
    /// Makes a key that signs policies. Needs no daemon.
    Keygen(PolicyKeygenArgs),
    /// Lists the earlier policies, the policy in force, and the changes that wait or were closed.
    #[command(after_help = "\
Examples:
  leasehold policy history
  leasehold policy history -o json | jq -r .in_force")]
    History,
}

impl PolicyArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            PolicyCommand::Check { dir, catalog } => check(dir, catalog.as_deref(), session),
            PolicyCommand::Show { rule, dir } => show(rule.as_deref(), dir, session),
            PolicyCommand::Test(args) => args.run(session),
            PolicyCommand::Explain(args) => args.run(session).await,
            PolicyCommand::Diff(args) => args.run(session).await,
            PolicyCommand::Apply(args) => args.run(session).await,
            PolicyCommand::Approve(args) => args.run(session).await,
            PolicyCommand::Reject(args) => args.run(session).await,
            PolicyCommand::Withdraw(args) => args.run(session).await,
            PolicyCommand::Sign(args) => args.run(session),
            PolicyCommand::Keygen(args) => args.run(session),
            PolicyCommand::Rollback(args) => args.run(session).await,
            PolicyCommand::History => history(session).await,
        }
    }
}

/// Reads policies. Reports all mistakes at once.
pub(super) fn load(source: &PolicySource, shown: &str, catalog: &Catalog) -> Result<Engine, Failure> {
    Engine::load(source, catalog, Explain::Requester).map_err(|errors| policy_failure(&errors, shown))
}

fn policy_failure(errors: &PolicyErrors, shown: &str) -> Failure {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let what = mistakes(shown, lines.len());
    Failure { exit: Exit::Failure, ..Failure::of_problems(what, lines.into_iter()) }
}

fn show(rule: Option<&str>, dir: Option<PathBuf>, session: &Session) -> Result<Exit, Failure> {
    let shown = dir.as_ref().map_or_else(|| "the built-in policies".to_owned(), |d| plain::path(d));
    let source = dir.map_or(PolicySource::Default, PolicySource::Dir);
    let text = match rule {
        None => source.text().map_err(|errors| policy_failure(&errors, &shown))?,
        Some(id) => {
            let engine = load(&source, &shown, &Catalog::empty())?;
            engine.rule_text(id).ok_or_else(|| {
                let known: Vec<_> = engine.rules().map(|rule| rule.id.clone()).collect();
                Failure::usage(format!("there is no rule `{}` in {shown}", plain::value(id)))
                    .with("rules", known.join(", "))
                    .fix("use one of these ids; refusals and `audit tail` show the same ids")
            })?
        }
    };
    match session.for_programs() {
        true => session.print_value(&json!({ "rule": rule, "text": text }))?,
        false => print(&Page::lines(text.lines()))?,
    }
    Ok(Exit::Ok)
}

fn check(dir: Option<PathBuf>, catalog: Option<&Path>, session: &Session) -> Result<Exit, Failure> {
    let shown = dir.as_ref().map_or_else(|| "the built-in policies".to_owned(), |d| plain::path(d));
    let known = catalog.map(catalog::load).transpose()?;
    let bundle = dir.as_deref().and_then(|dir| PolicyBundle::read(dir).ok());
    // `None` if the directory has no signature.
    let stale = bundle.and_then(|bundle| Some(stale_signature(&bundle.policies, &bundle.signed()?)));
    let signature = match &stale {
        Some(None) => "policy.sig is for these files (the daemon checks who signed)",
        Some(Some(_)) | None => "",
    };
    let stale = stale.flatten().map(|fault| fault.to_string());
    let source = dir.map_or(PolicySource::Default, PolicySource::Dir);
    let engine = load(&source, &shown, known.as_ref().unwrap_or(&Catalog::empty()))?;
    // If there is no catalog, every name in a rule is unknown, so warnings about names would mean nothing.
    let mut warnings: Vec<String> = match known {
        Some(_) => engine.warnings().iter().cloned().chain(engine.gaps()).collect(),
        None => engine.empty_bindings(),
    };
    warnings.extend(stale);
    if session.for_programs() {
        let rules = engine.rules().map(|rule| {
            json!({
                "id": rule.id, "permits": rule.permits, "explain": rule.explain, "place": rule.place,
                "gate": rule.gate.as_ref().map(|gate| gate.id.clone()),
                "approver_group": rule.gate.as_ref().map(|gate| gate.approver_group.clone()),
                "approvals_needed": rule.gate.as_ref().map(|gate| gate.approvals_needed),
                "approval_ttl_s": rule.gate.as_ref().map(|gate| gate.approval_ttl.as_secs()),
            })
        });
        session.print_value(&json!({
            "digest": engine.digest().to_string(), "rules": rules.collect::<Vec<_>>(), "warnings": warnings,
        }))?;
        return Ok(Exit::Ok);
    }
    let rows = engine.rules().map(|rule| {
        let effect = match (&rule.gate, rule.permits) {
            (Some(gate), _) => format!("needs {} of {}", gate.approvals_needed, gate.approver_group),
            (None, true) => "permit".to_owned(),
            (None, false) => "forbid".to_owned(),
        };
        vec![effect, rule.id.clone(), rule.place.clone(), rule.explain.clone().unwrap_or_default()]
    });
    let about = fields([
        ("good", shown),
        ("digest", engine.digest().to_string()),
        ("signature", signature.to_owned()),
    ]);
    print(&about.below(&columns(&["EFFECT", "RULE", "PLACE", "EXPLANATION"], rows)))?;
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
    fn a_rule_is_shown_with_its_text() {
        let session = Session::new(Format::Table, None, None);
        assert_eq!(show(None, None, &session).unwrap(), Exit::Ok);
        assert_eq!(show(Some("guard-ttl"), None, &session).unwrap(), Exit::Ok);
        let engine = load(&PolicySource::Default, "", &Catalog::empty()).unwrap();
        let text = engine.rule_text("guard-ttl").unwrap();
        assert!(text.contains("@explain(") && text.contains("context.ttl_seconds > 300"), "{text}");
        let failure = show(Some("guard-tll"), None, &session).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.render().contains("guard-ttl"), "{}", failure.render());
    }

    #[test]
    fn a_mistake_in_a_policy_is_reported_with_its_file() {
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

//! Implements `leasehold policy test`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session, catalog,
    failure::mistakes,
    output::{Page, fields, note, print},
    policy,
};
use crate::{
    config::Config,
    plain,
    policy::{FailedCase, PolicyCase, PolicySource, read_cases},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Cases are the .toml files beside the .cedar files. Each says who asks for what, and the answer that
you expect. It exits with 1 if a case fails, and warns of rules that no case names.

Examples:
  leasehold policy test --config /etc/leasehold/leasehold.toml
  leasehold policy test my/policy --catalog my/catalog.d
  leasehold policy test my/policy --catalog my/catalog.d -o json | jq .failed")]
pub(super) struct PolicyTestArgs {
    /// The directory of .cedar files and cases [default: policy.dir of --config]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The catalog for the decisions [default: policy.catalog of --config]
    #[arg(long, value_name = "DIR")]
    catalog: Option<PathBuf>,
    /// The daemon's configuration file, which names the policies and the catalog
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_CONFIG")]
    config: Option<PathBuf>,
}

impl PolicyTestArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let (dir, catalog) = self.directories()?;
        let catalog = catalog::load(&catalog)?;
        let shown = plain::path(&dir);
        let engine = policy::load(&PolicySource::Dir(dir.clone()), &shown, &catalog)?;
        let cases = cases_of(&dir, session)?;
        let report = engine.run_cases(&cases);
        let warnings: Vec<_> = report.untried_text().into_iter().chain(engine.ungated()).collect();
        if session.for_programs() {
            session.print_value(&json!({
                "digest": engine.digest().to_string(), "catalog": catalog.digest().to_string(),
                "cases": cases.len(), "failed": report.failed.iter().map(value).collect::<Vec<_>>(),
                "untried": report.untried, "warnings": warnings,
            }))?;
        } else {
            let failed = report.failed.iter().fold(Page::default(), |page, f| page.then(&page_of(f)));
            let passed = cases.len().saturating_sub(report.failed.len());
            let totals = fields([
                ("policy", shown),
                ("cases", cases.len().to_string()),
                ("passed", passed.to_string()),
                ("failed", report.failed.len().to_string()),
            ]);
            print(&if report.failed.is_empty() { totals } else { failed.below(&totals) })?;
            for warning in &warnings {
                note(&format!("leasehold: warning: {warning}"));
            }
        }
        Ok(if report.failed.is_empty() { Exit::Ok } else { Exit::Failure })
    }

    /// Returns the directories of the policies and of the catalog.
    fn directories(&self) -> Result<(PathBuf, PathBuf), Failure> {
        let (dir, catalog) = (self.dir.clone(), self.catalog.clone());
        if let (Some(dir), Some(catalog)) = (&dir, &catalog) {
            return Ok((dir.clone(), catalog.clone()));
        }
        let Some(file) = &self.config else {
            let lacks = if dir.is_none() { "the policies" } else { "the catalog" };
            return Err(Failure::usage(format!("the directory of {lacks} is not given")).fix(
                "name both directories: leasehold policy test DIR --catalog DIR; or --config FILE, which names both",
            ));
        };
        let configured = Config::load(file)?.config.policy;
        Ok((dir.unwrap_or(configured.dir), catalog.unwrap_or(configured.catalog)))
    }
}

/// Reads the cases of a directory. Reports all mistakes at once.
pub(super) fn cases_of(dir: &Path, session: &Session) -> Result<Vec<PolicyCase>, Failure> {
    read_cases(dir, session.now().wall).map_err(|problems| {
        let what = mistakes(&format!("the cases in {}", plain::path(dir)), problems.len());
        let failure = Failure::of_problems(what, problems.iter().map(ToString::to_string));
        Failure { exit: Exit::Failure, ..failure }
    })
}

/// Returns a text such as `deny by guard-ttl`.
fn answer(answer: impl ToString, rules: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let rules: Vec<_> = rules.into_iter().map(|rule| rule.as_ref().to_owned()).collect();
    match rules.is_empty() {
        true => format!("{} by no rule", answer.to_string()),
        false => format!("{} by {}", answer.to_string(), rules.join(", ")),
    }
}

fn page_of(failed: &FailedCase<'_>) -> Page {
    let case = failed.case;
    let title = match case.name.as_str() {
        "" => case.place.clone(),
        name => format!("{}: {name}", case.place),
    };
    Page::line(&title).then(&fields([
        ("  asked", case.asked()),
        ("  expected", answer(case.expected, &case.rules)),
        ("  got", answer(failed.got.answer, &failed.got.rules)),
        ("  why", failed.got.why.clone()),
        ("  hint", failed.hint.clone().unwrap_or_default()),
    ]))
}

fn value(failed: &FailedCase<'_>) -> Value {
    let case = failed.case;
    json!({
        "place": case.place, "name": case.name, "asked": case.asked(),
        "expected": { "answer": case.expected.as_str(), "rules": case.rules },
        "got": { "answer": failed.got.answer.as_str(), "rules": failed.got.rules, "why": failed.got.why },
        "hint": failed.hint,
    })
}

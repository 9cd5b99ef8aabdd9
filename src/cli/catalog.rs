//! `leasehold catalog`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::Manner,
    failure::mistakes,
    output::{fields, note, print},
};
use crate::{
    catalog::Catalog,
    name::PrincipalKind,
    policy::{Engine, Explain, PolicySource},
    proto::v1,
};

/// Checks and reloads who may come and what there is to open.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold catalog check /etc/leasehold/catalog.d
  leasehold catalog reload --dry-run            what the running daemon would take
  leasehold catalog reload")]
pub struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Reads a directory of catalog files and says all that is wrong with them. Offline.
    #[command(after_help = "\
Examples:
  leasehold catalog check /etc/leasehold/catalog.d --policy /etc/leasehold/policy")]
    Check {
        /// The directory of TENANT.toml files.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The directory of policies by which roles, groups and entries are judged; the set that is built in otherwise.
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
    },
    /// Has the daemon read its catalog again. A tenant's file with a mistake stays as it was; all others are taken.
    #[command(after_help = "\
Examples:
  leasehold catalog reload --dry-run
  leasehold catalog reload")]
    Reload {
        /// Read and check, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

impl CatalogArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            CatalogCommand::Check { dir, policy } => check(&dir, policy, session),
            CatalogCommand::Reload { dry_run } => reload(dry_run, session).await,
        }
    }
}

/// Reads a catalog; all that is wrong with it at once.
pub(super) fn load(dir: &std::path::Path) -> Result<Catalog, Failure> {
    Catalog::load(dir).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        let what = mistakes(&format!("the catalog {}", dir.display()), lines.len());
        Failure { exit: Exit::Failure, ..Failure::of_problems(what, lines.into_iter()) }
    })
}

fn check(dir: &std::path::Path, policy: Option<PathBuf>, session: &Session) -> Result<Exit, Failure> {
    let catalog = load(dir)?;
    let mut warnings = catalog.warnings().to_vec();
    let judged_by =
        policy.as_ref().map_or("the built-in policies".to_owned(), |dir| dir.display().to_string());
    let source = policy.map_or(PolicySource::Default, PolicySource::Dir);
    match Engine::load(&source, &catalog, Explain::Requester) {
        Ok(engine) => warnings.extend(engine.gaps().into_iter().map(|gap| format!("by {judged_by}: {gap}"))),
        Err(errors) => warnings.push(format!("{judged_by} cannot be used: {errors}")),
    }
    let counts = catalog.counts();
    if session.for_programs() {
        session.print_value(&json!({
            "digest": catalog.digest().to_string(), "tenants": counts.tenants, "principals": counts.principals,
            "datasets": counts.datasets, "models": counts.models, "checkpoints": counts.checkpoints,
            "audiences": counts.audiences, "warnings": warnings,
        }))?;
        return Ok(Exit::Ok);
    }
    print(&fields([
        ("good", dir.display().to_string()),
        ("digest", catalog.digest().to_string()),
        ("tenants", counts.tenants.to_string()),
        ("principals", counts.principals.to_string()),
        ("datasets", counts.datasets.to_string()),
        ("models", counts.models.to_string()),
        ("checkpoint lines", counts.checkpoints.to_string()),
        ("audiences", counts.audiences.to_string()),
    ]))?;
    for warning in &warnings {
        note(&format!("leasehold: warning: {warning}"));
    }
    Ok(Exit::Ok)
}

async fn reload(dry_run: bool, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator])?;
    let manner = if dry_run { Manner::Reads } else { Manner::Changes };
    let request = v1::ReloadCatalogRequest { dry_run };
    let answer = client.ask(manner, request, async |r| client.operator().reload_catalog(r).await).await?;
    if session.for_programs() {
        session.print_value(&json!({
            "dry_run": dry_run, "digest": answer.digest, "principals": answer.principals,
            "resources": answer.resources, "ended": answer.ended, "not_taken": answer.not_taken,
        }))?;
    } else {
        print(&fields([
            (if dry_run { "would be taken" } else { "taken" }, answer.digest),
            ("principals", answer.principals.to_string()),
            ("resources", answer.resources.to_string()),
            (if dry_run { "leases that would end" } else { "leases ended" }, answer.ended.to_string()),
        ]))?;
    }
    if answer.not_taken.is_empty() {
        return Ok(Exit::Ok);
    }
    let what = mistakes("the catalog", answer.not_taken.len());
    let failure = Failure::of_problems(what, answer.not_taken.into_iter());
    Err(Failure { exit: Exit::Failure, ..failure }
        .saying("What is wrong stays as it was. All else is taken."))
}

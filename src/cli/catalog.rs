//! Implements `leasehold catalog`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Client, Exit, Failure, Session,
    client::{CallKind, fetch_pages},
    confirm::NOTHING_CHANGED,
    failure::mistakes,
    output::{Page, fields, note, print},
    policy_apply::{pending_page, pending_value},
    render,
};
use crate::{
    catalog::Catalog,
    gateway::{manifest_file_name, manifest_of_folder},
    name::{PrincipalKind, ResourceName},
    plain,
    policy::{Engine, Explain, PolicySource},
    proto::v1,
};

/// Shows, checks and reloads the catalog: the known callers, and the data that jobs may name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold catalog list                        what a job of your team may name
  leasehold catalog check /etc/leasehold/catalog.d
  leasehold catalog reload --dry-run            what a reload would change")]
pub struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Lists the datasets, models and checkpoints that a job of your team may name.
    #[command(after_help = "\
Examples:
  leasehold catalog list
  leasehold catalog list -o wide
  leasehold catalog list -o json | jq -r '.[].name'")]
    List,
    /// Shows one entry: its owner, what it may be used for, and the server that has it.
    #[command(after_help = "\
Examples:
  leasehold catalog show dataset:acme/tickets@v3
  leasehold catalog show model:acme/base-7b             all versions")]
    Show {
        /// For example dataset:acme/tickets@v3. Without a version: all versions
        #[arg(value_name = "NAME")]
        name: ResourceName,
    },
    /// Makes the manifest of a folder: each file with its size and SHA-256. Needs no daemon.
    #[command(after_help = "\
Writes the manifest into a file named after its SHA-256, and prints the pin for the catalog. A
gateway that has the manifest in its folder `manifests` serves only the listed files, and a file
only if its content is unchanged.

Examples:
  leasehold catalog pin /srv/acme-prod-data/tickets/v3 --to /etc/leasehold/manifests")]
    Pin {
        /// The folder that is the location of the resource
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Where to write the manifest. The folder is made if it is missing
        #[arg(long, value_name = "DIR", default_value = ".")]
        to: PathBuf,
    },
    /// Reads a directory of catalog files and lists every mistake in them. Needs no daemon.
    #[command(after_help = "\
Examples:
  leasehold catalog check /etc/leasehold/catalog.d --policy /etc/leasehold/policy")]
    Check {
        /// The directory of the TENANT.toml files
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The policies to check the entries against [default: the built-in policies]
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
    },
    /// Makes the daemon read its catalog and policy files again.
    #[command(after_help = "\
The daemon keeps the old version of a file that has a mistake. It takes all other files, and the
policy files, and ends access that they no longer allow. If a gate of the policy requires approvals,
the command exits with 3. Other people approve the change by running the same command, which then
says whose proposal they approved. Before that, --dry-run says it.

Examples:
  leasehold catalog reload --dry-run
  leasehold catalog reload")]
    Reload {
        /// Show what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

impl CatalogArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            CatalogCommand::List => list(session).await,
            CatalogCommand::Show { name } => show(&name, session).await,
            CatalogCommand::Pin { folder, to } => pin(&folder, &to, session),
            CatalogCommand::Check { dir, policy } => check(&dir, policy, session),
            CatalogCommand::Reload { dry_run } => reload(dry_run, session).await,
        }
    }
}

/// Makes the manifest of a folder, and prints its pin.
fn pin(folder: &Path, to: &Path, session: &Session) -> Result<Exit, Failure> {
    let failed = |what: String| Failure::new(Exit::Failure, what);
    let manifest = manifest_of_folder(folder).map_err(failed)?;
    let (objects, bytes) = manifest.totals();
    if objects == 0 {
        return Err(failed(format!("`{}` has no files", plain::path(folder)))
            .fix("name the folder that is the location of the resource"));
    }
    let digest = manifest.digest();
    let path = to.join(manifest_file_name(&digest));
    std::fs::create_dir_all(to)
        .and_then(|()| std::fs::write(&path, manifest.text()))
        .map_err(|error| failed(format!("`{}` cannot be written: {error}", plain::path(&path))))?;
    let shown = digest.to_string();
    let sha256 = shown.strip_prefix("sha256:").unwrap_or(&shown);
    note(&format!(
        "{objects} files, {}, in {}; put this file into the folder `manifests` of the gateway, and this line into the catalog:",
        plain::bytes_shown(bytes),
        plain::path(&path)
    ));
    if session.for_programs() {
        let pin = json!({ "kind": "manifest", "sha256": sha256 });
        session.print_value(&json!({ "pin": pin, "objects": objects, "bytes": bytes, "manifest": path }))?;
    } else {
        print(&Page::line(&format!("pin = {{ kind = \"manifest\", sha256 = \"{sha256}\" }}")))?;
    }
    Ok(Exit::Ok)
}

const READERS: [PrincipalKind; 6] = [
    PrincipalKind::Launcher,
    PrincipalKind::Workload,
    PrincipalKind::Operator,
    PrincipalKind::Auditor,
    PrincipalKind::Scheduler,
    PrincipalKind::Verifier,
];

/// Fetches all pages. The size of the daemon's catalog limits their number.
async fn fetch(name: String, session: &Session) -> Result<Vec<v1::Resource>, Failure> {
    fetch_from(&session.client(&READERS)?, name).await
}

/// Returns the names of all resources that the caller may see.
pub(super) async fn names(client: &Client) -> Result<Vec<ResourceName>, Failure> {
    let resources = fetch_from(client, String::new()).await?;
    Ok(resources.iter().filter_map(|r| r.name.parse().ok()).collect())
}

async fn fetch_from(client: &Client, name: String) -> Result<Vec<v1::Resource>, Failure> {
    let pages = fetch_pages(usize::MAX, async |page_size, page_token| {
        let request = v1::ListResourcesRequest { name: name.clone(), page_size, page_token };
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.jobs().list_resources(r).await).await?;
        Ok((answer.resources, answer.next_page_token))
    });
    Ok(pages.await?.0)
}

async fn list(session: &Session) -> Result<Exit, Failure> {
    let resources = fetch(String::new(), session).await?;
    if session.for_programs() {
        let now = session.now().wall;
        session.print_value(&resources.iter().map(|r| render::resource_value(r, now)).collect())?;
        return Ok(Exit::Ok);
    }
    print(&render::resource_table(&resources, session.table_size()))?;
    if resources.is_empty() {
        note("The catalog has no entry that a job of your team may name.");
    }
    Ok(Exit::Ok)
}

async fn show(name: &ResourceName, session: &Session) -> Result<Exit, Failure> {
    let resources = fetch(name.to_string(), session).await?;
    if resources.is_empty() {
        return Err(Failure::new(Exit::Failure, format!("the catalog has no {name} that you may see")).fix(
            "look for the name in `leasehold catalog list`, or ask its owner to share it with your team",
        ));
    }
    let now = session.now().wall;
    if session.for_programs() {
        session.print_value(&resources.iter().map(|r| render::resource_value(r, now)).collect())?;
    } else {
        let mut pages = resources.iter().map(|r| render::resource_page(r, now));
        let first = pages.next().unwrap_or_default();
        print(&pages.fold(first, |all, page| all.below(&page)))?;
    }
    Ok(Exit::Ok)
}

/// Reads a catalog. Reports all mistakes at once.
pub(super) fn load(dir: &std::path::Path) -> Result<Catalog, Failure> {
    Catalog::load(dir).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        let what = mistakes(&format!("the catalog {}", plain::path(dir)), lines.len());
        Failure { exit: Exit::Failure, ..Failure::of_problems(what, lines.into_iter()) }
    })
}

fn check(dir: &Path, policy: Option<PathBuf>, session: &Session) -> Result<Exit, Failure> {
    let catalog = load(dir)?;
    let mut warnings = catalog.warnings().to_vec();
    warnings.extend(catalog.nameless_people());
    let judged_by = policy.as_ref().map_or("the built-in policies".to_owned(), |dir| plain::path(dir));
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
        ("good", plain::path(dir)),
        ("digest", catalog.digest().to_string()),
        ("tenants", counts.tenants.to_string()),
        ("principals", counts.principals.to_string()),
        ("verifiers", counts.verifiers.to_string()),
        ("datasets", counts.datasets.to_string()),
        ("models", counts.models.to_string()),
        ("checkpoints", counts.checkpoints.to_string()),
        ("audiences", counts.audiences.to_string()),
    ]))?;
    for warning in &warnings {
        note(&format!("leasehold: warning: {warning}"));
    }
    Ok(Exit::Ok)
}

async fn reload(dry_run: bool, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator])?;
    let kind = CallKind::of_dry_run(dry_run);
    let request = v1::ReloadCatalogRequest { dry_run };
    let answer = client.ask(kind, request, async |r| client.operator().reload_catalog(r).await).await?;
    let is_loaded = !dry_run && answer.waits.is_none();
    if session.for_programs() {
        session.print_value(&json!({
            "dry_run": dry_run, "digest": answer.digest, "policy": answer.policy, "principals": answer.principals,
            "resources": answer.resources, "ended": answer.ended, "not_taken": answer.not_taken,
            "waits": answer.waits.as_ref().map(pending_value),
            "approves": render::none_if_empty(answer.approves.clone()),
        }))?;
    } else {
        print(&fields([
            (if is_loaded { "loaded" } else { "would load" }, answer.digest),
            ("policy", answer.policy),
            ("principals", answer.principals.to_string()),
            ("resources", answer.resources.to_string()),
            (if is_loaded { "leases ended" } else { "leases that would end" }, answer.ended.to_string()),
        ]))?;
        match (answer.approves.as_str(), dry_run) {
            ("", _) => {}
            (proposer, true) => note(&format!("A reload by you approves the proposal of {proposer}.")),
            (proposer, false) => note(&format!("You approved the proposal of {proposer}.")),
        }
        if dry_run {
            note(NOTHING_CHANGED);
        }
        answer.waits.iter().try_for_each(|waits| print(&pending_page(waits)))?;
    }
    if let Some(waits) = answer.waits.filter(|waits| !dry_run && !waits.proposed_by.is_empty()) {
        note(&format!(
            "Nothing was changed yet. {} proposed it. To approve it, others run: leasehold catalog reload",
            waits.proposed_by
        ));
        return Ok(Exit::AwaitingApproval);
    }
    if answer.not_taken.is_empty() {
        return Ok(Exit::Ok);
    }
    let what = mistakes("the catalog", answer.not_taken.len());
    let failure = Failure::of_problems(what, answer.not_taken.into_iter());
    Err(Failure { exit: Exit::Failure, ..failure }
        .saying("If a file has a mistake, its earlier version stays in force, if there is one. Everything else is loaded."))
}

//! Implements `leasehold controls`.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Context, Contexts, Exit, Failure, Session, SvidFiles,
    output::{Page, print, print_line},
};
use crate::dev::{
    controls::{Control, ControlList, ControlTrial, Lab, LabPerson, Standing, Tried, page},
    free_ports,
};

/// All controls together take some seconds. If they take longer than this, the run has failed.
const LONGEST: Duration = Duration::from_secs(300);
/// The person who asks whether the daemon is ready. This is an entry of `who` in `docs/controls.toml`.
const ASKER: &str = "oncall";

/// Lists the controls of a governed tuning pipeline, and tries them at a daemon.
#[derive(Debug, Args)]
#[command(after_help = "\
A control is a rule that people ask about, such as: the launcher of a job cannot approve it. Each
has tests, and steps: commands with the exit codes that they must have. --run starts a daemon with
the shipped catalogs and policy in a temporary folder, and runs each step as the person or workload
that the step names. It exits with 1 if a step has another result. It needs no network, no root and
no other program.

Examples:
  leasehold controls                     all controls, and how far each is held
  leasehold controls --run
  leasehold controls --run -o json | jq '.controls[] | select(.failed)'")]
pub struct ControlsArgs {
    /// Start a daemon, run the steps of all controls, and say which controls held
    #[arg(long)]
    run: bool,
    /// Only these controls, by number
    #[arg(long, value_name = "N", value_delimiter = ',')]
    only: Vec<u32>,
    /// Print the page docs/controls.md
    #[arg(long, conflicts_with_all = ["run", "only"])]
    markdown: bool,
    /// With --run: keep the folder, and print its path
    #[arg(long, requires = "run")]
    keep: bool,
}

impl ControlsArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut list = ControlList::shipped().map_err(|e| Failure::new(Exit::Failure, e))?;
        if self.markdown {
            print(&Page::verbatim(page(&list)))?;
            return Ok(Exit::Ok);
        }
        if let Some(unknown) = self.only.iter().find(|n| !list.control.iter().any(|c| c.number == **n)) {
            return Err(Failure::usage(format!("there is no control {unknown}")));
        }
        if !self.only.is_empty() {
            list.control.retain(|c| self.only.contains(&c.number));
        }
        if self.run { try_all(&list, self.keep, session).await } else { show_all(&list, session) }
    }
}

fn show_all(list: &ControlList, session: &Session) -> Result<Exit, Failure> {
    if session.for_programs() {
        let all: Vec<Value> = list.control.iter().map(control_value).collect();
        session.print_value(&json!({ "controls": all }))?;
    } else {
        let line = |c: &Control| format!("{:>3}  {:8}  {}", c.number, c.standing().as_str(), c.name);
        print(&Page::lines(list.control.iter().map(line)))?;
    }
    Ok(Exit::Ok)
}

fn control_value(control: &Control) -> Value {
    json!({
        "number": control.number, "name": control.name, "standing": control.standing().as_str(), "feature": control.feature,
        "tests": control.tests, "lacks": control.lacks, "not_here": control.not_here,
    })
}

async fn try_all(list: &ControlList, keep: bool, session: &Session) -> Result<Exit, Failure> {
    let failed = |what: &str, e: &dyn std::fmt::Display| Failure::new(Exit::Failure, format!("{what}: {e}"));
    let mut folder = tempfile::Builder::new()
        .prefix("leasehold-controls-")
        .tempdir()
        .map_err(|e| failed("a temporary folder could not be created", &e))?;
    folder.disable_cleanup(keep);
    let free = free_ports().map_err(|e| failed("no free ports were found on localhost", &e))?;
    let program = std::env::current_exe().map_err(|e| failed("the path of this program is not known", &e))?;
    let lab = Lab::set_up(folder.path(), list, free.ports, session.clock.clone());
    let mut lab = lab.map_err(|e| failed("the daemon could not be set up", &e))?;
    contexts_of(&lab)?.save(&lab.contexts()).map_err(|e| failed("the contexts could not be written", &e))?;
    let trials = async {
        lab.start(&program, ASKER).await?;
        let mut all = Vec::new();
        for control in list.control.iter().filter(|c| c.standing() != Standing::NotHere) {
            let tried = ControlTrial::new(&lab, &program, control).run(&*session.clock).await;
            if !session.for_programs() {
                print_tried(&tried);
            }
            all.push(tried);
        }
        lab.stop().await?;
        Ok::<_, String>(all)
    };
    let all = tokio::time::timeout(LONGEST, trials).await;
    if keep {
        super::output::note(&format!("kept: {}", folder.path().display()));
    }
    let all = all.map_err(|_| {
        Failure::new(Exit::Failure, format!("the controls took longer than {} s", LONGEST.as_secs()))
    })?;
    let all = all.map_err(|e| failed("the controls could not be tried", &e))?;
    report(list, &all, session)
}

/// Prints a control that was tried. If stdout was closed, the exit code still shows the result.
fn print_tried(tried: &Tried) {
    let mark = if tried.failed.is_some() { "FAIL" } else { "ok  " };
    let Tried { number, name, ms, steps, standing, .. } = tried;
    let mut lines = vec![format!("{mark} {number:>3}  {name}")];
    let how = format!("{:10}{steps} steps in {ms} ms, {}", "", standing.as_str());
    lines.push(tried.failed.as_ref().map_or(how, |why| format!("{:10}{why}", "")));
    let _ = print(&Page::lines(lines));
}

fn report(list: &ControlList, all: &[Tried], session: &Session) -> Result<Exit, Failure> {
    let bad: Vec<String> = all.iter().filter(|t| t.failed.is_some()).map(|t| t.number.to_string()).collect();
    let absent: Vec<&Control> = list.control.iter().filter(|c| c.standing() == Standing::NotHere).collect();
    if session.for_programs() {
        let tried: Vec<Value> = all
            .iter()
            .map(|t| {
                json!({
                    "number": t.number, "name": t.name, "standing": t.standing.as_str(), "steps": t.steps, "ms": t.ms,
                    "held": t.failed.is_none(), "failed": t.failed,
                })
            })
            .collect();
        let absent: Vec<Value> = absent.iter().map(|c| control_value(c)).collect();
        session.print_value(&json!({ "controls": tried, "not_here": absent, "all_held": bad.is_empty() }))?;
    } else {
        let why = |c: &&Control| {
            format!("--   {:>3}  {}: {}", c.number, c.name, c.not_here.as_deref().unwrap_or_default())
        };
        print(&Page::lines(absent.iter().map(why)))?;
    }
    if bad.is_empty() {
        if !session.for_programs() {
            print_line(&format!("all {} controls held; {} are not here", all.len(), absent.len()))?;
        }
        return Ok(Exit::Ok);
    }
    Err(Failure::new(
        Exit::Failure,
        format!("{} of {} controls did not hold: {}", bad.len(), all.len(), bad.join(", ")),
    )
    .fix("look at the step that the line with FAIL shows; --keep keeps the folder with the daemon's log"))
}

/// Makes a context for each person of the lab.
fn contexts_of(lab: &Lab) -> Result<Contexts, Failure> {
    let id: crate::name::SpiffeId =
        lab.daemon_id().parse().map_err(|_| Failure::new(Exit::Failure, "the daemon has no name"))?;
    let context = |person: &LabPerson| Context {
        server: format!("localhost:{}", lab.ports.grpc),
        server_id: id.clone(),
        bundles: BTreeMap::from([(id.trust_domain(), lab.daemon_bundle())]),
        issuer: Some(format!("http://localhost:{}", lab.ports.issuer)),
        login: None,
        identities: BTreeMap::from([(
            person.kind,
            SvidFiles { cert: person.cert.clone(), key: person.key.clone() }.into(),
        )]),
    };
    let contexts = lab.people.iter().map(|person| (person.name.clone(), context(person))).collect();
    Ok(Contexts { current: None, contexts, broken: BTreeMap::new() })
}

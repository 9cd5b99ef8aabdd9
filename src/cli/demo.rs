//! `leasehold demo`.

use std::{sync::Arc, time::Duration};

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    output::{Page, print, print_line},
};
use crate::{
    cli::dev::contexts_of,
    dev::{
        DevDeployment,
        demo::{Claim, Stage, StoryName, tell},
        free_ports,
    },
};

/// A story takes a few seconds; past this it has failed.
const LONGEST: Duration = Duration::from_secs(60);

/// Tells a whole story in seconds, on real connections and processes.
///
/// Starts a daemon of its own with identities of its own in a folder that it removes. The story `path` shows callers refused
/// and accepted, a credential issued, checked and renewed, a download cut half way, and all access ended in each way that
/// there is. The story `jobs` shows a job of four members: one killed and back, one preempted while it saves a checkpoint, a
/// requeue that fences the attempt before it, a killed daemon that no child notices. Prints one line for each claim with what
/// was observed and how long it took; fails if one was not observed. Needs no network, no root and no other program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold demo
  leasehold demo --story jobs
  leasehold demo -o json | jq -r '[.ms, .claim] | @tsv'")]
pub struct DemoArgs {
    /// Which story is told
    #[arg(long, value_enum, value_name = "STORY", default_value = "path")]
    pub story: StoryName,
    /// Keep the folder with the ledger and the logs, and say where it is
    #[arg(long)]
    pub keep: bool,
}

impl DemoArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let failed =
            |what: &str, e: &dyn std::fmt::Display| Failure::new(Exit::Failure, format!("{what}: {e}"));
        let mut folder = tempfile::Builder::new()
            .prefix("leasehold-demo-")
            .tempdir()
            .map_err(|e| failed("no folder could be made", &e))?;
        folder.disable_cleanup(self.keep);
        // Held to the end, while the daemon is killed and comes back.
        let free = free_ports().map_err(|e| failed("no ports on loopback", &e))?;
        let house = DevDeployment::set_up(folder.path(), None, free.ports, session.clock.clone())
            .map_err(|e| failed("the demonstration could not be set up", &e))?;
        let contexts = house.path("contexts.toml");
        contexts_of(&house)?.save(&contexts).map_err(|e| failed("the context could not be written", &e))?;
        let program =
            std::env::current_exe().map_err(|e| failed("this program's own path is not known", &e))?;
        let stage = Stage { house: Arc::new(house), clock: session.clock.clone(), program, contexts };

        let for_programs = session.for_programs();
        let mut count = 0usize;
        let mut report = |claim: &Claim| {
            count = count.saturating_add(1);
            // A reader that went away ends the story at its next line; what was found stands in the exit code.
            let _ = if for_programs {
                session.print_value(&json!({
                    "claim": claim.claim, "observed": claim.observed, "ms": (claim.ms * 10.0).round() / 10.0,
                    "holds": claim.holds,
                }))
            } else {
                let mark = if claim.holds { "ok  " } else { "FAIL" };
                print(&Page::lines([
                    format!("{mark} {:>9.1} ms  {}", claim.ms, claim.claim),
                    format!("{:18}{}", "", claim.observed),
                ]))
            };
        };
        let told = tokio::time::timeout(LONGEST, tell(self.story, &stage, &mut report)).await;
        if self.keep {
            super::output::note(&format!("kept: {}", folder.path().display()));
        }
        match told {
            Ok(Ok(true)) => {
                if !for_programs {
                    print_line(&format!("all {count} claims were observed"))?;
                }
                Ok(Exit::Ok)
            }
            Ok(Ok(false)) => Err(Failure::new(Exit::Failure, "a claim was not observed: see FAIL above")),
            Ok(Err(why)) => Err(Failure::new(Exit::Failure, format!("the story broke off: {why}"))),
            Err(_) => Err(Failure::new(
                Exit::Failure,
                format!("the story took longer than {} s and was broken off", LONGEST.as_secs()),
            )),
        }
    }
}

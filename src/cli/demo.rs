//! Implements `leasehold demo`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    dev::failed,
    output::{Page, print, print_line},
    stage::set_up_stage,
};
use crate::dev::demo::{self, Claim, StoryName};

/// A story of the demo takes a few seconds. A story that takes longer than this has failed.
const LONGEST: Duration = Duration::from_secs(60);

/// Shows what leasehold does, in a few seconds, with real processes and connections.
#[derive(Debug, Args)]
#[command(after_help = "\
It starts a daemon with new identities in a temporary folder, and needs no network, no root and no
other program. For each claim it prints what was observed and how long that took. It fails if a
claim was not observed. The story `path` is about one credential: it is refused, issued, checked
and renewed, a download is cut half way, and access ends in each possible way. The story `jobs` is
about a job with four members: one is killed and comes back, one is preempted while it saves a
checkpoint, the job is requeued, and the daemon is killed. The story `governance` is about people: a
tune of a production model waits, two of its owners approve it, another dataset needs new approvals,
the tune runs, and a recall of its dataset ends it. The recall still holds if the daemon is killed.

Examples:
  leasehold demo
  leasehold demo --story governance
  leasehold demo -o json | jq -r '[.ms, .claim] | @tsv'")]
pub struct DemoArgs {
    /// The story: path, jobs or governance
    #[arg(long, value_enum, value_name = "STORY", default_value = "path", hide_possible_values = true)]
    pub story: StoryName,
    /// Keep the folder with the ledger and the logs, and print its path
    #[arg(long)]
    pub keep: bool,
}

impl DemoArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut folder = tempfile::Builder::new()
            .prefix("leasehold-demo-")
            .tempdir()
            .map_err(|e| failed("a temporary folder could not be created", &e))?;
        folder.disable_cleanup(self.keep);
        // The ports are held until the end, because the daemon is killed and restarted on the same ports.
        let (stage, _ports) = set_up_stage(folder.path(), session)?;

        let for_programs = session.for_programs();
        let mut count = 0usize;
        let mut report = |claim: &Claim| {
            count = count.saturating_add(1);
            // If stdout was closed, the exit code still shows the result.
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
        let done = tokio::time::timeout(LONGEST, demo::run(self.story, &stage, &mut report)).await;
        if self.keep {
            super::output::note(&format!("kept: {}", folder.path().display()));
        }
        match done {
            Ok(Ok(true)) => {
                if !for_programs {
                    print_line(&format!("all {count} claims were observed"))?;
                }
                Ok(Exit::Ok)
            }
            Ok(Ok(false)) => {
                Err(Failure::new(Exit::Failure, "a claim was not observed: see the line with FAIL above"))
            }
            Ok(Err(why)) => Err(Failure::new(Exit::Failure, format!("the demo could not go on: {why}"))),
            Err(_) => Err(Failure::new(
                Exit::Failure,
                format!("the demo took longer than {} s, so it was stopped", LONGEST.as_secs()),
            )),
        }
    }
}

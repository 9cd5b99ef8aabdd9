//! Implements `leasehold waivers`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::CallKind,
    output::{columns, note, print},
    timestamp::{self, short},
};
use crate::{name::PrincipalKind, proto::v1};

/// Lists the rules that are waived for a time.
#[derive(Debug, Args)]
#[command(after_help = "\
A waiver is an entry [[waiver]] of platform.toml, with a rule, a tenant, an owner and an end. When
its time is over, the rule holds again, and access that needed the waiver ends.

Examples:
  leasehold waivers list
  leasehold waivers list -o json | jq -r '.[].rule'")]
pub struct WaiversArgs {
    #[command(subcommand)]
    command: WaiversCommand,
}

#[derive(Debug, Subcommand)]
enum WaiversCommand {
    /// Lists the waivers of your tenant, or of all tenants if you are an operator of the platform.
    #[command(after_help = "\
Examples:
  leasehold waivers list
  leasehold waivers list -o json | jq -r '.[].rule'")]
    List,
}

impl WaiversArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let WaiversCommand::List = self.command;
        let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
        let request = v1::ListWaiversRequest {};
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.operator().list_waivers(r).await).await?;
        let now = session.now().wall;
        if session.for_programs() {
            let value = |w: &v1::Waiver| -> Value {
                json!({
                    "rule": w.rule, "tenant": w.tenant, "resource": w.resource, "owner": w.owner,
                    "reason": w.reason, "until": timestamp::value(w.until.as_ref(), now), "in_force": w.in_force,
                })
            };
            session.print_value(&answer.waivers.iter().map(value).collect())?;
        } else {
            let rows = answer.waivers.iter().map(|w| {
                let until = short(w.until.as_ref(), now);
                vec![
                    w.rule.clone(),
                    w.tenant.clone(),
                    if w.resource.is_empty() { "(all)".to_owned() } else { w.resource.clone() },
                    w.owner.clone(),
                    if w.in_force { until } else { format!("{until} (over)") },
                    w.reason.clone(),
                ]
            });
            print(&columns(&["RULE", "TENANT", "RESOURCE", "OWNER", "UNTIL", "REASON"], rows))?;
            if answer.waivers.is_empty() {
                note("There is no waiver.");
            }
        }
        Ok(Exit::Ok)
    }
}

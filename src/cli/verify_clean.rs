//! Implements `leasehold verify-clean`.

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::CallKind,
    ids,
    offboard::{remnant_table, remnant_values},
    output::{note, print, print_line},
    parse,
};
use crate::{name::PrincipalKind, proto::v1};

/// Checks that no access depends on a name. Exits with 0 if this is true, else with 6 and a list.
#[derive(Debug, Args)]
#[command(after_help = "\
It looks for live leases, tokens that a server without the fence feed still accepts, joined members,
and open jobs that can ask for access again because no lock stops them.

Examples:
  leasehold verify-clean dataset:acme/tickets@v3
  leasehold verify-clean identity:spiffe://k8s.acme.example/ns/ml/sa/tuner -o json
  leasehold verify-clean job:j-… && echo clean")]
pub struct VerifyCleanArgs {
    /// A name as for `lock`: job:ID, identity:spiffe://…, dataset:…, model:…, tenant:NAME, human:NAME …
    #[arg(value_name = "NAME", value_parser = parse::lock_name)]
    name: String,
}

impl VerifyCleanArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
        let name = ids::resolve_name(&client, &self.name).await?;
        let request = v1::VerifyCleanRequest { name: name.clone() };
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.operator().verify_clean(r).await).await?;
        let is_clean = answer.left_total == 0;
        if session.for_programs() {
            session.print_value(&json!({
                "name": name, "clean": is_clean, "left": remnant_values(&answer.left),
                "left_total": answer.left_total, "locked_by": super::render::none_if_empty(answer.locked_by.clone()),
            }))?;
        } else if is_clean {
            print_line(&format!("nothing is left behind {name}"))?;
        } else {
            print(&remnant_table(&answer.left))?;
            note(&format!("{} thing(s) are left behind {name}.", answer.left_total));
        }
        if !session.for_programs() && answer.locked_by.is_empty() {
            note(&format!("No lock keeps new access out. To refuse it: leasehold lock {name} --reason …"));
        }
        Ok(if is_clean { Exit::Ok } else { Exit::NotClean })
    }
}

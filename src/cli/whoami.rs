//! `leasehold whoami`.

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    client::Manner,
    output::{fields, print},
    view, when,
};
use crate::{name::PrincipalKind, proto::v1};

/// Says how the daemon sees you: your SPIFFE ID, and what the catalog makes of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold whoami
  leasehold whoami --as operator")]
pub struct WhoamiArgs {}

impl WhoamiArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client(PrincipalKind::ALL)?;
        let answer = client
            .ask(Manner::Reads, v1::WhoAmIRequest {}, async |r| client.operator().who_am_i(r).await)
            .await?;
        let now = session.now().wall;
        if session.for_programs() {
            session.print_value(&json!({
                "spiffe_id": answer.spiffe_id, "kind": view::some(answer.kind), "tenant": view::some(answer.tenant),
                "roles": answer.roles, "groups": answer.groups, "matched": view::some(answer.matched),
                "svid_expires": when::value(answer.svid_expires.as_ref(), now),
                "server_version": answer.server_version, "epoch": answer.epoch,
                "server_time": when::value(answer.server_time.as_ref(), now),
            }))?;
        } else {
            let kind = if answer.kind.is_empty() {
                "none: the catalog does not know you".to_owned()
            } else {
                answer.kind
            };
            print(&fields([
                ("you", answer.spiffe_id),
                ("kind", kind),
                ("tenant", answer.tenant),
                ("roles", answer.roles.join(", ")),
                ("groups", answer.groups.join(", ")),
                ("matched by", answer.matched),
                ("SVID expires", when::both(answer.svid_expires.as_ref(), now)),
                ("daemon", format!("leasehold {}, epoch {}", answer.server_version, answer.epoch)),
            ]))?;
        }
        Ok(Exit::Ok)
    }
}

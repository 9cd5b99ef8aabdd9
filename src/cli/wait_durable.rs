//! Waiting until an ending is on disk. It is in force before that.

use super::{Client, Exit, Failure, client::CallKind};
use crate::{limits::LEDGER_WAIT, proto::v1};

/// Whether to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    UntilDurable,
    No,
}

/// Waits for the record of an ending, at most [`LEDGER_WAIT`]. Notes in it that it is durable.
pub(super) async fn wait_durable(
    client: &Client,
    ending: &mut v1::Ending,
    wait: Wait,
) -> Result<(), Failure> {
    if ending.durable || wait == Wait::No {
        return Ok(());
    }
    let wait = v1::WaitDurableRequest { receipt: ending.receipt.clone() };
    client
        .ask_within(LEDGER_WAIT, CallKind::Reads, wait, async |request| {
            client.operator().wait_durable(request).await
        })
        .await
        .map_err(|failure| not_durable(failure.text.into_owned()))?;
    ending.durable = true;
    Ok(())
}

fn not_durable(why: String) -> Failure {
    Failure::new(Exit::NotDurable, "the record of it is not known to be on disk")
        .with("why", why)
        .fix("look at the daemon's disk; then do it again, which changes nothing more and waits anew")
        .saying(
            "It is in force: all of that access has ended. Only a crash of the daemon now could forget it.",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_and_not_on_disk_is_told_as_both() {
        let failure = not_durable("`localhost:8443` did not answer in time".into());
        assert_eq!(failure.exit.code(), 5);
        insta::assert_snapshot!(failure.render(), @r#"
        leasehold: error: the record of it is not known to be on disk
          why    `localhost:8443` did not answer in time
          fix    look at the daemon's disk; then do it again, which changes nothing more and waits anew
        It is in force: all of that access has ended. Only a crash of the daemon now could forget it.
        "#);
    }
}

//! Waits until the record of an ending is on disk. The ending is in force before that.

use super::{Client, Exit, Failure, client::CallKind};
use crate::{limits::LEDGER_WAIT, proto::v1, reason::Reason};

/// Whether to wait for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    UntilDurable,
    No,
}

/// Waits for the record of an ending, for at most [`LEDGER_WAIT`], and marks the ending as durable.
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
        .map_err(|failure| match failure.reason {
            Some(Reason::Locked | Reason::LoginRequired) => shut_out(failure.text.into_owned()),
            _ => not_durable(failure.text.into_owned()),
        })?;
    ending.durable = true;
    Ok(())
}

fn not_durable(why: String) -> Failure {
    Failure::new(Exit::NotDurable, "the change is in force, but its record may not be on disk yet")
        .with("why", why)
        .fix("check the daemon's disk, then repeat the command: it changes nothing more, and waits again")
        .saying(
            "The access has ended. Only a crash of the daemon before the record is written could undo it.",
        )
}

/// Makes the failure of a caller that has just locked itself out, so that the daemon no longer answers it.
fn shut_out(why: String) -> Failure {
    Failure::new(
        Exit::NotDurable,
        "the change is in force, and it shuts you out too, so you cannot ask whether its record is on disk",
    )
    .with("why", why)
    .fix("have another operator look (leasehold lock list); to lift it you need another operator, or an identity of policy.break_glass")
    .saying("The access has ended, yours too.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_on_oneself_says_that_it_shuts_the_caller_out() {
        let failure = shut_out("human:ada is locked".into());
        assert_eq!(failure.exit.code(), 5);
        let said = failure.render();
        assert!(said.contains("it shuts you out too") && !said.contains("disk, then"), "{said}");
    }

    #[test]
    fn an_ending_that_is_not_durable_says_that_it_is_in_force() {
        let failure = not_durable("`localhost:8443` did not answer in time".into());
        assert_eq!(failure.exit.code(), 5);
        insta::assert_snapshot!(failure.render(), @r#"
        leasehold: error: the change is in force, but its record may not be on disk yet
          why    `localhost:8443` did not answer in time
          fix    check the daemon's disk, then repeat the command: it changes nothing more, and waits again
        The access has ended. Only a crash of the daemon before the record is written could undo it.
        "#);
    }
}

use std::collections::HashMap;

use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::link::ConnectError;

fn answered(code: Code, reason: &str, facts: &[(&str, &str)]) -> Status {
    let facts: HashMap<String, String> = facts.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let details = ErrorDetails::with_error_info(reason, "leasehold", facts);
    Status::with_error_details(code, "this job may not read dataset:acme/tickets@v3", details)
}

#[test]
fn a_refusal_keeps_its_reason_and_its_facts() {
    let status = answered(
        Code::PermissionDenied,
        "POLICY_DENIED",
        &[("fix", "ask its owner"), ("rule", "tenant-read-own"), ("you", "spiffe://td.example/w")],
    );
    let failure = status_failure(&status, CallKind::Changes, "localhost:1");
    assert_eq!((failure.reason, failure.exit), (Some(Reason::PolicyDenied), Exit::Denied));
    insta::assert_snapshot!(failure.render(), @r#"
    leasehold: denied: this job may not read dataset:acme/tickets@v3
      code   POLICY_DENIED
      you    spiffe://td.example/w
      rule   tenant-read-own
      fix    ask its owner
    Nothing was changed.
    "#);
}

#[test]
fn without_a_connection_nothing_was_changed() {
    let mut status = Status::unavailable("tcp connect error");
    status.set_source(Arc::new(ConnectError::TimedOut { address: "localhost:1".into() }));
    let failure = status_failure(&status, CallKind::Changes, "localhost:1");
    assert_eq!((failure.reason, failure.exit), (Some(Reason::Unreachable), Exit::Failure));
    assert_eq!(failure.effect, Effect::Nothing);
}

#[test]
fn a_lost_answer_to_a_change_has_an_unknown_effect() {
    for status in [Status::deadline_exceeded("x"), Status::cancelled("x"), Status::unavailable("x")] {
        assert_eq!(status_failure(&status, CallKind::Changes, "localhost:1").effect, Effect::Unknown);
        assert_eq!(status_failure(&status, CallKind::Reads, "localhost:1").effect, Effect::Nothing);
    }
    let refused = answered(Code::Unavailable, "LEDGER_UNAVAILABLE", &[]);
    assert_eq!(status_failure(&refused, CallKind::Changes, "localhost:1").effect, Effect::Nothing);
}

#[test]
fn an_unknown_reason_is_shown_as_the_daemon_sent_it() {
    let newer =
        status_failure(&answered(Code::PermissionDenied, "NEW_REASON", &[]), CallKind::Reads, "localhost:1");
    assert_eq!((newer.reason, newer.exit), (None, Exit::Denied));
    assert!(newer.render().contains("NEW_REASON"));
    let details =
        ErrorDetails::with_error_info("POLICY_DENIED", "proxy.example", HashMap::<String, String>::new());
    let other = Status::with_error_details(Code::PermissionDenied, "no", details);
    assert_eq!(status_failure(&other, CallKind::Reads, "localhost:1").reason, None);
}

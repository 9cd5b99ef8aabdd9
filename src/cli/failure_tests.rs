use super::*;

#[test]
fn a_refusal_has_its_facts_in_order() {
    let failure = Failure::from(
        Refusal::new(Reason::PolicyDenied, "this job may not read dataset:acme/tickets@v3")
            .fix("set purpose = \"support-tuning\" in the job file if that is true, or ask its owner, data-tickets@acme.example")
            .with("rule", "tenant-read-own-or-shared-data: this dataset may be used for: support-tuning")
            .with("you", "spiffe://k8s.acme.example/ns/ml/sa/tuner; purpose asked: \"demo-bot\""),
    )
    .before_the_command();
    insta::assert_snapshot!(failure.render(), @r#"
    leasehold: denied: this job may not read dataset:acme/tickets@v3
      code   POLICY_DENIED
      you    spiffe://k8s.acme.example/ns/ml/sa/tuner; purpose asked: "demo-bot"
      rule   tenant-read-own-or-shared-data: this dataset may be used for: support-tuning
      fix    set purpose = "support-tuning" in the job file if that is true, or ask its owner, data-tickets@acme.example
    Nothing was started, no access was given.
    "#);
    assert_eq!(failure.exit.code(), 125);
}

#[test]
fn every_reason_is_rendered_with_its_exit_code() {
    let rows = Reason::ALL.iter().map(|reason| {
        let failure = Failure::from(Refusal::new(*reason, "text"));
        let rendered = failure.render();
        format!("{reason}: {}, exit {}\n", rendered.split(": ").nth(1).unwrap(), failure.exit.code())
    });
    insta::assert_snapshot!(rows.collect::<String>(), @"
    NO_CLIENT_CERTIFICATE: denied, exit 2
    SVID_INVALID: denied, exit 2
    SVID_EXPIRED: denied, exit 2
    TRUST_DOMAIN_UNKNOWN: denied, exit 2
    SVID_UNTRUSTED: denied, exit 2
    PRINCIPAL_UNKNOWN: denied, exit 2
    KIND_NOT_ALLOWED: denied, exit 2
    LOGIN_REFUSED: denied, exit 2
    LOGIN_REQUIRED: denied, exit 2
    PROVIDER_UNAVAILABLE: error, exit 1
    FIELD_INVALID: error, exit 64
    FIELD_MISSING: error, exit 64
    TTL_INVALID: error, exit 64
    MESSAGE_TOO_LARGE: error, exit 1
    NOT_SUPPORTED: error, exit 1
    JOB_NOT_FOUND: error, exit 1
    ATTEMPT_NOT_FOUND: error, exit 1
    LEASE_NOT_FOUND: error, exit 1
    RESOURCE_NOT_FOUND: error, exit 1
    LOCK_NOT_FOUND: error, exit 1
    NAME_UNKNOWN: error, exit 1
    OPERATORS_LOCKED_OUT: denied, exit 2
    AUDIENCE_UNKNOWN: error, exit 1
    PIN_MISMATCH: denied, exit 2
    CHECKPOINT_QUARANTINED: denied, exit 2
    POLICY_DENIED: denied, exit 2
    POLICY_ERROR: denied, exit 2
    APPROVAL_REQUIRED: denied, exit 3
    NOT_AN_APPROVER: denied, exit 2
    APPROVER_INVOLVED: denied, exit 2
    REQUEST_MISMATCH: denied, exit 2
    LOCKED: denied, exit 2
    JOB_CLOSED: error, exit 4
    IDEMPOTENCY_CONFLICT: error, exit 1
    ATTEMPT_STALE: error, exit 4
    ATTEMPT_ENDED: error, exit 4
    ATTEMPT_KEY_USED: error, exit 4
    ATTEMPT_DRAINING: error, exit 1
    ATTEMPTS_EXHAUSTED: error, exit 4
    STATE_CONFLICT: error, exit 1
    NOT_A_MEMBER: denied, exit 2
    NOT_JOINED: error, exit 4
    SESSION_MISMATCH: denied, exit 2
    INSTANCE_TAKEN: error, exit 1
    TICKET_REQUIRED: denied, exit 2
    IDENTITY_BOUND: denied, exit 2
    MEMBERS_FULL: error, exit 1
    LEASE_EXPIRED: error, exit 4
    LEASE_ENDED: error, exit 4
    REVOKED: error, exit 4
    QUOTA_EXCEEDED: error, exit 1
    TOKEN_MALFORMED: error, exit 7
    TOKEN_KEY_UNKNOWN: error, exit 7
    TOKEN_SIGNATURE: error, exit 7
    TOKEN_ISSUER: error, exit 7
    TOKEN_AUDIENCE: error, exit 7
    TOKEN_EXPIRED: error, exit 7
    TOKEN_NOT_YET_VALID: error, exit 7
    TOKEN_PRESENTER: error, exit 7
    TOKEN_CERTIFICATE: error, exit 7
    TOKEN_EPOCH: error, exit 7
    TOKEN_SCOPE: error, exit 7
    FEED_STALE: error, exit 5
    CLOCK_DIFFERENCE: error, exit 5
    EPOCH_CHANGED: error, exit 4
    FELL_BEHIND: error, exit 1
    LEDGER_UNAVAILABLE: error, exit 5
    IDENTITY_UNAVAILABLE: error, exit 1
    CATALOG_INVALID: error, exit 1
    CONTENDED: error, exit 1
    OVERLOADED: error, exit 1
    SHUTTING_DOWN: error, exit 1
    UNREACHABLE: error, exit 1
    INTERNAL: error, exit 1
    ");
}

#[test]
fn every_reason_is_json_that_names_it() {
    for reason in Reason::ALL {
        let failure = Failure::from(Refusal::new(*reason, "text").fix("this"));
        let json = failure.to_json();
        assert_eq!(json["error"]["reason"], reason.code());
        assert_eq!(json["error"]["exit"], Exit::of(*reason).code());
        assert_eq!(json["error"]["facts"]["fix"], "this");
        assert!(!json.to_string().contains('\n'));
    }
}

#[test]
fn each_mistake_of_a_file_has_a_line() {
    let failure = Failure::of_problems(
        mistakes("job.toml", 2),
        ["job.toml:1: a".into(), "job.toml:3: b".into()].into_iter(),
    );
    insta::assert_snapshot!(failure.render(), @r#"
    leasehold: error: job.toml has 2 mistakes
      job.toml:1: a
      job.toml:3: b
    Nothing was changed.
    "#);
    assert_eq!(failure.to_json()["error"]["problems"][1], "job.toml:3: b");
    assert_eq!(failure.exit, Exit::Usage);
}

#[test]
fn a_missing_file_has_no_mistakes() {
    let failure = Failure::from(crate::config::Config::load(Path::new("/nonexistent/l.toml")).unwrap_err());
    insta::assert_snapshot!(failure.render(), @r#"
    leasehold: error: /nonexistent/l.toml cannot be read: No such file or directory (os error 2)
      fix    name a file that exists and that this user may read
    Nothing was changed.
    "#);
}

#[test]
fn no_control_character_of_an_answer_reaches_the_terminal() {
    let failure =
        Failure::from(Refusal::new(Reason::Internal, "a\u{1b}[31mb").with("x\u{7}", "c\u{1b}d\ne\rf"));
    let shown = failure.render();
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    assert_eq!(shown.lines().count(), 4);
}

#[test]
fn each_exit_code_is_as_promised() {
    let table = [
        (Exit::Ok, 0),
        (Exit::Failure, 1),
        (Exit::Denied, 2),
        (Exit::AwaitingApproval, 3),
        (Exit::Ended, 4),
        (Exit::NotDurable, 5),
        (Exit::VerificationFailed, 7),
        (Exit::Usage, 64),
        (Exit::Child(137), 137),
    ];
    for (exit, code) in table {
        assert_eq!(exit.code(), code);
    }
    for reason in Reason::ALL {
        assert!(!matches!(Exit::of(*reason), Exit::Ok | Exit::Child(_)), "{reason} is no success");
    }
}

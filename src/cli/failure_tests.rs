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
      you    spiffe://k8s.acme.example/ns/ml/sa/tuner; purpose asked: "demo-bot"
      rule   tenant-read-own-or-shared-data: this dataset may be used for: support-tuning
      fix    set purpose = "support-tuning" in the job file if that is true, or ask its owner, data-tickets@acme.example
    Nothing was started, no access was given.
    "#);
    assert_eq!(failure.exit.code(), 125);
}

#[test]
fn every_reason_is_rendered_with_its_exit_code() {
    let mut all = String::new();
    for reason in Reason::ALL {
        let failure = Failure::from(
            Refusal::new(*reason, format!("what was wrong with what ({reason})"))
                .with("you", "spiffe://td.example/w")
                .fix("what would change it"),
        );
        all.push_str(&format!("{}\n-- exit {}\n", failure.render(), failure.exit.code()));
    }
    insta::assert_snapshot!(all, @r#"
    leasehold: denied: what was wrong with what (NO_CLIENT_CERTIFICATE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (SVID_INVALID)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (SVID_EXPIRED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (TRUST_DOMAIN_UNKNOWN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (SVID_UNTRUSTED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (PRINCIPAL_UNKNOWN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (KIND_NOT_ALLOWED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: error: what was wrong with what (FIELD_INVALID)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 64
    leasehold: error: what was wrong with what (FIELD_MISSING)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 64
    leasehold: error: what was wrong with what (TTL_INVALID)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 64
    leasehold: error: what was wrong with what (MESSAGE_TOO_LARGE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (NOT_SUPPORTED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (JOB_NOT_FOUND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (ATTEMPT_NOT_FOUND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (LEASE_NOT_FOUND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (RESOURCE_NOT_FOUND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (LOCK_NOT_FOUND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (NAME_UNKNOWN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: denied: what was wrong with what (OPERATORS_LOCKED_OUT)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: error: what was wrong with what (AUDIENCE_UNKNOWN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: denied: what was wrong with what (PIN_MISMATCH)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (POLICY_DENIED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (POLICY_ERROR)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (APPROVAL_REQUIRED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 3
    leasehold: denied: what was wrong with what (LOCKED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: error: what was wrong with what (JOB_CLOSED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (IDEMPOTENCY_CONFLICT)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (ATTEMPT_STALE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (ATTEMPT_ENDED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (ATTEMPT_KEY_USED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (ATTEMPT_DRAINING)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (ATTEMPTS_EXHAUSTED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (STATE_CONFLICT)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: denied: what was wrong with what (NOT_A_MEMBER)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: error: what was wrong with what (NOT_JOINED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: denied: what was wrong with what (SESSION_MISMATCH)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: error: what was wrong with what (INSTANCE_TAKEN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: denied: what was wrong with what (TICKET_REQUIRED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: denied: what was wrong with what (IDENTITY_BOUND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 2
    leasehold: error: what was wrong with what (MEMBERS_FULL)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (LEASE_EXPIRED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (LEASE_ENDED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (REVOKED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (QUOTA_EXCEEDED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (TOKEN_MALFORMED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_KEY_UNKNOWN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_SIGNATURE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_ISSUER)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_AUDIENCE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_EXPIRED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_NOT_YET_VALID)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_PRESENTER)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_CERTIFICATE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_EPOCH)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (TOKEN_SCOPE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 7
    leasehold: error: what was wrong with what (FEED_STALE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 5
    leasehold: error: what was wrong with what (CLOCK_DIFFERENCE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 5
    leasehold: error: what was wrong with what (EPOCH_CHANGED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 4
    leasehold: error: what was wrong with what (FELL_BEHIND)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (LEDGER_UNAVAILABLE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 5
    leasehold: error: what was wrong with what (IDENTITY_UNAVAILABLE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (CATALOG_INVALID)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (CONTENDED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (OVERLOADED)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (SHUTTING_DOWN)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (UNREACHABLE)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    leasehold: error: what was wrong with what (INTERNAL)
      you    spiffe://td.example/w
      fix    what would change it
    Nothing was changed.
    -- exit 1
    "#);
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
    assert_eq!(shown.lines().count(), 3);
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

//! Tests of recalls, of offboarding, and of `verify-clean`, with the commands of an operator.

use super::{Exit, daemon_tests::Home};
use crate::{dev::Role, reason::Reason};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_recalls_data_and_finds_it_clean() {
    let home = Home::start().await;
    let job = home.job("first").await;
    let clean = ["verify-clean", "dataset:dev/data"];
    assert_eq!(home.run(&clean).await.unwrap(), Exit::NotClean);
    assert_eq!(Exit::NotClean.code(), 6);
    let recall = ["dataset", "recall", "dev/data@v1", "--reason", "consent withdrawn"];
    assert_eq!(home.run(&[&recall[..], &["--dry-run"]].concat()).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&clean).await.unwrap(), Exit::NotClean, "a dry run changed something");
    assert_eq!(home.run(&[&recall[..], &["--yes"]].concat()).await.unwrap(), Exit::Ok);
    for words in [
        &clean[..],
        &["verify-clean", &format!("job:{job}"), "-o", "json"],
        &["catalog", "show", "dataset:dev/data@v1"],
        &["job", "show", &job],
        &["lock", "list"],
    ] {
        assert_eq!(home.run(words).await.unwrap(), Exit::Ok, "{words:?}");
    }
    let spec = home.spec();
    let refused = home.run(&["job", "create", "--spec", spec.to_str().unwrap()]).await.unwrap_err();
    assert_eq!((refused.reason, refused.exit), (Some(Reason::Locked), Exit::Denied), "{}", refused.render());
    assert!(refused.render().contains("leasehold dataset unrecall"), "{}", refused.render());
    let unrecall = ["dataset", "unrecall", "dev/data@v1", "--reason", "by mistake"];
    assert_eq!(home.run(&unrecall).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&unrecall).await.unwrap_err().reason, Some(Reason::LockNotFound));
    home.job("after").await;
    let mistyped = ["dataset", "recall", "dev/dta@v1", "--reason", "r", "--yes"];
    let mistyped = home.run(&mistyped).await.unwrap_err();
    assert_eq!(mistyped.reason, Some(Reason::NameUnknown));
    assert!(mistyped.render().contains("dataset:dev/data@v1"), "{}", mistyped.render());
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn freeze_and_unfreeze_are_lock_and_unlock() {
    let home = Home::start().await;
    let freeze = ["freeze", "tenant:dev", "--reason", "incident"];
    assert_eq!(home.run(&freeze).await.unwrap(), Exit::Ok);
    let spec = home.spec();
    let refused = home.run(&["job", "create", "--spec", spec.to_str().unwrap()]).await.unwrap_err();
    assert_eq!(refused.reason, Some(Reason::Locked));
    assert_eq!(home.run(&["unfreeze", "tenant:dev", "--reason", "over"]).await.unwrap(), Exit::Ok);
    home.job("after").await;
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_what_is_compromised_and_what_leaves() {
    let home = Home::start().await;
    let job = home.job("first").await;
    let revoke = ["revoke", &job, "--reason", "key in a paste", "--cause", "compromise", "--yes"];
    assert_eq!(home.run(&revoke).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&["verify-clean", &job]).await.unwrap(), Exit::Ok);
    let spec = home.spec();
    let refused = home.run(&["job", "create", "--spec", spec.to_str().unwrap()]).await.unwrap_err();
    assert_eq!(refused.reason, Some(Reason::Locked), "its launcher is locked: {}", refused.render());
    let trainer = home.deployment.id(Role::Trainer).unwrap().to_string();
    let offboard = ["identity", "offboard", &trainer, "--reason", "team dissolved"];
    assert_eq!(home.run(&[&offboard[..], &["--dry-run"]].concat()).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&[&offboard[..], &["--yes", "-o", "json"]].concat()).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&["verify-clean", &trainer]).await.unwrap(), Exit::Ok);
    let tenant = ["tenant", "offboard", "dev", "--reason", "contract ended", "--yes"];
    assert_eq!(home.run(&tenant).await.unwrap(), Exit::Ok);
    assert_eq!(home.run(&["verify-clean", "tenant:dev"]).await.unwrap(), Exit::Ok);
    home.stop().await;
}

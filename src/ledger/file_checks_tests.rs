//! A ledger whose files are moved, removed or replaced while it is open, or between two starts.

use std::{fs, path::Path, time::Duration};

use super::{ledger_tests::*, segment, *};

fn looking() -> Options {
    Options { look: Duration::from_millis(20), ..quick() }
}

async fn failing(ledger: &Ledger) -> String {
    let mut health = ledger.watch_health();
    let failing = health.wait_for(|h| matches!(h, Health::Failing { .. }));
    match tokio::time::timeout(LONG, failing).await.expect("it is noticed").unwrap().clone() {
        Health::Failing { why } => why.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn good(ledger: &Ledger) {
    let mut health = ledger.watch_health();
    tokio::time::timeout(LONG, health.wait_for(|h| *h == Health::Good)).await.expect("it heals").unwrap();
}

fn gone(dir: &Path) -> String {
    match Ledger::open(dir, clock(), quick()) {
        Err(error) => error.to_string(),
        Ok(opened) => panic!("it was taken for a first start: {opened:?}"),
    }
}

#[tokio::test]
async fn nothing_is_durable_in_a_file_that_lost_its_name() {
    type Loss = fn(&Path, &Path);
    let losses: [(&str, Loss); 4] = [
        ("removed", |file, _| fs::remove_file(file).unwrap()),
        ("renamed", |file, dir| fs::rename(file, dir.join("elsewhere")).unwrap()),
        ("replaced by a copy cut short", |file, dir| {
            let text = fs::read(file).unwrap();
            fs::rename(file, dir.join("elsewhere")).unwrap();
            fs::write(file, &text[..text.len() / 2]).unwrap();
        }),
        ("moved with its directory", |file, dir| {
            fs::rename(dir, dir.with_extension("moved")).unwrap();
            fs::create_dir(dir).unwrap();
            assert!(!file.exists());
        }),
    ];
    for (how, lose) in losses {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("state");
        let ledger = Ledger::open(&dir, clock(), Options { look: LONG, ..quick() }).unwrap().ledger;
        ledger.append(&said(1)).await.unwrap();
        lose(&dir.join(segment::name(1)), &dir);
        let ending = ledger.defer(&said(2));
        failing(&ledger).await;
        assert!(!ledger.is_durable(ending.index), "{how}: an ending was called durable");
        assert!(ledger.append(&said(3)).await.is_err(), "{how}");
        assert_eq!(ledger.close(LONG).await, Err(CloseError::Unwritten { records: 1 }), "{how}");
    }
}

#[tokio::test]
async fn a_removed_file_is_noticed_while_nothing_is_written() {
    let place = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(place.path(), clock(), looking()).unwrap().ledger;
    ledger.append(&said(1)).await.unwrap();
    fs::remove_file(place.path().join(segment::name(1))).unwrap();
    let why = failing(&ledger).await;
    assert!(why.contains(&segment::name(1)), "{why}");
}

#[tokio::test]
async fn a_ledger_goes_on_when_its_file_is_back() {
    let place = tempfile::tempdir().unwrap();
    let (file, aside) = (place.path().join(segment::name(1)), place.path().join("aside"));
    let ledger = Ledger::open(place.path(), clock(), looking()).unwrap().ledger;
    ledger.append(&said(1)).await.unwrap();
    fs::rename(&file, &aside).unwrap();
    failing(&ledger).await;
    let ending = ledger.defer(&said(2));
    // A copy of the file is accepted, a part of it is not.
    let text = fs::read(&aside).unwrap();
    fs::write(&file, &text[..text.len() - 1]).unwrap();
    assert!(ending.durable().now_or_never_after(Duration::from_millis(50)).await.is_none());
    fs::write(&file, &text).unwrap();
    good(&ledger).await;
    ledger.append(&said(3)).await.unwrap();
    let head = ledger.close(LONG).await.unwrap();
    assert_eq!(verify(&Dir::at(place.path()), Some(head)).unwrap().records, 3);
}

/// Waits for a while, and returns whether a message came.
trait After: Future + Sized {
    async fn now_or_never_after(self, wait: Duration) -> Option<Self::Output> {
        tokio::time::timeout(wait, self).await.ok()
    }
}
impl<F: Future> After for F {}

#[tokio::test]
async fn a_directory_that_lost_its_ledger_is_no_first_start() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let ledger = Ledger::open(dir, clock(), quick()).unwrap().ledger;
    ledger.append(&said(1)).await.unwrap();
    HeadKey::open(dir).unwrap().keep(dir).unwrap();
    ledger.close(LONG).await.unwrap();
    let (file, head) = (dir.join(segment::name(1)), dir.join("head"));
    let text = fs::read(&file).unwrap();
    // Without its segments; with an empty one; with a part of its first line; with the key only.
    fs::remove_file(&file).unwrap();
    let why = gone(dir);
    assert!(
        why.contains("head.key") && why.contains("--new-ledger") && why.contains("Put the files back"),
        "{why}"
    );
    fs::write(&file, "").unwrap();
    gone(dir);
    fs::write(&file, &text[..20]).unwrap();
    gone(dir);
    fs::remove_file(&head).unwrap();
    gone(dir);
    fs::remove_file(&file).unwrap();
    assert!(gone(dir).contains("head.key"));
    // A start that was refused changed nothing: the files can be put back.
    fs::write(&file, &text).unwrap();
    assert_eq!(Ledger::open(dir, clock(), quick()).unwrap().entries.len(), 1);
}

#[tokio::test]
async fn an_operator_can_begin_a_new_ledger_where_one_is_lost() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let new = || Options { lost: Lost::BeginNew, ..quick() };
    let ledger = Ledger::open(dir, clock(), quick()).unwrap().ledger;
    ledger.append(&said(1)).await.unwrap();
    HeadKey::open(dir).unwrap().keep(dir).unwrap();
    let head = ledger.close(LONG).await.unwrap();
    let refused = Ledger::open(dir, clock(), new()).unwrap_err();
    assert!(matches!(refused, OpenError::NotGone { .. }), "{refused}");
    fs::remove_file(dir.join(segment::name(1))).unwrap();
    let opened = Ledger::open(dir, clock(), new()).unwrap();
    assert_eq!(opened.replaces, Some(head));
    opened.ledger.append(&said(2)).await.unwrap();
    opened.ledger.close(LONG).await.unwrap();
    assert_eq!(Ledger::open(dir, clock(), quick()).unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_ledger_older_than_a_head_that_was_kept_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let ledger = Ledger::open(dir, clock(), quick()).unwrap().ledger;
    ledger.append(&said(1)).await.unwrap();
    let old = fs::read(dir.join(segment::name(1))).unwrap();
    ledger.append(&said(2)).await.unwrap();
    let kept = ledger.close(LONG).await.unwrap();
    fs::write(dir.join(segment::name(1)), old).unwrap();
    let tail_cut = |opened: Result<Opened, OpenError>| match opened {
        Err(OpenError::Tamper(t)) => assert_eq!(t.what, Fault::TailCut { expected: 2 }),
        other => panic!("{other:?}"),
    };
    // The head beside the ledger shows that, and if that is replaced too, the head that was kept elsewhere does.
    tail_cut(Ledger::open(dir, clock(), quick()));
    fs::remove_file(dir.join("head")).unwrap();
    tail_cut(Ledger::open(dir, clock(), Options { kept: Some(kept), ..quick() }));
    // A directory without any of its files, and without the key, does not count as a first start either.
    fs::remove_file(dir.join(segment::name(1))).unwrap();
    let refused = Ledger::open(dir, clock(), Options { kept: Some(kept), ..quick() }).unwrap_err();
    assert!(matches!(refused, OpenError::Gone { .. }), "{refused}");
}

#[tokio::test]
async fn the_head_is_kept_while_the_ledger_is_open() {
    let place = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(place.path(), clock(), looking()).unwrap().ledger;
    ledger.append(&said(1)).await.unwrap();
    ledger.append(&said(2)).await.unwrap();
    let kept = async {
        while !fs::read_to_string(place.path().join("head")).is_ok_and(|t| t.contains("\"index\":2,")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, kept).await.expect("the head is written");
}

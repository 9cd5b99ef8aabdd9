//! The findings of a verification in a changed ledger.

use std::sync::Arc;

use super::{forgetful::Forgetful, ledger_tests::*, segment, *};
use crate::name::Digest;

/// Three segments of some records each, closed cleanly, with the content of each file.
async fn sample() -> (Vec<(String, Vec<u8>)>, Head) {
    let disk = Forgetful::default();
    let options = Options { segment_bytes: 900, ..quick() };
    let ledger = open(&disk, options);
    for n in 0..10 {
        ledger.append(&said(n)).await.unwrap();
    }
    let head = ledger.close(LONG).await.unwrap();
    assert_eq!(head.index, 10);
    let files = disk.list().unwrap().into_iter().filter(|f| f.starts_with("ledger-") || f == "head");
    let files: Vec<_> = files.map(|f| (f.clone(), disk.file(&f).unwrap().1)).collect();
    assert_eq!(files.len(), 4, "head and three segments");
    (files, head)
}

fn disk_of(files: &[(String, Vec<u8>)]) -> Forgetful {
    let disk = Forgetful::default();
    for (name, bytes) in files {
        disk.put(name, bytes.clone());
    }
    disk
}

/// The segments as lists of lines.
fn lines(files: &[(String, Vec<u8>)]) -> Vec<Vec<String>> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    segments(files).iter().map(|(_, b)| text(b).lines().map(str::to_owned).collect()).collect()
}

fn segments(files: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    files.iter().filter(|(name, _)| name != "head").cloned().collect()
}

/// Puts changed lines back under the names that the segments had.
fn with_lines(files: &[(String, Vec<u8>)], lines: &[Vec<String>]) -> Forgetful {
    let named = segments(files).into_iter().map(|(name, _)| name);
    let joined = lines.iter().map(|l| l.iter().flat_map(|l| [l.as_bytes(), b"\n"].concat()).collect());
    disk_of(&named.zip(joined).collect::<Vec<_>>())
}

fn fault(disk: &Forgetful, head: Option<Head>) -> Tamper {
    // Opening it must find the same, and change nothing.
    if head.is_none() {
        let before: Vec<_> = disk.list().unwrap().iter().map(|f| disk.file(f)).collect();
        let opened = Ledger::open_on(Arc::new(disk.clone()), clock(), quick());
        assert!(matches!(opened, Err(OpenError::Tamper(_))), "{opened:?}");
        assert_eq!(disk.list().unwrap().iter().map(|f| disk.file(f)).collect::<Vec<_>>(), before);
    }
    match verify(disk, head) {
        Err(ReadError::Tamper(tamper)) => tamper,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_untouched_ledger_verifies_and_is_described() {
    let (files, head) = sample().await;
    let report = verify(&disk_of(&files), Some(head)).unwrap();
    assert_eq!((report.records, report.segments, report.head), (10, 3, head));
    assert_eq!((report.epochs, report.epoch, report.torn, report.refused), (1, 1, 0, 0));
    assert_eq!(report.types.into_iter().collect::<Vec<_>>(), [("epoch.ended".to_owned(), 10)]);
    assert_eq!((report.first.unwrap().0, report.last.unwrap().0), (1, 10));
    assert!(report.head_file);
    assert_eq!(verify(&Forgetful::default(), None).unwrap().head, Head::START);
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_copy_is_found() {
    let (files, _) = sample().await;
    for with_head in [true, false] {
        for (file, (name, bytes)) in files.iter().enumerate() {
            for at in 0..bytes.len() {
                let mut changed = files.clone();
                changed[file].1[at] ^= 1 << (at % 8);
                if !with_head {
                    if name == "head" {
                        continue;
                    }
                    changed.retain(|(name, _)| name != "head");
                }
                let found = verify(&disk_of(&changed), None);
                assert!(matches!(found, Err(ReadError::Tamper(_))), "{name}, byte {at}: {found:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_changed_value_names_its_file_line_and_record() {
    let (files, _) = sample().await;
    let mut lines = lines(&files);
    let index = lines[0].len() + 2;
    lines[1][1] = lines[1][1].replace("\"reason\":\"said ", "\"reason\":\"sold ");
    let found = fault(&with_lines(&files, &lines), None);
    assert_eq!(found.what, Fault::Hash);
    assert_eq!((found.line, found.index), (2, index as u64));
    assert_eq!(found.file, segments(&files)[1].0);
    assert_eq!(
        found.to_string(),
        format!(
            "ledger file {}, line 2 (record {index}): it does not match its own hash: it was changed after it was written",
            found.file
        )
    );
}

#[tokio::test]
async fn a_changed_record_with_a_new_hash_breaks_the_next_record() {
    let (files, _) = sample().await;
    let mut lines = lines(&files);
    let forged = lines[0][0].replace("\"reason\":\"said ", "\"reason\":\"sold ");
    let (sealed, _) = forged.split_once(",\"hash\"").unwrap();
    lines[0][0] = format!("{sealed},\"hash\":\"{}\"}}", Digest::of(sealed.as_bytes()));
    let found = fault(&with_lines(&files, &lines), None);
    assert!(matches!(found.what, Fault::Prev { .. }), "{found}");
    assert_eq!((found.line, found.index), (2, 2));
}

#[tokio::test]
async fn removed_moved_and_inserted_lines_are_found() {
    let (files, _) = sample().await;
    let whole = lines(&files);

    let mut removed = whole.clone();
    removed[1].remove(1);
    assert!(matches!(fault(&with_lines(&files, &removed), None).what, Fault::Index { .. }));

    let mut moved = whole.clone();
    moved[0].swap(0, 1);
    assert!(matches!(
        fault(&with_lines(&files, &moved), None).what,
        Fault::SegmentMissing { .. } | Fault::Index { .. }
    ));

    let mut doubled = whole.clone();
    let again = doubled[1][0].clone();
    doubled[1].insert(1, again);
    assert!(matches!(fault(&with_lines(&files, &doubled), None).what, Fault::Index { .. }));

    let mut foreign = whole.clone();
    foreign[2].insert(1, "{\"v\":1}".into());
    assert!(matches!(fault(&with_lines(&files, &foreign), None).what, Fault::Malformed(_)));

    let mut first = whole;
    first[0].remove(0);
    assert_eq!(
        fault(&with_lines(&files, &first), None).what,
        Fault::SegmentMissing { expected: 1, found: 2 }
    );
}

#[tokio::test]
async fn a_missing_emptied_or_renamed_segment_is_found() {
    let (files, _) = sample().await;
    let segments = segments(&files);
    let starts: Vec<u64> = segments.iter().map(|(name, _)| segment::first(name).unwrap()).collect();
    for gone in [0, 1] {
        let mut left = segments.clone();
        left.remove(gone);
        assert_eq!(
            fault(&disk_of(&left), None).what,
            Fault::SegmentMissing { expected: starts[gone], found: starts[gone + 1] }
        );
    }
    let mut emptied = segments.clone();
    emptied[1].1.clear();
    assert_eq!(fault(&disk_of(&emptied), None).what, Fault::SegmentEmpty);

    let mut cut = segments.clone();
    cut[1].1.pop();
    assert_eq!(fault(&disk_of(&cut), None).what, Fault::CutInside);

    let mut renamed = segments;
    renamed[1].0 = segment::name(starts[1] + 1);
    assert_eq!(
        fault(&disk_of(&renamed), None).what,
        Fault::SegmentName { named: starts[1] + 1, found: starts[1] }
    );
}

#[tokio::test]
async fn a_cut_tail_is_found_by_a_kept_head_and_by_the_head_file() {
    let (files, head) = sample().await;
    let mut cut = lines(&files);
    cut[2].pop();
    let disk = with_lines(&files, &cut);
    verify(&disk, None).expect("the chain alone cannot show it");
    assert_eq!(fault(&disk, Some(head)).what, Fault::TailCut { expected: 10 });

    let head_file = files.iter().find(|(name, _)| name == "head").unwrap();
    disk.put("head", head_file.1.clone());
    assert_eq!(fault(&disk, None).what, Fault::TailCut { expected: 10 });

    let other = Head { index: 3, digest: Digest::of(b"another ledger") };
    assert!(matches!(fault(&disk_of(&segments(&files)), Some(other)).what, Fault::HeadDigest { .. }));
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_but_a_changed_newline_is_not() {
    let (files, head) = sample().await;
    let segments = segments(&files);
    let last = segments[2].1.clone();
    let line = last.split_inclusive(|b| *b == b'\n').next_back().unwrap().len();
    for cut in 1..=line {
        for zeros in [0, 2, 5_000] {
            let mut torn = segments.clone();
            torn[2].1.truncate(last.len() - cut);
            torn[2].1.resize(last.len() - cut + zeros, 0);
            if cut == line && zeros == 0 {
                continue; // nothing is torn
            }
            let disk = disk_of(&torn);
            let report = verify(&disk, None).unwrap();
            assert_eq!((report.records, report.torn), (9, (line - cut + zeros) as u64), "{cut} {zeros}");
            let opened = Ledger::open_on(Arc::new(disk.clone()), clock(), quick()).unwrap();
            assert_eq!(opened.entries.len(), 9);
            assert_eq!(opened.warnings.len(), 1, "{:?}", opened.warnings);
            assert!(opened.warnings[0].contains("never confirmed"));
            assert_eq!(opened.ledger.append(&said(100)).await, Ok(10));
            opened.ledger.close(LONG).await.unwrap();
            let report = verify(&disk, None).unwrap();
            assert_eq!((report.records, report.torn), (10, 0));
        }
    }
    for other in [0, b' ', b'\r', b'}'] {
        let mut changed = segments.clone();
        *changed[2].1.last_mut().unwrap() = other;
        assert_eq!(fault(&disk_of(&changed), None).what, Fault::Newline);
    }
    assert_eq!(head.index, 10);
}

#[tokio::test]
async fn a_record_of_a_later_version_is_refused_with_advice() {
    let (files, _) = sample().await;
    let mut lines = lines(&files);
    lines[2][1] = lines[2][1].replacen("{\"v\":1,", "{\"v\":2,", 1);
    let found = fault(&with_lines(&files, &lines), None);
    assert_eq!(found.what, Fault::Version(2));
    assert!(found.to_string().contains("use the build that wrote it"), "{found}");
}

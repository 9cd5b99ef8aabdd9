//! Compressed segments: a crash at each point, damaged files, and every reader.

use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    compressor::{Compressed, Compressor, compress},
    file::{DirectoryLock, DiskFile},
    forgetful::{Dice, Faults, Forgetful},
    ledger_tests::*,
    segment::{self, LedgerSegment, SEGMENT_DRAFT},
    *,
};

const RECORDS: u64 = 30;

/// A closed ledger of several segments, all plain.
async fn sample() -> (Forgetful, Head) {
    let disk = Forgetful::default();
    let ledger = open(&disk, Options { segment_bytes: 2_000, ..quick() });
    for n in 1..=RECORDS {
        ledger.append(&said(n)).await.unwrap();
    }
    let head = ledger.close(LONG).await.unwrap();
    assert!(segments(&disk).len() > 3);
    (disk, head)
}

fn segments(disk: &Forgetful) -> Vec<LedgerSegment> {
    segment::list(disk).unwrap()
}

fn compress_until(stop: &AtomicBool, disk: &dyn Disk, found: &LedgerSegment) -> io::Result<Compressed> {
    compress(disk, found, stop)
}

fn compress_one(disk: &dyn Disk, found: &LedgerSegment) -> io::Result<Compressed> {
    compress_until(&AtomicBool::new(false), disk, found)
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Compresses all segments but the last.
async fn compressed_sample() -> (Forgetful, Head) {
    let (disk, head) = sample().await;
    let all = segments(&disk);
    for found in &all[..all.len() - 1] {
        assert!(matches!(compress_one(&disk, found).unwrap(), Compressed::Done { saved } if saved > 1_000));
    }
    (disk, head)
}

fn read_all(disk: &Forgetful) -> u64 {
    let opened = Ledger::open_on(Arc::new(disk.clone()), clock(), quick()).unwrap();
    for (n, record) in opened.entries.iter().enumerate() {
        assert_eq!(record.index, n as u64 + 1);
    }
    opened.entries.len() as u64
}

async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("in time");
}

/// A disk with faults that a [`Forgetful`] disk does not have.
#[derive(Clone)]
pub(super) struct FaultyDisk {
    disk: Forgetful,
    /// How many changes still succeed. Then the process is dead: every further change fails.
    left: Arc<AtomicUsize>,
    /// The file that is read with a changed byte.
    lies_about: Option<String>,
    /// The file that cannot be read.
    unreadable: Option<String>,
}

impl FaultyDisk {
    fn of(disk: &Forgetful) -> Self {
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        FaultyDisk { disk: disk.clone(), left, lies_about: None, unreadable: None }
    }

    pub(super) fn dying_after(disk: &Forgetful, changes: usize) -> Self {
        FaultyDisk { left: Arc::new(AtomicUsize::new(changes)), ..Self::of(disk) }
    }

    /// Another disk of the same process.
    pub(super) fn with_disk(&self, disk: &Forgetful) -> Self {
        FaultyDisk { disk: disk.clone(), ..self.clone() }
    }

    pub(super) fn lying_about(disk: &Forgetful, file: &str) -> Self {
        FaultyDisk { lies_about: Some(file.to_owned()), ..Self::of(disk) }
    }

    fn unreadable(disk: &Forgetful, file: &str) -> Self {
        FaultyDisk { unreadable: Some(file.to_owned()), ..Self::of(disk) }
    }

    fn lives(&self) -> io::Result<()> {
        let took = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        took.map(drop).map_err(|_| io::Error::other("the process is dead"))
    }
}

impl Disk for FaultyDisk {
    fn lock(&self) -> Result<DirectoryLock, LockError> {
        self.disk.lock()
    }
    fn lock_segments(&self) -> Result<DirectoryLock, LockError> {
        self.disk.lock_segments()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn read(&self, file: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        if self.unreadable.as_deref() == Some(file) {
            return Ok(Box::new(BadSectors));
        }
        let mut bytes = Vec::new();
        self.disk.read(file, offset)?.read_to_end(&mut bytes)?;
        if self.lies_about.as_deref() == Some(file) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }
        Ok(Box::new(io::Cursor::new(bytes)))
    }
    fn create(&self, file: &str) -> io::Result<Box<dyn DiskFile>> {
        self.lives()?;
        Ok(Box::new(FaultyFile { file: self.disk.create(file)?, disk: self.clone() }))
    }
    fn append(&self, file: &str) -> io::Result<Box<dyn DiskFile>> {
        self.lives()?;
        self.disk.append(file)
    }
    fn truncate(&self, file: &str, bytes: u64) -> io::Result<()> {
        self.lives()?;
        self.disk.truncate(file, bytes)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.lives()?;
        self.disk.rename(from, to)
    }
    fn remove(&self, file: &str) -> io::Result<()> {
        self.lives()?;
        self.disk.remove(file)
    }
    fn reserve(&self, file: &str, bytes: u64) -> io::Result<()> {
        self.disk.reserve(file, bytes)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.lives()?;
        self.disk.sync_dir()
    }
}

/// A file that can be opened, but not be read.
struct BadSectors;

impl Read for BadSectors {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the sectors cannot be read"))
    }
}

struct FaultyFile {
    file: Box<dyn DiskFile>,
    disk: FaultyDisk,
}

impl DiskFile for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.lives()?;
        self.file.write(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.disk.lives()?;
        self.file.sync()
    }
    fn in_place(&self) -> io::Result<()> {
        self.file.in_place()
    }
}

// A segment that cannot be read does not keep the others from being compressed.
#[tokio::test]
async fn an_unreadable_segment_does_not_stop_the_compressor() {
    let (disk, _) = sample().await;
    let all = segments(&disk);
    let last = all.last().unwrap().first;
    let faulty = FaultyDisk::unreadable(&disk, &segment::name(all[0].first));
    let compressor = Compressor::start(Arc::new(faulty), last);
    until(|| segments(&disk)[1..all.len() - 1].iter().all(|s| s.is_compressed && !s.is_plain)).await;
    drop(compressor);
    assert_eq!(segments(&disk)[0], all[0]);
    assert!(disk.file(SEGMENT_DRAFT).is_none());
}

#[tokio::test]
async fn a_draft_that_reads_back_differently_is_removed() {
    let (disk, head) = sample().await;
    let found = segments(&disk)[1];
    let lying = FaultyDisk::lying_about(&disk, SEGMENT_DRAFT);
    assert_eq!(compress_one(&lying, &found).unwrap(), Compressed::Differs);
    assert!(disk.file(SEGMENT_DRAFT).is_none());
    assert_eq!(segments(&disk)[1], found);
    assert_eq!(verify(&disk, Some(head)).unwrap().records, RECORDS);
}

/// Checks what a crash left: it is good as it is, and the next start brings the compression to its end.
async fn check_left(left: Forgetful, head: Head, at: &str) {
    let report = verify(&left, Some(head)).unwrap_or_else(|e| panic!("{at}: {e}"));
    assert_eq!(report.records, RECORDS, "{at}");
    assert_eq!(read_all(&left.kill()), RECORDS, "{at}");
    let again = open(&left, Options { compress: true, ..quick() });
    let is_done = || segments(&left).iter().rev().skip(1).all(|s| s.is_compressed && !s.is_plain);
    until(is_done).await;
    assert_eq!(again.append(&said(0)).await.unwrap(), RECORDS + 1, "{at}");
    again.close(LONG).await.unwrap();
    assert!(left.file(SEGMENT_DRAFT).is_none(), "{at}");
    assert_eq!(verify(&left, Some(head)).unwrap().records, RECORDS + 1, "{at}");
}

// Proves law 39b.
#[tokio::test]
async fn a_crash_at_each_point_of_compression_loses_nothing() {
    let (sample, head) = sample().await;
    let mut points = 0;
    loop {
        let disk = sample.kill();
        let found = segments(&disk)[1];
        let dying = FaultyDisk::dying_after(&disk, points);
        let done = compress_one(&dying, &found);
        check_left(disk.kill(), head, &format!("killed at {points}")).await;
        for seed in 0..8 {
            let left = disk.kill().crash(&mut Dice(seed));
            check_left(left, head, &format!("lost power at {points}, seed {seed}")).await;
        }
        if done.is_ok() {
            break;
        }
        points += 1;
    }
    // Remove, create, write, sync, rename, sync, remove, sync.
    assert_eq!(points, 8);
}

#[tokio::test]
async fn sealed_segments_are_compressed_and_the_last_is_not() {
    let disk = Forgetful::default();
    let ledger = open(&disk, Options { segment_bytes: 2_000, compress: true, ..quick() });
    let mut slow = ledger.tail(1);
    for n in 1..=200 {
        ledger.append(&said(n)).await.unwrap();
    }
    until(|| segments(&disk).iter().rev().skip(1).all(|s| !s.is_plain)).await;
    let all = segments(&disk);
    assert!(all.len() > 20);
    assert!(all.last().unwrap().is_plain && !all.last().unwrap().is_compressed);
    for n in 1..=200 {
        let line = slow.next().await.unwrap().unwrap();
        assert!(line.index == n && line.line.contains(&format!("\"said {n}\"")), "{line:?}");
    }
    for from in [2, 77, 199] {
        assert_eq!(ledger.tail(from).next().await.unwrap().unwrap().index, from);
    }
    let head = ledger.close(LONG).await.unwrap();
    assert_eq!(verify(&disk, Some(head)).unwrap().records, 200);
    assert_eq!(read_all(&disk), 200);
    assert!(disk.file(SEGMENT_DRAFT).is_none());
}

#[tokio::test]
async fn a_reader_goes_on_when_its_segment_is_compressed() {
    let disk = Forgetful::default();
    // More lines than a reader takes at once are in each segment.
    let ledger = open(&disk, Options { segment_bytes: 100_000, ..quick() });
    for n in 1..=2_001 {
        let appending = ledger.append(&said(n));
        // A segment begins only with a batch.
        if n % 500 == 1 {
            appending.await.unwrap();
        }
    }
    let all = segments(&disk);
    assert!(all.len() > 2);
    let (mut early, mut late) = (ledger.tail(1), ledger.tail(600));
    for n in 1..=10 {
        assert_eq!(early.next().await.unwrap().unwrap().index, n);
    }
    assert_eq!(late.next().await.unwrap().unwrap().index, 600);
    for found in &all[..all.len() - 1] {
        compress_one(&disk, found).unwrap();
    }
    for n in 11..=2_001 {
        assert_eq!(early.next().await.unwrap().unwrap().index, n);
    }
    for n in 601..=2_001 {
        assert_eq!(late.next().await.unwrap().unwrap().index, n);
    }
}

#[tokio::test]
async fn a_compressed_last_segment_is_never_written_again() {
    for has_plain in [false, true] {
        let (disk, head) = compressed_sample().await;
        let last = *segments(&disk).last().unwrap();
        let plain = disk.file(&last.file()).unwrap().0;
        compress_one(&disk, &last).unwrap();
        if has_plain {
            disk.put(&segment::name(last.first), plain);
        }
        let files = segments(&disk).len();
        let ledger = open(&disk, quick());
        assert_eq!(ledger.append(&said(0)).await.unwrap(), RECORDS + 1);
        ledger.close(LONG).await.unwrap();
        assert_eq!(segments(&disk).len(), files + 1);
        assert_eq!(verify(&disk, Some(head)).unwrap().records, RECORDS + 1);
    }
}

#[tokio::test]
async fn a_copy_that_differs_is_kept_beside_the_segment() {
    let (disk, _) = sample().await;
    let found = segments(&disk)[1];
    let (plain, other) = (segment::name(found.first), segment::compressed_name(found.first));
    let mut bytes = disk.file(&plain).unwrap().0;
    let text = String::from_utf8(bytes.clone()).unwrap().replacen("said ", "sold ", 1);
    bytes.truncate(bytes.len() / 2);
    for content in [compressed(text.as_bytes()), compressed(&bytes), b"no zstd".to_vec(), Vec::new()] {
        disk.put(&other, content.clone());
        let both = segments(&disk)[1];
        assert!(both.has_both());
        assert_eq!(compress_one(&disk, &both).unwrap(), Compressed::Differs);
        assert_eq!(disk.file(&other).unwrap().0, content);
        assert!(disk.file(&plain).is_some());
        let Err(ReadError::Tamper(tamper)) = verify(&disk, None) else { panic!("it was not found") };
        assert!(tamper.to_string().contains(&other), "{tamper}");
        // A start reads the plain file, and leaves both as they are.
        let ledger = open(&disk.kill(), Options { compress: true, ..quick() });
        ledger.append(&said(0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_segment_is_left_plain_if_its_draft_cannot_be_written() {
    let (disk, head) = sample().await;
    let found = segments(&disk)[0];
    let fault = |faults| {
        disk.set(faults);
        compress_one(&disk, &found).unwrap_err();
        disk.set(Faults::default());
        assert!(segments(&disk)[0].is_plain && !segments(&disk)[0].is_compressed);
    };
    fault(Faults { capacity: Some(disk.used() + 50), ..Faults::default() });
    assert!(disk.file(SEGMENT_DRAFT).is_none(), "it would only use space");
    fault(Faults { sync: Some(io::ErrorKind::Other), ..Faults::default() });
    fault(Faults { read_only: true, ..Faults::default() });
    let stopped = compress_until(&AtomicBool::new(true), &disk, &found).unwrap_err();
    assert!(stopped.to_string().contains("closed"), "{stopped}");
    let moving = disk.lock_segments().ok().unwrap();
    assert_eq!(compress_one(&disk, &found).unwrap(), Compressed::Busy);
    drop(moving);
    assert!(matches!(compress_one(&disk, &found).unwrap(), Compressed::Done { .. }));
    assert_eq!(verify(&disk, Some(head)).unwrap().records, RECORDS);
}

/// The damage that a verification finds, if the file has this content.
fn found_in(disk: &Forgetful, file: &str, content: Vec<u8>) -> Option<Tamper> {
    disk.put(file, content);
    match verify(disk, None) {
        Ok(_) => None,
        Err(ReadError::Tamper(tamper)) => {
            assert_eq!(tamper.file, file);
            Some(tamper)
        }
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_damaged_compressed_segment_is_found_and_named() {
    let (disk, head) = compressed_sample().await;
    let file = segment::compressed_name(segments(&disk)[1].first);
    let good = disk.file(&file).unwrap().0;
    let mut unfound = Vec::new();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        if found_in(&disk, &file, bad).is_none() {
            // The bit means nothing: the records are those of the head.
            assert_eq!(verify(&disk, Some(head)).unwrap().head, head);
            unfound.push(at);
        }
    }
    assert!(unfound.len() < 8, "{unfound:?} of {}", good.len());
    for length in 0..good.len() {
        let tamper = found_in(&disk, &file, good[..length].to_vec()).unwrap();
        assert!(matches!(tamper.what, Fault::Compressed(_)), "{tamper}");
    }
    for more in [&b"\0"[..], &good, &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]] {
        let tamper = found_in(&disk, &file, [&good, more].concat()).unwrap();
        assert!(tamper.to_string().contains("more bytes follow its end"), "{tamper}");
    }
    // A start refuses it and says which file it is.
    disk.put(&file, good[..good.len() / 2].to_vec());
    let refused = Ledger::open_on(Arc::new(disk.clone()), clock(), quick()).unwrap_err();
    assert!(refused.to_string().contains(&file), "{refused}");
}

#[tokio::test]
async fn a_changed_record_in_a_compressed_segment_is_found() {
    let (disk, _) = compressed_sample().await;
    let file = segment::compressed_name(segments(&disk)[1].first);
    let text = String::from_utf8(zstd::decode_all(disk.file(&file).unwrap().0.as_slice()).unwrap()).unwrap();
    let changed = text.replacen("\"reason\":\"said ", "\"reason\":\"sold ", 1);
    let tamper = found_in(&disk, &file, compressed(changed.as_bytes())).unwrap();
    assert_eq!((tamper.what, tamper.line), (Fault::Hash, 1));
    let cut = text.trim_end_matches('\n');
    assert_eq!(found_in(&disk, &file, compressed(cut.as_bytes())).unwrap().what, Fault::CutInside);
    assert_eq!(found_in(&disk, &file, compressed(b"")).unwrap().what, Fault::SegmentEmpty);
}

#[tokio::test]
async fn a_compressed_segment_takes_bounded_memory() {
    let (disk, _) = compressed_sample().await;
    let file = segment::compressed_name(segments(&disk)[1].first);
    let text = zstd::decode_all(disk.file(&file).unwrap().0.as_slice()).unwrap();
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    wide.window_log(crate::limits::LEDGER_WINDOW_LOG_MAX + 1).unwrap();
    wide.write_all(&text).unwrap();
    let tamper = found_in(&disk, &file, wide.finish().unwrap()).unwrap();
    assert!(matches!(tamper.what, Fault::Compressed(_)), "{tamper}");
    let long = vec![b'a'; crate::limits::LEDGER_LINE_BYTES_MAX + 1];
    let tamper = found_in(&disk, &file, compressed(&long)).unwrap();
    assert!(tamper.to_string().contains("longer than any record"), "{tamper}");
}

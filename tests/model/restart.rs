//! Crashes: the next run knows what was on disk, and nothing else.

use std::sync::{Arc, PoisonError};

use leasehold::{
    clock::LeaseTime,
    internals::fence::{Registry, Seq},
    limits,
};
use shuttle::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    checking::{Token, Verifier},
    world::{NOW, World, attempt, explore},
};

const LATE: LeaseTime = LeaseTime(NOW.0 + 300_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    /// The attempt was revoked: it is over for good.
    Revoked(Seq),
    /// The attempt drains: it no longer reads.
    Draining(Seq),
}

/// The records that the ledger accepted, and how many of them are on disk.
#[derive(Default)]
struct Disk {
    records: Mutex<Vec<Record>>,
    synced: AtomicUsize,
}

impl Disk {
    /// Appends a record, and returns its index.
    fn defer(&self, record: Record) -> usize {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.push(record);
        records.len()
    }

    fn sync(&self) {
        let len = self.records.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.synced.fetch_max(len, Ordering::SeqCst);
    }

    fn is_durable(&self, index: usize) -> bool {
        self.synced.load(Ordering::SeqCst) >= index
    }

    fn after_the_crash(&self) -> Vec<Record> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().take(self.synced.load(Ordering::SeqCst)).copied().collect()
    }
}

/// An attempt as the next run knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Suspended,
    Draining,
    Revoked,
}

fn rebuilt(records: &[Record]) -> (Attempt, Seq) {
    records.iter().fold((Attempt::Suspended, Seq(0)), |(attempt, seq), record| match record {
        Record::Revoked(at) => (Attempt::Revoked, seq.max(*at)),
        Record::Draining(at) if attempt == Attempt::Revoked => (attempt, seq.max(*at)),
        Record::Draining(at) => (Attempt::Draining, seq.max(*at)),
    })
}

/// A revocation is answered, and may or may not be on disk. Then the daemon dies, and the member attaches again.
fn a_revoke_and_a_crash(says_durable: fn(&Disk, usize) -> bool, looks_at_the_epoch: bool) {
    explore(move || {
        let w = World::new();
        let disk = Arc::new(Disk::default());
        let old = Token::of(&w, 1, LATE);
        let d2 = disk.clone();
        let writer = thread::spawn(move || d2.sync());
        let seq = w.fences.lower(&attempt(), NOW).seq;
        let index = disk.defer(Record::Revoked(seq));
        let durable = says_durable(&disk, index);
        // The crash: records that are not synced by now are lost.
        let left = disk.after_the_crash();
        writer.join().unwrap();

        let (state, seq) = rebuilt(&left);
        assert!(!durable || state == Attempt::Revoked, "what was answered as durable was lost");
        let fences = Registry::new(seq);
        assert!(fences.seq() >= seq, "the Seq went back");
        let verifier = Verifier::connected(2, &fences);
        let told = if looks_at_the_epoch { old } else { Token { epoch: 2, ..old } };
        assert!(!verifier.accepts(&told, NOW), "a token of an older epoch is good");
        // It was not durable, and is lost: the member attaches again, is decided again and takes a new stand. The
        // answer said that it was not durable.
        if state == Attempt::Suspended {
            assert!(!durable);
            let again = fences.stand([attempt()]);
            assert!(again.is_up());
            fences.lower(&attempt(), NOW);
            assert!(!again.is_up(), "the second revocation is in force in the new life");
        }
    });
}

// Proves law 39.
#[test]
fn a_crash_after_a_revoke_that_is_not_durable() {
    a_revoke_and_a_crash(Disk::is_durable, true);
}

// Proves law 39b.
#[test]
#[should_panic(expected = "answered as durable was lost")]
fn answering_durable_before_the_sync_is_caught() {
    a_revoke_and_a_crash(|_, _| true, true);
}

// Proves law 39.
#[test]
#[should_panic(expected = "a token of an older epoch is good")]
fn a_verifier_that_compares_only_seq_is_caught() {
    a_revoke_and_a_crash(Disk::is_durable, false);
}

/// A draining attempt, whose reading half is over, and a restart.
fn a_drain_and_a_restart(rebuild: fn(&[Record]) -> Attempt) {
    explore(move || {
        let w = World::new();
        let disk = Arc::new(Disk::default());
        let d2 = disk.clone();
        let writer = thread::spawn(move || d2.sync());
        let stand = w.fences.stand([attempt()]);
        let seq = w.fences.lower(&attempt(), NOW).seq;
        let index = disk.defer(Record::Draining(seq));
        thread::yield_now();
        let durable = disk.is_durable(index);
        let left = disk.after_the_crash();
        writer.join().unwrap();
        assert!(!stand.is_up());

        let state = rebuild(&left);
        let reads = state == Attempt::Suspended;
        assert!(!(durable && reads), "a restart widened the access of a draining attempt");
    });
}

// Proves law 39a.
#[test]
fn a_draining_attempt_comes_back_draining() {
    a_drain_and_a_restart(|records| rebuilt(records).0);
}

// Proves law 39a.
#[test]
#[should_panic(expected = "widened the access of a draining attempt")]
fn a_restart_that_suspends_what_drained_is_caught() {
    a_drain_and_a_restart(|_| Attempt::Suspended);
}

// Proves law 13.
#[test]
fn seq_goes_on_across_epochs() {
    explore(|| {
        let w = World::new();
        let w2 = w.clone();
        let revoker = thread::spawn(move || w2.fences.lower(&attempt(), NOW).seq);
        let old = w.fences.stand([attempt()]);
        let first = revoker.join().unwrap();
        assert_eq!(old.is_up(), old.at() == first);
        let next = Registry::new(first);
        let stand = next.stand([attempt()]);
        assert_eq!(stand.at(), first);
        assert!(stand.is_up(), "a lowering of the last life ends nothing of this one");
        assert!(next.lower(&attempt(), NOW.plus(limits::BEAT)).seq > first);
        assert!(!stand.is_up());
    });
}

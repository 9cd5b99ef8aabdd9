//! A queue for places that many clients want at once. It gives fair turns to keys, such as addresses, identities or tenants.
//!
//! The key with the fewest places in use is next. If too many clients wait, the key with the longest line loses its latest
//! client. If no place is free, a queue may end the use of a place for a key that uses none. Then the key that uses the most
//! places loses its oldest one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// The limits of a queue. Each client takes some hundred bytes of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnLimits {
    /// Places in use at once.
    pub(crate) used_max: usize,
    /// Places of one key in use at once.
    pub(crate) used_per_key_max: usize,
    /// Clients that wait for a place.
    pub(crate) waiting_max: usize,
    /// Clients of one key that use a place or wait for one.
    pub(crate) per_key_max: usize,
    pub(crate) when_full: WhenFull,
}

/// What happens if no place is free, and a client waits whose key uses no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// The client waits. Its key is the next to get a place.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "only the listings of the gateway wait"))]
    Waits,
    /// The queue ends the oldest use of the key that uses the most places, and the client gets that place. If no key uses more
    /// than one place, the client waits.
    EndsTheOldest,
}

/// The clients that wait for a place or use one. The mutex is held only for a few look-ups in memory, which use no clock and
/// have no await.
#[derive(Debug)]
pub(crate) struct TurnQueue<K> {
    limits: TurnLimits,
    state: Mutex<TurnQueueState<K>>,
}

#[derive(Debug)]
struct TurnQueueState<K> {
    keys: HashMap<K, KeyEntry>,
    used: usize,
    waiting: usize,
    /// The last number that was given to a place or a turn.
    last_number: u64,
    /// The keys with waiting clients that may use one more place. They are sorted by the number of places in use, and then by
    /// their last turn.
    turns: BTreeSet<(usize, u64, K)>,
    /// The keys that use places. They are sorted by the number of these places, and then by their last turn.
    busiest: BTreeSet<(usize, u64, K)>,
    /// The keys with waiting clients. They are sorted by the number of these clients, and then by their last turn.
    longest: BTreeSet<(usize, u64, K)>,
}

/// The clients of one key, in the order of their arrival. A key without clients has no entry.
#[derive(Debug, Default)]
struct KeyEntry {
    using: BTreeMap<u64, watch::Sender<PlacePhase>>,
    waiting: BTreeMap<u64, watch::Sender<PlacePhase>>,
    /// The number of the key's last turn, or of its first client if it had no turn.
    last_turn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlacePhase {
    Waits,
    InUse,
    GivesWay,
}

/// Why a client gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// The key of the client has as many clients as one key may have.
    KeyFull,
    /// The client had to leave the line, or to end its use of a place, for another key.
    GaveWay,
}

impl<K: Clone + Ord + Hash> TurnQueue<K> {
    pub(crate) fn new(limits: TurnLimits) -> Arc<Self> {
        let state = TurnQueueState {
            keys: HashMap::new(),
            used: 0,
            waiting: 0,
            last_number: 0,
            turns: BTreeSet::new(),
            busiest: BTreeSet::new(),
            longest: BTreeSet::new(),
        };
        Arc::new(TurnQueue { limits, state: Mutex::new(state) })
    }

    /// Adds a client at the end of the line of its key.
    ///
    /// # Errors
    /// Fails if the key has as many clients as one key may have.
    pub(crate) fn enter(self: &Arc<Self>, key: K) -> Result<TurnPlace<K>, NoTurn> {
        let (sender, phase) = watch::channel(PlacePhase::Waits);
        let mut state = self.lock();
        let count = state.keys.get(&key).map_or(0, |entry| entry.using.len() + entry.waiting.len());
        if count >= self.limits.per_key_max {
            return Err(NoTurn::KeyFull);
        }
        let number = state.take_number();
        state.update(&key, &self.limits, |entry| {
            if entry.is_empty() {
                entry.last_turn = number;
            }
            entry.waiting.insert(number, sender);
        });
        state.give_turns(&self.limits);
        while state.waiting > self.limits.waiting_max && state.shorten_the_longest_line(&self.limits) {}
        Ok(TurnPlace { queue: self.clone(), key, number, phase })
    }

    fn lock(&self) -> MutexGuard<'_, TurnQueueState<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Ord + Hash> TurnQueueState<K> {
    fn take_number(&mut self) -> u64 {
        self.last_number = self.last_number.saturating_add(1);
        self.last_number
    }

    /// Edits the clients of a key, and updates everything that is derived from them.
    fn update<T>(&mut self, key: &K, limits: &TurnLimits, edit: impl FnOnce(&mut KeyEntry) -> T) -> T {
        let mut entry = self.keys.remove(key).unwrap_or_default();
        self.rank(key, &entry, limits, false);
        let done = edit(&mut entry);
        self.rank(key, &entry, limits, true);
        if !entry.is_empty() {
            self.keys.insert(key.clone(), entry);
        }
        done
    }

    /// Adds an entry to the counts and the sorted sets, or removes it from them.
    fn rank(&mut self, key: &K, entry: &KeyEntry, limits: &TurnLimits, is_added: bool) {
        fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, is_added: bool) {
            let _ = if is_added { set.insert(value) } else { set.remove(&value) };
        }
        let (used, waiting) = (entry.using.len(), entry.waiting.len());
        if is_added {
            self.used += used;
            self.waiting += waiting;
        } else {
            self.used -= used;
            self.waiting -= waiting;
        }
        if used > 0 {
            put(&mut self.busiest, (used, entry.last_turn, key.clone()), is_added);
        }
        if waiting > 0 {
            put(&mut self.longest, (waiting, entry.last_turn, key.clone()), is_added);
            if used < limits.used_per_key_max {
                put(&mut self.turns, (used, entry.last_turn, key.clone()), is_added);
            }
        }
    }

    /// Gives places to the clients that are next. If no place is free, `when_full` says whether the use of another client ends.
    fn give_turns(&mut self, limits: &TurnLimits) {
        while let Some((count, _, key)) = self.turns.first().cloned() {
            let may_end = count == 0 && limits.when_full == WhenFull::EndsTheOldest;
            if self.used >= limits.used_max && !(may_end && self.end_the_oldest_of_the_busiest(limits)) {
                return;
            }
            let turn = self.take_number();
            self.update(&key, limits, |entry| {
                entry.last_turn = turn;
                if let Some((number, phase)) = entry.waiting.pop_first() {
                    phase.send_replace(PlacePhase::InUse);
                    entry.using.insert(number, phase);
                }
            });
        }
    }

    /// Ends the oldest use of the key that uses the most places. Returns `false` if no key uses more than one place.
    fn end_the_oldest_of_the_busiest(&mut self, limits: &TurnLimits) -> bool {
        let Some((most, _, key)) = self.busiest.last().cloned() else { return false };
        if most <= 1 {
            return false;
        }
        let oldest = self.update(&key, limits, |entry| entry.using.pop_first());
        end_place(oldest)
    }

    /// Ends the wait of the latest client of the key with the longest line. If several lines are longest, takes the key with
    /// the latest turn.
    fn shorten_the_longest_line(&mut self, limits: &TurnLimits) -> bool {
        let Some((_, _, key)) = self.longest.last().cloned() else { return false };
        let latest = self.update(&key, limits, |entry| entry.waiting.pop_last());
        end_place(latest)
    }
}

fn end_place(place: Option<(u64, watch::Sender<PlacePhase>)>) -> bool {
    place.is_some_and(|(_, phase)| {
        phase.send_replace(PlacePhase::GivesWay);
        true
    })
}

impl KeyEntry {
    fn is_empty(&self) -> bool {
        self.using.is_empty() && self.waiting.is_empty()
    }
}

/// The place of one client, in the line or in use. When this value is dropped, the client leaves the queue, and a place that
/// it used becomes free.
#[derive(Debug)]
pub(crate) struct TurnPlace<K: Clone + Ord + Hash> {
    queue: Arc<TurnQueue<K>>,
    key: K,
    number: u64,
    phase: watch::Receiver<PlacePhase>,
}

impl<K: Clone + Ord + Hash> TurnPlace<K> {
    /// Waits until the client may use the place, or must leave the line for another key.
    pub(crate) async fn turn(&mut self) -> Result<(), NoTurn> {
        match self.phase.wait_for(|phase| *phase != PlacePhase::Waits).await.map(|phase| *phase) {
            Ok(PlacePhase::InUse) => Ok(()),
            Ok(PlacePhase::Waits | PlacePhase::GivesWay) | Err(_) => Err(NoTurn::GaveWay),
        }
    }

    /// Resolves when the client must end its use of the place for another key.
    pub(super) async fn gives_way(&mut self) {
        // An error means that the queue dropped the sender. The queue sends this phase before.
        let _ = self.phase.wait_for(|phase| *phase == PlacePhase::GivesWay).await;
    }

    /// Whether another use must end before this key can use one more place.
    pub(super) fn is_crowded(&self) -> bool {
        let state = self.queue.lock();
        let own = state.keys.get(&self.key).map_or(0, |entry| entry.using.len());
        state.used >= self.queue.limits.used_max || own >= self.queue.limits.used_per_key_max
    }
}

impl<K: Clone + Ord + Hash> Drop for TurnPlace<K> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.update(&self.key, &self.queue.limits, |entry| {
            entry.using.remove(&self.number);
            entry.waiting.remove(&self.number);
        });
        state.give_turns(&self.queue.limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(used_max: usize, waiting_max: usize) -> TurnLimits {
        TurnLimits {
            used_max,
            used_per_key_max: used_max,
            waiting_max,
            per_key_max: usize::MAX,
            when_full: WhenFull::EndsTheOldest,
        }
    }

    fn queue(used_max: usize, waiting_max: usize) -> Arc<TurnQueue<u8>> {
        TurnQueue::new(limits(used_max, waiting_max))
    }

    fn phase(place: &TurnPlace<u8>) -> PlacePhase {
        *place.phase.borrow()
    }

    fn count(places: &[TurnPlace<u8>], wanted: PlacePhase) -> usize {
        places.iter().filter(|place| phase(place) == wanted).count()
    }

    fn is_empty(queue: &TurnQueue<u8>) -> bool {
        let state = queue.lock();
        state.keys.is_empty()
            && (state.used, state.waiting) == (0, 0)
            && state.turns.is_empty()
            && state.busiest.is_empty()
            && state.longest.is_empty()
    }

    #[test]
    fn a_newcomer_is_next_however_many_of_others_wait() {
        let queue = queue(32, 64);
        let held: Vec<_> = (0..96).map(|n| queue.enter(n % 16).unwrap()).collect();
        assert_eq!((count(&held, PlacePhase::InUse), count(&held, PlacePhase::Waits)), (32, 64));
        let newcomer = queue.enter(200).unwrap();
        assert_eq!(phase(&newcomer), PlacePhase::InUse);
        assert_eq!((count(&held, PlacePhase::InUse), count(&held, PlacePhase::GivesWay)), (31, 1));
        // The second connection of the key must wait, because its key already uses a place.
        let second = queue.enter(200).unwrap();
        assert_eq!(phase(&second), PlacePhase::Waits);
        drop((held, newcomer, second));
        assert!(is_empty(&queue));
    }

    #[test]
    fn the_oldest_of_the_busiest_key_gives_way() {
        let queue = queue(4, 64);
        let few = queue.enter(1).unwrap();
        let many: Vec<_> = (0..3).map(|_| queue.enter(2).unwrap()).collect();
        let newcomer = queue.enter(3).unwrap();
        assert_eq!([phase(&few), phase(&newcomer)], [PlacePhase::InUse; 2]);
        assert_eq!(
            many.iter().map(phase).collect::<Vec<_>>(),
            [PlacePhase::GivesWay, PlacePhase::InUse, PlacePhase::InUse]
        );
    }

    #[test]
    fn a_key_with_one_place_keeps_it() {
        let queue = queue(2, 64);
        let held = [queue.enter(1).unwrap(), queue.enter(2).unwrap()];
        let newcomer = queue.enter(3).unwrap();
        assert_eq!((count(&held, PlacePhase::InUse), phase(&newcomer)), (2, PlacePhase::Waits));
        let [first, _second] = held;
        drop(first);
        assert_eq!(phase(&newcomer), PlacePhase::InUse);
    }

    #[test]
    fn keys_with_as_many_places_take_turns() {
        let queue = queue(1, 64);
        let first = queue.enter(9).unwrap();
        let waiting: Vec<_> = [1, 1, 1, 2, 2, 3].into_iter().map(|n| queue.enter(n).unwrap()).collect();
        let mut order = Vec::new();
        drop(first);
        let mut waiting: Vec<_> = waiting.into_iter().map(Some).collect();
        while let Some(next) = waiting
            .iter_mut()
            .find(|place| place.as_ref().is_some_and(|place| phase(place) == PlacePhase::InUse))
        {
            order.push(next.take().unwrap().key);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1]);
        assert!(is_empty(&queue));
    }

    #[test]
    fn the_longest_line_is_cut_if_too_many_wait() {
        let queue = queue(1, 4);
        let _under_way = queue.enter(1).unwrap();
        let mut long: Vec<_> = (0..4).map(|_| queue.enter(1).unwrap()).collect();
        let short = queue.enter(2).unwrap();
        assert_eq!(phase(&short), PlacePhase::Waits);
        assert_eq!(phase(&long.pop().unwrap()), PlacePhase::GivesWay);
        assert_eq!(count(&long, PlacePhase::Waits), 3);
        assert_eq!(phase(&queue.enter(1).unwrap()), PlacePhase::GivesWay, "it has the longest line itself");
    }

    #[test]
    fn a_queue_may_let_a_newcomer_wait_for_the_next_place() {
        let limits =
            TurnLimits { used_per_key_max: 2, when_full: WhenFull::Waits, per_key_max: 5, ..limits(4, 64) };
        let queue = TurnQueue::new(limits);
        let mut one: Vec<_> = (0..5).map(|_| queue.enter(1).unwrap()).collect();
        assert_eq!(queue.enter(1).unwrap_err(), NoTurn::KeyFull);
        assert_eq!(count(&one, PlacePhase::InUse), 2, "one key has its share");
        let mut two: Vec<_> = (0..5).map(|_| queue.enter(2).unwrap()).collect();
        let newcomer = queue.enter(3).unwrap();
        assert_eq!((count(&two, PlacePhase::InUse), phase(&newcomer)), (2, PlacePhase::Waits));
        drop(two.remove(0));
        assert_eq!((count(&two, PlacePhase::InUse), phase(&newcomer)), (1, PlacePhase::InUse));
        drop(one.remove(0));
        let in_use = (count(&one, PlacePhase::InUse), count(&two, PlacePhase::InUse));
        assert_eq!(in_use, (2, 1), "of two with as many places, the one whose turn was longer ago");
        drop((one, two, newcomer));
        assert!(is_empty(&queue));
    }

    #[tokio::test]
    async fn a_place_knows_its_turn_and_when_it_gives_way() {
        let queue = queue(2, 1);
        let mut first = queue.enter(1).unwrap();
        let mut second = queue.enter(1).unwrap();
        first.turn().await.unwrap();
        second.turn().await.unwrap();
        let mut third = queue.enter(2).unwrap();
        third.turn().await.unwrap();
        first.gives_way().await;
        let _waits = queue.enter(1).unwrap();
        assert_eq!(queue.enter(1).unwrap().turn().await, Err(NoTurn::GaveWay));
    }
}

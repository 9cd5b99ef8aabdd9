//! The queue of the handshakes of one listener. It gives fair turns to addresses.
//!
//! Before its handshake, a connection is known only by its address. So places are shared out by address: the address with the
//! fewest running handshakes is next. If no place is free, the address with the most handshakes loses its oldest one. This
//! happens only for a connection whose address has no handshake. If too many connections wait, the address with the most
//! waiting connections loses its latest one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{failure::FailureCause, options::ServeOptions};
use crate::limits;

/// The connections that wait for a handshake or perform one. The mutex is held for a few look-ups, without a clock or an await.
#[derive(Debug)]
pub(super) struct HandshakeQueue {
    handshakes_max: usize,
    waiting_max: usize,
    state: Mutex<HandshakeQueueState>,
}

#[derive(Debug, Default)]
struct HandshakeQueueState {
    addresses: HashMap<IpAddr, AddressEntry>,
    handshakes: usize,
    waiting: usize,
    /// The last number that was given to a place or a turn.
    last_number: u64,
    /// The addresses that may begin a handshake. They are sorted by the number of their handshakes, and then by their last
    /// turn.
    turns: BTreeSet<(usize, u64, IpAddr)>,
    /// The addresses with running handshakes. They are sorted by the number of handshakes, and then by their last turn.
    busiest: BTreeSet<(usize, u64, IpAddr)>,
    /// The addresses with waiting connections. They are sorted by the number of these connections, and then by their last turn.
    longest: BTreeSet<(usize, u64, IpAddr)>,
}

/// The connections of one address, in the order of their arrival. An address without connections has no entry.
#[derive(Debug, Default)]
struct AddressEntry {
    handshakes: BTreeMap<u64, watch::Sender<PlacePhase>>,
    waiting: BTreeMap<u64, watch::Sender<PlacePhase>>,
    /// The number of the address's last turn, or of its first connection if it had no turn.
    last_turn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlacePhase {
    Waits,
    Handshake,
    GivesWay,
}

impl HandshakeQueue {
    pub(super) fn new(options: &ServeOptions) -> Arc<Self> {
        let (handshakes_max, waiting_max) = (options.handshakes_max, options.waiting_max);
        Arc::new(HandshakeQueue { handshakes_max, waiting_max, state: Mutex::default() })
    }

    /// Takes a place at the end of the line of this address.
    ///
    /// # Errors
    /// Fails if the address has reached the limit of connections for one address.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<HandshakePlace, FailureCause> {
        let address = network(address);
        let (sender, phase) = watch::channel(PlacePhase::Waits);
        let mut state = self.lock();
        let count = state.addresses.get(&address).map_or(0, |a| a.handshakes.len() + a.waiting.len());
        if count >= limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX {
            return Err(FailureCause::AddressFull);
        }
        let number = state.take_number();
        state.update(address, |entry| {
            if entry.is_empty() {
                entry.last_turn = number;
            }
            entry.waiting.insert(number, sender);
        });
        state.give_turns(self.handshakes_max);
        while state.waiting > self.waiting_max && state.shorten_the_longest_line() {}
        Ok(HandshakePlace { queue: self.clone(), address, number, phase })
    }

    fn lock(&self) -> MutexGuard<'_, HandshakeQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandshakeQueueState {
    fn take_number(&mut self) -> u64 {
        self.last_number = self.last_number.saturating_add(1);
        self.last_number
    }

    /// Edits the connections of an address, and updates everything that is derived from them.
    fn update<T>(&mut self, address: IpAddr, edit: impl FnOnce(&mut AddressEntry) -> T) -> T {
        let mut entry = self.addresses.remove(&address).unwrap_or_default();
        self.rank(address, &entry, false);
        let done = edit(&mut entry);
        self.rank(address, &entry, true);
        if !entry.is_empty() {
            self.addresses.insert(address, entry);
        }
        done
    }

    /// Adds an entry to the counts and the sorted sets, or removes it from them.
    fn rank(&mut self, address: IpAddr, entry: &AddressEntry, is_added: bool) {
        fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, is_added: bool) {
            let _ = if is_added { set.insert(value) } else { set.remove(&value) };
        }
        let (handshakes, waiting) = (entry.handshakes.len(), entry.waiting.len());
        if is_added {
            self.handshakes += handshakes;
            self.waiting += waiting;
        } else {
            self.handshakes -= handshakes;
            self.waiting -= waiting;
        }
        if handshakes > 0 {
            put(&mut self.busiest, (handshakes, entry.last_turn, address), is_added);
        }
        if waiting > 0 {
            put(&mut self.longest, (waiting, entry.last_turn, address), is_added);
            if handshakes < limits::HANDSHAKES_PER_ADDRESS_MAX {
                put(&mut self.turns, (handshakes, entry.last_turn, address), is_added);
            }
        }
    }

    /// Lets connections begin their handshakes while there are free places, or while other handshakes can be ended for them.
    fn give_turns(&mut self, handshakes_max: usize) {
        while let Some(&(count, _, address)) = self.turns.first() {
            if self.handshakes >= handshakes_max && !(count == 0 && self.end_a_handshake_of_the_busiest()) {
                return;
            }
            let turn = self.take_number();
            self.update(address, |entry| {
                entry.last_turn = turn;
                if let Some((number, phase)) = entry.waiting.pop_first() {
                    phase.send_replace(PlacePhase::Handshake);
                    entry.handshakes.insert(number, phase);
                }
            });
        }
    }

    /// Ends the oldest handshake of the address with the most handshakes. Returns `false` if no address
    /// has more than one handshake.
    fn end_a_handshake_of_the_busiest(&mut self) -> bool {
        let Some(&(most, _, address)) = self.busiest.last() else { return false };
        if most <= 1 {
            return false;
        }
        let oldest = self.update(address, |entry| entry.handshakes.pop_first());
        end_place(oldest)
    }

    /// Ends the wait of the latest connection of the address with the longest line. If several lines are longest, takes the
    /// address with the latest turn.
    fn shorten_the_longest_line(&mut self) -> bool {
        let Some(&(_, _, address)) = self.longest.last() else { return false };
        let latest = self.update(address, |entry| entry.waiting.pop_last());
        end_place(latest)
    }
}

fn end_place(place: Option<(u64, watch::Sender<PlacePhase>)>) -> bool {
    place.is_some_and(|(_, phase)| {
        phase.send_replace(PlacePhase::GivesWay);
        true
    })
}

impl AddressEntry {
    fn is_empty(&self) -> bool {
        self.handshakes.is_empty() && self.waiting.is_empty()
    }
}

/// The place of one connection. The place becomes free when this value is dropped.
#[derive(Debug)]
pub(super) struct HandshakePlace {
    queue: Arc<HandshakeQueue>,
    address: IpAddr,
    number: u64,
    phase: watch::Receiver<PlacePhase>,
}

impl HandshakePlace {
    /// Waits until the handshake may begin, or must end for another connection.
    pub(super) async fn turn(&mut self) -> Result<(), FailureCause> {
        match self.phase.wait_for(|phase| *phase != PlacePhase::Waits).await.map(|phase| *phase) {
            Ok(PlacePhase::Handshake) => Ok(()),
            Ok(PlacePhase::Waits | PlacePhase::GivesWay) | Err(_) => Err(FailureCause::GaveWay),
        }
    }

    /// Resolves when the handshake must end for another connection.
    pub(super) async fn gives_way(&mut self) {
        // An error means that the sender was dropped, which happens only after it sent this phase.
        let _ = self.phase.wait_for(|phase| *phase == PlacePhase::GivesWay).await;
    }

    /// Whether another handshake must end before this address can begin a new one.
    pub(super) fn is_crowded(&self) -> bool {
        let state = self.queue.lock();
        let own = state.addresses.get(&self.address).map_or(0, |entry| entry.handshakes.len());
        state.handshakes >= self.queue.handshakes_max || own >= limits::HANDSHAKES_PER_ADDRESS_MAX
    }
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.update(self.address, |entry| {
            entry.handshakes.remove(&self.number);
            entry.waiting.remove(&self.number);
        });
        state.give_turns(self.queue.handshakes_max);
    }
}

/// Returns the network of an IPv6 address, because one host can have every address of its /64. Returns an IPv4 address
/// unchanged.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(handshakes_max: usize, waiting_max: usize) -> Arc<HandshakeQueue> {
        HandshakeQueue::new(&ServeOptions { handshakes_max, waiting_max, ..ServeOptions::default() })
    }

    fn v4(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn phase(place: &HandshakePlace) -> PlacePhase {
        *place.phase.borrow()
    }

    fn count(places: &[HandshakePlace], wanted: PlacePhase) -> usize {
        places.iter().filter(|place| phase(place) == wanted).count()
    }

    fn is_empty(queue: &HandshakeQueue) -> bool {
        let state = queue.lock();
        state.addresses.is_empty()
            && (state.handshakes, state.waiting) == (0, 0)
            && state.turns.is_empty()
            && state.busiest.is_empty()
            && state.longest.is_empty()
    }

    #[test]
    fn a_newcomer_is_next_however_many_of_others_wait() {
        let queue = queue(32, 64);
        let held: Vec<_> = (0..96).map(|n| queue.enter(v4(n % 16)).unwrap()).collect();
        assert_eq!((count(&held, PlacePhase::Handshake), count(&held, PlacePhase::Waits)), (32, 64));
        let newcomer = queue.enter(v4(200)).unwrap();
        assert_eq!(phase(&newcomer), PlacePhase::Handshake);
        assert_eq!((count(&held, PlacePhase::Handshake), count(&held, PlacePhase::GivesWay)), (31, 1));
        // The second connection has no such right, because its address has a handshake.
        let second = queue.enter(v4(200)).unwrap();
        assert_eq!(phase(&second), PlacePhase::Waits);
        drop((held, newcomer, second));
        assert!(is_empty(&queue));
    }

    #[test]
    fn the_oldest_of_the_busiest_address_gives_way() {
        let queue = queue(4, 64);
        let few = queue.enter(v4(1)).unwrap();
        let many: Vec<_> = (0..3).map(|_| queue.enter(v4(2)).unwrap()).collect();
        let newcomer = queue.enter(v4(3)).unwrap();
        assert_eq!([phase(&few), phase(&newcomer)], [PlacePhase::Handshake; 2]);
        assert_eq!(
            many.iter().map(phase).collect::<Vec<_>>(),
            [PlacePhase::GivesWay, PlacePhase::Handshake, PlacePhase::Handshake]
        );
    }

    #[test]
    fn an_address_with_one_handshake_keeps_it() {
        let queue = queue(2, 64);
        let held = [queue.enter(v4(1)).unwrap(), queue.enter(v4(2)).unwrap()];
        let newcomer = queue.enter(v4(3)).unwrap();
        assert_eq!((count(&held, PlacePhase::Handshake), phase(&newcomer)), (2, PlacePhase::Waits));
        let [first, _second] = held;
        drop(first);
        assert_eq!(phase(&newcomer), PlacePhase::Handshake);
    }

    #[test]
    fn addresses_with_as_many_handshakes_take_turns() {
        let queue = queue(1, 64);
        let first = queue.enter(v4(9)).unwrap();
        let waiting: Vec<_> = [1, 1, 1, 2, 2, 3].into_iter().map(|n| queue.enter(v4(n)).unwrap()).collect();
        let mut order = Vec::new();
        drop(first);
        let mut waiting: Vec<_> = waiting.into_iter().map(Some).collect();
        while let Some(next) = waiting
            .iter_mut()
            .find(|place| place.as_ref().is_some_and(|place| phase(place) == PlacePhase::Handshake))
        {
            order.push(next.take().unwrap().address);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 1].map(v4));
        assert!(is_empty(&queue));
    }

    #[test]
    fn the_longest_line_is_cut_if_too_many_wait() {
        let queue = queue(1, 4);
        let _under_way = queue.enter(v4(1)).unwrap();
        let mut long: Vec<_> = (0..4).map(|_| queue.enter(v4(1)).unwrap()).collect();
        let short = queue.enter(v4(2)).unwrap();
        assert_eq!(phase(&short), PlacePhase::Waits);
        assert_eq!(phase(&long.pop().unwrap()), PlacePhase::GivesWay);
        assert_eq!(count(&long, PlacePhase::Waits), 3);
        assert_eq!(
            phase(&queue.enter(v4(1)).unwrap()),
            PlacePhase::GivesWay,
            "it has the longest line itself"
        );
    }

    #[test]
    fn one_address_leaves_places_to_others() {
        let queue = queue(limits::HANDSHAKES_MAX, limits::HANDSHAKES_WAITING_MAX);
        let one = v4(1);
        let held: Vec<_> =
            (0..limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX).map(|_| queue.enter(one).unwrap()).collect();
        assert_eq!(count(&held, PlacePhase::Handshake), limits::HANDSHAKES_PER_ADDRESS_MAX);
        assert_eq!(count(&held, PlacePhase::GivesWay), 0);
        assert_eq!(queue.enter(one).unwrap_err(), FailureCause::AddressFull);
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert!(queue.enter(mapped).is_err(), "the same address in IPv6 form");
        assert_eq!(phase(&queue.enter(v4(2)).unwrap()), PlacePhase::Handshake);
        assert!(held.first().unwrap().is_crowded());
        drop(held);
        assert!(is_empty(&queue));
        assert!(queue.enter(one).is_ok());
    }

    #[test]
    fn ipv6_addresses_are_counted_by_their_network() {
        let place = |address: &str| network(address.parse().unwrap());
        assert_eq!(place("2001:db8::1"), place("2001:db8::2:0:0:1"));
        assert_ne!(place("2001:db8::1"), place("2001:db8:0:1::1"));
    }

    #[tokio::test]
    async fn a_place_knows_its_turn_and_when_it_gives_way() {
        let queue = queue(2, 1);
        let mut first = queue.enter(v4(1)).unwrap();
        let mut second = queue.enter(v4(1)).unwrap();
        first.turn().await.unwrap();
        second.turn().await.unwrap();
        let mut third = queue.enter(v4(2)).unwrap();
        third.turn().await.unwrap();
        first.gives_way().await;
        let _waits = queue.enter(v4(1)).unwrap();
        assert_eq!(queue.enter(v4(1)).unwrap().turn().await, Err(FailureCause::GaveWay));
    }
}

//! A limit on the connections of clients that have not proven who they are, shared out by address.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::link::network;

/// Places for connections. If all places are taken, the address with the most connections loses its oldest connection, and
/// an address with at least two connections fewer gets that place. If each address has only one connection, an address
/// without a connection gets the place of the oldest one.
///
/// The mutex is held only for look-ups in memory, which use no clock and have no await.
#[derive(Debug)]
pub(super) struct AddressRoom {
    all: usize,
    most: usize,
    taken: Mutex<TakenPlaces>,
}

#[derive(Debug, Default)]
struct TakenPlaces {
    next: u64,
    total: usize,
    /// The connections of each address, the oldest first. An address without connections has no entry.
    each: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

/// The place of one connection. The place is free again when this value is dropped.
#[derive(Debug)]
pub(super) struct AddressPlace {
    room: Arc<AddressRoom>,
    address: IpAddr,
    number: u64,
}

impl AddressRoom {
    /// Makes the places. `all` is the limit for all addresses together, and `most` is the limit for one address.
    pub(super) fn new(all: usize, most: usize) -> Arc<Self> {
        Arc::new(AddressRoom { all, most, taken: Mutex::default() })
    }

    /// Takes a place. `cut` closes the connection if another address needs the place. Returns `None` if there is no place for
    /// this address.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr, cut: CancellationToken) -> Option<AddressPlace> {
        let address = network(address);
        let mut taken = self.lock();
        let has = taken.each.get(&address).map_or(0, BTreeMap::len);
        if has >= self.most || (taken.total >= self.all && !taken.cut_of_the_busiest(has)) {
            return None;
        }
        let number = taken.next;
        taken.next = number.wrapping_add(1);
        taken.total = taken.total.saturating_add(1);
        taken.each.entry(address).or_default().insert(number, cut);
        Some(AddressPlace { room: self.clone(), address, number })
    }

    fn lock(&self) -> MutexGuard<'_, TakenPlaces> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TakenPlaces {
    /// Closes the oldest connection of the address with the most connections, for an address that has `has` connections. Returns
    /// `false` if the busiest address does not have at least two more connections than `has`. If `has` is 0, one more is enough,
    /// so that many networks with one connection each cannot keep a new address out.
    fn cut_of_the_busiest(&mut self, has: usize) -> bool {
        let most = self.each.values().map(BTreeMap::len).max().unwrap_or(0);
        if most < has.saturating_add(2) && !(has == 0 && most == 1) {
            return false;
        }
        let first =
            |places: &BTreeMap<u64, CancellationToken>| places.first_key_value().map(|(number, _)| *number);
        let busiest = self.each.iter().filter(|(_, places)| places.len() == most);
        let oldest = busiest.filter_map(|(address, places)| Some((first(places)?, *address))).min();
        let Some((number, address)) = oldest else { return false };
        if let Some(cut) = self.each.get(&address).and_then(|places| places.get(&number)) {
            cut.cancel();
        }
        self.remove(address, number);
        true
    }

    fn remove(&mut self, address: IpAddr, number: u64) {
        let Some(places) = self.each.get_mut(&address) else { return };
        if places.remove(&number).is_some() {
            self.total = self.total.saturating_sub(1);
        }
        if places.is_empty() {
            self.each.remove(&address);
        }
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        self.room.lock().remove(self.address, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn a_newcomer_gets_the_oldest_place_of_the_busiest_address() {
        let room = AddressRoom::new(4, 3);
        let cuts: Vec<CancellationToken> = (0..3).map(|_| CancellationToken::new()).collect();
        let held: Vec<_> = cuts.iter().map(|cut| room.take(address(1), cut.clone()).unwrap()).collect();
        assert!(room.take(address(1), CancellationToken::new()).is_none(), "one address has its most");
        let second = room.take(address(2), CancellationToken::new()).unwrap();
        let third = room.take(address(3), CancellationToken::new()).unwrap();
        assert_eq!(
            cuts.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert!(
            room.take(address(2), CancellationToken::new()).is_none(),
            "no address has two more than this one"
        );
        drop((held, second, third));
        let taken = room.lock();
        assert!(taken.each.is_empty() && taken.total == 0);
    }

    #[test]
    fn a_newcomer_gets_the_oldest_place_if_each_address_has_one() {
        let room = AddressRoom::new(3, 2);
        let cuts: Vec<CancellationToken> = (0..3).map(|_| CancellationToken::new()).collect();
        let one_each = |n: u8| room.take(address(n + 1), cuts[usize::from(n)].clone()).unwrap();
        let held: Vec<_> = [2, 0, 1].map(one_each).into();
        assert!(room.take(address(1), CancellationToken::new()).is_none(), "this address has a place");
        let newcomer = room.take(address(9), CancellationToken::new()).unwrap();
        assert_eq!(
            cuts.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>(),
            [false, false, true]
        );
        drop((held, newcomer));
        let taken = room.lock();
        assert!(taken.each.is_empty() && taken.total == 0);
    }
}

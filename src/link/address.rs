//! Limits the handshakes of each IP address, so that one address cannot use up all of them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::Semaphore;

use crate::limits;

/// The addresses with connections that are in a handshake or wait for one.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<HashMap<IpAddr, Weak<Semaphore>>>);

impl Addresses {
    /// Returns the handshake slots of this address, or `None` if too many of its connections already wait. The connection keeps
    /// the slots until its handshake is over.
    pub(super) fn slots(&self, address: IpAddr) -> Option<Arc<Semaphore>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = all.get(&network(address)).and_then(Weak::upgrade) {
            let is_full = Arc::strong_count(&slots) > limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX;
            return (!is_full).then_some(slots);
        }
        if all.len() >= limits::HANDSHAKES_WAITING_MAX {
            all.retain(|_, slots| slots.strong_count() > 0);
        }
        let slots = Arc::new(Semaphore::new(limits::HANDSHAKES_PER_ADDRESS_MAX));
        all.insert(network(address), Arc::downgrade(&slots));
        Some(slots)
    }
}

/// One host can have every address of its /64, so IPv6 addresses are counted by their network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let (all, one) = (Addresses::default(), "192.0.2.1".parse().unwrap());
        let held: Vec<_> =
            (0..limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX).map(|_| all.slots(one).unwrap()).collect();
        assert!(all.slots(one).is_none());
        assert!(all.slots("::ffff:192.0.2.1".parse().unwrap()).is_none(), "the same address in IPv6 form");
        assert!(all.slots("192.0.2.2".parse().unwrap()).is_some());
        drop(held);
        assert!(all.slots(one).is_some());
    }

    #[test]
    fn ipv6_addresses_are_counted_by_their_network() {
        let all = Addresses::default();
        let first = all.slots("2001:db8::1".parse().unwrap()).unwrap();
        let second = all.slots("2001:db8::2:0:0:1".parse().unwrap()).unwrap();
        let other = all.slots("2001:db8:0:1::1".parse().unwrap()).unwrap();
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
    }

    #[test]
    fn addresses_without_connections_are_forgotten() {
        let all = Addresses::default();
        for n in 0..u32::try_from(limits::HANDSHAKES_WAITING_MAX * 2).unwrap() {
            drop(all.slots(IpAddr::V4(n.into())));
        }
        assert!(all.0.lock().unwrap().len() <= limits::HANDSHAKES_WAITING_MAX);
    }
}

//! The queue of the handshakes of one listener: fair turns by address.
//!
//! Before its handshake, a connection is known only by its address. If an address has no handshake under way, its new connection
//! does not wait: if no place is free, the address with the most handshakes loses its oldest one. If each address has only one
//! handshake, the connection waits.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{
    failure::FailureCause,
    options::ServeOptions,
    turn_queue::{NoTurn, TurnLimits, TurnPlace, TurnQueue, WhenFull},
};
use crate::limits;

/// The connections that wait for a handshake or perform one.
#[derive(Debug)]
pub(super) struct HandshakeQueue(Arc<TurnQueue<IpAddr>>);

/// The place of one connection, which waits for its handshake or performs it.
pub(super) type HandshakePlace = TurnPlace<IpAddr>;

impl HandshakeQueue {
    pub(super) fn new(options: &ServeOptions) -> Self {
        HandshakeQueue(TurnQueue::new(TurnLimits {
            used_max: options.handshakes_max,
            used_per_key_max: limits::HANDSHAKES_PER_ADDRESS_MAX,
            waiting_max: options.waiting_max,
            per_key_max: limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX,
            when_full: WhenFull::EndsTheOldest,
        }))
    }

    /// Adds a connection at the end of the line of its address.
    ///
    /// # Errors
    /// Fails if the address has reached the limit of connections for one address.
    pub(super) fn enter(&self, address: IpAddr) -> Result<HandshakePlace, NoTurn> {
        self.0.enter(network(address))
    }
}

impl From<NoTurn> for FailureCause {
    fn from(no: NoTurn) -> Self {
        match no {
            NoTurn::KeyFull => FailureCause::AddressFull,
            NoTurn::GaveWay => FailureCause::GaveWay,
        }
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
    use futures_util::FutureExt;

    use super::*;

    fn v4(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Whether the handshake may begin now. `None` if it waits.
    fn turn(place: &mut HandshakePlace) -> Option<Result<(), NoTurn>> {
        place.turn().now_or_never()
    }

    #[test]
    fn one_address_leaves_places_to_others() {
        let queue = HandshakeQueue::new(&ServeOptions::default());
        let one = v4(1);
        let mut held: Vec<_> =
            (0..limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX).map(|_| queue.enter(one).unwrap()).collect();
        let turns: Vec<_> = held.iter_mut().filter_map(turn).collect();
        assert_eq!(turns, vec![Ok(()); limits::HANDSHAKES_PER_ADDRESS_MAX]);
        assert_eq!(queue.enter(one).unwrap_err(), NoTurn::KeyFull);
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert!(queue.enter(mapped).is_err(), "the same address in IPv6 form");
        assert_eq!(turn(&mut queue.enter(v4(2)).unwrap()), Some(Ok(())));
        assert!(held.first().unwrap().is_crowded());
        drop(held);
        assert!(queue.enter(one).is_ok());
    }

    #[test]
    fn ipv6_addresses_are_counted_by_their_network() {
        let place = |address: &str| network(address.parse().unwrap());
        assert_eq!(place("2001:db8::1"), place("2001:db8::2:0:0:1"));
        assert_ne!(place("2001:db8::1"), place("2001:db8:0:1::1"));
    }
}

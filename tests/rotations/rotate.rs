//! New SVIDs for the daemon and the worker, from their agents. Used with the manual clock and in real time.

use std::time::Duration;

use crate::{
    harness::*,
    workload::{Agent, der, entry},
};

/// Lets both agents give new SVIDs with this life, and the foreign roots.
pub fn rotate(world: &World, daemons: &Agent, workers: &Agent, life: Duration) {
    let now = world.clock.now().wall;
    let svid = |id: &str| {
        let authority = world.authority(id);
        let svid = authority.issue(id, now, |params| {
            params.not_before = at(now);
            params.not_after = at(now.plus(life));
        });
        entry(id, &svid.cert, &svid.key, &authority.pem)
    };
    let foreign = |id: &str| der(&world.authority(id).pem);
    daemons.say(
        vec![svid(DAEMON)],
        &[
            ("spiffe://k8s.acme.example", foreign(WORKER)),
            ("spiffe://people.acme.example", foreign(OPERATOR)),
        ],
    );
    workers.say(vec![svid(WORKER)], &[("spiffe://leasehold.example", foreign(DAEMON))]);
}

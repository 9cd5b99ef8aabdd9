//! Moments and spans as the wire has them.

use std::time::Duration;

use crate::clock::{LeaseTime, Now, Wall};

pub(super) fn timestamp(wall: Wall) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(wall.seconds()).unwrap_or(i64::MAX),
        nanos: i32::try_from(wall.0 % 1_000).unwrap_or(0).saturating_mul(1_000_000),
    }
}

pub(super) fn at(now: Now, t: LeaseTime) -> Option<prost_types::Timestamp> {
    Some(timestamp(now.wall_at(t)))
}

pub(super) fn span(d: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(d.subsec_nanos()).unwrap_or(0),
    }
}

//! Conversions of times, durations and enums between the wire and the crate's own types.

use std::time::Duration;

use prost_types::Timestamp;

use super::v1;
use crate::{
    clock::Wall,
    name::{Action, Half, Method, Outcome},
};

/// The error for an enum value that is unspecified on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value is not specified")]
pub struct Unspecified;

macro_rules! same_variants {
    ($( $t:ident: $($variant:ident)*; )*) => {$(
        impl From<$t> for v1::$t {
            fn from(value: $t) -> Self {
                match value { $($t::$variant => v1::$t::$variant,)* }
            }
        }

        impl TryFrom<v1::$t> for $t {
            type Error = Unspecified;

            fn try_from(value: v1::$t) -> Result<Self, Unspecified> {
                match value {
                    v1::$t::Unspecified => Err(Unspecified),
                    $(v1::$t::$variant => Ok($t::$variant),)*
                }
            }
        }
    )*};
}

same_variants! {
    Action: ReadDataset ReadModel Finetune WriteCheckpoint ReadCheckpoint DeleteCheckpoint;
    Half: Reading Writing;
    Method: Full Lora Adapter PromptTuning Preference;
    Outcome: Completed Failed Interrupted Lost Cancelled Rejected Expired Revoked Superseded Unknown;
}

/// Converts a time to a timestamp, exact to the millisecond.
pub fn timestamp(wall: Wall) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(wall.seconds()).unwrap_or(i64::MAX),
        nanos: i32::try_from(wall.0 % 1_000).unwrap_or(0).saturating_mul(1_000_000),
    }
}

/// Converts a timestamp to a time. Returns `None` if it is before 1970, or later than [`Wall`] can be.
pub fn wall(time: &Timestamp) -> Option<Wall> {
    let millis = u64::try_from(time.nanos).ok()? / 1_000_000;
    Some(Wall(u64::try_from(time.seconds).ok()?.checked_mul(1_000)?.checked_add(millis)?))
}

/// Converts a timestamp to the nearest [`Wall`].
pub fn nearest_wall(time: &Timestamp) -> Wall {
    let nearest = if time.seconds < 0 { Wall(0) } else { Wall(u64::MAX) };
    wall(&Timestamp { seconds: time.seconds, nanos: time.nanos.max(0) }).unwrap_or(nearest)
}

/// Converts a duration to its wire type. A duration that is too long becomes the longest possible one.
pub fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_reads_back_from_its_timestamp() {
        for moment in [Wall(0), Wall(1), Wall(1_795_148_000_123)] {
            assert_eq!(wall(&timestamp(moment)), Some(moment));
            assert_eq!(nearest_wall(&timestamp(moment)), moment);
        }
    }

    #[test]
    fn a_moment_that_cannot_be_held_is_none_or_the_nearest() {
        for (seconds, nanos, nearest) in [
            (-1, 0, Wall(0)),
            (i64::MIN, 999_999_999, Wall(0)),
            (i64::MAX, 0, Wall(u64::MAX)),
            (5, -1, Wall(5_000)),
        ] {
            let time = Timestamp { seconds, nanos };
            assert_eq!((wall(&time), nearest_wall(&time)), (None, nearest), "{time:?}");
        }
    }
}

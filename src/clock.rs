//! Time of three kinds. The kinds are never mixed.
//!
//! | Type | Runs on | For |
//! |---|---|---|
//! | [`Wall`] | the wall clock | certificates, claims, times for people |
//! | [`LeaseTime`] | boottime plus the largest lead that the wall ever had over it | deadlines of leases, jobs, locks |
//! | [`BootTime`] | `CLOCK_BOOTTIME` only | liveness: heartbeats, ticks |
//!
//! The lease timeline never steps back, and it counts suspension. If the wall clock is set back, leases do not become
//! longer. If it is set forward, all leases become shorter. Only this module may read a clock or sleep. All other
//! modules get a [`Now`] or a [`Clock`].

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use futures_util::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// Milliseconds since the Unix epoch, on the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub u64);

/// Milliseconds on the lease timeline. Close to Unix milliseconds, but never steps back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseTime(pub u64);

/// Milliseconds since the machine was started, suspension included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(pub u64);

/// One reading of all three clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock.
    pub wall: Wall,
    /// The lease timeline.
    pub lease: LeaseTime,
    /// The time since the machine was started.
    pub boot: BootTime,
}

/// The only source of time. The daemon has a [`SystemClock`], and tests have a clock that they move by hand.
pub trait Clock: Send + Sync + 'static {
    /// Reads all three clocks at once.
    fn now(&self) -> Now;
    /// Resolves at or after a time of the lease timeline. Resolves at once if the time has passed.
    fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()>;
    /// Resolves after a duration on the lease timeline.
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now().lease.plus(span))
    }
}

/// The clocks of this machine.
#[derive(Debug, Default)]
pub struct SystemClock {
    /// The largest lead of the wall clock over boottime so far, in ms.
    lead: std::sync::Arc<AtomicI64>,
}

/// If the lead grows by more than this between two readings, an alarm is logged.
pub const LEAD_ALARM_MS: i64 = 60_000;

impl SystemClock {
    /// Makes a clock with the present lead of the wall clock over boottime.
    pub fn new() -> Self {
        let clock = SystemClock::default();
        clock.now();
        clock
    }

    /// Raises the lease timeline to at least a time that is known to have passed, such as the time of the last ledger
    /// record.
    pub fn not_before(&self, at_least: Wall) {
        let boot = boottime_ms();
        self.lead.fetch_max(signed(at_least.0).saturating_sub(signed(boot)), Ordering::AcqRel);
    }

    fn read(lead: &AtomicI64) -> Now {
        let (now, jump_ms) = Self::at(lead, boottime_ms(), wall_ms());
        if let Some(lead_ms) = jump_ms {
            tracing::error!(lead_ms, "the wall clock was set forward: leases end earlier by as much");
        }
        now
    }

    /// Converts a reading of the machine's two clocks. Also returns how many ms the wall clock jumped ahead, if this
    /// needs an alarm.
    fn at(lead: &AtomicI64, boot: u64, wall: u64) -> (Now, Option<i64>) {
        let seen = signed(wall).saturating_sub(signed(boot));
        let before = lead.fetch_max(seen, Ordering::AcqRel);
        let jump = seen.saturating_sub(before);
        let lease = boot.saturating_add_signed(before.max(seen));
        let now = Now { wall: Wall(wall), lease: LeaseTime(lease), boot: BootTime(boot) };
        (now, (before != 0 && jump > LEAD_ALARM_MS).then_some(jump))
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Self::read(&self.lead)
    }

    fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()> {
        let lead = self.lead.clone();
        Box::pin(async move {
            loop {
                let left = deadline.since(Self::read(&lead).lease);
                if left.is_zero() {
                    return;
                }
                // The wall clock may be set forward and the machine may sleep, so the clocks are read again at least
                // each second.
                tokio::time::sleep(left.min(Duration::from_secs(1))).await;
            }
        })
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn boottime_ms() -> u64 {
    // A machine without this clock fails closed: all deadlines have passed.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(u64::MAX >> 2, |t| {
        u64::try_from(t.tv_sec())
            .unwrap_or(0)
            .saturating_mul(1_000)
            .saturating_add(u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000_000)
    })
}

fn wall_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(u64::MAX >> 2, |t| {
        u64::try_from(t.tv_sec())
            .unwrap_or(0)
            .saturating_mul(1_000)
            .saturating_add(u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000_000)
    })
}

impl Now {
    /// Converts a time of the lease timeline to a wall time, as far as is known now.
    pub fn wall_at(&self, deadline: LeaseTime) -> Wall {
        Wall(self.wall.0.saturating_add(deadline.0).saturating_sub(self.lease.0))
    }

    /// Converts a wall time to a time of the lease timeline, as far as is known now. A time in the past becomes now.
    pub fn lease_at(&self, wall: Wall) -> LeaseTime {
        LeaseTime(self.lease.0.saturating_add(wall.0.saturating_sub(self.wall.0)))
    }
}

macro_rules! spans {
    ($($t:ident)*) => {$(
        impl $t {
            /// Returns the time that is later by a duration. Stops at the largest time.
            #[must_use]
            pub fn plus(self, span: Duration) -> Self {
                $t(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
            }
            /// Returns the duration from an earlier time to this time. Returns zero if the other time is not earlier.
            pub fn since(self, earlier: Self) -> Duration {
                Duration::from_millis(self.0.saturating_sub(earlier.0))
            }
        }
    )*};
}
spans!(Wall LeaseTime BootTime);

impl Wall {
    /// Returns the whole seconds since the Unix epoch, rounded down, as in a JWT's NumericDate.
    pub fn seconds(self) -> u64 {
        self.0 / 1_000
    }

    /// Makes a time from whole seconds since the Unix epoch.
    pub fn from_seconds(seconds: u64) -> Self {
        Wall(seconds.saturating_mul(1_000))
    }

    /// Reads a time in the form of RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(t.unix_timestamp_nanos() / 1_000_000).ok().map(Wall)
    }
}

/// Writes the time in the form of RFC 3339, in UTC with milliseconds.
impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0).saturating_mul(1_000_000);
        let text = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|t| {
            t.format(format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
            ))
            .ok()
        });
        f.write_str(text.as_deref().unwrap_or("9999-12-31T23:59:59.999Z"))
    }
}

/// A clock that does not advance until a test moves it.
#[cfg(test)]
pub mod manual {
    use std::time::Duration;

    use futures_util::future::BoxFuture;
    use tokio::sync::watch;

    use super::{BootTime, Clock, LeaseTime, Now, Wall};

    /// A clock that a test moves by hand. A sleeper wakes when the lease timeline reaches its time.
    #[derive(Debug)]
    pub struct ManualClock(watch::Sender<Now>);

    impl ManualClock {
        /// Makes a clock at a wall time. The lease timeline has the same number, and the machine was started an hour
        /// before.
        pub fn new(wall: Wall) -> Self {
            let now = Now { wall, lease: LeaseTime(wall.0), boot: BootTime(3_600_000) };
            ManualClock(watch::Sender::new(now))
        }

        /// Lets time pass on all three clocks.
        pub fn advance(&self, span: Duration) {
            self.0.send_modify(|now| {
                *now =
                    Now { wall: now.wall.plus(span), lease: now.lease.plus(span), boot: now.boot.plus(span) };
            });
        }

        /// Sets only the wall clock. As with the system clock, a step forward also moves the lease timeline, and a step
        /// back does not.
        pub fn set_wall(&self, wall: Wall) {
            self.0.send_modify(|now| {
                now.wall = wall;
                now.lease = now.lease.max(LeaseTime(wall.0));
            });
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Now {
            *self.0.borrow()
        }

        fn sleep_until(&self, deadline: LeaseTime) -> BoxFuture<'static, ()> {
            let mut now = self.0.subscribe();
            Box::pin(async move {
                if now.wait_for(|now| now.lease >= deadline).await.is_err() {
                    std::future::pending::<()>().await; // the clock is gone: time stands still
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_printed_as_rfc_3339_and_read_back() {
        let t = Wall(1_795_148_000_123);
        assert_eq!(t.to_string(), "2026-11-20T04:13:20.123Z");
        assert_eq!(Wall::parse(&t.to_string()), Some(t));
    }

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const BOOT: u64 = 5 * HOUR;
    const WALL: u64 = 1_795_148_000_000;

    /// The lease timeline over readings of (boottime, wall), counted from the first, and the alarms.
    fn over(readings: &[(u64, u64)]) -> (Vec<i64>, Vec<Option<i64>>) {
        let lead = AtomicI64::default();
        let read = readings.iter().map(|(boot, wall)| SystemClock::at(&lead, *boot, *wall));
        let (nows, alarms): (Vec<Now>, Vec<_>) = read.unzip();
        for (now, (boot, wall)) in nows.iter().zip(readings) {
            assert_eq!((now.boot, now.wall), (BootTime(*boot), Wall(*wall)), "each clock is its own");
        }
        let first = signed(nows[0].lease.0);
        (nows.iter().map(|n| signed(n.lease.0) - first).collect(), alarms)
    }

    // Proves law 12.
    #[test]
    fn clock_steps_and_sleep_lengthen_no_lease() {
        // The timeline begins at the wall clock, and goes on with boottime.
        let lead = AtomicI64::default();
        assert_eq!(SystemClock::at(&lead, BOOT, WALL).0.lease, LeaseTime(WALL));
        let hour = signed(HOUR);
        // The wall clock is set back by an hour and later corrected: the timeline goes on as if nothing had happened.
        let back = [(BOOT, WALL), (BOOT + 1_000, WALL - HOUR), (BOOT + HOUR, WALL + HOUR)];
        assert_eq!(over(&back), (vec![0, 1_000, hour], vec![None; 3]));
        // The wall clock is set forward by an hour: the timeline follows, with an alarm, and does not come back with
        // the wall clock.
        let forward = [(BOOT, WALL), (BOOT, WALL + HOUR), (BOOT + 1_000, WALL + 1_000), (BOOT + 2_000, WALL)];
        let told = vec![None, Some(hour), None, None];
        assert_eq!(over(&forward), (vec![0, hour, hour + 1_000, hour + 2_000], told));
        // A machine that slept for an hour: boottime counts that, whether the wall has caught up with it or not.
        for wall in [WALL, WALL + HOUR] {
            assert_eq!(over(&[(BOOT, WALL), (BOOT + HOUR, wall)]), (vec![0, hour], vec![None; 2]));
        }
        // Up to a minute is what time services do.
        let minute = signed(MINUTE);
        let told = over(&[(BOOT, WALL), (BOOT, WALL + MINUTE), (BOOT, WALL + 2 * MINUTE + 1)]).1;
        assert_eq!(told, [None, None, Some(minute + 1)]);
    }

    proptest::proptest! {
        // Proves law 12.
        #[test]
        fn the_lease_timeline_never_goes_slower_than_boottime(
            steps in proptest::collection::vec((0u64..3 * HOUR, 0u64..6 * HOUR), 1..40),
        ) {
            let lead = AtomicI64::default();
            let (mut boot, mut before) = (BOOT, None::<Now>);
            for (slept, wall) in steps {
                boot += slept;
                let (now, _) = SystemClock::at(&lead, boot, WALL + wall);
                proptest::prop_assert!(now.lease.0 >= now.wall.0);
                if let Some(before) = before {
                    proptest::prop_assert!(now.lease.since(before.lease) >= now.boot.since(before.boot));
                }
                before = Some(now);
            }
        }
    }

    #[test]
    fn a_wall_clock_behind_the_last_record_moves_nothing_back() {
        let clock = SystemClock::new();
        let ahead = clock.now().wall.plus(Duration::from_secs(3_600));
        clock.not_before(ahead);
        assert!(clock.now().lease >= LeaseTime(ahead.0));
        assert!(clock.now().wall < ahead);
    }
}

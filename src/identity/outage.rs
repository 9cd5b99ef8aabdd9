//! How long an origin has failed.

use std::time::Duration;

use crate::clock::{BootTime, Wall};

/// The time since an origin could last be asked, measured on boottime: no clock that is set makes it longer or shorter.
#[derive(Debug)]
pub(super) struct Outage {
    began: Option<(Wall, BootTime)>,
    longest: Duration,
}

impl Outage {
    pub(super) fn new(longest: Duration) -> Self {
        Outage { began: None, longest }
    }

    /// It fails; answers when that began.
    pub(super) fn since(&mut self, wall: Wall, boot: BootTime) -> Wall {
        self.began.get_or_insert((wall, boot)).0
    }

    pub(super) fn over(&mut self) {
        self.began = None;
    }

    /// When it began, where that is longer ago than the limit.
    pub(super) fn too_long(&self, now: BootTime) -> Option<Wall> {
        self.began.filter(|(_, boot)| now.since(*boot) > self.longest).map(|(wall, _)| wall)
    }
}

//! The background tasks of the broker.
//!
//! | Task | Does | When cancelled | When it fails |
//! |---|---|---|---|
//! | [`Task::Expiry`] | removes leases whose deadline has passed | stops at once; due leases are not accepted anyway | the daemon shuts down gracefully |
//! | [`Task::Calls`] | wakes the members that a lowering concerns | stops at once; their streams end with the daemon | the daemon shuts down gracefully |
//! | [`Task::Reaper`] | marks members without heartbeats as away; ends drains and jobs whose deadline has passed | stops at once; the next run of the daemon continues | the daemon shuts down gracefully |
//! | [`Task::Pruning`] | removes old fences, expired keys and expired locks; records how many requests were denied | stops at once | the daemon shuts down gracefully |

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{members::beat_window, parts::Broker};
use crate::{
    clock::{BootTime, Wall},
    job::{AttemptState, Drain, Job},
    ledger::{Actor, Cause},
    limits,
    name::{Digest, FenceName, LeaseId},
};

/// The number of leases that are examined in one batch, so that issuing does not wait long.
const EXPIRY_BATCH: usize = 2_000;
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_millis(250);
const REAP_INTERVAL: Duration = Duration::from_millis(500);
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);

/// One background task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Expiry,
    Calls,
    Reaper,
    Pruning,
}

impl Task {
    pub const ALL: [Task; 4] = [Task::Expiry, Task::Calls, Task::Reaper, Task::Pruning];

    pub const fn name(self) -> &'static str {
        match self {
            Task::Expiry => "the expiry of leases",
            Task::Calls => "the calls to members",
            Task::Reaper => "the reaper",
            Task::Pruning => "the pruning",
        }
    }

    /// Runs the task until it is cancelled.
    pub async fn run(self, broker: Arc<Broker>, stop: CancellationToken) {
        let work = async {
            match self {
                Task::Expiry => broker.expire_leases().await,
                Task::Calls => broker.members.call_members().await,
                Task::Reaper => broker.reap_jobs().await,
                Task::Pruning => broker.prune().await,
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Broker {
    async fn expire_leases(&self) {
        loop {
            let now = self.context.clock.now().lease;
            let (gone, looked) = self.context.table.expire(now, EXPIRY_BATCH);
            if !gone.is_empty() {
                metrics::counter!("leasehold_leases_expired_total").increment(gone.len() as u64);
                let ids: Vec<LeaseId> = gone.iter().map(|l| l.id).collect();
                self.endings.record_ended(&ids, &Cause::Expired);
            }
            if looked >= EXPIRY_BATCH {
                tokio::task::yield_now().await;
                continue;
            }
            let next = now.plus(EXPIRY_CHECK_INTERVAL);
            self.context
                .clock
                .sleep_until(
                    self.context
                        .table
                        .next_deadline()
                        .map_or(next, |d| d.max(now.plus(Duration::from_millis(20))).min(next)),
                )
                .await;
        }
    }

    async fn reap_jobs(&self) {
        let mut last: Option<BootTime> = None;
        let mut grace = Duration::ZERO;
        let mut exceptions = None;
        loop {
            let now = self.context.clock.now();
            self.end_exceptions(now.wall, &mut exceptions);
            // If the daemon stalled, members could not send heartbeats. So this check gives each member the length of the stall in
            // addition.
            if let Some(before) = last {
                let stall = now.boot.since(before).saturating_sub(REAP_INTERVAL.saturating_mul(4));
                grace = if stall.is_zero() { Duration::ZERO } else { stall };
            }
            last = Some(now.boot);
            let window = beat_window(self.context.settings.beat, self.context.settings.lost_after)
                .saturating_add(grace);
            for key in self.context.sessions.silent(now.boot, window) {
                if let Some(presence) = self.context.sessions.forget_silent(&key, now.boot, window) {
                    let (job, attempt, instance) = &key;
                    self.members.mark_away(*job, *attempt, instance, "it missed its beats");
                    // Wakes the member's streams, so that an open stream checks whether it must end.
                    presence.call();
                }
            }
            for job in self.context.state.open_jobs() {
                self.members.mark_members_without_presence_away(&job, now.lease, window);
                self.reap(&job);
            }
            self.context.clock.sleep(REAP_INTERVAL).await;
        }
    }

    /// If an exception has expired, decides again about the jobs that run because of it. `before` has the digest of the catalog and
    /// the number of exceptions that were in force.
    fn end_exceptions(&self, now: Wall, before: &mut Option<(Digest, usize)>) {
        let rules = self.context.rules();
        let in_force = (rules.catalog().digest(), rules.catalog().exceptions().in_force(now));
        let is_over =
            before.replace(in_force).is_some_and(|(of, count)| of == in_force.0 && in_force.1 < count);
        if is_over {
            // A request that was decided under the expired exception checks the revision before it answers, and starts over.
            self.context.fences.raise_revision();
            let jobs = self.context.state.open_jobs();
            let ended = self.approvals.sweeps.end_no_longer_allowed(&rules, &jobs, "an exception is over");
            tracing::warn!(leases = ended, "an exception from the rules is over (waiver or observed tenant)");
        }
    }

    /// Ends drains, members, attempts and the job itself if their deadline has passed.
    fn reap(&self, job: &Job) {
        let now = self.context.clock.now().lease;
        if let Some(a) = job.current() {
            let mut over = Vec::new();
            if let AttemptState::Draining(Drain { reading_ends, .. }) = a.state
                && now >= reading_ends
            {
                over.push(FenceName::attempt_reading(job.id, a.number));
            }
            let drained = a.present().filter(|(_, m)| m.drain.is_some_and(|d| now >= d.reading_ends));
            over.extend(drained.map(|(i, _)| FenceName::member_reading(job.id, a.number, i.clone())));
            for name in over {
                if self.context.fences.behind(&name) > 0 {
                    self.context.state.lower(&name, "the drain's time for reading is over");
                    self.endings.sweep(&[name], "drained");
                }
            }
        }
        if job.overdue(self.context.settings.rejoin, now).is_empty() {
            return;
        }
        let by = Actor::Daemon("its deadline has passed".into());
        let done = self.context.state.narrow(job.id, &by, |j| {
            Ok::<_, std::convert::Infallible>(j.overdue(self.context.settings.rejoin, now))
        });
        if let Ok(done) = done {
            tracing::info!(job = %job.id, state = done.value.state.word(), detail = %done.value.detail, "a deadline in the job has passed");
            self.endings.sweep(&done.lowered, "deadline passed");
        }
    }

    async fn prune(&self) {
        let retention = limits::LEASE_TTL_MAX.saturating_add(limits::FENCE_RETENTION_MARGIN);
        loop {
            let now = self.context.clock.now().lease;
            self.context.fences.prune(now, retention);
            self.context.state.prune(now);
            self.context.table.prune(now);
            self.context.denials.flush();
            self.context.rates.prune();
            self.context.clock.sleep(PRUNE_INTERVAL).await;
        }
    }
}

//! The use of leases. It is counted for each transfer, added up for each lease and resource, reported to the daemon,
//! and logged when the lease is over.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::live_access::LiveAccess;
use crate::{
    clock::{Clock, LeaseTime, Wall},
    limits::{
        GATEWAY_USAGE_IDLE, GATEWAY_USAGE_LOOK, GATEWAY_USAGES_MAX, USE_OBJECTS_MAX, USE_REPORT,
        USES_PER_REPORT_MAX,
    },
    name::{LeaseId, Object},
    proto::{convert::timestamp, v1::LeaseUse},
    reason::{Reason, Refusal},
    verify::{Access, Report, UseReporter},
};

/// The direction of a transfer: to the client or from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// One transfer. It is counted when it is dropped.
pub(super) struct Transfer {
    direction: Direction,
    access: LiveAccess,
    bytes: u64,
    end: &'static str,
}

impl Transfer {
    /// Begins a transfer.
    pub(super) fn begin(direction: Direction, access: &LiveAccess) -> Self {
        Transfer { direction, access: access.clone(), bytes: 0, end: "broken" }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Marks the transfer as complete: all bytes were sent or received.
    pub(super) fn finish(&mut self) {
        self.end = "whole";
    }

    /// Marks the transfer as cut, because the access ended first.
    pub(super) fn cut(&mut self, refusal: &Refusal) {
        self.end = "cut";
        let claims = self.access.access().claims();
        tracing::info!(
            lease = %claims.lh.lease,
            job = %claims.lh.job,
            object = %self.access.object(),
            bytes = self.bytes,
            reason = refusal.reason.code(),
            "a transfer was cut"
        );
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        metrics::counter!("leasehold_gateway_transfers_total", "end" => self.end).increment(1);
        match self.direction {
            Direction::Read => metrics::counter!("leasehold_gateway_read_bytes_total").increment(self.bytes),
            Direction::Write => {
                metrics::counter!("leasehold_gateway_written_bytes_total").increment(self.bytes);
            }
        }
        self.access.usages().add(self);
    }
}

/// The counts of one lease and resource.
#[derive(Clone, Debug)]
struct UseTally {
    objects: u64,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    cuts: u64,
    refused: u64,
    first: Wall,
    last: Wall,
}

impl UseTally {
    fn at(now: Wall) -> Self {
        UseTally {
            objects: 0,
            reads: 0,
            read_bytes: 0,
            writes: 0,
            written_bytes: 0,
            cuts: 0,
            refused: 0,
            first: now,
            last: now,
        }
    }

    fn add(&mut self, transfer: &Transfer, is_new_object: bool, now: Wall) {
        // The clock may have been set back since.
        self.last = self.last.max(now);
        self.objects = self.objects.saturating_add(u64::from(is_new_object));
        self.cuts = self.cuts.saturating_add(u64::from(transfer.end == "cut"));
        let (count, bytes) = match transfer.direction {
            Direction::Read => (&mut self.reads, &mut self.read_bytes),
            Direction::Write => (&mut self.writes, &mut self.written_bytes),
        };
        *count = count.saturating_add(1);
        *bytes = bytes.saturating_add(transfer.bytes);
    }
}

/// The use of one resource by one lease.
#[derive(Clone)]
struct Usage {
    /// An access of the lease. Its claims name the lease, the job and the holder.
    access: Access,
    /// The newest allowed use.
    live: Option<LiveAccess>,
    all: UseTally,
    /// The counts since the last report.
    new: Option<UseTally>,
    reported: LeaseTime,
    used: LeaseTime,
}

/// The usages of all leases that are not over.
pub(super) struct Usages {
    clock: Arc<dyn Clock>,
    state: Mutex<UsageState>,
}

#[derive(Default)]
struct UsageState {
    all: HashMap<(LeaseId, Object), Usage>,
    /// The numbers of the keys that each lease has used.
    keys: HashMap<LeaseId, HashSet<u64>>,
    keys_in_all: usize,
    /// The uses that wait for a report.
    waiting: VecDeque<LeaseUse>,
    /// The number of transfers that are in no report, because the gateway had too many usages.
    lost: u64,
    /// A report without an answer. It is sent again unchanged.
    unanswered: Option<SentReport>,
    /// The number of the last report.
    seq: u64,
}

#[derive(Clone)]
struct SentReport {
    seq: u64,
    uses: Vec<LeaseUse>,
    lost: u64,
}

impl UsageState {
    /// Whether a lease uses this key for the first time, as far as the gateway remembers.
    fn is_new_key(&mut self, lease: LeaseId, key: u64) -> bool {
        let known = self.keys.entry(lease).or_default();
        if known.contains(&key) {
            return false;
        }
        if self.keys_in_all < USE_OBJECTS_MAX {
            known.insert(key);
            self.keys_in_all = self.keys_in_all.saturating_add(1);
        }
        true
    }

    fn forget_keys(&mut self, lease: LeaseId) {
        let gone = self.keys.remove(&lease).map_or(0, |keys| keys.len());
        self.keys_in_all = self.keys_in_all.saturating_sub(gone);
    }

    /// Returns the usage of a lease and resource. `None` if there are too many.
    fn usage(&mut self, access: &Access, object: &Object, now: (Wall, LeaseTime)) -> Option<&mut Usage> {
        let key = (access.claims().lh.lease, object.clone());
        if self.all.len() >= GATEWAY_USAGES_MAX && !self.all.contains_key(&key) {
            return None;
        }
        let usage = self.all.entry(key).or_insert_with(|| Usage {
            access: access.clone(),
            live: None,
            all: UseTally::at(now.0),
            new: None,
            reported: now.1,
            used: now.1,
        });
        usage.used = now.1;
        Some(usage)
    }

    /// Returns the next report, or the report that got no answer. `None` if there is nothing to report. The last report
    /// is made in any case.
    fn next_report(&mut self, kind: Report) -> Option<SentReport> {
        if self.unanswered.is_none() {
            if self.waiting.is_empty() && self.lost == 0 && kind == Report::Interim {
                return None;
            }
            let count = self.waiting.len().min(USES_PER_REPORT_MAX);
            self.seq = self.seq.saturating_add(1);
            let (uses, lost) = (self.waiting.drain(..count).collect(), mem::take(&mut self.lost));
            self.unanswered = Some(SentReport { seq: self.seq, uses, lost });
        }
        self.unanswered.clone()
    }

    /// Adds a use to the waiting ones. If too many wait, the oldest is dropped.
    fn wait(&mut self, lease_use: LeaseUse) {
        if self.waiting.len() >= GATEWAY_USAGES_MAX
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.lost = self.lost.saturating_add(oldest.reads).saturating_add(oldest.writes);
        }
        self.waiting.push_back(lease_use);
    }
}

impl Usages {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Usages { clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, UsageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, transfer: &Transfer) {
        let now = self.clock.now();
        let access = transfer.access.access();
        let mut state = self.state();
        let is_new = state.is_new_key(access.claims().lh.lease, transfer.access.key());
        let Some(usage) = state.usage(access, transfer.access.object(), (now.wall, now.lease)) else {
            // The metrics have counted the transfer.
            state.lost = state.lost.saturating_add(1);
            return;
        };
        usage.live = Some(transfer.access.clone());
        usage.all.add(transfer, is_new, now.wall);
        usage.new.get_or_insert_with(|| UseTally::at(now.wall)).add(transfer, is_new, now.wall);
    }

    /// Counts a request that a lease does not allow, although the lease opens the resource.
    pub(super) fn add_refusal(&self, access: &Access, object: &Object) {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(usage) = state.usage(access, object, (now.wall, now.lease)) else { return };
        let new = usage.new.get_or_insert_with(|| UseTally::at(now.wall));
        for counts in [&mut usage.all, new] {
            counts.refused = counts.refused.saturating_add(1);
            counts.last = counts.last.max(now.wall);
        }
    }

    /// Reports and logs the usages of leases that are over or idle, until `shutdown`. At the end, reports and logs all
    /// usages. Live leases are reported once a minute. A report that failed is sent again after [`GATEWAY_USAGE_LOOK`].
    pub(super) async fn watch(&self, reporter: Option<UseReporter>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.clock.sleep(GATEWAY_USAGE_LOOK) => {}
            }
            let now = self.clock.now().lease;
            self.collect_if(|usage| usage.is_over(now));
            self.collect_due(now);
            if let Some(reporter) = &reporter {
                self.report(reporter, Report::Interim).await;
            }
        }
        self.collect_if(|_| true);
        if let Some(reporter) = &reporter {
            self.report(reporter, Report::Last).await;
            let state = self.state();
            let unanswered = state.unanswered.as_ref().map_or(0, |sent| sent.uses.len());
            let uses = state.waiting.len().saturating_add(unanswered);
            if uses > 0 {
                tracing::warn!(
                    uses,
                    "the daemon did not accept the last report: the use of these leases is only in this log"
                );
            }
        }
    }

    /// Sends the waiting uses, in several reports if they do not fit into one.
    async fn report(&self, reporter: &UseReporter, kind: Report) {
        loop {
            let (next, is_whole) = {
                let mut state = self.state();
                (state.next_report(kind), state.waiting.is_empty())
            };
            let Some(SentReport { seq, uses, lost }) = next else { return };
            let kind_of_part = if is_whole { kind } else { Report::Interim };
            match reporter.report(seq, uses, lost, kind_of_part).await {
                Ok(0) => {}
                Ok(unknown) => tracing::warn!(
                    unknown,
                    "the daemon does not know the job or resource of some uses: they are only in this log"
                ),
                Err(refusal) => {
                    let reason = refusal.reason.code();
                    tracing::warn!(reason, %refusal, seq, "a report of use is sent again later");
                    return;
                }
            }
            self.state().unanswered = None;
            if is_whole {
                return;
            }
        }
    }

    /// Adds the new counts of live leases to the next report, once a minute for each lease.
    fn collect_due(&self, now: LeaseTime) {
        let mut state = self.state();
        let mut due = Vec::new();
        for ((lease, object), usage) in &mut state.all {
            if now.since(usage.reported) >= USE_REPORT {
                usage.reported = now;
                due.extend(usage.take_new(*lease, object));
            }
        }
        due.into_iter().for_each(|lease_use| state.wait(lease_use));
    }

    /// Logs and forgets some usages, and adds their new counts to the next report.
    fn collect_if(&self, mut is_over: impl FnMut(&Usage) -> bool) {
        let over: Vec<_> = {
            let mut state = self.state();
            let mut over: Vec<_> = state.all.extract_if(|_, usage| is_over(usage)).collect();
            for ((lease, object), usage) in &mut over {
                state.forget_keys(*lease);
                if let Some(lease_use) = usage.take_new(*lease, object) {
                    state.wait(lease_use);
                }
            }
            over
        };
        for ((lease, object), usage) in over {
            let (claims, all) = (usage.access.claims(), usage.all);
            tracing::info!(
                %lease,
                job = %claims.lh.job,
                attempt = %claims.lh.attempt,
                holder = %claims.sub,
                %object,
                objects = all.objects,
                reads = all.reads,
                read_bytes = all.read_bytes,
                writes = all.writes,
                written_bytes = all.written_bytes,
                cuts = all.cuts,
                refused = all.refused,
                first = %all.first,
                last = %all.last,
                "a lease was used"
            );
        }
    }
}

impl Usage {
    /// Whether the usage is over. If only a token has expired, it is not over, because the lease may come back with
    /// another token.
    fn is_over(&self, now: LeaseTime) -> bool {
        let has_ended = self.live.as_ref().is_some_and(|live| {
            live.check().is_err_and(|refusal| {
                !matches!(refusal.reason, Reason::TokenExpired | Reason::FeedStale | Reason::ClockDifference)
            })
        });
        has_ended || now.since(self.used) >= GATEWAY_USAGE_IDLE
    }

    /// Takes the counts since the last report.
    fn take_new(&mut self, lease: LeaseId, object: &Object) -> Option<LeaseUse> {
        let new = self.new.take()?;
        let job = self.access.claims().lh.job;
        // The folder of the lease's own job is reported under the name of the line.
        let is_own = object.job().is_none_or(|folder| folder == job);
        Some(LeaseUse {
            lease: lease.to_string(),
            job: job.to_string(),
            resource: if is_own { object.resource().to_string() } else { object.to_string() },
            objects: new.objects,
            reads: new.reads,
            read_bytes: new.read_bytes,
            writes: new.writes,
            written_bytes: new.written_bytes,
            cut: new.cuts,
            refused: new.refused,
            first: Some(timestamp(new.first)),
            last: Some(timestamp(new.last)),
        })
    }
}

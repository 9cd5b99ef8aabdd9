//! The reader of records, and the couriers.

use std::{path::Path, sync::Arc};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    courier::{ClientFault, Courier, client_of},
    facts::{NoticeLookup, facts_of, may_matter},
    letter::{Letter, NoticeOrigin},
    outbox::{Outbox, Put},
    place::PlaceFile,
    webhook::Webhook,
};
use crate::{
    clock::Clock,
    ledger::{Event, Ledger, TailError, TailLine},
    limits::{NOTICE_READ_AGAIN, NOTICE_RESUME_RECORDS_MAX},
};

/// Follows the ledger and delivers notices while it runs.
pub struct Notices {
    reader: RecordReader,
    couriers: Vec<Courier>,
}

/// A webhook and its outbox.
struct Receiver {
    webhook: Arc<Webhook>,
    outbox: Arc<Outbox>,
    /// The first record for which the webhook gets notices.
    from: u64,
}

struct RecordReader {
    ledger: Ledger,
    lookup: Arc<dyn NoticeLookup>,
    clock: Arc<dyn Clock>,
    /// The URL of the issuer.
    source: String,
    receivers: Vec<Receiver>,
}

/// The parts of the daemon that notices need.
pub struct NoticeParts<'a> {
    /// The directory of the daemon's state.
    pub state: &'a Path,
    pub ledger: Ledger,
    pub lookup: Arc<dyn NoticeLookup>,
    pub clock: Arc<dyn Clock>,
    /// The URL of the issuer, which names this daemon.
    pub source: String,
}

/// The record after which a webhook gets notices when the daemon has started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resumed {
    /// The last record for which the webhook gets no notice.
    after: u64,
    /// The number of records whose notices the webhook misses, because they are too far back.
    skipped: u64,
}

impl Resumed {
    /// Goes on after `heard`, the record in the file of the webhook, but skips records that are too far back. If the file has no
    /// record, or one that is not in the ledger, goes on after `head`, the last record of the ledger.
    fn at(heard: Option<u64>, head: u64) -> Self {
        let heard = heard.filter(|heard| *heard <= head).unwrap_or(head);
        let after = heard.max(head.saturating_sub(NOTICE_RESUME_RECORDS_MAX));
        Resumed { after, skipped: after.saturating_sub(heard) }
    }
}

impl Notices {
    /// Makes the clients of all webhooks, and finds their places in the ledger. A webhook without a place begins with the next
    /// record. Blocks.
    ///
    /// # Errors
    /// Fails if the authorities of a webhook cannot be used.
    pub fn open(webhooks: &[Webhook], parts: NoticeParts<'_>) -> Result<Self, ClientFault> {
        let head = parts.ledger.head().index;
        let (mut receivers, mut couriers) = (Vec::new(), Vec::new());
        for webhook in webhooks {
            let webhook = Arc::new(webhook.clone());
            let place = PlaceFile::of(parts.state, &webhook.name);
            let Resumed { after: heard, skipped } = Resumed::at(place.load(), head);
            if skipped > 0 {
                metrics::counter!("leasehold_notice_records_skipped_total").increment(skipped);
                tracing::error!(
                    webhook = %webhook.name,
                    skipped,
                    "too many records follow the last notice of a webhook: it gets no notices about the oldest of these records"
                );
            }
            let outbox = Arc::new(Outbox::default());
            outbox.begin_after(heard);
            couriers.push(Courier {
                webhook: webhook.clone(),
                outbox: outbox.clone(),
                place,
                client: client_of(&webhook, parts.clock.clone())?,
                clock: parts.clock.clone(),
            });
            receivers.push(Receiver { webhook, outbox, from: heard.saturating_add(1) });
        }
        let NoticeParts { ledger, lookup, clock, source, .. } = parts;
        Ok(Notices { reader: RecordReader { ledger, lookup, clock, source, receivers }, couriers })
    }

    /// Reads records and delivers notices until it is cancelled. A failure of a receiver does not end it.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for courier in self.couriers {
            tasks.spawn(courier.run(stop.clone()));
        }
        let reader = self.reader;
        tokio::select! {
            () = reader.read() => {}
            () = stop.cancelled() => {}
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl RecordReader {
    /// Reads the records. If they cannot be read, reports that and tries again later.
    async fn read(&self) {
        let Some(mut next) = self.receivers.iter().map(|r| r.from).min() else {
            return std::future::pending().await;
        };
        loop {
            let mut tail = self.ledger.tail(next);
            loop {
                match tail.next().await {
                    Some(line) => match self.take(line).await {
                        Ok(index) => next = index.saturating_add(1),
                        Err(error) => {
                            tracing::error!(%error, "no notices are made for now, because a record cannot be read: trying again");
                            break;
                        }
                    },
                    // The ledger is closed, because the daemon stops.
                    None => return std::future::pending().await,
                }
            }
            self.clock.sleep(NOTICE_READ_AGAIN).await;
        }
    }

    /// Puts a letter about a record into the outbox of each receiver that should get it. Returns the record's index.
    async fn take(&self, line: Result<TailLine, TailError>) -> Result<u64, TailError> {
        let line = line?;
        if may_matter(&line.line) {
            let (record, hash) = line.read()?;
            // A person who gets a notice of an approval acts on it at once. So the approval must have taken effect before the
            // notice is written.
            if let Event::JobApproved { job, .. } = &record.event {
                self.lookup.settled(*job).await;
            }
            let now = self.clock.now().lease;
            if let Some(facts) = facts_of(&record.event, &*self.lookup, now) {
                let origin =
                    NoticeOrigin { index: line.index, hash, time: record.time, source: &self.source };
                let is_wanted =
                    |r: &&Receiver| line.index >= r.from && r.webhook.occasions.contains(&facts.occasion);
                for receiver in self.receivers.iter().filter(is_wanted) {
                    let (tenants, format) = (&receiver.webhook.tenants, receiver.webhook.format);
                    if tenants.hears(facts.tenant.as_ref()) {
                        receiver.put(Letter::write(&facts, &origin, format), now);
                    } else if facts.concerns.iter().any(|tenant| tenants.hears(Some(tenant))) {
                        receiver.put(Letter::write(&facts.for_concerned(), &origin, format), now);
                    }
                }
            }
        }
        for receiver in self.receivers.iter().filter(|r| line.index >= r.from) {
            receiver.outbox.has_read(line.index);
        }
        Ok(line.index)
    }
}

impl Receiver {
    fn put(&self, letter: Letter, now: crate::clock::LeaseTime) {
        let put = self.outbox.put(letter, now);
        match put {
            Put::Waits => return metrics::gauge!("leasehold_notices_waiting").increment(1.0),
            Put::DroppedFirst => {
                let name = &self.webhook.name;
                tracing::error!(webhook = %name, "the queue of a webhook is full: its newest notices are dropped");
            }
            Put::Dropped => {}
        }
        metrics::counter!("leasehold_notices_total", "outcome" => "dropped").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The notices that a webhook misses after a long absence are counted.
    #[test]
    fn records_that_are_too_far_back_are_counted_as_skipped() {
        let most = NOTICE_RESUME_RECORDS_MAX;
        for (heard, head, after, skipped) in [
            (None, 500, 500, 0),
            (Some(501), 500, 500, 0),
            (Some(7), 500, 7, 0),
            (Some(7), most + 7, 7, 0),
            (Some(7), most + 10, 10, 3),
            (Some(0), 2 * most, most, most),
        ] {
            assert_eq!(Resumed::at(heard, head), Resumed { after, skipped }, "{heard:?} of {head}");
        }
    }
}

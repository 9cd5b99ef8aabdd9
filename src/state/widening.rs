//! Changes that widen access: the record is on disk before the change takes effect.

use std::{convert::Infallible, sync::Arc, time::Duration};

use super::{
    keys::KeyUse,
    locks::{Lock, LockName},
    logins::Login,
    narrowing::{ending, lock_record},
    rebuild::KeyedJob,
    records::{change_record, created_record, login_record, request_digest},
    refused::Refused,
    size,
    store::Store,
    store_state::StoreState,
};
use crate::{
    job::{Change, Job},
    ledger::{Actor, Appending, DecisionRecord, Ending, Event},
    limits,
    name::{FenceName, JobId, SpiffeId},
};

/// A widening change, recorded and in force.
#[derive(Debug)]
pub struct Widened {
    pub job: Arc<Job>,
    /// Whether something changed.
    pub changed: bool,
    pub lowered: Vec<FenceName>,
}

/// The result of [`Store::create`].
#[derive(Debug)]
pub enum Created {
    New(Arc<Job>),
    /// A job with this key and specification exists.
    Existing(Arc<Job>),
}

/// A job to create, and the decision that permits it.
#[derive(Debug)]
pub struct NewJob {
    pub job: Job,
    pub decision: DecisionRecord,
}

/// The number of jobs that may use an identity, according to the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// The identity belongs to one job only.
    ToOneJob,
    /// The identity belongs to all jobs that name it.
    ToAny,
}

impl Store {
    /// Creates a job, or finds the job that its key made. Resolves when the record is on disk.
    pub async fn create(&self, new: NewJob) -> Result<Created, Refused<Infallible>> {
        let NewJob { mut job, decision } = new;
        let request = request_digest(&job).ok();
        let (key, made) = KeyedJob::of(&job);
        let (tenant, creation) = (job.spec.tenant.clone(), size::of_creation(&job));
        let appending = loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut inner = self.lock_inner();
                match inner.keys.find(&key.0, &key.1) {
                    Some(&KeyUse::Made(KeyedJob { job: id, spec, .. })) => {
                        let found = inner.jobs.get(&id).map(|s| s.job.clone());
                        return match found {
                            Some(found) if spec == job.spec_digest => Ok(Created::Existing(found)),
                            _ => Err(Refused::KeyConflict(id)),
                        };
                    }
                    Some(KeyUse::Pending { .. }) => {}
                    None => {
                        inner.open.admit(&tenant, 1, creation)?;
                        inner.place_in_sweep(&mut job, request)?;
                        if let Err(full) = inner.keys.hold(&key.0, &key.1, &tenant) {
                            inner.forget_pending_place(job.sweep_place);
                            return Err(full.into());
                        }
                        // Count the job now, because many jobs may be recorded at once.
                        inner.open.add(&tenant, creation);
                        break self.ledger.append(&created_record(&job, decision));
                    }
                }
            }
            freed.await;
        };
        let written = self.wait_written(job.id, appending).await;
        let mut inner = self.lock_inner();
        self.freed.notify_waiters();
        inner.forget_pending_place(job.sweep_place);
        if let Err(why) = written {
            inner.keys.release(&key.0, &key.1);
            inner.open.remove(&tenant, creation);
            return Err(Refused::Ledger(why));
        }
        inner.keys.put(key, made);
        Ok(Created::New(inner.put(job, creation)))
    }

    /// Makes a widening change of a job: decides under the mutex, records, then applies. It calls `decide` again if
    /// another widening change came first. `decide` returns `Ok(None)` if there is nothing to change.
    pub async fn widen<E>(
        &self,
        id: JobId,
        by: Actor,
        decision: Option<DecisionRecord>,
        decide: impl Fn(&Job) -> Result<Option<Change>, E>,
    ) -> Result<Widened, Refused<E>> {
        self.widen_for(id, by, decision, None, decide).await
    }

    /// Makes a widening change for a member, like [`Store::widen`]. Refuses an identity that belongs to another job.
    pub async fn admit<E>(
        &self,
        id: JobId,
        member: (&SpiffeId, Belongs),
        decide: impl Fn(&Job) -> Result<Option<Change>, E>,
    ) -> Result<Widened, Refused<E>> {
        self.widen_for(id, Actor::from(member.0.clone()), None, Some(member), decide).await
    }

    async fn widen_for<E>(
        &self,
        id: JobId,
        by: Actor,
        decision: Option<DecisionRecord>,
        member: Option<(&SpiffeId, Belongs)>,
        decide: impl Fn(&Job) -> Result<Option<Change>, E>,
    ) -> Result<Widened, Refused<E>> {
        let mut turns = 0u32;
        let (change, appending) = loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut inner = self.lock_inner();
                let StoreState { jobs, identities, open, .. } = &mut *inner;
                let slot = jobs.get_mut(&id).ok_or(Refused::NoJob)?;
                let Some(change) = decide(&slot.job).map_err(Refused::Transition)? else {
                    return Ok(Widened { job: slot.job.clone(), changed: false, lowered: Vec::new() });
                };
                if let Some((identity, belongs)) = member {
                    let now = self.clock.now().lease;
                    if belongs == Belongs::ToOneJob
                        && let Some(other) = identities.bound_elsewhere(identity, id, now)
                    {
                        return Err(Refused::Bound(other));
                    }
                    if identities.len() >= limits::IDENTITIES_MAX && !identities.contains(identity) {
                        return Err(Refused::TooManyIdentities);
                    }
                }
                open.admit(&slot.job.spec.tenant, 0, size::of_change(&change))?;
                if slot.under_way.enter(&change) {
                    if let Some((identity, _)) = member {
                        identities.claim(identity, id);
                    }
                    let record = change_record(id, &change, by.clone(), decision.clone(), Ending::default());
                    break (change, self.ledger.append(&record));
                }
            }
            turns = turns.saturating_add(1);
            if turns > limits::MEMBERS_MAX {
                return Err(Refused::Contended);
            }
            freed.await;
        };
        let written = self.wait_written(id, appending).await;
        let now = self.clock.now().lease;
        let mut inner = self.lock_inner();
        if let Some((identity, _)) = member {
            inner.identities.unclaim(identity);
        }
        let Some(slot) = inner.jobs.get_mut(&id) else { return Err(Refused::NoJob) };
        slot.under_way.leave(&change);
        self.freed.notify_waiters();
        let index = written.map_err(Refused::Ledger)?;
        // Decide again, because a narrowing change may have come while the record was written.
        match decide(&slot.job) {
            Ok(Some(again)) if again == change => {}
            otherwise => {
                let why = "a narrowing change came while it was recorded".to_owned();
                self.ledger.defer(&Event::Withdrawn { index, job: id, why });
                return Err(otherwise.err().map_or(Refused::Overtaken, Refused::Transition));
            }
        }
        let names = slot.job.fences_of(&change);
        let job = inner.apply(id, &change).ok_or(Refused::NoJob)?;
        let mut lowered = Vec::new();
        for name in names {
            let l = self.lower_fence(&name, now);
            let because = "a newer attempt began".to_owned();
            self.ledger.defer(&Event::Lowered { name: name.clone(), because, ending: ending(l) });
            lowered.push(name);
        }
        Ok(Widened { job, changed: true, lowered })
    }

    /// Begins a login. Resolves when its record is on disk. A revocation or lock that comes meanwhile ends it.
    pub async fn log_in(&self, login: Login) -> Result<(), Refused<Infallible>> {
        let (certificate, human) = (login.certificate, login.human.clone());
        let appending = {
            let mut inner = self.lock_inner();
            inner.logins.prune(login.at);
            // A lock may have been set after the broker's check.
            let id = &login.id;
            let names = [
                FenceName::identity(id.clone()),
                FenceName::domain(id.trust_domain()),
                FenceName::human(login.human.clone()),
            ];
            if inner.locks.against(names.iter(), login.at).is_some() {
                return Err(Refused::LoginEnded);
            }
            if inner.logins.len() >= limits::LOGINS_MAX {
                return Err(Refused::TooManyLogins);
            }
            let record = Event::PersonLoggedIn(Box::new(login_record(&login)));
            // The login is in force before its record is on disk. This is harmless, because its certificate was not
            // handed out yet.
            inner.logins.insert(login);
            self.ledger.append(&record)
        };
        let written = in_time(limits::LEDGER_WAIT, appending).await;
        let mut inner = self.lock_inner();
        if let Err(why) = written {
            inner.logins.remove(&certificate);
            return Err(Refused::Ledger(why));
        }
        let now = self.clock.now().lease;
        match inner.logins.find(&certificate, now) {
            Some(_) => Ok(()),
            None if inner.logins.is_full_for(&human) => Err(Refused::LoginReplaced),
            None => Err(Refused::LoginEnded),
        }
    }

    /// Lifts a lock. Resolves when the record is on disk. Access that the lock ended does not come back.
    ///
    /// If the record failed or was not on disk in time, the lock stays in force, also after a restart. The record may
    /// still be on disk, so the lock is recorded again. `may` decides whether the lock in force may be lifted.
    pub async fn unlock(
        &self,
        name: &LockName,
        by: Actor,
        reason: &str,
        may: impl Fn(&Lock) -> bool,
    ) -> Result<Lock, Refused<Infallible>> {
        self.unlock_within(limits::LEDGER_WAIT, name, by, reason, may).await
    }

    pub(super) async fn unlock_within(
        &self,
        patience: Duration,
        name: &LockName,
        by: Actor,
        reason: &str,
        may: impl Fn(&Lock) -> bool,
    ) -> Result<Lock, Refused<Infallible>> {
        let (turn, lock, appending) = {
            let inner = self.lock_inner();
            let (turn, lock) = inner.locks.set(name, self.clock.now().lease).ok_or(Refused::NoLock)?;
            let lock = lock.clone();
            if !may(&lock) {
                return Err(Refused::NotTheirs(lock.by));
            }
            let reason = reason.to_owned();
            let record = match name {
                LockName::Recall(name) => Event::DatasetUnrecalled { name: name.clone(), by, reason },
                _ => Event::LockLifted { name: name.to_string(), by, reason },
            };
            (turn, lock, self.ledger.append(&record))
        };
        let accepted = appending.index().is_some();
        let written = in_time(patience, appending).await;
        let mut inner = self.lock_inner();
        let stands = inner.locks.set(name, self.clock.now().lease).is_some_and(|(now, _)| now == turn);
        if let Err(why) = written {
            // If the lock was set again meanwhile, the ledger has that after this lifting. If not, record the lock again,
            // because the record of the lifting may still reach the disk.
            if accepted && stands {
                let record = lock_record(inner.locks.insert(lock), Ending::default());
                self.ledger.defer(&record);
            }
            return Err(Refused::Ledger(why));
        }
        // If the lock was set again meanwhile, it was recorded after this lifting, and it stays in force.
        inner.locks.lift(name, turn);
        if inner.locks.find(name, self.clock.now().lease).is_some() {
            Err(Refused::SetAgain)
        } else {
            Ok(lock)
        }
    }

    /// Waits until a widening record is on disk. If this is not known in time, the record is withdrawn: it may still be
    /// on disk, and must not take effect after a restart.
    async fn wait_written(&self, job: JobId, appending: Appending) -> Result<u64, String> {
        let place = appending.index();
        let written = in_time(limits::LEDGER_WAIT, appending).await;
        if let (Some(index), Err(why)) = (place, &written) {
            self.ledger.defer(&Event::Withdrawn { index, job, why: why.clone() });
        }
        written
    }
}

/// Waits until a record is on disk. The error says why this is not known.
pub(super) async fn in_time(patience: Duration, appending: Appending) -> Result<u64, String> {
    match tokio::time::timeout(patience, appending).await {
        Ok(written) => written.map_err(|e| e.to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

//! Parameter sweeps: many jobs from one request. Numbers these jobs, and copies approvals to the next one.

use super::{Refused, Store, store_state::StoreState};
use crate::{
    job::{Approval, Job, SweepPlace},
    name::Digest,
};

impl StoreState {
    /// Gives a new job the next number in its sweep, and the approvals of the sweep's open jobs. Does nothing if the
    /// job is not part of a sweep.
    pub(super) fn place_in_sweep<E>(
        &mut self,
        job: &mut Job,
        request: Option<Digest>,
    ) -> Result<(), Refused<E>> {
        let (Some(sweep), Some(request)) = (&job.spec.sweep, request) else { return Ok(()) };
        let of_sweep = |place: &SweepPlace| place.request == request;
        let kept = self.jobs.values().filter_map(|slot| slot.job.sweep_place).filter(of_sweep);
        let pending = self.pending_sweep_places.iter().copied().filter(of_sweep);
        let number = kept.chain(pending).map(|place| place.number).max().unwrap_or(0).saturating_add(1);
        if number > sweep.jobs {
            return Err(Refused::SweepFull(sweep.jobs));
        }
        let place = SweepPlace { request, number };
        self.pending_sweep_places.insert(place);
        job.sweep_place = Some(place);
        if !job.gates.is_empty() {
            let others = self.jobs.values().filter(|slot| !slot.job.is_closed());
            let others =
                others.filter(|slot| slot.job.sweep_place.is_some_and(|place| place.request == request));
            let approvals: Vec<Approval> = others.flat_map(|slot| slot.job.approvals.clone()).collect();
            job.take_over_approvals(&approvals);
        }
        Ok(())
    }

    /// Removes the pending place of a job. Its record was written, or failed.
    pub(super) fn forget_pending_place(&mut self, place: Option<SweepPlace>) {
        if let Some(place) = place {
            self.pending_sweep_places.remove(&place);
        }
    }
}

impl Store {
    /// Returns the other open jobs of a job's sweep.
    pub fn open_in_sweep(&self, job: &Job) -> Vec<std::sync::Arc<Job>> {
        let Some(SweepPlace { request, .. }) = job.sweep_place else { return Vec::new() };
        let inner = self.lock_inner();
        let is_other = |other: &Job| {
            other.id != job.id
                && !other.is_closed()
                && other.sweep_place.is_some_and(|place| place.request == request)
        };
        inner.jobs.values().map(|slot| slot.job.clone()).filter(|other| is_other(other)).collect()
    }
}

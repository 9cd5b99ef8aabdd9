//! Sample jobs for tests.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{DoneWhen, Job, Members, Spec};
use crate::{
    clock::LeaseTime,
    name::{Digest, JobId},
};

/// Returns a specification without resources: `expect` members may join, and `attempts` attempts may begin.
pub(crate) fn sample_spec(expect: u32, attempts: u32) -> Spec {
    Spec {
        name: "j".into(),
        tenant: "acme".parse().unwrap(),
        purpose: "p".into(),
        why: String::new(),
        ticket: String::new(),
        rollback_to: None,
        prompt_alternative: String::new(),
        image: None,
        sweep: None,
        max_duration: Duration::from_secs(3_600),
        tune: None,
        read: vec![],
        read_checkpoints: vec![],
        write: vec![],
        pins: BTreeMap::new(),
        members: Members {
            start: vec![],
            join: vec!["spiffe://td/worker".parse().unwrap()],
            expect,
            max: expect,
            attempts,
            done_when: DoneWhen::All,
        },
        acting_for: None,
        credential_ttl: None,
        drain: None,
    }
}

/// Returns a new job with this specification.
pub(crate) fn sample_job(id: u128, spec: Spec, created: LeaseTime) -> Job {
    let launcher = "spiffe://td/launcher".parse().unwrap();
    Job::new(JobId(id), Arc::new(spec), Digest::ZERO, launcher, format!("key {id}"), created, Vec::new())
}

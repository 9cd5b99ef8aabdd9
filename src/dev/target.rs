//! The target of a request to the file server: a resource, a path in it, and an action.

use http::Method;

use super::folder::{SubPath, SubPathError};
use crate::{
    name::{Action, JobId, NameError, Object, ResourceKind, ResourceName},
    reason::{Reason, Refusal},
};

/// A parsed path, and the action on it. The target may not exist.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) resource: ResourceName,
    pub(super) action: Action,
    /// For a checkpoint: the job to whose folder the path belongs.
    pub(super) job: Option<JobId>,
    pub(super) below: SubPath,
}

impl Target {
    /// Parses `/dataset/TENANT/NAME@VERSION/PATH`, `/model/TENANT/NAME@VERSION/PATH`, `/checkpoint/TENANT/NAME/JOB/PATH`.
    pub(super) fn parse(method: &Method, path: &str) -> Result<Self, Refusal> {
        let mut cut = path.splitn(5, '/').skip(1);
        let (Some(kind), Some(tenant), Some(name)) = (cut.next(), cut.next(), cut.next()) else {
            return Err(Self::unknown_path());
        };
        let rest = cut.next().unwrap_or_default();
        let (kind, rest) = match kind {
            "dataset" => (ResourceKind::Dataset, rest),
            "model" => (ResourceKind::Model, rest),
            "checkpoint" => (ResourceKind::Checkpoint, rest),
            _ => return Err(Self::unknown_path()),
        };
        let text = format!("{}:{}/{}", kind.as_str(), decoded(tenant)?, decoded(name)?);
        let resource = text.parse::<ResourceName>().map_err(unnamed)?;
        let action = match (kind, method) {
            (ResourceKind::Dataset, &Method::GET) => Action::ReadDataset,
            (ResourceKind::Model, &Method::GET) => Action::ReadModel,
            (ResourceKind::Checkpoint, &Method::GET) => Action::ReadCheckpoint,
            (ResourceKind::Checkpoint, &Method::PUT) => Action::WriteCheckpoint,
            (ResourceKind::Checkpoint, &Method::DELETE) => Action::DeleteCheckpoint,
            _ => {
                let text = format!("{method} is not possible for a {}", kind.as_str());
                return Err(Refusal::new(Reason::NotSupported, text));
            }
        };
        let (job, rest) = match kind {
            ResourceKind::Checkpoint => {
                let (job, rest) = rest.split_once('/').unwrap_or((rest, ""));
                (Some(decoded(job)?.parse().map_err(unnamed)?), rest)
            }
            ResourceKind::Dataset | ResourceKind::Model => (None, rest),
        };
        let below = SubPath::parse(rest).map_err(invalid)?;
        if method != Method::GET && (below.is_root() || rest.ends_with('/')) {
            return Err(Refusal::new(Reason::FieldInvalid, "the path names a folder: name a file in it"));
        }
        Ok(Target { resource, action, job, below })
    }

    /// Returns the object that the token must open: the resource, or the job's folder of a checkpoint line.
    pub(super) fn object(&self) -> Object {
        match self.job {
            Some(job) => Object::folder(self.resource.clone(), job),
            None => self.resource.clone().into(),
        }
    }

    fn unknown_path() -> Refusal {
        Refusal::new(Reason::FieldInvalid, "this server has no such path")
            .fix("ask for /dataset/TENANT/NAME@VERSION/PATH, /model/TENANT/NAME@VERSION/PATH or /checkpoint/TENANT/NAME/JOB/PATH")
    }
}

/// Percent-decodes one segment.
fn decoded(segment: &str) -> Result<String, Refusal> {
    super::folder::decode(segment).map_err(invalid)
}

fn invalid(error: SubPathError) -> Refusal {
    Refusal::new(Reason::FieldInvalid, error.to_string())
}

fn unnamed(error: NameError) -> Refusal {
    Refusal::new(Reason::FieldInvalid, error.to_string())
}

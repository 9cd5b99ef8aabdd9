//! What a request line asks for.

use http::Method;

use super::folder::{SubPath, SubPathError};
use crate::{
    name::{Action, JobId, NameError, Object, ResourceKind, ResourceName},
    reason::{Reason, Refusal},
};

/// A path in its form, and what is to be done with it. Says nothing yet of whether it exists.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) resource: ResourceName,
    pub(super) action: Action,
    /// The folder of one job, of a checkpoint line.
    pub(super) job: Option<JobId>,
    pub(super) below: SubPath,
}

impl Target {
    /// Reads `/dataset/TENANT/NAME@VERSION/PATH`, `/model/TENANT/NAME@VERSION/PATH`, `/checkpoint/TENANT/NAME/JOB/PATH`.
    pub(super) fn parse(method: &Method, path: &str) -> Result<Self, Refusal> {
        let mut cut = path.splitn(5, '/').skip(1);
        let (Some(kind), Some(tenant), Some(name)) = (cut.next(), cut.next(), cut.next()) else {
            return Err(Self::no_such_form());
        };
        let rest = cut.next().unwrap_or_default();
        let (kind, rest) = match kind {
            "dataset" => (ResourceKind::Dataset, rest),
            "model" => (ResourceKind::Model, rest),
            "checkpoint" => (ResourceKind::Checkpoint, rest),
            _ => return Err(Self::no_such_form()),
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
                let text = format!("a {} is not there for {method}", kind.as_str());
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
            return Err(Refusal::new(Reason::FieldInvalid, "the path names a folder: name a file below it"));
        }
        Ok(Target { resource, action, job, below })
    }

    /// What the token must open: of a checkpoint line, the folder of the job that the path names.
    pub(super) fn object(&self) -> Object {
        match self.job {
            Some(job) => Object::folder(self.resource.clone(), job),
            None => self.resource.clone().into(),
        }
    }

    fn no_such_form() -> Refusal {
        Refusal::new(Reason::FieldInvalid, "the path names nothing that is served here")
            .fix("ask for /dataset/TENANT/NAME@VERSION/PATH, /model/TENANT/NAME@VERSION/PATH or /checkpoint/TENANT/NAME/JOB/PATH")
    }
}

/// One segment, percent-decoded once.
fn decoded(segment: &str) -> Result<String, Refusal> {
    super::folder::decode(segment).map_err(invalid)
}

fn invalid(error: SubPathError) -> Refusal {
    Refusal::new(Reason::FieldInvalid, error.to_string())
}

fn unnamed(error: NameError) -> Refusal {
    Refusal::new(Reason::FieldInvalid, error.to_string())
}

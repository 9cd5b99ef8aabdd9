//! The object of a request to a resource server.

use std::{fmt, str::FromStr};

use super::{JobId, NameError, ResourceKind, ResourceName, text_form};

/// A dataset or a model, or the folder of one job in a checkpoint line.
///
/// Several jobs share a checkpoint line, and each job has its own folder. So a token is never issued for a whole line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    resource: ResourceName,
    folder: Option<JobId>,
}

impl Object {
    /// Returns the folder of a job in a checkpoint line.
    pub fn folder(line: ResourceName, job: JobId) -> Self {
        Object { resource: line, folder: Some(job) }
    }

    /// Returns the object of a job in a resource: its own folder of a checkpoint line, or all of a dataset or a model.
    pub fn of_job(resource: ResourceName, job: JobId) -> Self {
        let folder = (resource.kind() == ResourceKind::Checkpoint).then_some(job);
        Object { resource, folder }
    }

    /// Returns the dataset, the model, or the checkpoint line of the folder.
    pub fn resource(&self) -> &ResourceName {
        &self.resource
    }

    /// Returns the job that owns the folder. `None` if the object is not a folder.
    pub fn job(&self) -> Option<JobId> {
        self.folder
    }

    /// Whether a token can be issued for the object. A checkpoint line must have a folder, and other resources must not
    /// have a folder.
    pub fn can_have_token(&self) -> bool {
        self.folder.is_some() == (self.resource.kind() == ResourceKind::Checkpoint)
    }
}

impl From<ResourceName> for Object {
    fn from(resource: ResourceName) -> Self {
        Object { resource, folder: None }
    }
}

impl From<&ResourceName> for Object {
    fn from(resource: &ResourceName) -> Self {
        resource.clone().into()
    }
}

/// Writes the object as `dataset:acme/tickets@v3` or `checkpoint:acme/support-lora/j-…`.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.folder {
            None => self.resource.fmt(f),
            Some(job) => write!(f, "{}/{job}", self.resource),
        }
    }
}

impl FromStr for Object {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let folder = text.rsplit_once('/').and_then(|(line, job)| Some((line, job.parse().ok()?)));
        match folder {
            Some((line, job)) if line.contains('/') => Ok(Object::folder(line.parse()?, job)),
            _ => Ok(text.parse::<ResourceName>()?.into()),
        }
    }
}

text_form!(Object);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_reads_back_as_itself() {
        let job = JobId(7);
        let line: ResourceName = "checkpoint:acme/lora".parse().unwrap();
        for object in
            [Object::from(&line), Object::folder(line.clone(), job), "model:acme/m@1".parse().unwrap()]
        {
            assert_eq!(object.to_string().parse::<Object>().unwrap(), object);
        }
        assert!(Object::folder(line.clone(), job).can_have_token());
        assert!(!Object::from(line).can_have_token());
        // A line may have the name of a job, but that name is not a folder.
        let odd: Object = format!("checkpoint:acme/{job}").parse().unwrap();
        assert_eq!(odd.resource().name(), job.to_string());
        for text in ["", "checkpoint:acme/lora/x", "dataset:acme/a/b"] {
            assert!(text.parse::<Object>().is_err(), "{text}");
        }
    }
}

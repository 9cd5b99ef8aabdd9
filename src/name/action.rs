//! Actions, methods, scopes, and the kinds of principals.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{JobId, NameError, Object, ResourceKind, ResourceName, text_form};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $wanted:literal { $( $(#[$vdoc:meta])* $variant:ident = $text:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( $(#[$vdoc])* $variant, )* }

        impl $name {
            /// All variants, in the order of their declaration.
            pub const ALL: &'static [$name] = &[ $($name::$variant,)* ];

            /// Returns the text that [`Display`](fmt::Display) writes and [`FromStr`] reads.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                match text {
                    $($text => Ok($name::$variant),)*
                    _ => Err(NameError::new(text, $wanted, concat!("it must be one of:" $(, " ", $text)*))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        text_form!($name, as_str);
    };
}

words! {
    /// An action on a resource.
    Action, "an action" {
        /// Read a version of a dataset.
        ReadDataset = "read_dataset",
        /// Read a version of a model.
        ReadModel = "read_model",
        /// Change a model. Jobs do not request it by name: the broker derives it if a job reads a model and writes a
        /// checkpoint.
        Finetune = "finetune",
        /// Write into the job's folder in a checkpoint line.
        WriteCheckpoint = "write_checkpoint",
        /// Read and list a folder in a checkpoint line: the job's folder, or the folder of another job.
        ReadCheckpoint = "read_checkpoint",
        /// Delete from the job's folder in a checkpoint line.
        DeleteCheckpoint = "delete_checkpoint",
    }
}

words! {
    /// The method of adaptation.
    Method, "a method" {
        /// All weights of the model are trained.
        Full = "full",
        /// Low-rank matrices are trained beside the weights.
        Lora = "lora",
        /// Small layers are trained between the layers of the model.
        Adapter = "adapter",
        /// Only the embedding of a prompt is trained.
        PromptTuning = "prompt-tuning",
        /// The model is trained on preferences between answers, as in DPO or RLHF.
        Preference = "preference",
    }
}

words! {
    /// The half of a job's access: reads or writes. Each lease belongs to one half.
    Half, "a half" {
        /// Datasets, base models, and the checkpoints of other jobs.
        Reading = "reading",
        /// The job's own checkpoints: read, list, write and delete.
        Writing = "writing",
    }
}

words! {
    /// The kind of a principal.
    PrincipalKind, "a kind of principal" {
        /// Takes part in jobs.
        Workload = "workload",
        /// Describes, begins and ends jobs: CI, a person.
        Launcher = "launcher",
        /// Begins and ends the jobs of one cluster.
        Scheduler = "scheduler",
        /// Sees what is live, approves, revokes.
        Operator = "operator",
        /// Checks credentials for an audience.
        Verifier = "verifier",
        /// Reads the ledger.
        Auditor = "auditor",
    }
}

words! {
    /// The outcome of a job, an attempt or a member.
    Outcome, "an outcome" {
        /// The work was done.
        Completed = "completed",
        /// The work ended with an error.
        Failed = "failed",
        /// The work was stopped from outside and may go on in another attempt: a preemption, a requeue, a signal.
        Interrupted = "interrupted",
        /// The members were lost, and the end of the work was not reported. Examples are a lost node or network.
        Lost = "lost",
        /// The launcher closed the job before it was done.
        Cancelled = "cancelled",
        /// People refused to approve the job. Jobs only.
        Rejected = "rejected",
        /// The deadline passed before an attempt began. Jobs only.
        Expired = "expired",
        /// An operator ended the access.
        Revoked = "revoked",
        /// A newer attempt began. Attempts only.
        Superseded = "superseded",
        /// The member left cleanly, and the end of its work is not known.
        Unknown = "unknown",
    }
}

impl PrincipalKind {
    /// Returns the kind with its article: `a workload`, `an operator`.
    pub const fn with_article(self) -> &'static str {
        match self {
            PrincipalKind::Workload => "a workload",
            PrincipalKind::Launcher => "a launcher",
            PrincipalKind::Scheduler => "a scheduler",
            PrincipalKind::Operator => "an operator",
            PrincipalKind::Verifier => "a verifier",
            PrincipalKind::Auditor => "an auditor",
        }
    }
}

impl Action {
    /// Returns the half of a credential for this action. The checkpoints of another job are an exception: they belong to
    /// the reading half. `None` for `Finetune`: policy decides on it, but there is no credential for it.
    pub const fn half(self) -> Option<Half> {
        match self {
            Action::ReadDataset | Action::ReadModel => Some(Half::Reading),
            Action::WriteCheckpoint | Action::ReadCheckpoint | Action::DeleteCheckpoint => {
                Some(Half::Writing)
            }
            Action::Finetune => None,
        }
    }

    /// Returns the kind of resource that the action is for.
    pub const fn applies_to(self) -> ResourceKind {
        match self {
            Action::ReadDataset => ResourceKind::Dataset,
            Action::ReadModel | Action::Finetune => ResourceKind::Model,
            Action::WriteCheckpoint | Action::ReadCheckpoint | Action::DeleteCheckpoint => {
                ResourceKind::Checkpoint
            }
        }
    }
}

/// A resource, and actions on it. In a request, a scope can only ask for less than the job was granted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// A version of a dataset or a model, or a whole checkpoint line.
    pub resource: ResourceName,
    /// The other job whose folder in the checkpoint line is read. `None` stands for the folder of the job itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<JobId>,
    /// The actions. They must apply to the kind of the resource.
    pub actions: BTreeSet<Action>,
}

impl Scope {
    /// Returns the scope with every action that a credential for this resource can have.
    pub fn whole(resource: ResourceName) -> Self {
        let actions = match resource.kind() {
            ResourceKind::Dataset => BTreeSet::from([Action::ReadDataset]),
            ResourceKind::Model => BTreeSet::from([Action::ReadModel]),
            ResourceKind::Checkpoint => {
                BTreeSet::from([Action::WriteCheckpoint, Action::ReadCheckpoint, Action::DeleteCheckpoint])
            }
        };
        Scope { resource, folder: None, actions }
    }

    /// Returns the whole scope for a name in a request. The folder of another job can only be read.
    pub fn of(name: &Object) -> Self {
        match name.job() {
            None => Self::whole(name.resource().clone()),
            Some(job) => Scope {
                resource: name.resource().clone(),
                folder: Some(job),
                actions: BTreeSet::from([Action::ReadCheckpoint]),
            },
        }
    }

    /// Returns the name of the scope in requests and answers. The folder of the job itself has the name of its line.
    pub fn name(&self) -> Object {
        match self.folder {
            None => self.resource.clone().into(),
            Some(job) => Object::folder(self.resource.clone(), job),
        }
    }

    /// Returns the object that the scope opens for a job.
    pub fn object(&self, job: JobId) -> Object {
        Object::of_job(self.resource.clone(), self.folder.unwrap_or(job))
    }

    /// Returns the half to which the scope belongs.
    pub fn half(&self) -> Half {
        match self.resource.kind() {
            ResourceKind::Checkpoint if self.folder.is_some() => Half::Reading,
            ResourceKind::Dataset | ResourceKind::Model => Half::Reading,
            ResourceKind::Checkpoint => Half::Writing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The folder of another job can only be read, and belongs to the reading half.
    #[test]
    fn the_folder_of_another_job_is_only_read() {
        let (own, other) = (JobId(1), JobId(2));
        let folder = Object::folder("checkpoint:acme/lora".parse().unwrap(), other);
        let scope = Scope::of(&folder);
        assert_eq!((scope.half(), scope.name(), scope.object(own)), (Half::Reading, folder.clone(), folder));
        assert_eq!(scope.actions, BTreeSet::from([Action::ReadCheckpoint]));
        let line = Scope::of(&Object::from(scope.resource.clone()));
        assert_eq!((line.half(), line.object(own).job()), (Half::Writing, Some(own)));
    }

    #[test]
    fn each_kind_has_its_article() {
        for kind in PrincipalKind::ALL {
            let (article, word) = kind.with_article().split_once(' ').unwrap();
            let has_vowel = word.starts_with(['a', 'e', 'i', 'o', 'u']);
            assert_eq!((article, word), (if has_vowel { "an" } else { "a" }, kind.as_str()));
        }
    }
}

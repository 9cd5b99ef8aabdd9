//! The files beside the tokens: the index of the credentials, and the drain note. They contain no secret.

use std::{ffi::OsString, path::Path};

use serde_json::{Value, json};

use crate::{
    clock::Wall,
    name::{AttemptNumber, Half, JobId, LeaseId, Scope},
};

pub(crate) const INDEX: &str = "credentials.json";
/// The file that appears when the program is asked to finish.
pub(crate) const DRAIN: &str = "drain.json";

/// The content of `credentials.json`.
#[derive(Clone, Debug)]
pub struct CredentialIndex {
    pub job: JobId,
    pub attempt: AttemptNumber,
    pub credentials: Vec<IndexEntry>,
}

/// One credential: its file name and the resources that it opens.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    pub name: String,
    pub half: Half,
    pub audience: String,
    pub lease: LeaseId,
    /// When the token expires if it is not renewed.
    pub expires: Wall,
    pub resources: Vec<IndexResource>,
}

/// One resource of a credential.
#[derive(Clone, Debug)]
pub struct IndexResource {
    pub scope: Scope,
    /// The location at which the audience serves the resource.
    pub location: Option<String>,
}

impl CredentialIndex {
    /// Makes the text of `credentials.json` for credentials in this folder.
    pub(crate) fn text(&self, folder: &Path, drain: Option<&DrainNote>) -> String {
        let entry = |entry: &IndexEntry| {
            let resources: Vec<_> = entry
                .resources
                .iter()
                .map(|r| json!({ "resource": r.scope.name(), "actions": r.scope.actions, "location": r.location }))
                .collect();
            json!({
                "half": entry.half,
                "audience": entry.audience,
                "path": folder.join(&entry.name),
                "expires": entry.expires.to_string(),
                "lease": entry.lease,
                "resources": resources,
            })
        };
        let entries: Vec<_> = self.credentials.iter().map(entry).collect();
        let mut text = json!({ "job": self.job, "attempt": self.attempt, "credentials": entries });
        if let (Some(drain), Some(all)) = (drain, text.as_object_mut()) {
            all.insert("drain".to_owned(), drain.to_json());
        }
        text.to_string()
    }

    /// Makes the variables for the child: see [`CredentialDir::env`](super::credential_dir::CredentialDir::env).
    pub(crate) fn variables(&self, folder: &Path) -> Vec<(OsString, OsString)> {
        let mut env: Vec<(OsString, OsString)> = vec![
            ("LEASEHOLD_JOB".into(), self.job.to_string().into()),
            ("LEASEHOLD_ATTEMPT".into(), self.attempt.to_string().into()),
            ("LEASEHOLD_CREDENTIALS".into(), folder.join(INDEX).into()),
            ("LEASEHOLD_DRAIN_FILE".into(), folder.join(DRAIN).into()),
        ];
        for (half, variable) in
            [(Half::Reading, "LEASEHOLD_TOKEN_FILE_READING"), (Half::Writing, "LEASEHOLD_TOKEN_FILE_WRITING")]
        {
            let mut of_half = self.credentials.iter().filter(|c| c.half == half);
            if let (Some(only), None) = (of_half.next(), of_half.next()) {
                env.push((variable.into(), folder.join(&only.name).into()));
            }
        }
        env
    }
}

/// The times until which the program may finish its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainNote {
    pub reason: String,
    /// When reading ends. `None` before the daemon answers.
    pub reading_ends: Option<Wall>,
    pub writing_ends: Option<Wall>,
}

impl DrainNote {
    /// Makes the text of the drain file.
    pub(crate) fn text(&self) -> String {
        self.to_json().to_string()
    }

    fn to_json(&self) -> Value {
        let text = |wall: Option<Wall>| wall.map(|w| w.to_string());
        json!({
            "reason": self.reason,
            "reading_ends": text(self.reading_ends),
            "writing_ends": text(self.writing_ends),
        })
    }
}

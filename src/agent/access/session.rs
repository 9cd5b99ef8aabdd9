//! The saved session of a sidecar. If the sidecar is killed and restarted, it is the same member again.

use std::path::Path;

use prost::Message;
use serde_json::json;

use super::{
    credential_dir::SESSION,
    manifest::Manifest,
    member::stream::AttemptSession,
    obtain::{JoinOptions, JoinTarget},
};
use crate::{
    name::{AttemptNumber, Digest},
    proto::v1,
    secret::{Secret, SecretText},
};

/// The saved session of a sidecar that was killed.
#[derive(Debug)]
pub(crate) struct SavedSession {
    pub(crate) session: AttemptSession,
    /// Whether that sidecar created the job. If so, no one else will end it.
    pub(crate) is_own_job: bool,
}

impl SavedSession {
    /// Returns the text of the file in which a session is saved. The text contains the session secret and the ticket.
    pub(crate) fn to_file_text(
        session: &AttemptSession,
        is_own_job: bool,
        options: &JoinOptions,
    ) -> SecretText {
        let text = json!({
            "for": options_digest(options),
            "job": session.job,
            "attempt": session.attempt,
            "instance": session.instance.to_string(),
            "secret": session.secret.to_text().expose(),
            "ticket": session.ticket.expose(),
            "own_job": is_own_job,
        });
        SecretText::new(text.to_string())
    }

    /// Finds the session of a sidecar that was started with the same options.
    pub(crate) fn find(saved_texts: &[SecretText], options: &JoinOptions) -> Option<Self> {
        let wanted = options_digest(options);
        saved_texts.iter().find_map(|text| {
            let file: serde_json::Value = serde_json::from_str(text.expose()).ok()?;
            let word = |key: &str| file.get(key).and_then(|v| v.as_str());
            (word("for")? == wanted).then_some(())?;
            let session = AttemptSession {
                job: word("job")?.parse().ok()?,
                attempt: file.get("attempt")?.as_u64().and_then(AttemptNumber::new)?,
                instance: word("instance")?.parse().ok()?,
                secret: Secret::from_text(word("secret")?)?,
                ticket: SecretText::new(word("ticket")?.to_owned()),
            };
            Some(SavedSession { session, is_own_job: file.get("own_job")?.as_bool()? })
        })
    }
}

/// Reads the session of the sidecar that keeps its credentials in a folder, for another program of the same user. `None` if there
/// is none.
pub fn session_in(folder: &Path) -> Option<v1::Session> {
    let text = SecretText::new(Manifest::read_own_text(&folder.join(SESSION))?);
    let file: serde_json::Value = serde_json::from_str(text.expose()).ok()?;
    let word = |key: &str| file.get(key).and_then(|v| v.as_str());
    Some(v1::Session {
        job: word("job")?.to_owned(),
        attempt: file.get("attempt")?.as_u64()?,
        instance: word("instance")?.to_owned(),
        secret: Secret::from_text(word("secret")?)?.expose().to_vec(),
    })
}

/// A digest of the options with which a sidecar was started. Two sidecars with the same digest and directory never run at the
/// same time.
fn options_digest(options: &JoinOptions) -> String {
    let what = match &options.what {
        JoinTarget::Job(id) => format!("job {id}"),
        JoinTarget::Attempt(id) => format!("attempt of {id}"),
        JoinTarget::New(spec) => {
            // The order of a map differs from one encoding to the next, so sort it.
            let mut spec = spec.clone();
            let mut pins: Vec<_> = spec.pins.drain().collect();
            pins.sort();
            format!("new {} {pins:?}", Digest::of(&spec.encode_to_vec()))
        }
    };
    let JoinOptions { attempt_key, instance, .. } = options;
    Digest::of(format!("{what} {attempt_key:?} {instance:?}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent::RunSettings, name::JobId};

    fn options(what: JoinTarget) -> JoinOptions {
        JoinOptions {
            what,
            attempt_key: Some("pod-1".into()),
            supersede: false,
            approval_wait: None,
            instance: None,
            ticket: None,
            settings: RunSettings::default(),
            svid: None,
        }
    }

    #[test]
    fn another_program_of_the_user_reads_the_session() {
        let folder = tempfile::tempdir().unwrap();
        assert!(session_in(folder.path()).is_none());
        let session = AttemptSession {
            job: JobId(7),
            attempt: AttemptNumber::FIRST,
            instance: "node-1".parse().unwrap(),
            secret: Secret::random().unwrap(),
            ticket: SecretText::new(String::new()),
        };
        let text = SavedSession::to_file_text(&session, true, &options(JoinTarget::Job(JobId(7))));
        std::fs::write(folder.path().join(SESSION), text.expose()).unwrap();
        assert_eq!(session_in(folder.path()), Some(session.to_wire()));
        std::fs::write(folder.path().join(SESSION), "{}").unwrap();
        assert!(session_in(folder.path()).is_none());
    }

    #[test]
    fn a_session_is_found_by_the_same_options() {
        let pins = ["a", "b", "c"].map(|n| (format!("dataset:acme/{n}@v1"), "none".to_owned()));
        let spec = |name: &str| {
            let pins = pins.iter().cloned().collect();
            options(JoinTarget::New(v1::JobSpec { name: name.into(), pins, ..Default::default() }))
        };
        let session = AttemptSession {
            job: JobId(7),
            attempt: AttemptNumber::FIRST,
            instance: "node-1".parse().unwrap(),
            secret: Secret::random().unwrap(),
            ticket: SecretText::new("t".into()),
        };
        let left =
            [SecretText::new("no json".into()), SavedSession::to_file_text(&session, true, &spec("lora"))];
        let found = SavedSession::find(&left, &spec("lora")).unwrap();
        assert!(
            found.is_own_job
                && found.session.job == session.job
                && found.session.secret.digest() == session.secret.digest()
        );
        assert_eq!((found.session.instance, found.session.ticket.expose()), (session.instance, "t"));
        for other in [
            spec("other"),
            options(JoinTarget::Job(JobId(7))),
            JoinOptions { attempt_key: None, ..spec("lora") },
        ] {
            assert!(SavedSession::find(&left, &other).is_none());
        }
    }
}

//! What an agent keeps of its membership in a file, so that it is the same member after it was killed.

use prost::Message;
use serde_json::json;

use super::{
    member::stream::MemberSession,
    obtain::{JoinOptions, JoinTarget},
};
use crate::{
    name::{AttemptNumber, Digest},
    secret::{Secret, SecretText},
};

/// A membership of an agent that is gone.
#[derive(Debug)]
pub(crate) struct SavedSession {
    pub(crate) who: MemberSession,
    /// That agent created the job, and no one else will end it.
    pub(crate) is_own_job: bool,
}

impl SavedSession {
    /// The text of the file. It holds the session's secret and the ticket.
    pub(crate) fn text(who: &MemberSession, is_own_job: bool, joining: &JoinOptions) -> SecretText {
        let text = json!({
            "for": purpose(joining),
            "job": who.job,
            "attempt": who.attempt,
            "instance": who.instance.to_string(),
            "secret": who.secret.to_text().expose(),
            "ticket": who.ticket.expose(),
            "own_job": is_own_job,
        });
        SecretText::new(text.to_string())
    }

    /// The membership of an agent that was started for the same.
    pub(crate) fn find(left: &[SecretText], joining: &JoinOptions) -> Option<Self> {
        let wanted = purpose(joining);
        left.iter().find_map(|text| {
            let file: serde_json::Value = serde_json::from_str(text.expose()).ok()?;
            let word = |key: &str| file.get(key).and_then(|v| v.as_str());
            (word("for")? == wanted).then_some(())?;
            let who = MemberSession {
                job: word("job")?.parse().ok()?,
                attempt: file.get("attempt")?.as_u64().and_then(AttemptNumber::new)?,
                instance: word("instance")?.parse().ok()?,
                secret: Secret::from_text(word("secret")?)?,
                ticket: SecretText::new(word("ticket")?.to_owned()),
            };
            Some(SavedSession { who, is_own_job: file.get("own_job")?.as_bool()? })
        })
    }
}

/// What an agent was started for. Two agents of one purpose are one after the other, never beside each other in one place.
fn purpose(joining: &JoinOptions) -> String {
    let what = match &joining.what {
        JoinTarget::Job(id) => format!("job {id}"),
        JoinTarget::Attempt(id) => format!("attempt of {id}"),
        JoinTarget::New(spec) => {
            // A map has no order on the wire.
            let mut spec = spec.clone();
            let mut pins: Vec<_> = spec.pins.drain().collect();
            pins.sort();
            format!("new {} {pins:?}", Digest::of(&spec.encode_to_vec()))
        }
    };
    let JoinOptions { attempt_key, instance, .. } = joining;
    Digest::of(format!("{what} {attempt_key:?} {instance:?}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent::RunSettings, name::JobId, proto::v1};

    fn joining(what: JoinTarget) -> JoinOptions {
        JoinOptions {
            what,
            attempt_key: Some("pod-1".into()),
            supersede: false,
            instance: None,
            ticket: None,
            settings: RunSettings::default(),
            svid: None,
        }
    }

    #[test]
    fn a_session_is_found_by_who_was_started_for_the_same() {
        let pins = ["a", "b", "c"].map(|n| (format!("dataset:acme/{n}@v1"), "none".to_owned()));
        let spec = |name: &str| {
            let pins = pins.iter().cloned().collect();
            joining(JoinTarget::New(v1::JobSpec { name: name.into(), pins, ..Default::default() }))
        };
        let who = MemberSession {
            job: JobId(7),
            attempt: AttemptNumber::FIRST,
            instance: "node-1".parse().unwrap(),
            secret: Secret::random().unwrap(),
            ticket: SecretText::new("t".into()),
        };
        let left = [SecretText::new("no json".into()), SavedSession::text(&who, true, &spec("lora"))];
        let found = SavedSession::find(&left, &spec("lora")).unwrap();
        assert!(
            found.is_own_job && found.who.job == who.job && found.who.secret.digest() == who.secret.digest()
        );
        assert_eq!((found.who.instance, found.who.ticket.expose()), (who.instance, "t"));
        for other in [
            spec("other"),
            joining(JoinTarget::Job(JobId(7))),
            JoinOptions { attempt_key: None, ..spec("lora") },
        ] {
            assert!(SavedSession::find(&left, &other).is_none());
        }
    }
}

//! The conditions of a request: If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use s3s::dto::{ETagCondition, Timestamp};

use super::store::{ObjectInfo, StoreError};

/// The conditions on an object that must be true before a request is served.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
    pub(super) if_modified_since: Option<Timestamp>,
    pub(super) if_unmodified_since: Option<Timestamp>,
}

impl Conditions {
    /// Makes the conditions of a read from If-Match and If-None-Match, If-Modified-Since and If-Unmodified-Since.
    pub(super) fn of_read(tags: [Option<ETagCondition>; 2], times: [Option<Timestamp>; 2]) -> Self {
        let ([if_match, if_none_match], [if_modified_since, if_unmodified_since]) = (tags, times);
        Conditions { if_match, if_none_match, if_modified_since, if_unmodified_since }
    }

    /// Checks the conditions for a read, in the order of RFC 9110 section 13.2.2.
    pub(super) fn check_read(&self, info: &ObjectInfo) -> Result<(), StoreError> {
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(wanted), _) if !matches(wanted, &info.e_tag) => return Err(StoreError::Precondition),
            (None, Some(at)) if whole_seconds(info.modified) > seconds(at) => {
                return Err(StoreError::Precondition);
            }
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(known), _) if matches(known, &info.e_tag) => Err(StoreError::NotModified),
            (None, Some(at)) if whole_seconds(info.modified) <= seconds(at) => Err(StoreError::NotModified),
            _ => Ok(()),
        }
    }

    /// Checks the conditions for a write against the existing object, if there is one.
    pub(super) fn check_write(&self, existing: Option<&ObjectInfo>) -> Result<(), StoreError> {
        let holds = match (&self.if_match, &self.if_none_match, existing) {
            (Some(_), _, None) => return Err(StoreError::NotFound),
            (Some(wanted), _, Some(info)) => matches(wanted, &info.e_tag),
            (None, Some(known), Some(info)) => !matches(known, &info.e_tag),
            (None, _, _) => true,
        };
        if holds { Ok(()) } else { Err(StoreError::Precondition) }
    }

    /// Whether the object must not exist yet.
    pub(super) fn must_be_new(&self) -> bool {
        matches!(self.if_none_match, Some(ETagCondition::Any))
    }
}

fn matches(condition: &ETagCondition, e_tag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(wanted) => wanted.as_strong() == Some(e_tag),
    }
}

/// HTTP dates have whole seconds.
fn whole_seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn seconds(at: &Timestamp) -> i64 {
    time::OffsetDateTime::from(at.clone()).unix_timestamp()
}

#[cfg(test)]
mod tests {
    use s3s::dto::ETag;

    use super::*;

    fn tag(text: &str) -> Option<ETagCondition> {
        Some(ETagCondition::ETag(ETag::Strong(text.to_owned())))
    }

    fn at(seconds: u64) -> Option<Timestamp> {
        Some((UNIX_EPOCH + Duration::from_secs(seconds)).into())
    }

    // Each condition is decided as RFC 9110 says, and a tag has priority over a date.
    #[test]
    fn conditions_are_decided_in_the_order_of_the_standard() {
        let modified = UNIX_EPOCH + Duration::from_millis(100_500);
        let info = ObjectInfo { size: 1, e_tag: "a-1".into(), modified };
        let read = |conditions: Conditions| match conditions.check_read(&info) {
            Ok(()) => 200,
            Err(StoreError::NotModified) => 304,
            Err(_) => 412,
        };
        let none = Conditions::default;
        assert_eq!(read(none()), 200);
        assert_eq!(read(Conditions { if_match: tag("a-1"), if_unmodified_since: at(1), ..none() }), 200);
        assert_eq!(read(Conditions { if_match: tag("b"), ..none() }), 412);
        assert_eq!(read(Conditions { if_unmodified_since: at(100), ..none() }), 200);
        assert_eq!(read(Conditions { if_unmodified_since: at(99), ..none() }), 412);
        assert_eq!(read(Conditions { if_none_match: tag("a-1"), ..none() }), 304);
        assert_eq!(read(Conditions { if_none_match: tag("b"), if_modified_since: at(200), ..none() }), 200);
        assert_eq!(read(Conditions { if_modified_since: at(100), ..none() }), 304);
        assert_eq!(read(Conditions { if_modified_since: at(99), ..none() }), 200);

        let new = Conditions { if_none_match: Some(ETagCondition::Any), ..none() };
        assert!(new.must_be_new() && new.check_write(None).is_ok() && new.check_write(Some(&info)).is_err());
        let same = Conditions { if_match: tag("a-1"), ..none() };
        assert!(same.check_write(Some(&info)).is_ok());
        assert!(matches!(same.check_write(None), Err(StoreError::NotFound)));
    }
}

//! The body of a notice.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{facts::NoticeFacts, occasion::Occasion, webhook::LetterFormat};
use crate::{clock::Wall, limits::NOTICE_BYTES_MAX, name::Digest};

/// A notice, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    /// The index of the record in the ledger.
    pub(super) index: u64,
    /// The occasion of the notice.
    pub(super) occasion: Occasion,
    /// The digest of the record, in hexadecimal digits. It is the same for each attempt to deliver the letter.
    pub(super) id: String,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

/// The record from which a notice is made.
pub(super) struct NoticeOrigin<'a> {
    pub(super) index: u64,
    /// The hash of the record's line in the ledger. A tenant also sees it in its part of the ledger, and cannot learn from it
    /// how many records other tenants have.
    pub(super) hash: Digest,
    pub(super) time: Wall,
    /// The URL of the issuer, which names this daemon.
    pub(super) source: &'a str,
}

impl Letter {
    /// Writes the body of the notice.
    pub(super) fn write(facts: &NoticeFacts, origin: &NoticeOrigin<'_>, format: LetterFormat) -> Self {
        let hash = origin.hash.to_string();
        let id = hash.trim_start_matches("sha256:").to_owned();
        let (content_type, mut body) = match format {
            LetterFormat::CloudEvents => {
                let body = cloud_event(facts, origin, &id, Value::Object(facts.data.clone()));
                ("application/cloudevents+json; charset=utf-8", body)
            }
            LetterFormat::Slack => ("application/json; charset=utf-8", slack(facts)),
        };
        if body.len() > NOTICE_BYTES_MAX {
            // Each text and list has a limit, so only a new field could make a body too large.
            body = match format {
                LetterFormat::CloudEvents => {
                    cloud_event(facts, origin, &id, json!({ "summary": facts.summary }))
                }
                LetterFormat::Slack => json!({ "text": escape_markup(&facts.summary) }).to_string(),
            };
        }
        Letter { index: origin.index, occasion: facts.occasion, id, content_type, body: body.into() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.body.len().saturating_add(self.id.len())
    }
}

/// Writes the body as `CloudEvents` 1.0 in structured mode.
fn cloud_event(facts: &NoticeFacts, origin: &NoticeOrigin<'_>, id: &str, mut data: Value) -> String {
    if let Value::Object(data) = &mut data {
        data.insert("summary".to_owned(), facts.summary.clone().into());
    }
    let mut event = Map::new();
    event.insert("specversion".to_owned(), "1.0".into());
    event.insert("id".to_owned(), id.into());
    event.insert("source".to_owned(), origin.source.into());
    event.insert("type".to_owned(), format!("leasehold.{}", facts.occasion).into());
    event.insert("subject".to_owned(), facts.subject.clone().into());
    event.insert("time".to_owned(), origin.time.to_string().into());
    event.insert("datacontenttype".to_owned(), "application/json".into());
    if let Some(tenant) = &facts.tenant {
        event.insert("tenant".to_owned(), tenant.as_str().into());
    }
    event.insert("data".to_owned(), data);
    Value::Object(event).to_string()
}

/// Writes the body as a text of a few lines for people.
fn slack(facts: &NoticeFacts) -> String {
    let mut text = format!("*{}*: {}", facts.occasion, escape_markup(&facts.summary));
    for (key, label) in [
        ("why", "why"),
        ("gates", "gates"),
        ("read", "reads"),
        ("sensitive", "sensitive"),
        ("to_approve", "to approve"),
    ] {
        let value = match facts.data.get(key) {
            Some(Value::String(one)) => one.clone(),
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            _ => continue,
        };
        if !value.is_empty() && !facts.summary.contains(&value) {
            text.push_str(&format!("\n{label}: {}", escape_markup(&value)));
        }
    }
    json!({ "text": text }).to_string()
}

/// Escapes the characters that Slack reads as markup. So a text of a job cannot call people by `<!channel>` or hide a link.
fn escape_markup(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(why: &str) -> NoticeFacts {
        NoticeFacts {
            occasion: Occasion::Recalled,
            tenant: Some("acme".parse().unwrap()),
            concerns: Default::default(),
            subject: "dataset:acme/tickets@v3".into(),
            summary: "dataset:acme/tickets@v3 was recalled".into(),
            data: Map::from_iter([("why".to_owned(), Value::from(why))]),
        }
    }

    fn letter(facts: &NoticeFacts, format: LetterFormat) -> Value {
        let origin = NoticeOrigin {
            index: 7,
            hash: Digest([0xab; 32]),
            time: Wall(1_700_000_000_000),
            source: "https://leasehold.example",
        };
        let letter = Letter::write(facts, &origin, format);
        assert_eq!((letter.index, letter.id.as_str()), (7, "ab".repeat(32).as_str()));
        assert!(letter.body.len() <= NOTICE_BYTES_MAX);
        serde_json::from_slice(&letter.body).unwrap()
    }

    #[test]
    fn a_cloud_event_has_the_attributes_of_the_standard() {
        let shown = letter(&facts("consent withdrawn"), LetterFormat::CloudEvents);
        let wanted = json!({
            "specversion": "1.0", "id": "ab".repeat(32), "source": "https://leasehold.example",
            "type": "leasehold.recalled", "subject": "dataset:acme/tickets@v3",
            "time": "2023-11-14T22:13:20.000Z", "datacontenttype": "application/json", "tenant": "acme",
            "data": { "why": "consent withdrawn", "summary": "dataset:acme/tickets@v3 was recalled" },
        });
        assert_eq!(shown, wanted);
    }

    #[test]
    fn a_slack_text_calls_no_one_and_hides_no_link() {
        let shown = letter(&facts("<!channel> & <https://x|good>"), LetterFormat::Slack);
        let text = shown["text"].as_str().unwrap();
        assert!(!text.contains('<') && text.contains("&lt;!channel&gt; &amp; "), "{text}");
    }

    #[test]
    fn a_body_past_the_bound_keeps_its_summary() {
        let shown = letter(&facts(&"x".repeat(NOTICE_BYTES_MAX)), LetterFormat::CloudEvents);
        assert_eq!(shown["data"], json!({ "summary": "dataset:acme/tickets@v3 was recalled" }));
    }
}

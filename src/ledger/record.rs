//! One record: an [`Event`] in its envelope, as one line.
//!
//! ```text
//! {"v":1,"index":7,"prev":"sha256:…","time":"2026-11-20T10:02:11.402Z","epoch":3,"type":…,…,"hash":"sha256:…"}
//! ```
//! The fields of the envelope always have this order and spelling. So a record can be read and checked without a JSON
//! parser.
//! `prev` is SHA-256 over the bytes of the previous line, without its newline. It is all zero for the first record.
//! `hash` is SHA-256 over the bytes of this line up to `,"hash"`. `"refused":n` follows `epoch` if the records of the n
//! previous indexes were refused.

use std::io::Write;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{event::Event, fault::Fault};
use crate::{clock::Wall, name::Digest};

/// The version of the written form. A line of another version cannot be read.
const VERSION: u64 = 1;

const HASH_OPEN: &str = ",\"hash\":\"sha256:";
/// The number of bytes from `,"hash"` to the end of the line.
const HASH_BYTES: usize = HASH_OPEN.len() + 64 + 2;

/// A record that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The record's index in the ledger, from 1.
    pub index: u64,
    /// The digest of the previous line.
    pub prev: Digest,
    /// The time at which the record was accepted. The wall clock may step, so the order is by `index`.
    pub time: Wall,
    pub epoch: u64,
    /// The number of empty indexes directly before this record. Their records were queued, but refused after a write
    /// error.
    pub refused: u64,
    pub event: Event,
}

/// A position in the chain: the index of a record and the digest of its line. All zero before the first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub index: u64,
    pub digest: Digest,
}

impl Head {
    /// The position before the first record.
    pub const START: Head = Head { index: 0, digest: Digest::ZERO };
}

/// The usual size of the text of an issued credential, which is the most frequent record.
const USUAL_BYTES: usize = 1_536;

/// An event as JSON. It is written once, to count its bytes and to make its line.
#[derive(Clone, Debug)]
pub struct EventText(String);

impl EventText {
    pub(super) fn of(event: &Event) -> Result<Self, serde_json::Error> {
        let mut text = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut text, event)?;
        String::from_utf8(text).map(EventText).map_err(serde::ser::Error::custom)
    }

    /// Returns the size of the recorded event in bytes, without the envelope.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Returns the fields, without the braces.
    pub(super) fn as_str(&self) -> &str {
        self.0.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default()
    }

    /// Returns the `type` of the event.
    pub(super) fn kind(&self) -> &str {
        kind_of(self.as_str())
    }
}

/// Returns the `type` with which a text of fields begins.
fn kind_of(fields: &str) -> &str {
    fields.strip_prefix("\"type\":\"").and_then(|t| t.split_once('"')).map_or("", |(kind, _)| kind)
}

/// The fields around an event.
pub(super) struct Envelope {
    pub(super) index: u64,
    pub(super) prev: Digest,
    pub(super) time: Wall,
    pub(super) epoch: u64,
    pub(super) refused: u64,
}

/// Writes a line with its newline and returns its digest.
pub(super) fn encode(out: &mut Vec<u8>, envelope: &Envelope, event: &EventText) -> Digest {
    let Envelope { index, prev, time, epoch, refused } = envelope;
    let from = out.len();
    // Writing to a vector does not fail.
    let _ = write!(
        out,
        "{{\"v\":{VERSION},\"index\":{index},\"prev\":\"{prev}\",\"time\":\"{time}\",\"epoch\":{epoch}"
    );
    if *refused > 0 {
        let _ = write!(out, ",\"refused\":{refused}");
    }
    out.push(b',');
    out.extend_from_slice(event.as_str().as_bytes());
    // One pass computes the hash of the line so far, and the digest of the whole line.
    let mut whole = Context::new(&SHA256);
    whole.update(out.get(from..).unwrap_or_default());
    let sealed = out.len();
    let hash = finished(whole.clone());
    let _ = write!(out, ",\"hash\":\"{hash}\"}}");
    whole.update(out.get(sealed..).unwrap_or_default());
    out.push(b'\n');
    finished(whole)
}

fn finished(sha256: Context) -> Digest {
    sha256.finish().as_ref().try_into().map_or(Digest::ZERO, Digest)
}

/// A line that matches its own hash, split into parts. The event is not read yet.
pub(super) struct Line<'a> {
    pub(super) index: u64,
    pub(super) prev: Digest,
    pub(super) time: Wall,
    pub(super) epoch: u64,
    pub(super) refused: u64,
    /// The `type` of the event.
    pub(super) kind: &'a str,
    pub(super) fields: &'a str,
    /// The line's own hash.
    pub(super) hash: Digest,
}

/// The `type` of the record that describes a snapshot.
pub(super) const SNAPSHOT: &str = "snapshot";

/// Reads the event from its fields.
pub(super) fn event(fields: &str) -> Result<Event, Fault> {
    serde_json::from_str(&format!("{{{fields}}}")).map_err(|e| Fault::Event(e.to_string()))
}

impl Line<'_> {
    pub(super) fn record(self) -> Result<Record, Fault> {
        let Line { index, prev, time, epoch, refused, fields, .. } = self;
        Ok(Record { index, prev, time, epoch, refused, event: event(fields)? })
    }
}

/// Reads a complete line.
pub(super) fn decode(line: &[u8]) -> Result<(Record, &str), Fault> {
    let line = split(line)?;
    let kind = line.kind;
    Ok((line.record()?, kind))
}

/// Splits a line without its newline, and compares it with its own hash. Accepts only lines in the form of [`encode`].
/// The event is not read: [`event`] does that.
pub(super) fn split(line: &[u8]) -> Result<Line<'_>, Fault> {
    let line = std::str::from_utf8(line).map_err(|_| Fault::Malformed("it is not UTF-8"))?;
    let rest = line.strip_prefix("{\"v\":").ok_or(Fault::Malformed("it does not begin with `{\"v\":`"))?;
    let (version, rest) = number(rest).ok_or(Fault::Malformed("`v` is not a number"))?;
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let cut = line.len().checked_sub(HASH_BYTES);
    let (sealed, seal) =
        cut.and_then(|at| line.split_at_checked(at)).ok_or(Fault::Malformed("it is too short"))?;
    let hash = seal
        .strip_prefix(",\"hash\":\"")
        .and_then(|t| t.strip_suffix("\"}"))
        .and_then(|t| t.parse::<Digest>().ok())
        .ok_or(Fault::Malformed("it does not end with its hash"))?;
    if Digest::of(sealed.as_bytes()) != hash {
        return Err(Fault::Hash);
    }

    let rest = rest.strip_suffix(seal).ok_or(Fault::Malformed("it is too short"))?;
    let (index, rest) = field(rest, ",\"index\":").ok_or(Fault::Malformed("`index` is not a number"))?;
    let (prev, rest) = text(rest, ",\"prev\":\"").ok_or(Fault::Malformed("`prev` is missing"))?;
    let prev = prev.parse().map_err(|_| Fault::Malformed("`prev` is not a digest"))?;
    let (time, rest) = text(rest, ",\"time\":\"").ok_or(Fault::Malformed("`time` is missing"))?;
    let time = Wall::parse(time).ok_or(Fault::Malformed("`time` is not RFC 3339"))?;
    let (epoch, rest) = field(rest, ",\"epoch\":").ok_or(Fault::Malformed("`epoch` is not a number"))?;
    let (refused, rest) = field(rest, ",\"refused\":").unwrap_or((0, rest));
    let fields = rest.strip_prefix(',').ok_or(Fault::Malformed("it holds no event"))?;
    Ok(Line { index, prev, time, epoch, refused, kind: kind_of(fields), fields, hash })
}

/// Returns the index of a line that is known to be valid.
pub(super) fn index_of(line: &[u8]) -> Option<u64> {
    let start = std::str::from_utf8(line.get(..line.len().min(64))?).ok()?;
    let (_, rest) = number(start.strip_prefix("{\"v\":")?)?;
    field(rest, ",\"index\":").map(|(index, _)| index)
}

/// Returns the bytes that follow a complete, valid record at the start of a line. `None` if the line has no such
/// record.
pub(super) fn after_whole_record(line: &[u8]) -> Option<&[u8]> {
    let open = HASH_OPEN.as_bytes();
    let at = line.windows(open.len()).rposition(|w| w == open)?;
    let (record, rest) = line.split_at_checked(at + HASH_BYTES)?;
    decode(record).is_ok().then_some(rest)
}

/// Reads a decimal number without sign or leading zeros. Also returns the rest of the text.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    if digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    Some((digits.parse().ok()?, rest))
}

fn field<'a>(text: &'a str, name: &str) -> Option<(u64, &'a str)> {
    number(text.strip_prefix(name)?)
}

fn text<'a>(rest: &'a str, open: &str) -> Option<(&'a str, &'a str)> {
    rest.strip_prefix(open)?.split_once('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(refused: u64, event: &Event) -> Vec<u8> {
        let envelope = Envelope {
            index: 7 + refused,
            prev: Digest::of(b"before"),
            time: Wall(1_795_148_000_123),
            epoch: 3,
            refused,
        };
        let mut out = Vec::new();
        encode(&mut out, &envelope, &EventText::of(event).unwrap());
        assert_eq!(out.pop(), Some(b'\n'));
        out
    }

    #[test]
    fn a_record_reads_back_as_it_was_written_and_is_plain_json() {
        let event = Event::EpochEnded { reason: "a \"quoted\", {braced} \u{7}\nreason, déjà".into() };
        for refused in [0, 4] {
            let line = line(refused, &event);
            let (record, kind) = decode(&line).unwrap();
            assert_eq!(kind, "epoch.ended");
            assert_eq!(
                record,
                Record {
                    index: 7 + refused,
                    prev: Digest::of(b"before"),
                    time: Wall(1_795_148_000_123),
                    epoch: 3,
                    refused,
                    event: event.clone()
                }
            );
            assert_eq!(index_of(&line), Some(7 + refused));
            let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(json["type"], "epoch.ended");
            assert_eq!(json["time"], "2026-11-20T04:13:20.123Z");
        }
    }

    #[test]
    fn no_single_changed_byte_of_a_line_is_read_as_a_record() {
        let line = line(2, &Event::EpochEnded { reason: "done".into() });
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert!(decode(&changed).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_of_an_unknown_version_is_refused_as_such() {
        let line = line(0, &Event::EpochEnded { reason: "done".into() });
        let later = String::from_utf8(line).unwrap().replacen("\"v\":1", "\"v\":2", 1);
        assert_eq!(decode(later.as_bytes()).unwrap_err(), Fault::Version(2));
    }

    #[test]
    fn a_record_of_version_one_as_first_written_is_still_read() {
        let first = br#"{"v":1,"index":1,"prev":"sha256:0000000000000000000000000000000000000000000000000000000000000000","time":"2026-11-20T04:13:20.123Z","epoch":1,"type":"epoch.ended","reason":"first"#;
        let mut line = first.to_vec();
        line.extend_from_slice(b"\"");
        let hash = Digest::of(&line);
        line.extend_from_slice(format!(",\"hash\":\"{hash}\"}}").as_bytes());
        let (record, _) = decode(&line).unwrap();
        assert_eq!(record.event, Event::EpochEnded { reason: "first".into() });
    }
}

//! The values of a tenant's file. Each is parsed into a type that is always valid, or refused with a reason.

use std::{fmt::Display, str::FromStr};

use time::{Date, Month, OffsetDateTime, Time, UtcOffset};
use toml::value::{Datetime, Offset};

use crate::{
    clock::Wall,
    limits::{NAME_BYTES_MAX, TEXT_BYTES_MAX},
    name::{NameError, Pin, ResourceKind, ResourceName, TenantName},
    plain,
    written::Value,
};

/// A lower-case word: a role, group, purpose or data class.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LowerWord(pub(super) String);

impl FromStr for LowerWord {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            Err("a word has 1 to 128 letters")
        } else if !text.bytes().all(plain) {
            Err("a word is made of a-z, 0-9, `-` and `_`")
        } else {
            Ok(LowerWord(text.to_owned()))
        }
    }
}

/// Parses a text. The error shows the text, like the errors of names.
pub(super) fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|why: T::Err| {
        let why = why.to_string();
        if why.starts_with('`') { why } else { format!("`{}` is not valid: {why}", plain::value(text)) }
    })
}

/// Reads a line of text for people.
pub(super) fn line_of_text(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("it is empty".to_owned())
    } else if text.len() > TEXT_BYTES_MAX {
        Err(format!("it has more than {TEXT_BYTES_MAX} bytes"))
    } else if text.chars().any(char::is_control) {
        Err("it contains a control character".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Reads a name in the short form of the tenant's file: without kind and tenant.
pub(super) fn local_name(
    kind: ResourceKind,
    tenant: &TenantName,
    text: &str,
) -> Result<ResourceName, String> {
    if let Ok(full) = text.parse::<ResourceName>() {
        return Err(if full.tenant() == *tenant {
            format!("`{}` says kind and tenant, which this file says already", plain::value(text))
        } else {
            format!(
                "`{}` is of tenant `{}`: it belongs in the file of that tenant",
                plain::value(text),
                full.tenant()
            )
        });
    }
    if text.contains('/') || text.contains(':') {
        return Err(format!("`{}` has a tenant or a kind in it", plain::value(text)));
    }
    let name: ResourceName =
        format!("{}:{tenant}/{text}", kind.as_str()).parse().map_err(|e: NameError| e.to_string())?;
    match (kind, name.version()) {
        (ResourceKind::Dataset | ResourceKind::Model, None) => {
            Err(format!("`{}` has no version, as in NAME@VERSION", plain::value(text)))
        }
        _ => Ok(name),
    }
}

/// Reads the model of a checkpoint line: a name of this file, or the full name of another tenant's model.
pub(super) fn model_name(tenant: &TenantName, text: &str) -> Result<ResourceName, String> {
    match text.parse::<ResourceName>() {
        Ok(full) if full.kind() == ResourceKind::Model && full.version().is_some() => Ok(full),
        Ok(_) => Err(format!("`{}` is not a model with its version", plain::value(text))),
        Err(_) => local_name(ResourceKind::Model, tenant, text),
    }
}

/// Reads `HOST:PORT`.
pub(super) fn address(text: &str) -> Result<String, String> {
    let authority = text.parse::<http::uri::Authority>().ok();
    let is_address = authority.is_some_and(|a| {
        a.as_str() == text && !text.contains('@') && !a.host().is_empty() && a.port_u16().is_some()
    });
    is_address.then(|| text.to_owned()).ok_or_else(|| {
        format!("`{}` is no address: write HOST:PORT, without a scheme", plain::ascii_value(text))
    })
}

/// The folder in which the gateway keeps unfinished uploads of all tenants.
const UPLOADS_FOLDER: &str = ".leasehold-uploads";

/// Reads a folder, as a URL that ends in a slash.
pub(super) fn location(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or("it is not a URL: it has no `://`")?;
    let plain = !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'+');
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let why = if !plain {
        "its scheme is not in lower-case letters"
    } else if text.len() > TEXT_BYTES_MAX {
        "it is longer than 512 bytes"
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        "it contains a space, a control character or a character that is not ASCII"
    } else if authority.contains('@') {
        "it contains a user or a secret before `@`"
    } else if scheme != "file" && authority.is_empty() {
        "it names no bucket or host"
    } else if text.contains(['?', '#', '%', '\\']) {
        "it contains a query, a fragment or an escape"
    } else if path.split('/').any(|s| s == "." || s == "..") {
        "it contains a segment `.` or `..`"
    } else if path.split('/').rev().skip(1).any(str::is_empty) && !path.is_empty() {
        "it contains an empty segment"
    } else if path.split('/').any(|s| s == UPLOADS_FOLDER) {
        "it contains `.leasehold-uploads`, the folder of unfinished uploads"
    } else if !text.ends_with('/') {
        "a location is a folder and ends in `/`"
    } else {
        return Ok(text.to_owned());
    };
    Err(format!("`{}`: {why}", plain::value(text)))
}

/// Reads `"none"`, or a table of a kind and its value.
pub(super) fn pin(value: &Value) -> Result<Pin, String> {
    let fields = match value {
        Value::Text(text) if text == "none" => return Ok(Pin::None),
        Value::Text(text) => {
            return Err(format!("`{}` is not a pin: write a table, or \"none\"", plain::value(text)));
        }
        Value::Table(fields) => fields,
        other => return Err(format!("it is {}, not a table or \"none\"", other.kind())),
    };
    let text_of = |key: &str| fields.iter().find(|f| f.key == key).map(|f| f.node.value.text()).transpose();
    let kind = text_of("kind")?.ok_or("it has no `kind`")?;
    let key = match kind {
        "manifest" | "s3-versions" => "sha256",
        "hf-revision" => "sha1",
        "lakefs-commit" | "iceberg-snapshot" => "id",
        _ => {
            return Err(format!(
                "its kind `{}` is not one of manifest, hf-revision, lakefs-commit, iceberg-snapshot, s3-versions",
                plain::value(kind)
            ));
        }
    };
    if let Some(other) = fields.iter().find(|f| f.key != "kind" && f.key != key) {
        return Err(format!("a {kind} has `kind` and `{key}`, not `{}`", plain::value(&other.key)));
    }
    let pinned = text_of(key)?.ok_or_else(|| format!("a {kind} has no `{key}`"))?;
    format!("{kind}:{pinned}").parse().map_err(|e: NameError| e.to_string())
}

/// Reads a date, which means its beginning in UTC, or a time with an offset.
pub(super) fn moment(value: &Value) -> Result<Wall, String> {
    let Value::Date(at) = value else {
        return Err(format!("it is {}, not a date without quotes; write it as 2027-06-30", value.kind()));
    };
    wall(at).ok_or_else(|| match (at.time, at.offset) {
        (Some(_), None) => "it says a time but not in which zone: end it with Z".to_owned(),
        _ => "it is not a moment after 1970".to_owned(),
    })
}

fn wall(at: &Datetime) -> Option<Wall> {
    let date = at.date?;
    let month = Month::try_from(date.month).ok()?;
    let date = Date::from_calendar_date(i32::from(date.year), month, date.day).ok()?;
    let moment = match (at.time, at.offset) {
        (None, None) => date.midnight().assume_utc(),
        (Some(t), Some(offset)) => {
            let nanos = t.nanosecond.unwrap_or(0);
            let time = Time::from_hms_nano(t.hour, t.minute, t.second.unwrap_or(0), nanos).ok()?;
            let minutes = match offset {
                Offset::Z => 0,
                Offset::Custom { minutes } => minutes,
            };
            let offset = UtcOffset::from_whole_seconds(i32::from(minutes) * 60).ok()?;
            OffsetDateTime::new_in_offset(date, time, offset)
        }
        _ => return None,
    };
    // Policies have whole seconds. A fraction is dropped, which only makes the time earlier.
    u64::try_from(moment.unix_timestamp()).ok().map(Wall::from_seconds)
}

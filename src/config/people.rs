//! The section about people who log in: `[people]`.

use std::path::Path;

use super::{Config, PeopleConfig, file::address};
use crate::{
    limits::{
        LOGIN_LIFE, LOGIN_LIFE_MAX, LOGIN_LIFE_MIN, LOGIN_METHODS_MAX, LOGIN_WORD_BYTES_MAX,
        PEOPLE_GROUPS_MAX,
    },
    name::{GroupName, TrustDomain},
    people::{LoginRules, ProviderOptions, is_plain_on_loopback},
    plain,
    written::{Notes, Section, Value, path, span, span_text},
};

pub(super) fn read(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<PeopleConfig> {
    let domain = "\"login.acme.example\", a separate trust domain";
    let trust_domain = table.need("trust_domain", domain, notes, str::parse::<TrustDomain>);
    let made = "\"people/ca.pem\"; `leasehold people init-ca people` makes it";
    let ca_cert = table.need("ca_cert", made, notes, |t| path(t, folder));
    let ca_key = table.need("ca_key", "\"people/ca.key\"", notes, |t| path(t, folder));
    let issuer = table.need("issuer", "\"https://id.acme.example\"", notes, provider_url);
    let provider_ca = table.text("issuer_ca", notes, |t| path(t, folder));
    let lacks_ca = table.has("issuer_ca") && provider_ca.is_none();
    let client_id = table.need("client_id", "\"leasehold\"", notes, word);
    let groups_claim = table.or("groups_claim", "groups", notes, word);
    let groups = groups(&mut table, notes);
    let life =
        table.or("session", &span_text(LOGIN_LIFE), notes, |t| span(t, LOGIN_LIFE_MIN..=LOGIN_LIFE_MAX));
    let required_amr = table.list("required_amr", LOGIN_METHODS_MAX, notes, word);
    let device_flow = table.value("device_flow", notes, Value::truth).unwrap_or(false);
    let listen = table.or("listen", "0.0.0.0:8447", notes, address);
    table.finish(notes);
    if lacks_ca {
        return None;
    }
    Some(PeopleConfig {
        trust_domain: trust_domain?,
        ca_cert: ca_cert?,
        ca_key: ca_key?,
        provider: ProviderOptions { issuer: issuer?, client_id: client_id?, groups_claim: groups_claim? },
        provider_ca,
        rules: LoginRules {
            groups: groups?,
            life: life?,
            required_amr: required_amr.into_iter().map(|method| method.value).collect(),
            device_flow,
        },
        listen: listen?,
    })
}

/// Reads the groups in the order of their lines. A person gets the first group of which they are a member.
fn groups(table: &mut Section<'_>, notes: &mut Notes) -> Option<Vec<(GroupName, String)>> {
    let Some(section) = table.section_if_there("groups", notes) else { return Some(Vec::new()) };
    let mut entries = section.named_texts(notes);
    entries.sort_by_key(|(_, line, _)| *line);
    let mut good = !section.is_not_a_table();
    if entries.len() > PEOPLE_GROUPS_MAX {
        let what = format!("people.groups: {} entries: write at most {PEOPLE_GROUPS_MAX}", entries.len());
        notes.problem(section.line(), what);
        return None;
    }
    let mut out = Vec::new();
    for (name, line, value) in entries {
        let read = name.parse::<GroupName>().map_err(|e| e.to_string());
        match read.and_then(|name| Ok((name, word(value)?))) {
            Ok(group) => out.push(group),
            Err(why) => {
                good = false;
                notes.problem(line, format!("people.groups: {why}"));
            }
        }
    }
    good.then_some(out)
}

/// Checks that `[people]` is the only source of roots for the trust domain of people.
pub(super) fn check(config: &Config, line: usize, notes: &mut Notes) {
    let Some(people) = &config.people else { return };
    let (domain, identity) = (&people.trust_domain, &config.identity);
    let is_federated = identity.federation.iter().any(|endpoint| endpoint.trust_domain == *domain);
    if identity.bundles.contains_key(domain) || is_federated {
        let what = format!(
            "people.trust_domain: `{domain}` has roots in identity.bundles or [[federation]]: people need a separate trust domain, as in login.acme.example"
        );
        notes.problem(line, what);
    }
    if let Some(id) = config.policy.break_glass.iter().find(|id| id.trust_domain() == *domain) {
        let what = format!(
            "policy.break_glass: `{id}` would have to log in first: name an SVID that needs no identity provider"
        );
        notes.problem(line, what);
    }
}

/// Reads the issuer of an identity provider: `https`, or `http` at a loopback address for trials.
fn provider_url(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("`{}` {why}", plain::value(text));
    let uri: http::Uri = text.parse().map_err(|_| wrong("is not a URL: write https://HOST"))?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if is_plain_on_loopback(text) => {}
        Some("http") => {
            return Err(wrong(
                "is plain HTTP, which is only for trials at a loopback address such as 127.0.0.1: write https://",
            ));
        }
        _ => return Err(wrong("is not a URL: write https://HOST")),
    }
    if uri.query().is_some()
        || text.contains('#')
        || uri.authority().is_some_and(|a| a.as_str().contains('@'))
    {
        return Err(wrong("has more than an issuer may: write only scheme, host, port and path"));
    }
    Ok(text.to_owned())
}

/// Reads a word that is compared letter by letter.
fn word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LOGIN_WORD_BYTES_MAX || plain::line(text) != text {
        return Err(format!("`{}` is not 1 to {LOGIN_WORD_BYTES_MAX} plain characters", plain::value(text)));
    }
    Ok(text.to_owned())
}

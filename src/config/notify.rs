//! The sections about webhooks: `[[notify]]`.

use std::{collections::BTreeSet, path::Path};

use crate::{
    limits::WEBHOOK_TENANTS_MAX,
    name::{InstanceName, TenantName},
    notify::{LetterFormat, Occasion, TenantsHeard, UrlFrom, Webhook, WebhookUrl},
    plain,
    written::{Notes, Section, path},
};

/// The value of `tenants` for all tenants.
const ALL: &str = "*";

pub(super) fn read(tables: Vec<Section<'_>>, folder: &Path, notes: &mut Notes) -> Option<Vec<Webhook>> {
    let (mut all, mut names) = (Vec::new(), BTreeSet::new());
    for table in tables {
        let line = table.line();
        let webhook = entry(table, folder, notes);
        if let Some(webhook) = &webhook
            && !names.insert(webhook.name.clone())
        {
            let what = format!("notify `{}` is there twice: write another name", plain::value(&webhook.name));
            notes.problem(line, what);
        }
        all.push(webhook);
    }
    all.into_iter().collect()
}

fn entry(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> Option<Webhook> {
    table.name_by("name");
    let name = table.need("name", "\"ops\"", notes, str::parse::<InstanceName>);
    let format = table.or("format", "cloudevents", notes, |t| match t {
        "cloudevents" => Ok(LetterFormat::CloudEvents),
        "slack" => Ok(LetterFormat::Slack),
        other => Err(format!("`{}` is not known: write one of cloudevents, slack", plain::value(other))),
    });
    let url = url(&mut table, folder, notes);
    let secret = table.text("secret_file", notes, |t| path(t, folder));
    let ca = table.text("ca", notes, |t| path(t, folder));
    let occasions = table.need_list(
        "events",
        "[\"waiting\", \"granted\", \"recalled\"]",
        Occasion::ALL.len(),
        notes,
        str::parse::<Occasion>,
    );
    let tenants =
        table.need_list("tenants", "[\"acme\"], or [\"*\"] for all", WEBHOOK_TENANTS_MAX, notes, tenant);
    for (key, is_empty) in [("events", occasions.is_empty()), ("tenants", tenants.is_empty())] {
        if is_empty && table.has(key) {
            table.wrong(key, "it is empty, so the receiver would get no notices: write at least one", notes);
        }
    }
    if let (Some(UrlFrom::Written(url)), false) = (&url, table.has("ca"))
        && url.is_https()
    {
        table.missing(
            "ca",
            "\"/etc/ssl/certs/ca-certificates.crt\", the authorities that may certify the host's name",
            notes,
        );
    }
    if format == Some(LetterFormat::CloudEvents) && !table.has("secret_file") {
        table.missing(
            "secret_file",
            "\"notify.secret\", a file with whsec_ and base64 of 32 random bytes",
            notes,
        );
    }
    table.finish(notes);
    let tenants: Vec<Option<TenantName>> = tenants.into_iter().map(|t| t.value).collect();
    let tenants = match tenants.iter().any(Option::is_none) {
        true => TenantsHeard::All,
        false => TenantsHeard::Only(tenants.into_iter().flatten().collect()),
    };
    Some(Webhook {
        name: name?.to_string(),
        url: url?,
        ca,
        secret,
        occasions: occasions.into_iter().map(|o| o.value).collect(),
        tenants,
        format: format?,
    })
}

/// Reads the URL, or the path of a file with the URL. A URL that contains a secret must be in a file.
fn url(table: &mut Section<'_>, folder: &Path, notes: &mut Notes) -> Option<UrlFrom> {
    let written = table.text("url", notes, |text| {
        let url: WebhookUrl = text.parse().map_err(|why| format!("it {why}"))?;
        if url.has_query() || text.contains("hooks.slack.com/services/") {
            return Err(
                "it has a part that is a secret: write the URL into a file, and set url_file = \"FILE\" here"
                    .to_owned(),
            );
        }
        Ok(UrlFrom::Written(url))
    });
    let file = table.text("url_file", notes, |t| path(t, folder)).map(UrlFrom::File);
    match (table.has("url"), table.has("url_file")) {
        (true, true) => {
            table.wrong("url_file", "url is there too: remove one of them", notes);
            None
        }
        (false, false) => {
            table.missing("url", "\"https://hooks.example.org/leasehold\", or url_file", notes);
            None
        }
        _ => written.or(file),
    }
}

/// Reads a tenant. `None` stands for all tenants.
fn tenant(text: &str) -> Result<Option<TenantName>, String> {
    match text {
        ALL => Ok(None),
        name => name.parse().map(Some).map_err(|e: crate::name::NameError| e.to_string()),
    }
}

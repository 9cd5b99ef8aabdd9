//! Renders a lease: as a row of a list, as a page, as a value.

use serde_json::{Value, json};

use super::words::{half, none_if_empty, shown_id};
use crate::{
    cli::{
        ids,
        output::{Page, TableCell, fields},
        table::{Column, TableSize, list},
        timestamp::{both, short, value},
    },
    clock::Wall,
    proto::v1,
};

const LEASE_COLUMNS: [Column; 13] = [
    Column::whole("ID", 0),
    Column::whole("STATE", 1),
    Column::whole("ACCESS", 8),
    Column::whole("JOB", 2),
    Column::cut("MEMBER", 8, 7),
    Column::whole("EXPIRES", 5),
    Column::cut("OPENS", 20, 3),
    Column::cut("HOLDER", 24, 4),
    Column::cut("CAUSE", 16, 6),
    Column::extra("TENANT"),
    Column::extra("ISSUED"),
    Column::extra("ATTEMPT"),
    Column::extra("AUDIENCE"),
];

pub(in crate::cli) fn lease_table(leases: &[v1::Lease], now: Wall, size: TableSize) -> Page {
    let short_ids = ids::shortened(leases.iter().flat_map(|l| [l.id.as_str(), l.job.as_str()]));
    let rows = leases.iter().map(|l| {
        let opens: Vec<_> = l.scopes.iter().map(|s| s.resource.as_str()).collect();
        vec![
            shown_id(&l.id, &short_ids, size),
            l.state.clone(),
            half(l.half()),
            shown_id(&l.job, &short_ids, size),
            l.instance.clone(),
            if l.state == "live" { short(l.expires.as_ref(), now) } else { "-".to_owned() },
            opens.join(", "),
            l.holder.clone(),
            l.cause.clone(),
            l.tenant.clone(),
            short(l.issued.as_ref(), now),
            l.attempt.to_string(),
            l.audience.clone(),
        ]
    });
    list(&LEASE_COLUMNS, rows, size)
}

pub(in crate::cli) fn lease_page(l: &v1::Lease, now: Wall) -> Page {
    let scopes = l.scopes.iter().map(|s| format!("{}: {}", s.resource, actions(s).join(", ")));
    fields([
        ("id", TableCell::from(l.id.as_str())),
        ("state", l.state.as_str().into()),
        ("cause", l.cause.as_str().into()),
        ("access", half(l.half()).into()),
        ("opens", TableCell::list(scopes)),
        ("audience", l.audience.as_str().into()),
        ("holder", l.holder.as_str().into()),
        ("job", l.job.as_str().into()),
        ("attempt", l.attempt.to_string().into()),
        ("member", l.instance.as_str().into()),
        ("tenant", l.tenant.as_str().into()),
        ("issued", both(l.issued.as_ref(), now).into()),
        ("expires", both(l.expires.as_ref(), now).into()),
        ("at the latest", both(l.expires_at_latest.as_ref(), now).into()),
        ("generation", l.generation.to_string().into()),
        ("issued at seq", l.stood_at.to_string().into()),
    ])
}

fn actions(scope: &v1::Scope) -> Vec<String> {
    scope.actions().map(|a| a.as_str_name().trim_start_matches("ACTION_").to_ascii_lowercase()).collect()
}

pub(in crate::cli) fn lease_value(l: &v1::Lease, now: Wall) -> Value {
    let scopes = l.scopes.iter().map(|s| json!({ "resource": s.resource, "actions": actions(s) }));
    json!({
        "id": l.id, "state": l.state, "cause": none_if_empty(l.cause.clone()), "half": half(l.half()), "job": l.job,
        "attempt": l.attempt, "tenant": l.tenant, "holder": l.holder, "instance": l.instance,
        "audience": l.audience, "scopes": scopes.collect::<Vec<_>>(), "issued": value(l.issued.as_ref(), now),
        "expires": value(l.expires.as_ref(), now),
        "expires_at_latest": value(l.expires_at_latest.as_ref(), now), "generation": l.generation,
        "stood_at": l.stood_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_list_shows_expiry_and_fits_the_terminal() {
        let now = Wall(1_795_148_000_000);
        let at = |s: i64| Some(prost_types::Timestamp { seconds: 1_795_148_000 + s, nanos: 0 });
        let lease = v1::Lease {
            id: "l-1".into(),
            state: "live".into(),
            half: v1::Half::Reading.into(),
            job: "j-1".into(),
            attempt: 1,
            instance: "n0".into(),
            expires: at(252),
            audience: "spiffe://td.example/files".into(),
            ..Default::default()
        };
        let ended =
            v1::Lease { id: "l-2".into(), state: "revoked".into(), cause: "op: x".into(), ..lease.clone() };
        let scope = |resource: &str| v1::Scope { resource: resource.into(), actions: Vec::new() };
        let scopes = vec![scope("dataset:acme/tickets@v3"), scope("model:acme/base@1")];
        let holder = "spiffe://td.example/ns/ml/job/7".to_owned();
        let leases =
            [lease, ended].map(|l| v1::Lease { scopes: scopes.clone(), holder: holder.clone(), ..l });
        let shown = |is_wide, columns| lease_table(&leases, now, TableSize { is_wide, columns });
        let all = shown(false, None).to_string();
        assert!(all.contains("dataset:acme/tickets@v3, model:acme/base@1") && all.contains(&holder), "{all}");
        assert!(all.contains("in 4m 12s") && all.contains("op: x"), "{all}");
        let wide = shown(true, Some(60)).to_string();
        assert!(wide.contains("AUDIENCE") && wide.contains("spiffe://td.example/files"), "{wide}");
        for columns in [60, 80, 120] {
            let text = shown(false, Some(columns)).to_string();
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            assert!(text.contains("l-1") && text.contains("dataset:acme/ticke"), "{text}");
        }
    }
}

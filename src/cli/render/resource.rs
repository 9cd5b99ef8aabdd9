//! Renders a resource of the catalog: as a row of a list, as a page, as a value.

use serde_json::{Value, json};

use super::words::none_if_empty;
use crate::{
    cli::{
        output::{Page, TableCell, fields},
        table::{Column, TableSize, list},
        timestamp::{both, value},
    },
    clock::Wall,
    proto::v1,
};

const RESOURCE_COLUMNS: [Column; 6] = [
    Column::whole("NAME", 0),
    Column::cut("CLASS", 8, 2),
    Column::cut("PURPOSES", 16, 1),
    Column::cut("OWNER", 12, 3),
    Column::extra("AUDIENCE"),
    Column::extra("LOCATION"),
];

pub(in crate::cli) fn resource_table(resources: &[v1::Resource], size: TableSize) -> Page {
    let rows = resources.iter().map(|r| {
        let class = if r.classification.is_empty() { &r.tier } else { &r.classification };
        let purposes = r.purposes.join(", ");
        vec![r.name.clone(), class.clone(), purposes, r.owner.clone(), r.audience.clone(), r.location.clone()]
    });
    list(&RESOURCE_COLUMNS, rows, size)
}

pub(in crate::cli) fn resource_page(r: &v1::Resource, now: Wall) -> Page {
    fields([
        ("name", TableCell::from(r.name.as_str())),
        ("tenant", r.tenant.as_str().into()),
        ("recalled", r.recalled.as_str().into()),
        ("owner", r.owner.as_str().into()),
        ("purposes", TableCell::list(&r.purposes)),
        ("classification", r.classification.as_str().into()),
        ("data classes", r.data_classes.join(", ").into()),
        ("tier", r.tier.as_str().into()),
        ("environment", r.environment.as_str().into()),
        ("model", r.model.as_str().into()),
        ("shared with", r.shared_with.join(", ").into()),
        ("retained until", both(r.retain_until.as_ref(), now).into()),
        ("pin", r.pin.as_str().into()),
        ("audience", r.audience.as_str().into()),
        ("enforced by", r.enforced.as_str().into()),
        ("location", r.location.as_str().into()),
    ])
}

pub(in crate::cli) fn resource_value(r: &v1::Resource, now: Wall) -> Value {
    json!({
        "name": r.name, "tenant": r.tenant, "recalled": none_if_empty(r.recalled.clone()), "owner": r.owner, "purposes": r.purposes,
        "classification": none_if_empty(r.classification.clone()), "data_classes": r.data_classes,
        "tier": none_if_empty(r.tier.clone()), "environment": none_if_empty(r.environment.clone()), "model": none_if_empty(r.model.clone()),
        "shared_with": r.shared_with, "retain_until": value(r.retain_until.as_ref(), now), "pin": r.pin,
        "audience": r.audience, "enforced": r.enforced, "location": r.location,
    })
}

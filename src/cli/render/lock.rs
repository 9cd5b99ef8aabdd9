//! Renders a lock, and the result of an ending: as a row of a list, as a value.

use serde_json::{Value, json};

use crate::{
    cli::{
        output::Page,
        table::{Column, TableSize, list},
        timestamp::{short, value},
    },
    clock::Wall,
    proto::v1,
};

const LOCK_COLUMNS: [Column; 5] = [
    Column::whole("NAME", 0),
    Column::whole("SINCE", 3),
    Column::whole("UNTIL", 2),
    Column::cut("BY", 16, 4),
    Column::cut("REASON", 16, 1),
];

pub(in crate::cli) fn lock_table(locks: &[v1::Lock], now: Wall, size: TableSize) -> Page {
    let rows = locks.iter().map(|l| {
        let until = if l.until.is_none() { "no end".to_owned() } else { short(l.until.as_ref(), now) };
        vec![l.name.clone(), short(l.since.as_ref(), now), until, l.by.clone(), l.reason.clone()]
    });
    list(&LOCK_COLUMNS, rows, size)
}

pub(in crate::cli) fn lock_value(l: &v1::Lock, now: Wall) -> Value {
    json!({
        "name": l.name, "reason": l.reason, "by": l.by, "since": value(l.since.as_ref(), now),
        "until": value(l.until.as_ref(), now),
    })
}

pub(in crate::cli) fn ending_value(e: &v1::Ending) -> Value {
    json!({ "seq": e.seq, "behind": e.behind, "durable": e.durable })
}

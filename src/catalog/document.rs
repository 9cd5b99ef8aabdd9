//! A TOML table with a known shape, read field by field so that every mistake is found and none hides another.

use std::{collections::BTreeSet, fmt::Display, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::fault::Faults;
use crate::{
    limits::SPEC_LIST_MAX,
    written::{kind_of, shown},
};

/// A value and the line that it stands on.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

/// What a table may hold.
pub(super) struct Shape {
    pub(super) noun: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key of a table, with an example that errors show.
pub(super) struct Key {
    name: &'static str,
    example: &'static str,
    required: bool,
}

pub(super) const fn need(name: &'static str, example: &'static str) -> Key {
    Key { name, example, required: true }
}

pub(super) const fn may(name: &'static str, example: &'static str) -> Key {
    Key { name, example, required: false }
}

/// One table of a file.
pub(super) struct Table<'t> {
    shape: &'static Shape,
    map: &'t DeTable<'t>,
    at: usize,
    /// `dataset tickets@v3`: what errors call it.
    called: String,
}

impl<'t> Table<'t> {
    /// Takes a value as a table of a shape, and notes unknown and missing keys.
    ///
    /// `identified_by` is the key whose value names it in errors.
    pub(super) fn take(
        value: &'t Spanned<DeValue<'t>>,
        shape: &'static Shape,
        identified_by: &str,
        faults: &mut Faults<'_>,
    ) -> Option<Self> {
        let at = value.span().start;
        let DeValue::Table(map) = value.get_ref() else {
            faults.add(
                at,
                format!("`{}` is {}, not a table", shape.noun, kind_of(value.get_ref())),
                format!("write [[{}]]", shape.noun),
            );
            return None;
        };
        let called = match map.get(identified_by).map(Spanned::get_ref) {
            Some(DeValue::String(name)) => format!("{} `{}`", shape.noun, shown(name)),
            _ => format!("this {}", shape.noun),
        };
        let table = Table { shape, map, at, called };
        table.check_keys(faults);
        Some(table)
    }

    fn check_keys(&self, faults: &mut Faults<'_>) {
        for key in self.map.keys() {
            let name: &str = key.get_ref();
            if !self.shape.keys.iter().any(|k| k.name == name) {
                let known = self.shape.keys.iter().map(|k| k.name);
                faults.add(
                    key.span().start,
                    format!("{} has an unknown key `{}`", self.called, shown(name)),
                    nearest(name, known),
                );
            }
        }
        for key in self.shape.keys.iter().filter(|k| k.required && !self.map.contains_key(k.name)) {
            faults.add(
                self.at,
                format!("{} has no `{}`", self.called, key.name),
                format!("write {}", key.example),
            );
        }
    }

    pub(super) fn line(&self, faults: &Faults<'_>) -> usize {
        faults.line(self.at)
    }

    /// Notes that a field is wrong.
    pub(super) fn wrong(&self, key: &str, why: impl Display, faults: &mut Faults<'_>) {
        let at = self.map.get(key).map_or(self.at, |v| v.span().start);
        self.wrong_at(at, key, why, faults);
    }

    fn wrong_at(&self, at: usize, key: &str, why: impl Display, faults: &mut Faults<'_>) {
        let example = self.shape.keys.iter().find(|k| k.name == key).map_or("", |k| k.example);
        faults.add(at, format!("`{key}` of {}: {why}", self.called), format!("write {example}"));
    }

    /// Reads a field, where it is there and good.
    pub(super) fn read<T, E: Display>(
        &self,
        key: &str,
        faults: &mut Faults<'_>,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, E>,
    ) -> Option<Placed<T>> {
        let found = self.map.get(key)?;
        match read(found.get_ref()) {
            Ok(value) => Some(Placed { value, line: faults.line(found.span().start) }),
            Err(why) => {
                self.wrong_at(found.span().start, key, why, faults);
                None
            }
        }
    }

    /// Reads a text of a type.
    pub(super) fn parse<T: FromStr<Err: Display>>(
        &self,
        key: &str,
        faults: &mut Faults<'_>,
    ) -> Option<Placed<T>> {
        self.read(key, faults, |v| parse(text(v)?))
    }

    /// Reads a list of texts of a type; an absent one is empty. A repetition is a mistake.
    pub(super) fn list<T: FromStr<Err: Display> + Ord>(
        &self,
        key: &str,
        faults: &mut Faults<'_>,
    ) -> Vec<Placed<T>> {
        let Some(found) = self.map.get(key) else { return Vec::new() };
        let DeValue::Array(items) = found.get_ref() else {
            let why = format!("it is {}, not a list", kind_of(found.get_ref()));
            self.wrong_at(found.span().start, key, why, faults);
            return Vec::new();
        };
        if items.len() > SPEC_LIST_MAX {
            let why = format!("it has {} entries, {SPEC_LIST_MAX} are the most", items.len());
            self.wrong_at(found.span().start, key, why, faults);
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        for item in items.iter() {
            let at = item.span().start;
            match text(item.get_ref()).and_then(|t| Ok((t, parse::<T>(t)?))) {
                Err(why) => self.wrong_at(at, key, why, faults),
                Ok((t, _)) if !seen.insert(t.to_owned()) => {
                    self.wrong_at(at, key, format!("`{}` stands in it twice", shown(t)), faults);
                }
                Ok((_, value)) => out.push(Placed { value, line: faults.line(at) }),
            }
        }
        out
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|why: T::Err| {
        let why = why.to_string();
        // Errors of names begin with the text itself.
        if why.starts_with('`') { why } else { format!("`{}` is not one: {why}", shown(text)) }
    })
}

/// A value as a text.
pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!("it is {}, not a text in quotes", kind_of(other))),
    }
}

/// A value as true or false.
pub(super) fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(b) => Ok(*b),
        other => Err(format!("it is {}, not true or false", kind_of(other))),
    }
}

/// Words for what may stand in the place of an unknown word.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    let best = known.clone().map(|k| (distance(word, k), k)).min().filter(|(d, _)| *d <= 3);
    let all = known.collect::<Vec<_>>().join(", ");
    match best {
        Some((_, near)) => format!("write `{near}`? known here: {all}"),
        None => format!("leave it out; known here: {all}"),
    }
}

/// How many letters must be changed, added or taken to make one word of another.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let swap = at(&row, j) + usize::from(x != *y);
            next.push(swap.min(at(&row, j + 1) + 1).min(at(&next, j) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

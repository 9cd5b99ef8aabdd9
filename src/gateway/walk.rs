//! A walk over the files below a folder, in the order of their keys. Blocks.

use std::io;

use nix::errno::Errno;

use super::{
    folder::{FolderItem, Missing, OpenFolder},
    listing::ListQuery,
    store::{Entries, Entry},
};
use crate::limits::{GATEWAY_KEY_DEPTH_MAX, GATEWAY_WALK_ENTRIES_MAX};

/// A folder on the way down, and its names that come next.
struct Level {
    folder: OpenFolder,
    /// The key of the folder: empty, or ending in a slash.
    key: String,
    items: std::vec::IntoIter<FolderItem>,
}

/// What a walk may still do.
struct Budget<'a> {
    entries: usize,
    /// Whether the client went away.
    is_gone: &'a dyn Fn() -> bool,
}

impl Budget<'_> {
    /// Reads the names in a folder, if the walk may go on.
    fn items(&mut self, folder: &OpenFolder) -> io::Result<Vec<FolderItem>> {
        if (self.is_gone)() {
            return Err(io::Error::other("the client of a listing went away"));
        }
        let items = folder.items()?;
        // A folder without entries is work too.
        self.entries =
            self.entries.checked_sub(items.len().saturating_add(1)).ok_or(io::Error::from(Errno::E2BIG))?;
        Ok(items)
    }
}

/// Lists what is below a folder, by keys relative to it. Lists at most one entry more than asked for. Stops with an error if it
/// would visit too many entries, or if the client went away.
pub(super) fn list(folder: OpenFolder, query: &ListQuery, is_gone: &dyn Fn() -> bool) -> io::Result<Entries> {
    let mut budget = Budget { entries: GATEWAY_WALK_ENTRIES_MAX, is_gone };
    let by_folder = query.delimiter.as_deref() == Some("/");
    let most = query.max.saturating_add(1);
    let mut entries = Entries::default();
    let mut levels = vec![Level { items: budget.items(&folder)?.into_iter(), folder, key: String::new() }];
    while let Some(level) = levels.last_mut() {
        let Some(item) = level.items.next() else {
            levels.pop();
            continue;
        };
        let key = format!("{}{}", level.key, item.name);
        if !may_lead_to(&key, query) {
            continue;
        }
        if entries.all.len() >= most {
            return Ok(entries);
        }
        let Some(name) = item.name.strip_suffix('/') else {
            // A file that was removed meanwhile is left out.
            if let Ok(info) = level.folder.info(&item.name) {
                entries.all.push(Entry::Object(key, info));
            }
            continue;
        };
        if key.matches('/').count() > GATEWAY_KEY_DEPTH_MAX {
            continue; // no key can name what is below
        }
        let Ok(inner) = level.folder.enter(name, Missing::Fails) else { continue };
        if by_folder && key.len() > query.prefix.len() {
            if has_file(&inner, &mut budget)? {
                entries.all.push(Entry::Prefix(key));
            }
            continue;
        }
        levels.push(Level { items: budget.items(&inner)?.into_iter(), folder: inner, key });
    }
    entries.is_complete = true;
    Ok(entries)
}

/// Whether a key, or one below it if it is a folder, may be in the listing.
fn may_lead_to(key: &str, query: &ListQuery) -> bool {
    let is_folder = key.ends_with('/');
    let in_prefix = key.starts_with(&query.prefix) || is_folder && query.prefix.starts_with(key);
    // Keys below a folder may come after `after` if it lies below the folder too. A common prefix of an earlier page is over.
    let is_over = query.after == key && query.delimiter.as_deref() == Some("/");
    let comes_after = key > query.after.as_str() || is_folder && query.after.starts_with(key) && !is_over;
    in_prefix && comes_after
}

/// Whether there is a file below a folder, at any depth.
fn has_file(folder: &OpenFolder, budget: &mut Budget<'_>) -> io::Result<bool> {
    let items = budget.items(folder)?;
    if items.iter().any(|item| !item.name.ends_with('/')) {
        return Ok(true);
    }
    for item in items {
        let Ok(inner) = folder.enter(item.name.trim_end_matches('/'), Missing::Fails) else { continue };
        if has_file(&inner, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

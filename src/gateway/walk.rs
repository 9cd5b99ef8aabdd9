//! A walk over the files below a folder, in the order of their keys. Blocks.

use nix::errno::Errno;

use super::{
    directory::errno,
    folder::{FolderItem, Missing, OpenFolder},
    listing::ListQuery,
    store::{Entries, Entry, StoreError},
};
use crate::limits::GATEWAY_KEY_DEPTH_MAX;

/// A folder on the way down, and its next names.
struct Level {
    folder: OpenFolder,
    /// The key of the folder. It is empty, or ends in a slash.
    key: String,
    items: std::vec::IntoIter<FolderItem>,
}

/// A function that is called before entries are visited. An error ends the walk.
type GoOn<'a> = &'a dyn Fn(usize) -> Result<(), StoreError>;

/// Reads the names in a folder, if the walk may go on. A folder without entries counts as work too.
fn items(folder: &OpenFolder, go_on: GoOn<'_>) -> Result<Vec<FolderItem>, StoreError> {
    go_on(1)?;
    let items = folder.items().map_err(|error| match errno(&error) {
        Some(Errno::E2BIG) => StoreError::TooManyEntries,
        _ => error.into(),
    })?;
    go_on(items.len())?;
    Ok(items)
}

/// Lists the entries below a folder, with keys relative to the folder. Lists at most one entry more than requested.
pub(super) fn list(folder: OpenFolder, query: &ListQuery, go_on: GoOn<'_>) -> Result<Entries, StoreError> {
    let by_folder = query.delimiter.as_deref() == Some("/");
    let most = query.max.saturating_add(1);
    let mut entries = Entries::default();
    let mut levels = vec![Level { items: items(&folder, go_on)?.into_iter(), folder, key: String::new() }];
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
            let depth = key.matches('/').count();
            if has_file(&inner, GATEWAY_KEY_DEPTH_MAX.saturating_sub(depth), go_on)? {
                entries.all.push(Entry::Prefix(key));
            }
            continue;
        }
        levels.push(Level { items: items(&inner, go_on)?.into_iter(), folder: inner, key });
    }
    entries.is_complete = true;
    Ok(entries)
}

/// Whether a key may be in the listing. If the key is a folder, whether keys below the folder may be in the listing.
fn may_lead_to(key: &str, query: &ListQuery) -> bool {
    let is_folder = key.ends_with('/');
    let in_prefix = key.starts_with(&query.prefix) || is_folder && query.prefix.starts_with(key);
    // Keys below a folder may come after `after` if `after` is below the folder too. A common prefix of an earlier page
    // was listed already.
    let is_over = query.after == key && query.delimiter.as_deref() == Some("/");
    let comes_after = key > query.after.as_str() || is_folder && query.after.starts_with(key) && !is_over;
    in_prefix && comes_after
}

/// Whether there is a file below a folder that a key can name. Searches at most `depth` folders deep.
fn has_file(folder: &OpenFolder, depth: usize, go_on: GoOn<'_>) -> Result<bool, StoreError> {
    let items = items(folder, go_on)?;
    if items.iter().any(|item| !item.name.ends_with('/')) {
        return Ok(true);
    }
    let Some(depth) = depth.checked_sub(1) else { return Ok(false) };
    for item in items {
        let Ok(inner) = folder.enter(item.name.trim_end_matches('/'), Missing::Fails) else { continue };
        if has_file(&inner, depth, go_on)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        gateway::{list_work::ListWork, store::FinalCheck},
        reason::{Reason, Refusal},
    };

    fn walked(root: &std::path::Path, query: &ListQuery, go_on: GoOn<'_>) -> Result<Vec<String>, StoreError> {
        let entries = list(OpenFolder::root(root).unwrap(), query, go_on)?;
        Ok(entries.all.iter().map(|entry| entry.name().to_owned()).collect())
    }

    fn by_folder() -> ListQuery {
        ListQuery { delimiter: Some("/".into()), max: 1_000, ..ListQuery::default() }
    }

    // A listing ends with its access, in the middle of a folder tree.
    #[test]
    fn a_walk_ends_with_its_access() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..50 {
            std::fs::create_dir_all(root.path().join(format!("{n:02}/a/b"))).unwrap();
        }
        let looks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = looks.clone();
        let look: FinalCheck =
            Box::new(move || match counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0..10 => Ok(()),
                _ => Err(Refusal::new(Reason::Revoked, "it was revoked")),
            });
        let work = ListWork::of(1_000, look);
        let ended = walked(root.path(), &by_folder(), &|entries| work.visit(entries));
        assert!(matches!(ended, Err(StoreError::Ended(_))), "{ended:?}");
        assert_eq!(looks.load(std::sync::atomic::Ordering::Relaxed), 11, "it stopped at once");
    }

    // The walks of one listing together visit a bounded number of entries.
    #[test]
    fn walks_of_one_listing_share_a_bound() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..10 {
            std::fs::write(root.path().join(n.to_string()), "").unwrap();
        }
        let work = ListWork::of(30, Box::new(|| Ok(())));
        let walk = || walked(root.path(), &by_folder(), &|entries| work.visit(entries));
        assert_eq!(walk().unwrap().len(), 10);
        assert_eq!(walk().unwrap().len(), 10);
        assert!(matches!(walk(), Err(StoreError::TooManyEntries)));
    }

    // Files that are too deep for a key are not searched. Each level on the way keeps an open folder.
    #[test]
    fn a_folder_is_searched_only_as_deep_as_keys_go() {
        let root = tempfile::tempdir().unwrap();
        let deep = |levels: usize| root.path().join("x/".repeat(levels));
        std::fs::create_dir_all(deep(GATEWAY_KEY_DEPTH_MAX + 100)).unwrap();
        let visited = Cell::new(0);
        let go_on = |_| {
            visited.set(visited.get() + 1);
            Ok(())
        };
        assert_eq!(walked(root.path(), &by_folder(), &go_on).unwrap(), [""; 0]);
        assert!(visited.get() <= 2 * (GATEWAY_KEY_DEPTH_MAX + 2), "{} looks", visited.get());
        std::fs::write(deep(GATEWAY_KEY_DEPTH_MAX).join("last"), "").unwrap();
        assert_eq!(walked(root.path(), &by_folder(), &go_on).unwrap(), ["x/"], "the deepest key is found");
    }
}

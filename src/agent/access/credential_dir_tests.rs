use std::{
    fs::File,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::unistd::{Uid, chown, geteuid, getpid};

use serde_json::{Value, json};

use super::*;
use crate::{
    agent::{
        access::index::{IndexEntry, IndexResource},
        process::processes,
    },
    clock::Wall,
    name::{AttemptNumber, Half, JobId, LeaseId, Scope},
};

fn made(base: &Path) -> Result<CredentialDir, CredentialError> {
    CredentialDir::create(Some(base), Readers::default())
}

fn named(path: &Path) -> Result<CredentialDir, CredentialError> {
    CredentialDir::at(path, Readers::default())
}

fn secret(text: &str) -> SecretText {
    SecretText::new(text.to_owned())
}

fn entry(name: &str, half: Half) -> IndexEntry {
    let resource = match half {
        Half::Reading => "dataset:acme/tickets@v3",
        Half::Writing => "checkpoint:acme/lora",
    };
    IndexEntry {
        name: name.into(),
        half,
        audience: "files.acme".into(),
        lease: LeaseId(7),
        expires: Wall(1_795_148_000_000),
        resources: vec![IndexResource {
            scope: Scope::whole(resource.parse().unwrap()),
            location: Some("https://files.acme/tickets/".into()),
        }],
    }
}

fn index(credentials: Vec<IndexEntry>) -> CredentialIndex {
    CredentialIndex { job: JobId(1), attempt: AttemptNumber::FIRST, credentials }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(path: &Path) -> Vec<String> {
    let mut all: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn files_are_private_and_contain_only_the_token() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    let token = dir.put("reading-files.acme", &secret("abc.def.ghi")).unwrap();
    let listed = dir.write_index(&index(vec![entry("reading-files.acme", Half::Reading)])).unwrap();
    assert_eq!((mode(dir.path()), mode(&token), mode(&listed)), (0o700, 0o600, 0o600));
    assert_eq!(fs::read(&token).unwrap(), b"abc.def.ghi");
    assert_eq!(names(dir.path()), ["credentials.json", "reading-files.acme"]);
}

#[test]
fn directories_have_random_names() {
    let base = tempfile::tempdir().unwrap();
    let (a, b) = (made(base.path()).unwrap(), made(base.path()).unwrap());
    let random = |d: &CredentialDir| d.path().to_str().unwrap().splitn(4, '-').last().unwrap().to_owned();
    assert!(random(&a).len() >= 43 && random(&a) != random(&b), "{a:?} {b:?}");
    assert!(a.path().exists(), "the second one took the first for a dead one's");
}

#[test]
fn the_index_lists_the_credentials_without_secrets() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    let token = dir.put("r", &secret("5ecret")).unwrap();
    let listed =
        fs::read_to_string(dir.write_index(&index(vec![entry("r", Half::Reading)])).unwrap()).unwrap();
    assert!(!listed.contains("5ecret"));
    let read: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        read,
        json!({
            "job": JobId(1).to_string(),
            "attempt": 1,
            "credentials": [{
                "half": "reading",
                "audience": "files.acme",
                "path": token,
                "expires": "2026-11-20T04:13:20.000Z",
                "lease": LeaseId(7).to_string(),
                "resources": [{
                    "resource": "dataset:acme/tickets@v3",
                    "actions": ["read_dataset"],
                    "location": "https://files.acme/tickets/",
                }],
            }],
        })
    );
    assert!(matches!(
        dir.write_index(&index(vec![entry("gone", Half::Reading)])),
        Err(CredentialError::Name(_))
    ));
}

#[test]
fn a_token_variable_is_set_only_for_one_credential() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    for name in ["r1", "r2", "w"] {
        dir.put(name, &secret("5ecret")).unwrap();
    }
    let of = |credentials| {
        dir.write_index(&index(credentials)).unwrap();
        dir.env().into_iter().collect::<BTreeMap<_, _>>()
    };
    let env = of(vec![entry("r1", Half::Reading), entry("r2", Half::Reading), entry("w", Half::Writing)]);
    assert!(!env.contains_key(OsStr::new("LEASEHOLD_TOKEN_FILE_READING")));
    assert_eq!(env[OsStr::new("LEASEHOLD_TOKEN_FILE_WRITING")], dir.path().join("w").into_os_string());
    assert_eq!(
        env[OsStr::new("LEASEHOLD_CREDENTIALS")],
        dir.path().join("credentials.json").into_os_string()
    );
    assert_eq!(env[OsStr::new("LEASEHOLD_JOB")], OsString::from(JobId(1).to_string()));
    assert_eq!(env[OsStr::new("LEASEHOLD_ATTEMPT")], "1");
    assert!(!format!("{env:?}{dir:?}").contains("5ecret"));
    let env = of(vec![entry("r1", Half::Reading)]);
    assert_eq!(env[OsStr::new("LEASEHOLD_TOKEN_FILE_READING")], dir.path().join("r1").into_os_string());
    assert!(!env.contains_key(OsStr::new("LEASEHOLD_TOKEN_FILE_WRITING")));
}

#[test]
fn a_reader_gets_one_complete_token_at_any_time() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    let token = |c: char| secret(&c.to_string().repeat(3_000));
    let path = dir.put("r", &token('a')).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let reader = thread::spawn({
        let done = done.clone();
        move || {
            let (mut reads, mut seen) = (0, std::collections::BTreeSet::new());
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::read(&path).expect("the file is always there");
                assert_eq!(bytes.len(), 3_000);
                assert!(bytes.iter().all(|b| *b == bytes[0]), "torn");
                reads += 1;
                seen.insert(bytes[0]);
            }
            (reads, seen.len())
        }
    });
    for _ in 0..200 {
        for c in ['b', 'c', 'd'] {
            dir.put("r", &token(c)).unwrap();
        }
        thread::yield_now();
    }
    done.store(true, Ordering::Relaxed);
    let (reads, seen) = reader.join().unwrap();
    assert!(reads > 1 && seen > 1, "{reads} reads saw {seen} tokens");
    assert_eq!(names(dir.path()), ["r"]);
}

#[test]
fn after_a_wipe_no_file_is_left_and_none_comes_back() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    let path = dir.put("r", &secret("5ecret")).unwrap();
    dir.write_index(&index(vec![entry("r", Half::Reading)])).unwrap();
    let mut held = File::open(&path).unwrap();
    dir.wipe();
    assert!(names(dir.path()).is_empty());
    let mut left = String::new();
    io::Read::read_to_string(&mut held, &mut left).unwrap();
    assert_eq!(left, "\0\0\0\0\0\0", "what an open file still gives is overwritten");
    assert!(matches!(dir.put("r", &secret("again")), Err(CredentialError::Wiped)));
    assert!(matches!(dir.write_index(&index(Vec::new())), Err(CredentialError::Wiped)));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn one_credential_can_be_removed_while_another_stays() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    dir.put("r", &secret("1")).unwrap();
    dir.put("w", &secret("2")).unwrap();
    dir.remove("r");
    dir.remove("r");
    assert_eq!(names(dir.path()), ["w"]);
    dir.put("r", &secret("3")).unwrap();
    assert_eq!(names(dir.path()), ["r", "w"]);
}

#[test]
fn dropping_the_directory_removes_everything() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    dir.put("r", &secret("5ecret")).unwrap();
    drop(dir);
    assert!(names(base.path()).is_empty());
}

#[test]
fn a_name_that_leaves_the_directory_or_hides_in_it_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "credentials.json", &"x".repeat(201)] {
        assert!(matches!(dir.put(name, &secret("s")), Err(CredentialError::Name(_))), "{name:?}");
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn credentials_are_bounded() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    for i in 0..CREDENTIALS_MAX {
        dir.put(&format!("c{i}"), &secret("s")).unwrap();
    }
    assert!(matches!(dir.put("more", &secret("s")), Err(CredentialError::TooMany)));
    dir.put("c0", &secret("t")).unwrap();
}

#[test]
fn only_directories_of_dead_wrappers_are_removed() {
    let base = tempfile::tempdir().unwrap();
    let stale = |name: &str| {
        let path = base.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("reading"), "5ecret").unwrap();
        path
    };
    // The process with this id has another start time, so the id was reused.
    let reused = stale("leasehold-1-1-aaaa");
    let gone = stale("leasehold-2147483000-5-bbbb");
    let locked = stale("leasehold-2147483001-5-cccc");
    let alive = stale(&format!("leasehold-{}-{}-dddd", getpid(), processes::start_of(getpid()).unwrap()));
    let others = stale("leasehold-data");
    let lock = File::open(&locked).unwrap();
    lock.try_lock().unwrap();
    let dir = made(base.path()).unwrap();
    assert!(!reused.exists() && !gone.exists());
    for left in [&locked, &alive, &others] {
        assert!(left.join("reading").exists(), "{left:?}");
    }
    assert!(dir.path().exists());
}

#[test]
fn a_link_in_a_stale_directory_is_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let outside = base.path().join("outside");
    fs::write(&outside, "mine").unwrap();
    let stale = base.path().join("leasehold-2147483000-5-bbbb");
    fs::create_dir(&stale).unwrap();
    std::os::unix::fs::symlink(&outside, stale.join("reading")).unwrap();
    let _dir = made(base.path()).unwrap();
    assert!(!stale.exists());
    assert_eq!(fs::read_to_string(&outside).unwrap(), "mine");
}

#[test]
fn files_of_others_in_a_named_directory_are_kept() {
    let base = tempfile::tempdir().unwrap();
    for (name, was_there) in [("new", false), ("old", true)] {
        let chosen = base.path().join(name);
        if was_there {
            fs::create_dir(&chosen).unwrap();
        }
        let dir = named(&chosen).unwrap();
        dir.put("reading-files.acme", &secret("abc.def.ghi")).unwrap();
        dir.put("odd", &secret("abc.def.ghi")).unwrap();
        dir.write_index(&index(vec![entry("reading-files.acme", Half::Reading)])).unwrap();
        fs::write(chosen.join("notes.txt"), "mine").unwrap();
        drop(dir);
        let left: Vec<_> = fs::read_dir(&chosen).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"], "{name}");
        assert_eq!(fs::read_to_string(chosen.join("notes.txt")).unwrap(), "mine");
    }
    let unused = base.path().join("unused");
    drop(named(&unused).unwrap());
    assert!(!unused.exists());
}

#[test]
fn the_default_directory_is_in_memory_or_warns() {
    let dir = CredentialDir::create(None, Readers::default()).unwrap();
    let base = dir.path().parent().unwrap();
    assert_eq!(is_in_memory(base), dir.warning().is_none());
    let foreign = default_places(Some(PathBuf::from("/proc")));
    assert!(!foreign.contains(&PathBuf::from("/proc")));
    assert_eq!(foreign.last(), Some(&std::env::temp_dir()));
}

#[test]
fn a_place_that_cannot_be_used_is_an_error_that_names_it() {
    let e = CredentialDir::create(Some(Path::new("/nowhere/at/all")), Readers::default()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "no private directory for credentials could be created in /nowhere/at/all: name another with --dir"
    );
}

/// Leaves the directory as a killed wrapper does: no file is wiped, and the lock is released.
fn killed(dir: CredentialDir) {
    std::mem::ManuallyDrop::new(dir).state().folder.unlock();
}

#[test]
fn a_named_directory_of_a_killed_wrapper_is_reused() {
    let base = tempfile::tempdir().unwrap();
    let chosen = base.path().join("creds");
    let dir = named(&chosen).unwrap();
    dir.put("reading-files.acme", &secret("abc.def.ghi")).unwrap();
    dir.put("reading-files.acme", &secret("jkl.mno.pqr")).unwrap();
    dir.write_index(&index(vec![entry("reading-files.acme", Half::Reading)])).unwrap();
    // This file stands for the ready file of a sidecar.
    let ready = chosen.join("ready");
    dir.put_open(&ready, "export X='y'\n").unwrap();
    let draft = Manifest::load(&chosen).draft().to_owned();
    fs::write(chosen.join(draft), "half a tok").unwrap();
    killed(dir);
    let next = named(&chosen).unwrap();
    assert_eq!(names(&chosen), Vec::<String>::new(), "nothing of the one before is left");
    next.put("reading-files.acme", &secret("stu.vwx.yza")).unwrap();
    drop(next);
    assert_eq!(names(&chosen), Vec::<String>::new());
}

#[test]
fn files_of_others_are_left_whatever_their_names_are() {
    let base = tempfile::tempdir().unwrap();
    for name in ["reading-list.txt", "writing-style.md", "credentials.json", ".leasehold", ".draft.new"] {
        let chosen = base.path().join(format!("with {name}"));
        fs::create_dir(&chosen).unwrap();
        fs::write(chosen.join(name), "mine").unwrap();
        let refused = named(&chosen).unwrap_err();
        assert!(refused.to_string().contains("there are other files in it"), "{name}: {refused}");
        assert_eq!(fs::read_to_string(chosen.join(name)).unwrap(), "mine");
    }
    // A file that replaced a file of the killed wrapper is also left.
    let chosen = base.path().join("creds");
    let dir = named(&chosen).unwrap();
    dir.put("reading-files.acme", &secret("abc.def.ghi")).unwrap();
    killed(dir);
    fs::write(chosen.join("reading-files.acme"), "mine").unwrap();
    assert!(named(&chosen).is_err());
    assert_eq!(names(&chosen), [".leasehold", "reading-files.acme"]);
    // A file of another program is not overwritten.
    let chosen = base.path().join("shared");
    let dir = named(&chosen).unwrap();
    fs::write(chosen.join("reading-files.acme"), "mine").unwrap();
    assert!(dir.put("reading-files.acme", &secret("abc.def.ghi")).is_err());
    drop(dir);
    assert_eq!(fs::read_to_string(chosen.join("reading-files.acme")).unwrap(), "mine");
}

#[test]
fn a_fifo_does_not_block() {
    let base = tempfile::tempdir().unwrap();
    let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let (chosen, stale) = (base.path().join("creds"), base.path().join("leasehold-2147483000-5-bbbb"));
    for folder in [&chosen, &stale] {
        fs::create_dir(folder).unwrap();
        fifo(&folder.join("reading-files.acme"));
    }
    let folder = base.path().to_owned();
    thread::spawn(move || {
        let refused = named(&folder.join("creds")).is_err();
        drop(made(&folder).unwrap());
        sender.send(refused).unwrap();
    });
    // Opening this file would block, because no writer or reader comes.
    assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(60)), Ok(true));
    assert!(chosen.join("reading-files.acme").exists() && !stale.exists());
}

/// Creates a folder that belongs to another user.
fn of_another_user(path: &Path) {
    fs::create_dir(path).unwrap();
    chown(path, Some(Uid::from_raw(12_345)), None).unwrap();
}

#[test]
fn a_directory_of_another_user_is_refused() {
    // Only root can change the owner. Any other user can take a folder of root.
    if !geteuid().is_root() {
        let refused = named(Path::new("/")).unwrap_err().to_string();
        assert!(refused.contains("belongs to user 0"), "{refused}");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let theirs = base.path().join("theirs");
    of_another_user(&theirs);
    let refused = named(&theirs).unwrap_err().to_string();
    assert!(refused.contains("belongs to user 12345"), "{refused}");
    // The owner of the parent folder could replace a folder inside it.
    for refused in [named(&theirs.join("below")).unwrap_err(), made(&theirs).unwrap_err()] {
        assert!(refused.to_string().contains("could put another folder in its place"), "{refused}");
    }
    assert!(names(&theirs).is_empty());
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let open = base.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = named(&open).unwrap_err().to_string();
    assert!(refused.contains("mode 0777") && refused.contains("give it mode 0700"), "{refused}");
    // The volume of a pod has this mode. A folder inside it is accepted, with a warning.
    let dir = named(&open.join("creds")).unwrap();
    assert!(dir.warning().unwrap().contains("others may rename"), "{:?}", dir.warning());
    assert_eq!(mode(dir.path()), 0o700);
}

#[test]
fn a_draft_that_the_manifest_does_not_name_is_not_erased() {
    let base = tempfile::tempdir().unwrap();
    let chosen = base.path().join("creds");
    let dir = named(&chosen).unwrap();
    dir.put("r", &secret("abc")).unwrap();
    killed(dir);
    let theirs = draft_name().unwrap();
    fs::write(chosen.join(&theirs), "mine").unwrap();
    let refused = named(&chosen).unwrap_err().to_string();
    assert!(refused.contains(&theirs), "{refused}");
    assert_eq!(fs::read_to_string(chosen.join(&theirs)).unwrap(), "mine");
}

#[test]
fn a_group_may_read_if_the_mode_allows_it() {
    let base = tempfile::tempdir().unwrap();
    let readers = Readers::new(Some(nix::unistd::getegid()), None).unwrap();
    let dir = CredentialDir::at(&base.path().join("creds"), readers).unwrap();
    let token = dir.put("r", &secret("abc")).unwrap();
    dir.keep_session(secret("{}")).unwrap();
    assert_eq!((mode(dir.path()), mode(&token)), (0o750, 0o640));
    assert_eq!(mode(&dir.path().join(SESSION)), 0o600, "the session is for its owner only");
}

#[test]
fn a_removed_directory_is_created_again() {
    let base = tempfile::tempdir().unwrap();
    for dir in [made(base.path()).unwrap(), named(&base.path().join("creds")).unwrap()] {
        let token = dir.put("r", &secret("abc")).unwrap();
        dir.write_index(&index(vec![entry("r", Half::Reading)])).unwrap();
        assert_eq!(dir.mend(), MendResult::Nothing);
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(dir.mend(), MendResult::Again("their folder was removed".into()));
        assert_eq!((mode(dir.path()), fs::read_to_string(&token).unwrap().as_str()), (0o700, "abc"));
        fs::remove_file(&token).unwrap();
        assert_eq!(dir.mend(), MendResult::Again("they were removed".into()));
        assert_eq!((fs::read_to_string(&token).unwrap().as_str(), dir.mend()), ("abc", MendResult::Nothing));
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}

#[test]
fn a_directory_that_cannot_be_recreated_is_reported_once() {
    let base = tempfile::tempdir().unwrap();
    let above = base.path().join("run");
    fs::create_dir(&above).unwrap();
    let dir = made(&above).unwrap();
    let token = dir.put("r", &secret("abc")).unwrap();
    fs::remove_dir_all(&above).unwrap();
    let MendResult::Failing(cause) = dir.mend() else { panic!("it cannot be made") };
    assert!(cause.contains("No such file or directory"), "{cause}");
    assert_eq!(dir.mend(), MendResult::Nothing, "said once");
    assert!(matches!(dir.put("r", &secret("def")), Err(CredentialError::Write { .. })));
    fs::create_dir(&above).unwrap();
    assert_eq!(dir.mend(), MendResult::Again(cause));
    assert_eq!(fs::read_to_string(&token).unwrap(), "def", "the last one that was put");
}

#[test]
fn no_token_is_written_to_another_users_folder() {
    if !geteuid().is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    dir.put("r", &secret("abc")).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    of_another_user(dir.path());
    let MendResult::Failing(cause) = dir.mend() else { panic!("it is theirs") };
    assert!(cause.contains("user 12345 made another folder in its place"), "{cause}");
    dir.wipe();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_drain_is_written_to_its_file_and_the_index() {
    let base = tempfile::tempdir().unwrap();
    let dir = made(base.path()).unwrap();
    dir.put("r", &secret("abc")).unwrap();
    dir.write_index(&index(vec![entry("r", Half::Reading)])).unwrap();
    let env: BTreeMap<_, _> = dir.env().into_iter().collect();
    let file = PathBuf::from(&env[OsStr::new("LEASEHOLD_DRAIN_FILE")]);
    assert!(!file.exists(), "there is none");
    let writing_ends = Some(Wall(1_795_148_000_000));
    dir.note_drain(DrainNote { reason: "maintenance".into(), reading_ends: None, writing_ends }).unwrap();
    let said =
        json!({"reason": "maintenance", "reading_ends": null, "writing_ends": "2026-11-20T04:13:20.000Z"});
    let read = |path: &Path| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(read(&file), said);
    assert_eq!(read(&dir.path().join(INDEX))["drain"], said);
}

#[test]
fn the_session_of_a_killed_sidecar_is_found() {
    let base = tempfile::tempdir().unwrap();
    let chosen = base.path().join("creds");
    let dir = named(&chosen).unwrap();
    dir.keep_session(secret("mine")).unwrap();
    killed(dir);
    let next = named(&chosen).unwrap();
    let left: Vec<String> = next.take_sessions().iter().map(|s| s.expose().to_owned()).collect();
    assert_eq!((left, next.take_sessions().len()), (vec!["mine".to_owned()], 0));
    drop(next);
    assert!(named(&chosen).unwrap().take_sessions().is_empty(), "an end in order leaves none");
    // This also holds in a private directory.
    let stale = base.path().join("leasehold-2147483000-5-bbbb");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join(SESSION), "theirs").unwrap();
    let left = made(base.path()).unwrap().take_sessions();
    assert_eq!(left.iter().map(SecretText::expose).collect::<Vec<_>>(), ["theirs"]);
}

#[test]
fn a_warning_names_the_directory_that_the_user_named() {
    let programs = std::env::current_exe().unwrap();
    let base = tempfile::tempdir_in(programs.parent().unwrap()).unwrap();
    let named = base.path().join("credentials-of-this-run");
    fs::create_dir(&named).unwrap();
    let dir = CredentialDir::create(Some(&named), Readers::default()).unwrap();
    if !is_in_memory(&named) {
        let warning = dir.warning().unwrap();
        assert!(warning.contains("credentials-of-this-run"), "{warning}");
    }
}

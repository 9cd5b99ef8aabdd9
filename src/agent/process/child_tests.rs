//! Tests with real processes. Each test runs in a separate process, because a wrapper treats all its descendants as processes
//! of the job.

use std::{
    fs::{self, File},
    io::{Seek, Write},
    os::fd::AsFd,
    path::Path,
};

use nix::{
    pty::openpty,
    sys::signal::kill,
    unistd::{dup2_stdin, getpgrp, setsid, tcgetpgrp, ttyname},
};

use super::*;
use crate::{
    agent::process::{processes::start_of, signals::Signals},
    clock::SystemClock,
    proto::v1::Outcome,
};

const ALONE: &str = "LEASEHOLD_TEST_ALONE";
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns the full name of a test in this module, for the test runner.
fn full(test: &str) -> String {
    let (_krate, path) = module_path!().split_once("::").unwrap();
    format!("{path}::{test}")
}

/// Returns a command that runs one test of this program.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([full(test).as_str(), "--exact", "--nocapture"]).env(ALONE, test);
    command
}

/// Runs the body of a test in a separate process, on a runtime, with a timeout.
fn run_alone<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(ALONE).is_some_and(|t| t == test) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(async { tokio::time::timeout(PATIENCE, body()).await.expect("in time") });
    }
    passes(again(test));
}

/// Runs a test in a separate process, and shows its output if it failed.
fn passes(mut again: Command) {
    // The output goes to a file, not to a pipe, because a process that a test leaves behind must not block the reader.
    let mut said = tempfile::tempfile().unwrap();
    let status = again
        .stdout(said.try_clone().unwrap())
        .stderr(said.try_clone().unwrap())
        .stdin(process::Stdio::null())
        .status()
        .unwrap();
    let mut text = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut text).unwrap();
    assert!(status.success() && text.contains("1 passed"), "{status}\n{text}");
}

#[test]
#[ignore = "not a test: the guard, which the tests start"]
fn guard_entry() {
    let mut args = std::env::args_os().skip_while(|a| a != "--");
    if args.next().is_some() {
        crate::agent::guard(args);
    }
}

fn spec<S: AsRef<str>>(argv: &[S]) -> ChildSpec {
    let argv = argv.iter().map(|a| a.as_ref().into()).collect();
    let args =
        [full("guard_entry").as_str(), "--exact", "--ignored", "--nocapture", "-q", "--"].map(OsString::from);
    ChildSpec {
        guard: (std::env::current_exe().unwrap(), args.into()),
        ..ChildSpec::new(argv, ChildEnvironment::default())
    }
}

fn sh(script: &str) -> Child {
    Child::spawn(&spec(&["sh", "-c", script])).unwrap()
}

/// Waits for a file that contains a full line.
async fn line_in(path: &Path) -> String {
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn alive(pid: Pid) -> bool {
    start_of(pid).is_some()
        && !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
}

async fn gone(pid: Pid) {
    while alive(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pid_of(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap())
}

#[test]
fn the_exit_of_the_child_is_reported() {
    run_alone("the_exit_of_the_child_is_reported", || async {
        for (script, end, outcome) in [
            ("exit 0", ChildStatus::Exited(0), Outcome::Completed),
            ("exit 3", ChildStatus::Exited(3), Outcome::Failed),
            ("exit 127", ChildStatus::Exited(127), Outcome::Failed),
            ("kill -KILL $$", ChildStatus::Signalled(9), Outcome::Failed),
            ("kill -TERM $$", ChildStatus::Signalled(15), Outcome::Interrupted),
        ] {
            let mut child = sh(script);
            let ended = child.wait().await.unwrap();
            assert_eq!((ended.status, ended.outcome(), ended.asked), (end, outcome, None), "{script}");
            assert_eq!(child.wait().await.unwrap().status, end, "the same again");
            child.handle().forward(Signal::SIGTERM);
        }
    });
}

#[test]
fn each_signal_is_passed_on() {
    run_alone("each_signal_is_passed_on", || async {
        let folder = tempfile::tempdir().unwrap();
        let mut signals = Signals::listen().unwrap();
        // `--test processes` sends every signal to real commands.
        for (n, name) in
            ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT", "WINCH", "XCPU"].iter().enumerate()
        {
            let ready = folder.path().join(name);
            let script = format!(
                "trap 'exit 9' {name}; echo ready > {}; while :; do sleep 0.02; done",
                ready.display()
            );
            let mut child = sh(&script);
            line_in(&ready).await;
            let signal: Signal = format!("SIG{name}").parse().unwrap();
            kill(getpid(), signal).unwrap();
            assert_eq!(signals.next().await, signal);
            child.handle().forward(signal);
            let ended = child.wait().await.unwrap();
            assert_eq!(ended.status, ChildStatus::Exited(9), "{name}");
            let (asked, outcome) =
                if n < 4 { (Some(signal), Outcome::Interrupted) } else { (None, Outcome::Failed) };
            assert_eq!((ended.asked, ended.outcome()), (asked, outcome), "{name}");
        }
    });
}

#[test]
#[ignore = "not a test: a wrapper under nohup, which a test starts"]
fn nohup_entry() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    run_alone("nohup_entry", || async {
        let mut signals = Signals::listen().unwrap();
        for signal in [Signal::SIGHUP, Signal::SIGUSR1] {
            kill(getpid(), signal).unwrap();
        }
        assert_eq!(signals.next().await, Signal::SIGUSR1);
        let mut child = sh("kill -HUP $$; exit 8");
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Exited(8));
    });
}

#[test]
fn signals_that_the_wrapper_ignores_the_child_ignores_too() {
    let plain = again("nohup_entry");
    let mut nohup = Command::new("sh");
    nohup
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\" --ignored"])
        .arg(plain.get_program())
        .args(plain.get_args());
    nohup.env(ALONE, "nohup_entry");
    passes(nohup);
}

#[test]
fn a_signal_reaches_the_whole_group() {
    run_alone("a_signal_reaches_the_whole_group", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let mut child =
            sh(&format!("sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' & wait", file.display()));
        let grandchild = pid_of(&line_in(&file).await);
        child.handle().forward(Signal::SIGTERM);
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Signalled(15));
        gone(grandchild).await;
    });
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_after_the_grace() {
    run_alone("a_child_that_ignores_sigterm_is_killed_after_the_grace", || async {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let mut child =
            sh(&format!("trap '' TERM; echo ready > {}; while :; do sleep 0.05; done", ready.display()));
        line_in(&ready).await;
        let (handle, clock) = (child.handle(), SystemClock::new());
        let (began, grace) = (clock.now().boot, Duration::from_millis(150));
        let (left, ended) = tokio::join!(handle.terminate(OnRevoke::Term, grace, &clock), child.wait());
        let ended = ended.unwrap();
        assert_eq!((ended.status, ended.outcome()), (ChildStatus::Signalled(9), Outcome::Interrupted));
        assert_eq!(left.pids, []);
        assert!(clock.now().boot.since(began) >= grace);
    });
}

#[test]
fn the_end_of_a_child_ends_the_grace() {
    run_alone("the_end_of_a_child_ends_the_grace", || async {
        let mut child = sh("kill -STOP $$; sleep 600");
        let clock = SystemClock::new();
        let handle = child.handle();
        let grace = Duration::from_secs(600);
        let (left, ended) = tokio::join!(handle.terminate(OnRevoke::Term, grace, &clock), child.wait());
        assert_eq!((ended.unwrap().status, left.pids), (ChildStatus::Signalled(15), vec![]));
    });
}

#[test]
fn a_revocation_may_kill_or_ignore_the_child() {
    run_alone("a_revocation_may_kill_or_ignore_the_child", || async {
        let clock = SystemClock::new();
        let mut child = sh("trap '' TERM; sleep 600");
        let handle = child.handle();
        assert_eq!(handle.terminate(OnRevoke::Ignore, Duration::ZERO, &clock).await.pids, []);
        assert!(alive(handle.pid()));
        let grace = Duration::from_secs(600);
        let (left, ended) = tokio::join!(handle.terminate(OnRevoke::Kill, grace, &clock), child.wait());
        assert_eq!((ended.unwrap().status, left.pids), (ChildStatus::Signalled(9), vec![]));
    });
}

#[test]
fn a_grandchild_in_its_own_session_is_ended_too() {
    run_alone("a_grandchild_in_its_own_session_is_ended_too", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let mut child = sh(&format!(
            "setsid sh -c 'trap \"\" TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.05; done' & wait",
            file.display()
        ));
        let worker = pid_of(&line_in(&file).await);
        let (handle, clock) = (child.handle(), SystemClock::new());
        let (left, ended) =
            tokio::join!(handle.terminate(OnRevoke::Term, Duration::from_secs(3), &clock), child.wait());
        assert_eq!((ended.unwrap().status, left.pids), (ChildStatus::Signalled(15), vec![]));
        assert!(!alive(worker));
    });
}

#[test]
fn processes_left_behind_are_ended() {
    run_alone("processes_left_behind_are_ended", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let mut child = sh(&format!(
            "(setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' &); until [ -s {0} ]; do sleep 0.01; done; exit 4",
            file.display()
        ));
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Exited(4));
        let left = pid_of(&line_in(&file).await);
        assert!(alive(left), "the end is reported before the rest is ended");
        let rest = child.end_descendants(Duration::from_secs(600), &SystemClock::new()).await;
        assert_eq!((rest.pids, start_of(left)), (vec![], None), "ended, and reaped");
    });
}

#[test]
fn orphans_are_reaped_and_the_childs_status_is_not_stolen() {
    run_alone("orphans_are_reaped_and_the_childs_status_is_not_stolen", || async {
        let folder = tempfile::tempdir().unwrap();
        let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
        fs::create_dir(&begun).unwrap();
        // Some commands end by a signal that has no name.
        let mut child = sh(&format!(
            "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c '> {0}/a'$i'; exit 1' &); (setsid sh -c '> {0}/b'$i'; kill -40 $$' &); done; until [ -e {1} ]; do sleep 0.01; done; exit 4",
            begun.display(),
            go.display()
        ));
        let own = child.handle().pid();
        let guard = child.guard_pid();
        let zombies = move || {
            let all = fs::read_dir("/proc").unwrap().flatten();
            all.filter_map(|e| fs::read_to_string(e.path().join("stat")).ok())
                .filter(|s| [guard, getpid()].iter().any(|p| s.contains(&format!(") Z {p} "))))
                .filter(|s| !s.starts_with(&format!("{own} ")))
                .count()
        };
        let look = async {
            // All commands have run, and none is left.
            while fs::read_dir(&begun).unwrap().count() < 16 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            while zombies() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            File::create(&go).unwrap();
        };
        let (ended, ()) = tokio::join!(child.wait(), look);
        assert_eq!(ended.unwrap().status, ChildStatus::Exited(4));
        while zombies() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn earlier_children_of_the_wrapper_are_not_touched() {
    run_alone("earlier_children_of_the_wrapper_are_not_touched", || async {
        let mut before = Command::new("sleep").arg("600").spawn().unwrap();
        let helper = Pid::from_raw(before.id().try_into().unwrap());
        let mut child = sh("sleep 600");
        let (handle, clock) = (child.handle(), SystemClock::new());
        let (left, _ended) =
            tokio::join!(handle.terminate(OnRevoke::Kill, Duration::ZERO, &clock), child.wait());
        assert_eq!(left.pids, []);
        assert!(alive(helper));
        before.kill().unwrap();
        before.wait().unwrap();
    });
}

#[test]
fn a_command_that_cannot_be_run_is_a_different_error() {
    run_alone("a_command_that_cannot_be_run_is_a_different_error", || async {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        let path = script.to_str().unwrap();
        let refused = Child::spawn(&spec(&[path])).unwrap_err();
        assert_eq!(refused.exit_code(), 126);
        assert_eq!(Child::spawn(&spec(&["no-such-command"])).unwrap_err().exit_code(), 127);
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let refused = Child::spawn(&spec(&[path])).unwrap_err();
        assert_eq!(refused.exit_code(), 126);
        assert_eq!(
            refused.to_string(),
            format!("cannot run `{path}`: the interpreter that it names is not there")
        );
    });
}

#[test]
fn the_child_gets_only_its_arguments_and_environment() {
    run_alone("the_child_gets_only_its_arguments_and_environment", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        let script = format!(
            "tr '\\0' ' ' < /proc/$$/cmdline > {0}; env > {0}.env; ls -l /proc/$$/fd > {0}.fd; echo $PPID > {0}.parent",
            file.display()
        );
        let mut spec = spec(&["sh", "-c", &script, "--", "a b", "-q"]);
        spec.env.set = vec![("LEASEHOLD_JOB".into(), "j-1".into())];
        spec.env.removed.insert(ALONE.into());
        let mut child = Child::spawn(&spec).unwrap();
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Exited(0));
        let read = |more: &str| fs::read_to_string(format!("{}{more}", file.display())).unwrap();
        assert!(read("").starts_with("sh -c tr ") && read("").ends_with(" -- a b -q "), "{}", read(""));
        let env = read(".env");
        assert!(env.lines().any(|l| l == "LEASEHOLD_JOB=j-1") && !env.contains(ALONE), "{env}");
        assert_eq!(read(".parent").trim(), child.guard.id().to_string());
        let pipe = fs::read_link(format!("/proc/self/fd/{}", child.lifeline.as_ref().unwrap().as_raw_fd()));
        let pipe = pipe.unwrap();
        let pipe = pipe.to_str().unwrap();
        assert!(pipe.starts_with("pipe:") && !read(".fd").contains(pipe), "{pipe} {}", read(".fd"));
    });
}

/// Returns a script that starts a tree of processes: a child, a grandchild in another session that ignores SIGTERM, and an
/// orphan. Each process writes its id.
fn tree(folder: &Path) -> String {
    let deaf = "trap '' TERM; echo $$ > F/NAME.new; mv F/NAME.new F/NAME; while :; do sleep 0.05; done";
    let named = |name: &str| deaf.replace("NAME", name).replace('F', folder.to_str().unwrap());
    format!(
        "setsid sh -c \"{}\" & (setsid sh -c \"{}\" &); echo $$ > {}/child; wait",
        named("rank").replace('$', "\\$"),
        named("orphan").replace('$', "\\$"),
        folder.display()
    )
}

#[test]
#[ignore = "not a test: a wrapper that a test kills"]
fn wrapper_entry() {
    let Some(folder) = std::env::var_os("LEASEHOLD_TEST_FOLDER").map(PathBuf::from) else { return };
    run_alone("wrapper_entry", || async move {
        let files = folder.join("files");
        fs::create_dir(&files).unwrap();
        fs::write(files.join("token"), "secret").unwrap();
        let mut spec = spec(&["sh", "-c", &tree(&folder)]);
        (spec.grace, spec.files) = (Duration::from_millis(200), Some(files));
        let mut child = Child::spawn(&spec).unwrap();
        fs::write(folder.join("guard"), format!("{}\n", child.guard_pid())).unwrap();
        let _ = child.wait().await;
    });
}

#[test]
fn a_wrapper_that_is_killed_leaves_no_process_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrapper = again("wrapper_entry")
        .arg("--ignored")
        .env("LEASEHOLD_TEST_FOLDER", folder.path())
        .stdout(process::Stdio::null())
        .stderr(process::Stdio::null())
        .spawn()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = async {
        let mut all = Vec::new();
        for name in ["guard", "child", "rank", "orphan"] {
            all.push(pid_of(&line_in(&folder.path().join(name)).await));
        }
        assert!(all.iter().all(|pid| alive(*pid)) && folder.path().join("files/token").exists());
        wrapper.kill().unwrap();
        wrapper.wait().unwrap();
        for pid in all {
            gone(pid).await;
        }
        assert!(!folder.path().join("files").exists());
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, body).await.expect("all of it goes") });
}

#[test]
fn a_job_goes_on_after_its_guard_is_killed() {
    run_alone("a_job_goes_on_after_its_guard_is_killed", || async {
        let folder = tempfile::tempdir().unwrap();
        let mut child = sh(&format!("{}; wait; exit 5", tree(folder.path())));
        let mut all = Vec::new();
        for name in ["child", "rank", "orphan"] {
            all.push(pid_of(&line_in(&folder.path().join(name)).await));
        }
        kill(child.guard_pid(), Signal::SIGKILL).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), child.wait()).await;
        assert!(early.is_err() && all.iter().all(|pid| alive(*pid)), "{early:?}");
        kill(all[0], Signal::SIGKILL).unwrap();
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Signalled(9));
        let left = child.end_descendants(Duration::from_millis(100), &SystemClock::new()).await;
        assert_eq!(left.pids, []);
        assert!(!all.into_iter().any(alive));
    });
}

#[test]
fn a_job_cgroup_is_killed_by_one_write_and_removed() {
    run_alone("a_job_cgroup_is_killed_by_one_write_and_removed", || async {
        let Some(probe) = JobCgroup::create() else {
            return println!("not run: no cgroup v2 that may be written is mounted here");
        };
        probe.remove();
        let mut child = sh("trap '' TERM; cat /proc/self/cgroup; while :; do sleep 0.01; done");
        let leaf = child.handle.descendants.cgroup().cloned().expect("one was made");
        let [home, folder] = leaf.paths();
        let procs = |folder: &Path| fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert!(procs(folder).lines().any(|l| l == child.handle().pid().to_string()));
        assert!(procs(home).lines().any(|l| l == child.guard_pid().to_string()), "the guard is outside");
        leaf.kill();
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Signalled(9));
        let left = child.end_descendants(Duration::from_millis(100), &SystemClock::new()).await;
        assert_eq!(left.pids, []);
        assert!(!folder.exists());
    });
}

/// Whether any process has this word in its arguments.
fn any_called(word: &str) -> bool {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|e| fs::read(e.path().join("cmdline")).ok())
        .any(|line| line.split(|b| *b == 0).any(|argument| argument == word.as_bytes()))
}

#[test]
fn a_process_that_forks_without_end_is_ended() {
    run_alone("a_process_that_forks_without_end_is_ended", || async {
        prctl::set_child_subreaper(true).unwrap();
        for round in 0..5 {
            let word = format!("chain-{round}-{}", getpid());
            let mut chains: Vec<_> = (0..3)
                .map(|_| Command::new("sh").args(["-c", "f() { f & }; f", &word]).spawn().unwrap())
                .collect();
            chains.iter_mut().for_each(|first| drop(first.wait()));
            let left = Descendants::all(None).end(None, GUARD_PATIENCE, &SystemClock::new()).await;
            assert_eq!(left.pids, []);
            for _ in 0..20 {
                assert!(!any_called(&word), "round {round}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}

#[test]
fn a_child_that_is_dropped_is_ended() {
    run_alone("a_child_that_is_dropped_is_ended", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let child =
            sh(&format!("sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' & wait", file.display()));
        let (pid, grandchild) = (child.handle().pid(), pid_of(&line_in(&file).await));
        drop(child);
        gone(pid).await;
        gone(grandchild).await;
    });
}

#[test]
fn a_child_in_the_foreground_has_the_terminal() {
    run_alone("a_child_in_the_foreground_has_the_terminal", || async {
        setsid().unwrap();
        let pty = openpty(None, None).unwrap();
        let mut keys = File::from(pty.master);
        // If the leader of a session without a terminal opens one, it becomes the terminal of the session.
        let terminal =
            File::options().read(true).write(true).open(ttyname(pty.slave.as_fd()).unwrap()).unwrap();
        dup2_stdin(&terminal).unwrap();
        assert!(terminal::is_foreground());

        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let started = |script: &str| {
            let _ = fs::remove_file(&ready);
            sh(&format!("echo ready > {}; {script}", ready.display()))
        };
        let mut child = started("read line; [ \"$line\" = hello ] && exit 5");
        line_in(&ready).await;
        assert_eq!(tcgetpgrp(io::stdin()).unwrap(), child.handle().pid());
        keys.write_all(b"hello\n").unwrap();
        assert_eq!(child.wait().await.unwrap().status, ChildStatus::Exited(5));
        assert_eq!(tcgetpgrp(io::stdin()).unwrap(), getpgrp());

        let mut child = started("exec sleep 600");
        line_in(&ready).await;
        keys.write_all(b"\x03").unwrap();
        let ended = child.wait().await.unwrap();
        assert_eq!((ended.status, ended.outcome()), (ChildStatus::Signalled(2), Outcome::Interrupted));

        // If there is no shell that could continue the wrapper, the child goes on after Ctrl-Z.
        let mut child = started("read line; exit 6");
        line_in(&ready).await;
        keys.write_all(b"\x1a").unwrap();
        let again = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            keys.write_all(b"\n").unwrap();
        };
        let (ended, ()) = tokio::join!(child.wait(), again);
        assert_eq!(ended.unwrap().status, ChildStatus::Exited(6));
        assert!(terminal::is_foreground());
        // Closing the terminal would hang up the session and end this process.
        std::mem::forget(keys);
    });
}

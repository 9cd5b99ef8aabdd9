//! At a terminal, in a pipeline and in a script, a wrapper behaves as `env` does.
//!
//! Each case is typed into an interactive shell, once with `env` before the command and once with `leasehold run`. `sudo` behaves
//! as `env` does. The commands of `timeout` and `tini` are in their own groups: they cannot read the terminal while their stdin is
//! a pipe, and under `tini` Ctrl-Z does not give the terminal back to the shell.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use leasehold::proto::v1::MemberState;
use nix::pty::openpty;

use crate::{harness::*, scene::*};

/// An interactive shell at a new terminal.
struct Shell {
    keys: File,
    said: Arc<Mutex<String>>,
    process: Child,
}

impl Shell {
    fn start(world: &World) -> Self {
        let pty = openpty(None, None).unwrap();
        let terminal = || Stdio::from(pty.slave.as_fd().try_clone_to_owned().unwrap());
        let path = std::env::var("PATH").unwrap_or_default();
        let process = std::process::Command::new("setsid")
            .args(["--ctty", "bash", "--norc", "--noprofile", "-i"])
            .env_clear()
            .envs([("PATH", path.as_str()), ("PS1", "$ "), ("TERM", "dumb"), ("HOME", "/")])
            .env("LEASEHOLD_CONTEXTS", world.contexts_of_worker())
            .env("HERE", world.dir.path())
            .stdin(terminal())
            .stdout(terminal())
            .stderr(terminal())
            .spawn()
            .unwrap();
        let keys = File::from(pty.master);
        let (mut from, said) = (keys.try_clone().unwrap(), Arc::new(Mutex::new(String::new())));
        let into = said.clone();
        thread::spawn(move || {
            let mut chunk = [0u8; 4096];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]).replace('\r', ""));
            }
        });
        Shell { keys, said, process }
    }

    fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until the text appears this many times. Typed text is echoed, so a script prints it in two parts.
    async fn says(&self, what: &str, times: usize) {
        let heard = async {
            while self.said().matches(what).count() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), heard).await.is_err() {
            panic!("never `{what}` {times} times, but:\n{}", self.said());
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The start of the command line: `env`, then the wrapper.
fn beginnings(world: &World) -> [String; 2] {
    for (name, text) in [("job.toml", job_toml("", "").as_str()), ("asks", ASKS), ("pager", PAGER)] {
        world.write(name, text);
    }
    let (spec, dir) = (world.file("job.toml"), world.file("credentials"));
    std::fs::create_dir_all(&dir).unwrap();
    let run = format!(
        "{} run --spec {} --dir {} --",
        env!("CARGO_BIN_EXE_leasehold"),
        spec.display(),
        dir.display()
    );
    ["env".to_owned(), run]
}

/// Types each line after the text before it has appeared, and waits for the last text. `RUN` is the start of the command line.
async fn both(lines: &[(&str, &str)]) {
    for turn in 0..2 {
        // The identity works for one job at a time.
        let world = world().await;
        let begin = beginnings(&world)[turn].clone();
        let mut shell = Shell::start(&world);
        shell.says("$ ", 1).await;
        for (text, words) in lines {
            let before = shell.said().matches(words).count();
            let text = text.replace("RUN", &begin);
            shell.types(&text);
            // The typed line contains the text only in two parts.
            shell.says(words, before + 1).await;
        }
    }
}

/// Asks at the terminal, then prints what comes from stdin.
const ASKS: &str = "printf 'password: ' >/dev/tty; read x </dev/tty; echo got-$x; cat";
/// Prints one line, and waits for a key.
const PAGER: &str = "head -n 1; printf 'more? ' >/dev/tty; read k </dev/tty; echo pager-$k";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_asks_at_the_terminal_while_its_stdin_is_a_pipe() {
    both(&[("echo da''ta | RUN sh $HERE/asks\n", "password: "), ("secret\n", "got-secret\ndata\n")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pager_at_the_end_of_a_pipeline_reads_the_keys() {
    both(&[
        ("RUN yes a''bc | sh $HERE/pager\n", "more? "),
        ("q\n", "pager-q\n"),
        ("echo st''atus ${PIPESTATUS[*]}\n", "status 141 0"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_the_command_and_the_loop_around_it() {
    both(&[
        (
            "bash -c 'for i in 1 2 3; do RUN sh -c \"echo u\"\"p; exec sleep 60\"; done; echo af''ter'\n",
            "up\n",
        ),
        ("\x03", "^C"),
        ("echo th''en $?\n", "then 130"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_keeps_the_stdin_that_the_command_does_not_read() {
    both(&[(
        "printf '1\\n2\\n' | while read x; do [ $x = 2 ] || RUN true 2>/dev/null; echo li''ne-$x; done; echo e''nd\n",
        "line-1\nline-2\nend\n",
    )])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_that_of_the_command() {
    both(&[("RUN sh -c 'exit 7'; echo co''de $?\n", "code 7")]).await;
    both(&[("RUN sh -c 'kill -TERM $$'; echo co''de $?\n", "code 143")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_the_background_stops_when_it_reads() {
    both(&[
        ("RUN sh -c 'read x; echo go''t-$x' &\n", "$ "),
        ("until jobs | grep -q Stop''ped; do sleep 0.1; done; echo se''en\n", "seen\n"),
        ("fg\n", "fg\n"),
        ("hello\n", "got-hello\n"),
    ])
    .await;
}

// Proves law 30.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_stopped_keeps_its_access() {
    let world = world_of(SHORT).await;
    let run = beginnings(&world)[1].clone();
    let mut shell = Shell::start(&world);
    shell.says("$ ", 1).await;
    shell.types(&format!("{run} sh -c 'echo u''p; read x; echo go''t-$x'\n"));
    shell.says("up\n", 1).await;
    let said = shell.said();
    let job = said.split(", attempt ").next().unwrap().rsplit_once("leasehold: ").unwrap().1.to_owned();
    shell.types("\x1a");
    shell.says("Stopped", 1).await;
    // The shell responds in the meantime.
    shell.types("echo her''e\n");
    shell.says("here\n", 1).await;
    tokio::time::sleep(WINDOW * 3).await;
    let client = world.client(WORKER).await;
    let (standing, attempt) = client.stands(&job).await;
    assert!(standing.live_leases > 0, "{}", shell.said());
    assert_eq!(attempt.members[0].state(), MemberState::Joined);
    assert!(world.records().await.of("member.away").is_empty(), "it beat all the time");
    shell.types("fg\n");
    shell.says("fg\n", 1).await;
    shell.types("hello\n");
    shell.says("got-hello\n", 1).await;
    shell.says("all access has ended", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_that_is_killed_ends_the_command() {
    let world = world().await;
    let run = beginnings(&world)[1].clone();
    let mut shell = Shell::start(&world);
    shell.says("$ ", 1).await;
    shell.types(&format!("{run} {} & echo fro''nt $!\n", rank("command", "")));
    shell.says("front ", 1).await;
    let command = pid_in(&world, "command").await;
    shell.types("kill -KILL $!\n");
    gone(command).await;
    eventually("its files are gone", async || {
        std::fs::read_dir(world.file("credentials")).unwrap().next().is_none()
    })
    .await;
}

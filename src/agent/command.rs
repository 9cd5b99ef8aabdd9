//! The command that is run, and the shim that becomes it.
//!
//! `leasehold __exec` is what the wrapper really starts: it arranges for its own end when the wrapper dies, takes the
//! terminal where it was told to, and then becomes the command. So nothing has to happen between fork and exec, where
//! only unsafe code can run.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    errno::Errno,
    sys::{prctl, signal::Signal},
    unistd::{AccessFlags, Pid, access, getppid},
};

use super::terminal;

/// The hidden subcommand.
pub(super) const SUBCOMMAND: &str = "__exec";

/// Why a command cannot be run. The exit codes are those of `env`, `docker` and shells.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("cannot run `{command}`: no such command; write its path, or put it on the PATH")]
    NotFound { command: String },
    #[error("cannot run `{command}`: {why}")]
    NotExecutable { command: String, why: String },
}

impl CommandError {
    /// 127 where there is no such command, 126 where it cannot be executed.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::NotFound { .. } => 127,
            CommandError::NotExecutable { .. } => 126,
        }
    }
}

/// Finds a command as a shell would: as it is where it holds a slash, else the first on the path that can be executed.
pub fn resolve(command: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, CommandError> {
    let shown = || command.to_string_lossy().escape_debug().to_string();
    let refuse = |why: &str| CommandError::NotExecutable { command: shown(), why: why.to_owned() };
    if command.is_empty() {
        return Err(CommandError::NotFound { command: shown() });
    }
    if command.as_bytes().contains(&b'/') {
        return match executable(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(Some(why)) => Err(refuse(why)),
            Err(None) => Err(CommandError::NotFound { command: shown() }),
        };
    }
    let mut refused = None;
    for folder in std::env::split_paths(path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"))) {
        // An empty entry means here; with a slash nobody searches a second time.
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        let found = folder.join(command);
        match executable(&found) {
            Ok(()) => return Ok(found),
            Err(why) => refused = refused.or(why),
        }
    }
    Err(refused.map_or_else(|| CommandError::NotFound { command: shown() }, refuse))
}

/// Whether a path can be executed, or why not; None where nothing is there.
fn executable(path: &Path) -> Result<(), Option<&'static str>> {
    match fs::metadata(path) {
        Ok(m) if m.is_dir() => Err(Some("it is a directory")),
        Ok(_) => access(path, AccessFlags::X_OK)
            .map_err(|_| Some("it may not be executed; see its mode, or the mount's")),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(Some("its directory may not be searched"))
        }
        Err(_) => Err(None),
    }
}

/// What the shim is told, in its arguments. Nothing of it is secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Orders {
    /// Who must still be there.
    pub(super) wrapper: Pid,
    /// The wrapper's end of a pipe on which a failure to become the command is reported.
    pub(super) report: i32,
    /// What the kernel sends when the wrapper is gone.
    pub(super) death: Signal,
    pub(super) takes_terminal: bool,
    /// Where the command is, and how it was called, with its arguments.
    pub(super) program: PathBuf,
    pub(super) argv: Vec<OsString>,
}

impl Orders {
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![
            self.wrapper.to_string().into(),
            self.report.to_string().into(),
            self.death.as_str().into(),
            if self.takes_terminal { "terminal" } else { "-" }.into(),
            "--".into(),
            self.program.clone().into(),
        ];
        args.extend(self.argv.iter().cloned());
        args
    }

    fn from_args(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        let mut word = || args.next()?.into_string().ok();
        let wrapper = Pid::from_raw(word()?.parse().ok()?);
        let report = word()?.parse().ok()?;
        let death = word()?.parse().ok()?;
        let takes_terminal = word()? == "terminal";
        (word()? == "--").then_some(())?;
        let program = args.next()?.into();
        let argv: Vec<_> = args.collect();
        (!argv.is_empty()).then_some(Orders { wrapper, report, death, takes_terminal, program, argv })
    }
}

/// Becomes the command: the body of the hidden subcommand, given what follows `__exec`. `main` calls it before it parses
/// anything and before it starts a thread.
///
/// Exits with 127 or 126 and one line on stderr where the command cannot be run, and with 125 where the wrapper is gone
/// already. The signal mask and SIGPIPE are as a fresh process has them; what was ignored from the start (`nohup`) still is.
pub fn exec_shim(args: impl IntoIterator<Item = OsString>) -> ! {
    let Some(orders) = Orders::from_args(args) else {
        complain("`__exec` is for the wrapper alone: use `leasehold run -- CMD`");
        std::process::exit(64);
    };
    if let Err(e) = prctl::set_pdeathsig(orders.death) {
        complain(&format!("the command would outlive the wrapper: the death signal was refused: {e}"));
        std::process::exit(125);
    }
    // Had it died before the signal was set, none would come.
    if getppid() != orders.wrapper {
        std::process::exit(125);
    }
    if orders.takes_terminal {
        terminal::take();
    }
    let error = become_command(&orders);
    let failure = failure(&orders, &error);
    complain(&failure.to_string());
    report(&orders, &error);
    std::process::exit(failure.exit_code().into());
}

/// Returns only where it failed. Empties the signal mask and restores SIGPIPE, as std does before each exec.
fn become_command(orders: &Orders) -> io::Error {
    let mut argv = orders.argv.iter();
    let mut command = Command::new(&orders.program);
    if let Some(name) = argv.next() {
        command.arg0(name);
    }
    command.args(argv).exec()
}

fn failure(orders: &Orders, error: &io::Error) -> CommandError {
    let command = orders.program.to_string_lossy().escape_debug().to_string();
    match error.kind() {
        // The file is there, or `resolve` had said so: what is missing is the interpreter that its first line names.
        io::ErrorKind::NotFound if orders.program.exists() => CommandError::NotExecutable {
            command,
            why: "the interpreter that it names is not there".to_owned(),
        },
        io::ErrorKind::NotFound => CommandError::NotFound { command },
        _ => CommandError::NotExecutable { command, why: error.to_string() },
    }
}

/// Tells the wrapper the error number, so that it does not take the exit code for the command's own.
fn report(orders: &Orders, error: &io::Error) {
    let pipe = format!("/proc/{}/fd/{}", orders.wrapper, orders.report);
    if let Ok(mut pipe) = OpenOptions::new().write(true).open(pipe) {
        let _ = pipe.write_all(&error.raw_os_error().unwrap_or(0).to_le_bytes());
    }
}

/// What the shim reported, as the wrapper says it.
pub(super) fn reported(bytes: [u8; 4], program: &Path) -> CommandError {
    let orders = Orders {
        wrapper: getppid(),
        report: 0,
        death: Signal::SIGTERM,
        takes_terminal: false,
        program: program.to_owned(),
        argv: Vec::new(),
    };
    failure(&orders, &Errno::from_raw(i32::from_le_bytes(bytes)).into())
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "leasehold: {text}");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        for d in [&first, &second] {
            fs::create_dir(d).unwrap();
            fs::write(d.join("tool"), "").unwrap();
        }
        fs::create_dir(second.join("dir")).unwrap();
        fs::set_permissions(second.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::join_paths([&first, &second]).unwrap();
        let find = |name: &str| resolve(OsStr::new(name), Some(&path));
        assert_eq!(find("tool").unwrap(), second.join("tool"), "one that cannot be executed is passed over");
        assert_eq!(find("gone").unwrap_err().exit_code(), 127);
        assert_eq!(find("").unwrap_err().exit_code(), 127);
        assert_eq!(find("dir").unwrap_err().exit_code(), 126);
        let plain = first.join("tool");
        let refused = resolve(plain.as_os_str(), Some(&path)).unwrap_err();
        assert_eq!(refused.exit_code(), 126);
        assert!(refused.to_string().contains("may not be executed"), "{refused}");
        assert_eq!(find("./gone/tool").unwrap_err().exit_code(), 127);
        assert!(resolve(OsStr::new("sh"), None).is_ok());
    }

    #[test]
    fn orders_read_back_as_they_were_given() {
        let orders = Orders {
            wrapper: Pid::from_raw(7),
            report: 5,
            death: Signal::SIGTERM,
            takes_terminal: true,
            program: "/bin/sh".into(),
            argv: ["sh", "-c", "--", "exit 3"].map(OsString::from).into(),
        };
        assert_eq!(Orders::from_args(orders.to_args()), Some(orders));
        for bad in [
            vec![],
            vec!["7"],
            vec!["7", "5", "SIGTERM", "-", "--", "/bin/sh"],
            vec!["x", "5", "SIGTERM", "-", "--", "a", "a"],
        ] {
            assert_eq!(Orders::from_args(bad.iter().map(OsString::from)), None, "{bad:?}");
        }
    }
}

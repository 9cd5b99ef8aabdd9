//! Finds the command to run, or says why it cannot be run.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::plain;

/// Why a command cannot be run. The exit codes are those of `env`, `docker` and shells.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("cannot run `{command}`: no such command; write its path, or put it on the PATH")]
    NotFound { command: String },
    #[error("cannot run `{command}`: {why}")]
    NotExecutable { command: String, why: String },
}

impl CommandError {
    /// The exit status: 127 if there is no such command, 126 if it cannot be executed.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::NotFound { .. } => 127,
            CommandError::NotExecutable { .. } => 126,
        }
    }
}

/// Finds a command as a shell does: a name with a slash is a path, and any other name is searched on the PATH.
pub fn resolve(command: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, CommandError> {
    let shown = || plain::value(&command.to_string_lossy());
    let refuse = |why: &str| CommandError::NotExecutable { command: shown(), why: why.to_owned() };
    if command.is_empty() {
        return Err(CommandError::NotFound { command: shown() });
    }
    if command.as_bytes().contains(&b'/') {
        return match check_executable(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(Some(why)) => Err(refuse(why)),
            Err(None) => Err(CommandError::NotFound { command: shown() }),
        };
    }
    let mut refused = None;
    for folder in std::env::split_paths(path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"))) {
        // An empty entry means the current directory. With `./` before its name, the command is not searched on the PATH again.
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        let found = folder.join(command);
        match check_executable(&found) {
            Ok(()) => return Ok(found),
            Err(why) => refused = refused.or(why),
        }
    }
    Err(refused.map_or_else(|| CommandError::NotFound { command: shown() }, refuse))
}

/// Checks that a path can be executed. Returns `Err(None)` if it does not exist.
fn check_executable(path: &Path) -> Result<(), Option<&'static str>> {
    match fs::metadata(path) {
        Ok(m) if m.is_dir() => Err(Some("it is a directory")),
        Ok(_) => access(path, AccessFlags::X_OK).map_err(|_| {
            Some("this user is not allowed to execute it: check its mode, and the options of its mount")
        }),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(Some("this user is not allowed to enter its directory"))
        }
        Err(_) => Err(None),
    }
}

/// Explains why a command that was found could not be started.
pub(crate) fn start_error(program: &Path, error: &io::Error) -> CommandError {
    let command = plain::value(&program.to_string_lossy());
    match error.kind() {
        // The file exists, so the interpreter that its first line names is missing.
        io::ErrorKind::NotFound if program.exists() => CommandError::NotExecutable {
            command,
            why: "the interpreter that it names is not there".to_owned(),
        },
        io::ErrorKind::NotFound => CommandError::NotFound { command },
        _ => CommandError::NotExecutable { command, why: error.to_string() },
    }
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
        assert!(refused.to_string().contains("not allowed to execute"), "{refused}");
        assert_eq!(find("./gone/tool").unwrap_err().exit_code(), 127);
        assert!(resolve(OsStr::new("sh"), None).is_ok());
    }
}

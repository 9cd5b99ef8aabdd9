//! The program of Vault.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command};

use crate::{dev::bench::peers::find_program, plain};

/// The longest that the program may take to print its version.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of its output is read.
const OUTPUT_BYTES_MAX: u64 = 4 << 10;
/// The most characters of a version.
const VERSION_CHARS_MAX: usize = 40;

/// A program that says that it is Vault.
#[derive(Clone, Debug)]
pub struct VaultProgram {
    /// Its path.
    pub path: PathBuf,
    /// Its version, for example `1.13.1`.
    pub version: String,
}

/// Why Vault cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum VaultProgramError {
    /// No program was named, and there is none in PATH.
    #[error("there is no vault in PATH")]
    Absent,
    /// The program could not be started.
    #[error("`{path}` could not be started")]
    NotStarted { path: String, source: std::io::Error },
    /// The program did not print a version of Vault.
    #[error("`{0} version` did not print a version of Vault")]
    NotVault(String),
}

impl VaultProgram {
    /// Finds the program, at this path or in PATH, and asks it for its version.
    ///
    /// # Errors
    ///
    /// Fails if there is no such program, or if it is not Vault.
    pub async fn find(named: Option<&Path>) -> Result<Self, VaultProgramError> {
        let path = named.map(Path::to_owned).or_else(|| find_program("vault", &[]));
        let path = path.ok_or(VaultProgramError::Absent)?;
        let shown = plain::path(&path);
        let not_started = |source| VaultProgramError::NotStarted { path: shown.clone(), source };
        // Vault 1.13 writes a cache into its home even for `version`. Without a home, it writes into its working folder.
        let home = tempfile::tempdir().map_err(not_started)?;
        let mut child = Command::new(std::path::absolute(&path).map_err(not_started)?)
            .arg("version")
            .current_dir(home.path())
            .env_clear()
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(not_started)?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = stdout.take(OUTPUT_BYTES_MAX);
            // If the program does not end in time, or its output breaks off, the output until then counts.
            let _ = tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut output)).await;
        }
        let version = read_version(&String::from_utf8_lossy(&output));
        let version = version.ok_or(VaultProgramError::NotVault(shown))?;
        Ok(VaultProgram { path, version })
    }
}

/// Reads a version from the output of `vault version`: `Vault v1.13.1 (…), built …`.
fn read_version(output: &str) -> Option<String> {
    let version = output.trim_start().strip_prefix("Vault v")?.split_whitespace().next()?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    let is_version = version.len() <= VERSION_CHARS_MAX && version.chars().all(is_part);
    is_version.then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_version_of_vault_is_read() {
        let read = |text| read_version(text);
        assert_eq!(read("Vault v1.13.1 (abc), built 2023-03-23\n").as_deref(), Some("1.13.1"));
        assert_eq!(read("Vault v1.20.0-rc1+ent\n").as_deref(), Some("1.20.0-rc1+ent"));
        for other in ["", "OpenBao v2.4.0", "Vault v", "Vault v1|2", &format!("Vault v{}", "1".repeat(41))] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    // The program runs in a temporary home, which is removed with all that the program wrote.
    #[tokio::test]
    async fn the_program_runs_in_a_temporary_home() {
        let folder = tempfile::tempdir().unwrap();
        let (program, left) = (folder.path().join("vault"), folder.path().join("home"));
        let script = format!("#!/bin/sh\ntest . -ef \"$HOME\" && echo Vault v1; pwd >{}\n", left.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(VaultProgram::find(Some(&program)).await.unwrap().version, "1");
        let home = std::fs::read_to_string(left).unwrap();
        assert!(home.starts_with('/') && !Path::new(home.trim()).exists(), "{home}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_vault_is_refused() {
        let find =
            async |path: &str| VaultProgram::find(Some(Path::new(path))).await.unwrap_err().to_string();
        assert_eq!(find("/bin/true").await, "`/bin/true version` did not print a version of Vault");
        assert_eq!(find("/no/vault").await, "`/no/vault` could not be started");
    }
}

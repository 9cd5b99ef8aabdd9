//! Takes the steps of one control, and checks the result of each.

use std::{collections::BTreeMap, fs, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use super::{
    lab::Lab,
    list::{Control, Standing, Step},
};
use crate::{clock::Clock, plain};

/// How long one step may take.
const STEP: Duration = Duration::from_secs(20);

/// The result of a control that was tried.
#[derive(Clone, Debug)]
pub struct Tried {
    pub number: u32,
    pub name: String,
    pub standing: Standing,
    pub steps: usize,
    pub ms: u64,
    /// The first step with a wrong result, and what happened. `None` if all results were right.
    pub failed: Option<String>,
}

/// One control while its steps are taken.
pub struct ControlTrial<'a> {
    lab: &'a Lab,
    program: &'a Path,
    control: &'a Control,
    kept: BTreeMap<String, String>,
    running: BTreeMap<String, Child>,
}

impl<'a> ControlTrial<'a> {
    pub fn new(lab: &'a Lab, program: &'a Path, control: &'a Control) -> Self {
        let kept = BTreeMap::from([
            ("n".to_owned(), control.number.to_string()),
            ("dir".to_owned(), lab.root.display().to_string()),
        ]);
        ControlTrial { lab, program, control, kept, running: BTreeMap::new() }
    }

    /// Takes the steps one after the other. Stops at the first step with a wrong result.
    pub async fn run(mut self, clock: &dyn Clock) -> Tried {
        let began = clock.now().boot;
        let mut failed = None;
        for (number, step) in (1..).zip(&self.control.step) {
            let taken = tokio::time::timeout(STEP, self.take(step)).await;
            let taken = taken.unwrap_or_else(|_| Err(format!("it took longer than {} s", STEP.as_secs())));
            if let Err(why) = taken {
                let what = step.run.as_ref().or(step.write.as_ref()).or(step.ends.as_ref());
                failed = Some(format!("step {number}, `{}`: {why}", what.map_or("", String::as_str)));
                break;
            }
        }
        // Stop the commands that still run.
        for child in self.running.values_mut() {
            let _ = child.kill().await;
        }
        let ms = clock.now().boot.since(began).as_millis();
        Tried {
            number: self.control.number,
            name: self.control.name.clone(),
            standing: self.control.standing(),
            steps: self.control.step.len(),
            ms: u64::try_from(ms).unwrap_or(u64::MAX),
            failed,
        }
    }

    async fn take(&mut self, step: &Step) -> Result<(), String> {
        if let Some(file) = &step.write {
            return self.write(file, step);
        }
        if let Some(name) = &step.ends {
            return self.await_end(name, step).await;
        }
        let mut command = self.command(step)?;
        if let Some(name) = &step.stays {
            return self.start(name, command).await;
        }
        let done = command.output().await.map_err(|e| e.to_string())?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        let said = format!("{out}{err}");
        judge(step, done.status.code(), &self.fill(step.says.as_deref()), &said)?;
        if let Some(name) = &step.keep {
            let word = out.split_whitespace().next().ok_or("it printed nothing")?;
            self.kept.insert(name.clone(), word.to_owned());
        }
        Ok(())
    }

    fn write(&self, file: &str, step: &Step) -> Result<(), String> {
        let folder = self.lab.folder(self.control.number);
        let from = step.from.as_deref().unwrap_or(file);
        let mut text = fs::read_to_string(folder.join(from)).map_err(|e| format!("{from}: {e}"))?;
        for (before, after) in &step.swap {
            let before = self.fill(Some(before));
            if !text.contains(&before) {
                return Err(format!("{from} has no `{before}`"));
            }
            text = text.replace(&before, &self.fill(Some(after)));
        }
        let into = folder.join(file);
        if let Some(parent) = into.parent() {
            fs::create_dir_all(parent).map_err(|e| format!("{file}: {e}"))?;
        }
        fs::write(into, text).map_err(|e| format!("{file}: {e}"))
    }

    fn command(&self, step: &Step) -> Result<Command, String> {
        let line = self.fill(step.run.as_deref());
        let mut command = Command::new(self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LEASEHOLD") || name == "SPIFFE_ENDPOINT_SOCKET" {
                command.env_remove(name);
            }
        }
        if let Some(by) = &step.by {
            let context = match by.as_str() {
                "job" => format!("job-{}", self.control.number),
                other => other.to_owned(),
            };
            command.args(["--context", &context]);
        }
        command
            .env("LEASEHOLD_CONTEXTS", self.lab.contexts())
            .env("NO_COLOR", "1")
            .args(words(&line)?)
            .current_dir(self.lab.folder(self.control.number))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Starts a command that keeps running, and waits for its first line.
    async fn start(&mut self, name: &str, mut command: Command) -> Result<(), String> {
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let out = child.stdout.take().ok_or("it has no stdout")?;
        let mut lines = BufReader::new(out).lines();
        if lines.next_line().await.map_err(|e| e.to_string())?.is_none() {
            let status = child.wait().await.map_err(|e| e.to_string())?;
            let mut said = String::new();
            if let Some(mut err) = child.stderr.take() {
                let _ = err.read_to_string(&mut said).await;
            }
            return Err(format!("it ended with {status}: {}", plain::line(&said)));
        }
        // The rest of the output is read, so that the command never waits for us.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    async fn await_end(&mut self, name: &str, step: &Step) -> Result<(), String> {
        let mut child = self.running.remove(name).ok_or_else(|| format!("no command is called {name}"))?;
        let mut said = String::new();
        if let Some(mut err) = child.stderr.take() {
            let _ = err.read_to_string(&mut said).await;
        }
        let status = child.wait().await.map_err(|e| e.to_string())?;
        judge(step, status.code(), &self.fill(step.says.as_deref()), &said)
    }

    /// Replaces each `${NAME}` with the word that was kept under this name.
    fn fill(&self, text: Option<&str>) -> String {
        let mut text = text.unwrap_or_default().to_owned();
        for (name, value) in &self.kept {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        text
    }
}

fn judge(step: &Step, code: Option<i32>, says: &str, said: &str) -> Result<(), String> {
    let shown = || plain::message(said.trim()).into_owned();
    if code != Some(step.exit) {
        let code = code.map_or("a signal".to_owned(), |code| code.to_string());
        return Err(format!("exit {code} and not {}: {}", step.exit, shown()));
    }
    if !said.contains(says) {
        return Err(format!("it did not say `{says}`: {}", shown()));
    }
    match &step.hides {
        Some(hidden) if said.contains(hidden) => Err(format!("it says `{hidden}`: {}", shown())),
        _ => Ok(()),
    }
}

/// Splits a line into words. A word in `'…'` may have blanks.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut all, mut word, mut is_quoted, mut is_word) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '\'' => (is_quoted, is_word) = (!is_quoted, true),
            ' ' if !is_quoted => {
                if std::mem::take(&mut is_word) {
                    all.push(std::mem::take(&mut word));
                }
            }
            c => {
                is_word = true;
                word.push(c);
            }
        }
    }
    if is_quoted {
        return Err(format!("`{line}` has a quote that does not end"));
    }
    if is_word {
        all.push(word);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_by_a_shell() {
        assert_eq!(words("a  'b c' d''e ''").unwrap(), ["a", "b c", "de", ""]);
        assert!(words("a 'b").is_err());
    }
}

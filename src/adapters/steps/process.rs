//! One program to its end: output kept in bounds, the whole process group ended at the time-out and when nobody waits any more.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::ports::steps::StepError;

/// How much of a program's output is held while it runs; the end counts, because errors stand there.
const HELD_BYTES: usize = 256 * 1024;
/// Between SIGTERM and SIGKILL: Terraform gives its lock back meanwhile.
const GRACE: Duration = Duration::from_secs(5);
/// After the program ended: somebody it started may hold the pipe open.
const DRAIN: Duration = Duration::from_secs(2);

/// What is to be run.
pub(super) struct Program {
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub directory: Option<String>,
    pub input: Option<String>,
}

/// How it ended.
pub(super) struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    command: String,
}

impl Ended {
    /// Everything that it said.
    pub fn said(&self) -> String {
        let (out, err) = (self.stdout.trim_end(), self.stderr.trim_end());
        if out.is_empty() || err.is_empty() { format!("{out}{err}") } else { format!("{out}\n{err}") }
    }

    /// The output, or what went wrong.
    pub fn succeeded(self) -> Result<String, StepError> {
        match self.code {
            Some(0) => Ok(self.said()),
            _ => Err(StepError::Failed(self.failure())),
        }
    }

    /// In words: the exit status, then the output from its end.
    pub fn failure(&self) -> String {
        let how = match self.code {
            Some(code) => format!("ended with {code}"),
            None => "was killed by a signal".to_owned(),
        };
        let said = self.said();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("{} {how}: {}\n{said}", self.command, last.trim())
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.program)?;
        for argument in &self.arguments {
            let is_plain =
                !argument.is_empty() && argument.chars().all(|letter| letter.is_ascii_graphic() && letter != '\'');
            if is_plain { write!(formatter, " {argument}")? } else { write!(formatter, " {argument:?}")? }
        }
        match &self.directory {
            Some(directory) => write!(formatter, " (in {directory})"),
            None => Ok(()),
        }
    }
}

/// Ends the whole group when the last one who waits for it is gone.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may be gone already.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

impl Program {
    /// Runs it, for `timeout` at most.
    pub async fn run(&self, timeout: Duration) -> Result<Ended, StepError> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(&self.environment).process_group(0).kill_on_drop(true);
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let mut child = command.spawn().map_err(|error| {
            StepError::Failed(format!("start {}: {error}: is it installed on this host?", self.program))
        })?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let (mut stdin, input) = (child.stdin.take(), self.input.clone());
        let writing = tokio::spawn(async move {
            if let (Some(stdin), Some(input)) = (stdin.as_mut(), input) {
                // A program that does not read its input says so by its exit.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        });
        let out = tokio::spawn(tail(child.stdout.take()));
        let err = tokio::spawn(tail(child.stderr.take()));
        let waited = tokio::time::timeout(timeout, child.wait()).await;
        let is_late = waited.is_err();
        if is_late {
            group.signal(Signal::TERM);
            if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                group.signal(Signal::KILL);
            }
        }
        // What it left behind in its group ends with it.
        drop(group);
        writing.abort();
        let ended =
            child.wait().await.map_err(|error| StepError::Unknown(format!("wait for {}: {error}", self.program)))?;
        let stdout = tokio::time::timeout(DRAIN, out).await.ok().and_then(Result::ok).unwrap_or_default();
        let stderr = tokio::time::timeout(DRAIN, err).await.ok().and_then(Result::ok).unwrap_or_default();
        let ended = Ended { code: ended.code(), stdout, stderr, command: self.to_string() };
        if is_late {
            let said = ended.said();
            let seconds = timeout.as_secs();
            return Err(StepError::Failed(format!(
                "{self} did not end within {seconds} s, and its processes were killed: give it a longer timeout, or look why it hangs\n{said}"
            )));
        }
        Ok(ended)
    }
}

/// The end of what is read, whatever the program writes.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut held: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        held.extend_from_slice(&chunk[..read]);
        if held.len() > 2 * HELD_BYTES {
            held.drain(..held.len() - HELD_BYTES);
        }
    }
    String::from_utf8_lossy(&held).into_owned()
}

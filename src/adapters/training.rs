//! Runs `stormglass-train` as a child: nice, within limits of memory and time, gone when nobody waits for it any more.
//!
//! The program's own limits are set from outside, right after it began; its standard input stays open as long as this process lives,
//! and it ends when that closes, so that it does not outlive a controller that was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::prometheus::{Credentials, PrometheusSettings};
use crate::domain::clock::WallTime;
use crate::domain::ids::NodeName;
use crate::domain::training::{TrainRun, TrainStage};
use crate::ports::steps::StepError;
use crate::ports::training::{TellProgress, Trainer};

/// Whatever runs beside it comes first.
const NICE: i32 = 15;
/// The program's exit status for a challenger that is not better.
const NOT_BETTER: i32 = 9;
/// Lines with which the program says how far it is.
const PROGRESS: &str = "progress: ";
/// Lines of its errors that are kept.
const LINES_KEPT: usize = 20;

/// What the program is told.
#[derive(Clone)]
pub struct TrainSettings {
    /// The program.
    pub program: PathBuf,
    /// Where samples and challengers lie meanwhile.
    pub directory: PathBuf,
    /// The folder of models.
    pub models: PathBuf,
    /// Name of the models that come of it.
    pub name: String,
    /// Where the samples come from; its timeout and authority are for the controller's own questions.
    pub prometheus: PrometheusSettings,
    /// PEM of who signed Prometheus' certificate.
    pub authority_file: Option<PathBuf>,
    /// A file of features; those that are built in if not given.
    pub features: Option<PathBuf>,
    /// Whose samples.
    pub nodes: Vec<NodeName>,
    /// Seconds between samples.
    pub step_seconds: u32,
    /// How much of the past is used.
    pub span: Duration,
    /// Address space of the program, in bytes.
    pub memory_bytes_max: u64,
    /// With the LSTM; else its linear twin, which needs seconds.
    pub has_network: bool,
}

/// The training program on this host.
pub struct TrainProgram {
    settings: TrainSettings,
}

impl TrainProgram {
    /// With these settings; nothing is looked at yet.
    pub fn new(settings: TrainSettings) -> Self {
        Self { settings }
    }

    /// Where one retraining lies.
    fn place(&self, run: &TrainRun) -> PathBuf {
        self.settings.directory.join(&run.operation.0)
    }

    fn arguments(&self, run: &TrainRun) -> Vec<String> {
        let settings = &self.settings;
        let place = self.place(run);
        let text = |path: &Path| path.display().to_string();
        let (train, held_out, challenger) = (place.join("train"), place.join("held-out"), place.join("challenger"));
        let mut all: Vec<String> = vec![run.stage.to_string(), "--while-stdin".to_owned()];
        let mut add = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
        match run.stage {
            TrainStage::Collect => {
                let end = run.begun;
                let start = WallTime(end.0 - i64::try_from(settings.span.as_micros()).unwrap_or(i64::MAX));
                add(&["--prometheus", &settings.prometheus.url, "--step", &settings.step_seconds.to_string()]);
                add(&["--start", &start.to_string(), "--end", &end.to_string(), "--out", &text(&place)]);
                for node in &settings.nodes {
                    add(&["--node", node.as_str()]);
                }
                if let Some(file) = &settings.features {
                    add(&["--features", &text(file)]);
                }
                if let Some(file) = &settings.authority_file {
                    add(&["--ca-file", &text(file)]);
                }
            }
            TrainStage::Fit => {
                add(&[
                    "--csv",
                    &text(&train),
                    "--step",
                    &settings.step_seconds.to_string(),
                    "--out",
                    &text(&challenger),
                ]);
                add(&["--name", &settings.name, "--version", &version(run.begun)]);
                if let Some(file) = &settings.features {
                    add(&["--features", &text(file)]);
                } else {
                    add(&["--built-in-features"]);
                }
                if !settings.has_network {
                    add(&["--linear"]);
                }
            }
            TrainStage::Publish => {
                add(&["--model", &text(&challenger), "--models", &text(&settings.models)]);
                add(&["--input", &text(&held_out), "--history", &text(&train)]);
            }
        }
        all
    }

    /// Removes what earlier retrainings left, and makes room for this one.
    fn prepare(&self, run: &TrainRun) -> Result<(), StepError> {
        let place = self.place(run);
        let failed = |error: std::io::Error| {
            StepError::Failed(format!("prepare {}: {error}: may this user write there?", place.display()))
        };
        fs::create_dir_all(&self.settings.directory).map_err(failed)?;
        if run.stage == TrainStage::Collect {
            for entry in fs::read_dir(&self.settings.directory).map_err(failed)?.flatten() {
                if entry.path() != place && entry.path().is_dir() {
                    fs::remove_dir_all(entry.path()).map_err(failed)?;
                }
            }
            fs::create_dir_all(&place).map_err(failed)?;
        }
        if place.is_dir() {
            return Ok(());
        }
        let words = "its samples lie on the host of the controller that began it, or were removed: retrain again";
        Err(StepError::Failed(format!("{} is not there: {words}", place.display())))
    }
}

/// The version of what a retraining makes: when it began.
fn version(begun: WallTime) -> String {
    begun.to_string().chars().filter(char::is_ascii_digit).take(14).collect()
}

#[async_trait]
impl Trainer for TrainProgram {
    async fn run(&self, run: &TrainRun, progress: TellProgress<'_>) -> Result<String, StepError> {
        self.prepare(run)?;
        let program = self.settings.program.display().to_string();
        let mut command = Command::new(&self.settings.program);
        command.args(self.arguments(run)).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Tokens of this controller are none of its business; Prometheus' are not shown in a list of processes.
        command.env_clear();
        match &self.settings.prometheus.credentials {
            Credentials::None => {}
            Credentials::Bearer(token) => drop(command.env("STORMGLASS_PROMETHEUS_TOKEN", token)),
            Credentials::Basic { user, password } => {
                command.env("STORMGLASS_PROMETHEUS_USER", user).env("STORMGLASS_PROMETHEUS_PASSWORD", password);
            }
        }
        let mut child = command.spawn().map_err(|error| {
            StepError::Failed(format!("start {program}: {error}: is it installed on the controller's host?"))
        })?;
        // Kept until the end of this function.
        let _lifeline = child.stdin.take();
        match limit(child.id(), self.settings.memory_bytes_max) {
            // It ended already, and says why below.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(StepError::Failed(format!("limit {program}: {error}"))),
        }
        let (mut said, mut errors) = (Vec::new(), Vec::new());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let listen = async {
            let Some(err) = err else { return };
            let mut lines = BufReader::new(err).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match line.strip_prefix(PROGRESS) {
                    Some(words) => progress(words.to_owned()),
                    None => keep(&mut errors, line),
                }
            }
        };
        let read = async {
            let Some(out) = out else { return };
            let mut lines = BufReader::new(out).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                keep(&mut said, line);
            }
        };
        tokio::join!(listen, read);
        let ended = child.wait().await.map_err(|error| StepError::Unknown(format!("wait for {program}: {error}")))?;
        let last = said.iter().rev().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
        let is_last = run.stage == TrainStage::Publish;
        if ended.success() || (is_last && ended.code() == Some(NOT_BETTER)) {
            if is_last {
                // What is left of it is of no use any more, and the next one removes it otherwise.
                let _ = fs::remove_dir_all(self.place(run));
            }
            return Ok(last);
        }
        let how = match ended.code() {
            Some(code) => format!("ended with {code}"),
            None => "was killed by a signal".to_owned(),
        };
        let why = if errors.is_empty() { "it said nothing".to_owned() } else { errors.join("; ") };
        Err(StepError::Failed(format!("{program} {} {how}: {why}", run.stage)))
    }
}

fn keep(lines: &mut Vec<String>, line: String) {
    lines.push(line);
    if lines.len() > LINES_KEPT {
        lines.remove(0);
    }
}

/// Gives a process the last place at the processors, and a bound of its memory.
fn limit(process: Option<u32>, memory_bytes_max: u64) -> rustix::io::Result<()> {
    let Some(pid) = process.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else { return Ok(()) };
    let bound = Rlimit { current: Some(memory_bytes_max), maximum: Some(memory_bytes_max) };
    prlimit(Some(pid), Resource::As, bound)?;
    setpriority_process(Some(pid), NICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_when_it_began() {
        assert_eq!(version(WallTime(1_795_000_000_123_456)), "20261118110640");
    }
}

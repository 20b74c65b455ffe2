//! What the program says while it works, and its tie to whoever started it.
//!
//! What never enters: results; they go to standard output.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;

/// Between two lines about a bar.
const INTERVAL: Duration = Duration::from_secs(5);

/// How far it is, for programs that read along; a terminal has bars.
#[expect(clippy::print_stderr, reason = "the progress of a command-line program")]
pub fn say(words: &str) {
    if !std::io::stderr().is_terminal() {
        eprintln!("progress: {words}");
    }
}

/// Something that people may want to know, and that stops nothing.
#[expect(clippy::print_stderr, reason = "the notes of a command-line program")]
pub fn note(words: &str) {
    eprintln!("{words}");
}

/// Says how far a bar is, until it is dropped.
pub struct Watch {
    stop: Option<mpsc::Sender<()>>,
}

impl Watch {
    /// Watches a bar that counts `what`.
    pub fn over(bar: &ProgressBar, what: &'static str) -> Self {
        if std::io::stderr().is_terminal() {
            return Self { stop: None };
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let bar = bar.clone();
        thread::spawn(move || {
            let mut last = None;
            // Ends when the sender is gone.
            while stopped.recv_timeout(INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                let position = bar.position();
                if last != Some(position) {
                    last = Some(position);
                    say(&format!("{position} of {} {what}", bar.length().unwrap_or(position)));
                }
            }
        });
        Self { stop: Some(stop) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// Ends this process when its standard input is closed: whoever started it is gone, and waits for nothing any more.
pub fn end_with_stdin() {
    thread::spawn(|| {
        let mut byte = [0; 1];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        std::process::exit(1);
    });
}

/// Files as they were named; of a folder, its CSV files in order.
pub fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() {
            all.extend(tables_in(path)?);
        } else {
            all.push(path.clone());
        }
    }
    Ok(all)
}

fn tables_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "csv"))
        .collect();
    found.sort();
    anyhow::ensure!(!found.is_empty(), "{}: there is no file *.csv", folder.display());
    Ok(found)
}

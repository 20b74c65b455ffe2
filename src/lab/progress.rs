//! Progress on stderr: a moving line on a terminal, plain lines elsewhere. Never on stdout.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::clock;
use crate::domain::clock::Moment;

/// Where steps are shown.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    is_terminal: bool,
}

/// One step under way.
pub struct Step {
    bar: Option<ProgressBar>,
    what: String,
    began: Moment,
    said: String,
    is_over: bool,
}

impl Progress {
    /// Looks whether stderr is a terminal.
    pub fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal() }
    }

    /// Begins a step.
    pub fn step(&self, what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = self.is_terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Step { bar, what, began: clock::now(), said: String::new(), is_over: false }
    }

    /// A line that is no step.
    pub fn line(&self, text: &str) {
        say(text);
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Step {
    /// What the step waits for.
    pub fn note(&mut self, text: &str) {
        if self.said == text {
            return;
        }
        self.said = text.to_owned();
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {text}", self.what));
        }
    }

    /// The step is done.
    pub fn done(self) {
        let what = self.what.clone();
        self.done_as(&what);
    }

    /// The step is done, in these words.
    pub fn done_as(mut self, text: &str) {
        self.end("✓", text);
    }

    fn end(&mut self, mark: &str, text: &str) {
        self.is_over = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(&format!("{mark} {text}  {:.1} s", clock::now().since(self.began).as_secs_f64()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.is_over {
            let text = if self.said.is_empty() { self.what.clone() } else { format!("{}: {}", self.what, self.said) };
            self.end("✗", &text);
        }
    }
}

/// A closed stderr is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

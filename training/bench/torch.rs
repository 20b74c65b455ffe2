//! PyTorch as the reference: the same cases in a Python process.
//!
//! What never enters: candle.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use stormglass::predict::weights;

use super::cases::Case;

/// The Python side, kept as a file that can also be read and run by itself.
const SCRIPT: &str = include_str!("lstm_torch.py");

/// A Python that has PyTorch.
pub struct Reference {
    python: PathBuf,
    /// Of PyTorch.
    pub version: String,
}

#[derive(Deserialize)]
struct Answer {
    seconds: f64,
    difference: f32,
}

impl Reference {
    /// `None` if that Python has no PyTorch.
    pub fn find(python: &Path) -> anyhow::Result<Option<Self>> {
        let output = Command::new(python)
            .args(["-c", "import torch, numpy; print(torch.__version__)"])
            .stderr(Stdio::null())
            .output();
        Ok(match output {
            Ok(output) if output.status.success() => Some(Self {
                python: python.to_owned(),
                version: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            }),
            _ => None,
        })
    }

    /// Seconds for each case.
    pub fn measure(&self, cases: &[Case], budget: Duration) -> anyhow::Result<Vec<f64>> {
        let directory = std::env::temp_dir().join(format!("stormglass-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let measured = cases.iter().map(|case| self.measure_case(case, budget, &directory)).collect();
        std::fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
        measured
    }

    fn measure_case(&self, case: &Case, budget: Duration, directory: &Path) -> anyhow::Result<f64> {
        let file = directory.join("case.safetensors");
        std::fs::write(&file, weights::write(&case.tensors)?).with_context(|| format!("write {}", file.display()))?;
        let kind = serde_json::to_string(&case.kind)?;
        let output = Command::new(&self.python)
            .env("OMP_NUM_THREADS", "1")
            .args(["-c", SCRIPT, &file.to_string_lossy(), kind.trim_matches('"')])
            .args([case.layers.to_string(), budget.as_secs_f64().to_string()])
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start {}", self.python.display()))?;
        if !output.status.success() {
            bail!("the reference of {:?} failed: {}", case.name, output.status);
        }
        let answer: Answer = serde_json::from_slice(&output.stdout).context("the answer of the reference")?;
        if answer.difference > 1e-5 {
            bail!("PyTorch's hidden states of {:?} differ by {}", case.name, answer.difference);
        }
        debug_assert!(case.batch * case.steps > 0);
        Ok(answer.seconds)
    }
}

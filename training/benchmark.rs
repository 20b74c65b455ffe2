//! `stormglass-train benchmark`: every machine of a data folder, trained on its training part alone, its test part scored in order.
//!
//! What never enters: labels. Settings are the same for every machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::network::Settings;
use crate::pipeline::{self, Naming};
use crate::table::Table;

/// Arguments of `benchmark`.
#[derive(Debug, Args)]
pub struct BenchmarkArguments {
    /// Folder with MACHINE.train.csv[.gz] and MACHINE.test.csv[.gz]
    #[arg(long)]
    pub data: PathBuf,
    /// Where scores/MACHINE.csv and alarms/MACHINE.csv go
    #[arg(long)]
    pub out: PathBuf,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds between rows
    #[arg(long, default_value_t = 60)]
    pub step: u32,
    /// Without the network: the linear twin
    #[arg(long)]
    pub linear: bool,
    /// Only these machines, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Also write DETAILS/MACHINE.csv with what each decision rests on
    #[arg(long)]
    pub details: Option<PathBuf>,
}

/// One machine's files.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Training rows.
    pub train: PathBuf,
    /// Test rows.
    pub test: PathBuf,
}

/// The machines of a folder, by name.
pub fn machines(data: &Path) -> anyhow::Result<Vec<Machine>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data).with_context(|| format!("read the folder {}", data.display()))? {
        let train = entry?.path();
        let file = train.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (end, test_end) in [(".train.csv.gz", ".test.csv"), (".train.csv", ".test.csv")] {
            let Some(name) = file.strip_suffix(end) else { continue };
            let plain = data.join(format!("{name}{test_end}"));
            let packed = data.join(format!("{name}{test_end}.gz"));
            let test = if packed.exists() { packed } else { plain };
            ensure!(test.exists(), "{} has no test part: {} is missing", train.display(), test.display());
            found.push(Machine { name: name.to_owned(), train: train.clone(), test });
        }
    }
    ensure!(!found.is_empty(), "{}: no file MACHINE.train.csv or MACHINE.train.csv.gz", data.display());
    found.sort_by(|left, right| left.name.cmp(&right.name));
    found.dedup_by(|left, right| left.name == right.name);
    Ok(found)
}

/// A progress bar on stderr; hidden where that is no terminal.
pub fn bar(length: u64, label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:20} {bar:30} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style);
    bar.set_prefix(label.to_owned());
    bar
}

/// Runs the command.
pub fn run(arguments: &BenchmarkArguments) -> anyhow::Result<()> {
    let machines: Vec<Machine> = machines(&arguments.data)?
        .into_iter()
        .filter(|machine| arguments.only.is_empty() || arguments.only.contains(&machine.name))
        .collect();
    ensure!(!machines.is_empty(), "{}: none of the machines {}", arguments.data.display(), arguments.only.join(", "));
    for machine in &machines {
        let train = Table::read(&machine.train)?;
        let test = Table::read(&machine.test)?.with_columns(&train.columns, &machine.test.display().to_string())?;
        let settings = Settings::shipped(arguments.seed);
        let naming = Naming {
            name: machine.name.clone(),
            version: "1".to_owned(),
            step_seconds: arguments.step,
            horizon_seconds: 900,
            source: machine.train.display().to_string(),
            span: None,
        };
        let bar = bar(u64::from(settings.steps), &machine.name);
        let features = pipeline::plain_features(&train.columns);
        let nodes = [train.samples];
        let fitted = pipeline::fit(&naming, features, &nodes, &settings, arguments.linear, None, &bar)?;
        let model = fitted.model()?;
        let (mut scores, mut alarms, mut details) = (Vec::new(), Vec::new(), Vec::new());
        pipeline::score(&model, &nodes[0], &test.samples, |_, said| {
            scores.push(format!("{:.6}", said.score));
            alarms.push(u8::from(said.alarm).to_string());
            if arguments.details.is_some() {
                details.push(format!("{:.6},{:.6}", said.surprise, said.risk.unwrap_or(0.0)));
            }
        });
        let file = format!("{}.csv", machine.name);
        pipeline::write_column(&arguments.out.join("scores").join(&file), scores.into_iter())?;
        pipeline::write_column(&arguments.out.join("alarms").join(&file), alarms.into_iter())?;
        if let Some(folder) = &arguments.details {
            pipeline::write_column(&folder.join(&file), details.into_iter())?;
        }
        let ratio = fitted.document.metrics["held_out_loss_over_linear_twin"];
        bar.finish_with_message(format!("{} rows scored, loss {ratio:.3} of the linear twin's", test.samples.rows()));
    }
    Ok(())
}

//! `fit`, `evaluate`, `score` and `publish`: one model at a time.
//!
//! What never enters: a model that replaces a better one without being told to.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Serialize;
use stormglass::predict::{Model, Samples};

use crate::collect::{CollectArguments, PrometheusArguments};
use crate::evaluation::{Figures, Operations};
use crate::network::Settings;
use crate::pipeline::{self, Naming};
use crate::table::{self, Table};
use crate::{benchmark, card, progress, publish};

/// A model that abstains so much more often, as a share of the rows, is the worse one.
const SILENCE_MAX: f64 = 0.25;

/// Arguments of `fit`.
#[derive(Debug, Args)]
pub struct FitArguments {
    /// CSV files, one a node: a header, then one sample a line, oldest first; or a folder of them
    #[arg(long, required_unless_present = "prometheus", conflicts_with = "prometheus", num_args = 1..)]
    pub csv: Vec<PathBuf>,
    /// Where from otherwise
    #[command(flatten)]
    pub source: PrometheusArguments,
    /// Where the model's folder goes
    #[arg(long)]
    pub out: PathBuf,
    /// Name of the model
    #[arg(long, default_value = "model")]
    pub name: String,
    /// Which training of that name
    #[arg(long, default_value = "1")]
    pub version: String,
    /// Seconds between samples
    #[arg(long)]
    pub step: u32,
    /// Seconds that the risk looks ahead
    #[arg(long, default_value_t = 900)]
    pub horizon: u32,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Steps of the optimiser at most
    #[arg(long)]
    pub steps: Option<u32>,
    /// Without the network: the linear twin
    #[arg(long)]
    pub linear: bool,
    /// Names, units and directions of the columns: a file like training/features.toml
    #[arg(long)]
    pub features: Option<PathBuf>,
    /// The columns are features of training/features.toml, as this program has it
    #[arg(long, conflicts_with = "features")]
    pub built_in_features: bool,
    /// End when standard input is closed
    #[arg(long)]
    pub while_stdin: bool,
}

/// Pulls samples from Prometheus and writes them as CSV files.
pub fn collect(arguments: &CollectArguments) -> anyhow::Result<()> {
    if arguments.while_stdin {
        progress::end_with_stdin();
    }
    print(&crate::collect::run(arguments)?);
    Ok(())
}

/// Trains a model and writes its folder. An interrupted training goes on where it stopped.
pub fn fit(arguments: &FitArguments) -> anyhow::Result<()> {
    if arguments.while_stdin {
        progress::end_with_stdin();
    }
    let mut tables = Vec::new();
    let mut files = Vec::new();
    if arguments.source.prometheus.is_some() {
        for (node, table) in arguments.source.tables(arguments.step, arguments.features.as_deref())? {
            files.push(node);
            tables.push(table);
        }
    }
    for path in &progress::files(&arguments.csv)? {
        files.push(path.display().to_string());
        let table = Table::read(path)?;
        let table = match tables.first() {
            None => table,
            Some(Table { columns, .. }) => table.with_columns(columns, &path.display().to_string())?,
        };
        tables.push(table);
    }
    let Some(first) = tables.first() else { bail!("no file given") };
    let span = tables
        .iter()
        .filter_map(|table| Some((table.times.first()?.clone(), table.times.last()?.clone())))
        .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
    let is_built_in = arguments.built_in_features || arguments.source.prometheus.is_some();
    let features = match &arguments.features {
        Some(path) => crate::features::read(path, &first.columns)?,
        None if is_built_in => crate::features::built_in(&first.columns)?,
        None => pipeline::plain_features(&first.columns),
    };
    let naming = Naming {
        name: arguments.name.clone(),
        version: arguments.version.clone(),
        step_seconds: arguments.step,
        horizon_seconds: arguments.horizon,
        source: files.join(", "),
        span,
    };
    let mut settings = Settings::shipped(arguments.seed);
    if let Some(steps) = arguments.steps {
        settings.steps = steps;
    }
    let bar = benchmark::bar(u64::from(settings.steps), &arguments.name);
    let rows: usize = tables.iter().map(|table| table.samples.rows()).sum();
    let watch = progress::Watch::over(&bar, "steps of the optimiser");
    let nodes: Vec<Samples> = tables.into_iter().map(|table| table.samples).collect();
    let checkpoint = arguments.out.join(".training.safetensors");
    let fitted = pipeline::fit(&naming, features, &nodes, &settings, arguments.linear, Some(&checkpoint), &bar)?;
    publish::write_model(&arguments.out, &fitted.document, &fitted.weights, &card::render(&fitted.document))?;
    if checkpoint.exists() {
        std::fs::remove_file(&checkpoint).with_context(|| format!("remove {}", checkpoint.display()))?;
    }
    drop(watch);
    bar.finish_with_message("done");
    publish::read_model(&arguments.out)?;
    print(&format!("{} {} was trained on {rows} rows of {} nodes", arguments.name, arguments.version, nodes.len()));
    Ok(())
}

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArguments {
    /// Folder of the model
    #[arg(long)]
    pub model: PathBuf,
    /// Samples, oldest first
    #[arg(long)]
    pub input: PathBuf,
    /// Where the scores go, one a row of the input
    #[arg(long)]
    pub out: PathBuf,
    /// Samples of the same node before these, from which the model learns what is usual there
    #[arg(long)]
    pub history: Option<PathBuf>,
    /// Also write the alarms, 0 or 1 a row
    #[arg(long)]
    pub alarms: Option<PathBuf>,
}

fn read_for(model: &Model, path: &Path) -> anyhow::Result<Samples> {
    let columns: Vec<String> = model.document().features.iter().map(|feature| feature.name.clone()).collect();
    Ok(Table::read(path)?.with_columns(&columns, &path.display().to_string())?.samples)
}

/// Scores a file.
pub fn score(arguments: &ScoreArguments) -> anyhow::Result<()> {
    let model = publish::read_model(&arguments.model)?;
    let rows = read_for(&model, &arguments.input)?;
    let history = match &arguments.history {
        Some(path) => read_for(&model, path)?,
        None => Samples::new(rows.features()),
    };
    let (mut scores, mut alarms) = (Vec::new(), Vec::new());
    pipeline::score(&model, &history, &rows, |_, said| {
        scores.push(format!("{:.6}", said.score));
        alarms.push(u8::from(said.alarm).to_string());
    });
    pipeline::write_column(&arguments.out, scores.into_iter())?;
    if let Some(path) = &arguments.alarms {
        pipeline::write_column(path, alarms.into_iter())?;
    }
    Ok(())
}

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArguments {
    /// Folders of models, judged on the same rows
    #[arg(long, required = true, num_args = 1..)]
    pub model: Vec<PathBuf>,
    /// Samples that none of them was trained on, oldest first
    #[arg(long)]
    pub input: PathBuf,
    /// Labels of these samples: 0 or 1 a row
    #[arg(long)]
    pub labels: Option<PathBuf>,
    /// Samples of the same node before these; without it the first third of the input is the history
    #[arg(long)]
    pub history: Option<PathBuf>,
}

/// What a model is worth on rows that it was not trained on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Name and version.
    pub model: String,
    /// Rows judged.
    pub rows: usize,
    /// Share of them of which nothing was said.
    pub abstained: f64,
    /// Mean over the rows of the error of the forecasts, in spreads.
    pub forecast_error: f64,
    /// Groups of alarms a day, right or wrong.
    pub alarms_per_day: f64,
    /// Event F1 of these alarms, where there are labels.
    pub event_f1: Option<f64>,
    /// Figures of the scores, where there are labels.
    pub figures: Option<Figures>,
}

impl Evaluation {
    /// Judges a model.
    pub fn of(model: &Model, history: &Samples, rows: &Samples, labels: Option<&[bool]>) -> Self {
        let (mut scores, mut alarms) = (Vec::new(), Vec::new());
        let (mut abstained, mut error, mut judged) = (0_usize, 0.0, 0_usize);
        pipeline::score(model, history, rows, |scorer, said| {
            scores.push(said.score);
            alarms.push(said.alarm);
            if said.abstains.is_some() {
                abstained += 1;
            } else {
                error += scorer.forecast_error();
                judged += 1;
            }
        });
        let document = model.document();
        let step = f64::from(document.step_seconds);
        let all = Operations::new(&vec![false; alarms.len()], step).judge(|row| alarms[row]);
        let own = labels.map(|labels| Operations::new(labels, step).judge(|row| alarms[row]));
        Self {
            model: format!("{} {}", document.name, document.version),
            rows: rows.rows(),
            abstained: abstained as f64 / rows.rows().max(1) as f64,
            forecast_error: error / judged.max(1) as f64,
            alarms_per_day: all.false_alarms_per_day(),
            event_f1: own.filter(|own| own.events > 0).map(|own| own.event_f1()),
            figures: labels.and_then(|labels| Figures::of(labels, &scores, step)),
        }
    }

    /// Several files as one, each with the weight of its rows; labels and their figures are of one file.
    pub fn together(all: Vec<Self>) -> Option<Self> {
        let mut all = all;
        if all.len() < 2 {
            return all.pop();
        }
        let rows: usize = all.iter().map(|one| one.rows).sum();
        let judged = |one: &Self| (1.0 - one.abstained) * one.rows as f64;
        let mean = |value: fn(&Self) -> f64, weight: &dyn Fn(&Self) -> f64| {
            let total: f64 = all.iter().map(weight).sum();
            all.iter().map(|one| value(one) * weight(one)).sum::<f64>() / total.max(1.0)
        };
        let by_rows = |one: &Self| one.rows as f64;
        Some(Self {
            model: all.first()?.model.clone(),
            rows,
            abstained: mean(|one| one.abstained, &by_rows),
            forecast_error: mean(|one| one.forecast_error, &judged),
            alarms_per_day: mean(|one| one.alarms_per_day, &by_rows),
            event_f1: None,
            figures: None,
        })
    }

    /// For people, on one line.
    fn words(&self) -> String {
        format!(
            "forecasts are off by {:.3} spreads, {:.1} % of {} rows abstained, {:.1} alarms a day",
            self.forecast_error,
            self.abstained * 100.0,
            self.rows,
            self.alarms_per_day
        )
    }

    /// Better than another on the same rows: where there are incidents the event F1 of the alarms decides, then the error of the
    /// forecasts; a model that says less is never better.
    pub fn is_better_than(&self, other: &Self) -> bool {
        if self.abstained > other.abstained + 0.01 {
            return false;
        }
        // Who says nothing is never wrong: a champion that does not know the nodes any more is no measure.
        if other.abstained > self.abstained + SILENCE_MAX {
            return true;
        }
        match (self.event_f1, other.event_f1) {
            (Some(own), Some(others)) if (own - others).abs() > 1e-9 => own > others,
            _ => self.forecast_error < other.forecast_error,
        }
    }
}

/// Reads what models are judged on: history, rows, labels.
fn held_out(
    model: &Model,
    input: &Path,
    history: Option<&Path>,
    labels: Option<&Path>,
) -> anyhow::Result<(Samples, Samples, Option<Vec<bool>>)> {
    let rows = read_for(model, input)?;
    let labels = labels.map(table::read_labels).transpose()?;
    if let Some(labels) = &labels {
        ensure!(labels.len() == rows.rows(), "{}: {} rows, but {} labels", input.display(), rows.rows(), labels.len());
    }
    match history {
        Some(path) => Ok((read_for(model, path)?, rows, labels)),
        None => {
            let split = rows.rows() / 3;
            let labels = labels.map(|labels| labels[split..].to_vec());
            Ok((rows.slice(0, split), rows.slice(split, rows.rows()), labels))
        }
    }
}

/// Judges models on the same rows and prints the figures.
pub fn evaluate(arguments: &EvaluateArguments) -> anyhow::Result<()> {
    let mut evaluations = Vec::new();
    for folder in &arguments.model {
        let model = publish::read_model(folder)?;
        let (history, rows, labels) =
            held_out(&model, &arguments.input, arguments.history.as_deref(), arguments.labels.as_deref())?;
        evaluations.push(Evaluation::of(&model, &history, &rows, labels.as_deref()));
    }
    print(&serde_json::to_string_pretty(&evaluations)?);
    Ok(())
}

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct PublishArguments {
    /// Folder of the challenger
    #[arg(long)]
    pub model: PathBuf,
    /// Folder of all models
    #[arg(long, default_value = "models")]
    pub models: PathBuf,
    /// Samples that neither it nor the champion was trained on: files, one a node, or a folder of them
    #[arg(long, num_args = 1..)]
    pub input: Vec<PathBuf>,
    /// Labels of these samples, where they are one file
    #[arg(long, requires = "input")]
    pub labels: Option<PathBuf>,
    /// Samples of the same nodes before these, in the same order
    #[arg(long, requires = "input", num_args = 1..)]
    pub history: Vec<PathBuf>,
    /// Models of this name that are kept
    #[arg(long, default_value_t = 5)]
    pub keep: usize,
    /// Publish without asking whether it is better
    #[arg(long)]
    pub force: bool,
    /// End when standard input is closed
    #[arg(long)]
    pub while_stdin: bool,
}

/// The challenger is not better than the model in use.
#[derive(Debug, thiserror::Error)]
#[error("{champion} stays: the challenger is not better on {input}")]
pub struct NotBetter {
    champion: String,
    input: String,
}

/// The model in use: what was promoted last, else the first of the same step, as the controller chooses.
fn champion(models: &Path, step_seconds: u32) -> anyhow::Result<Option<String>> {
    if let Some(name) = publish::promoted(models)?.into_iter().next() {
        return Ok(Some(name));
    }
    let Ok(entries) = std::fs::read_dir(models) else { return Ok(None) };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    let fits = |name: &String| {
        publish::read_model(&models.join(name)).is_ok_and(|model| model.document().step_seconds == step_seconds)
    };
    Ok(names.into_iter().find(fits))
}

/// Judges a model on every file; all of them together.
fn judge(model: &Model, arguments: &PublishArguments) -> anyhow::Result<Evaluation> {
    let inputs = progress::files(&arguments.input)?;
    let histories = progress::files(&arguments.history)?;
    ensure!(
        histories.is_empty() || histories.len() == inputs.len(),
        "{} files of --input, but {} of --history: name one for each",
        inputs.len(),
        histories.len()
    );
    ensure!(
        arguments.labels.is_none() || inputs.len() == 1,
        "--labels are of one file, and --input names {}",
        inputs.len()
    );
    let mut all = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        let (history, rows, labels) =
            held_out(model, input, histories.get(index).map(PathBuf::as_path), arguments.labels.as_deref())?;
        all.push(Evaluation::of(model, &history, &rows, labels.as_deref()));
        progress::say(&format!("{} was judged on {}", model.document().name, input.display()));
    }
    Evaluation::together(all).context("give --input with samples to compare on")
}

/// Publishes a challenger if it beats the champion on the same rows.
pub fn publish(arguments: &PublishArguments) -> anyhow::Result<()> {
    if arguments.while_stdin {
        progress::end_with_stdin();
    }
    let challenger = publish::read_model(&arguments.model)?;
    let step_seconds = challenger.document().step_seconds;
    let name = publish::folder_name(&challenger);
    let champion = champion(&arguments.models, step_seconds)?;
    if champion.as_ref() == Some(&name) {
        // By an attempt that did not live to say so.
        publish::publish(&arguments.model, &arguments.models, arguments.keep)?;
        print(&format!("{name} was published before"));
        return Ok(());
    }
    let mut figures = String::new();
    if let (Some(champion), false) = (&champion, arguments.force) {
        ensure!(
            !arguments.input.is_empty(),
            "{champion} is in use: give --input with samples to compare on, or --force"
        );
        let folder = arguments.models.join(champion);
        let before = publish::read_model(&folder)
            .with_context(|| format!("the champion {champion} cannot be read; publish with --force to replace it"))?;
        ensure!(
            before.document().step_seconds == step_seconds,
            "{champion} scores every {} s, the challenger every {step_seconds} s: they cannot be compared; use --force",
            before.document().step_seconds,
        );
        let (before, after) = (judge(&before, arguments)?, judge(&challenger, arguments)?);
        print(&serde_json::to_string_pretty(&[&before, &after])?);
        figures = format!(": {}; champion {champion}: {}", after.words(), before.words());
        if !after.is_better_than(&before) {
            print(&format!("{champion} stays, {name} is not better{figures}"));
            let inputs: Vec<String> = arguments.input.iter().map(|path| path.display().to_string()).collect();
            return Err(NotBetter { champion: champion.clone(), input: inputs.join(", ") }.into());
        }
    }
    let folder = publish::publish(&arguments.model, &arguments.models, arguments.keep)?;
    print(&folder.display().to_string());
    print(&format!("{name} scores from now on{figures}"));
    Ok(())
}

/// Data for the caller.
#[expect(clippy::print_stdout, reason = "the output of a command-line program")]
fn print(text: &str) {
    println!("{text}");
}

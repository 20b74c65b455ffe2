//! `stormglass-train report`: the accuracy report, with every figure computed in the same run.
//!
//! What never enters: a figure typed by hand; words that judge are next to the figures that they rest on.

mod baselines;
mod plots;
pub mod reliability;
mod series;
mod text;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::evaluation::{Figures, Judgement, Operations};
use reliability::{Outcomes, Reliability};
use series::Series;

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Folder with smd/ and, if it is there, nab/
    #[arg(long)]
    pub data: PathBuf,
    /// The report; its pictures go to figures/ beside it
    #[arg(long, default_value = "training/REPORT.md")]
    pub out: PathBuf,
    /// Seeds of the network
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    pub seeds: Vec<u64>,
    /// Steps of the optimiser at most
    #[arg(long)]
    pub steps: Option<u32>,
    /// Also write the curve from surprise to risk as source text: `src/predict/shipped_curve.rs` is what a new model begins with
    #[arg(long, value_name = "FILE")]
    pub curve: Option<PathBuf>,
}

/// How one method did on one series.
pub struct MethodResult {
    /// Figures of its scores.
    pub figures: Figures,
    /// Its own alarms, if it has any.
    pub own: Option<Judgement>,
}

/// One method on all series of a data set.
pub struct Method {
    /// Its name.
    pub name: String,
    /// A result a series.
    pub results: Vec<MethodResult>,
}

/// Everything that the report says of one data set.
pub struct DataSet {
    /// Its name.
    pub name: &'static str,
    /// Names of the series.
    pub series: Vec<String>,
    /// Incidents of each.
    pub events: Vec<usize>,
    /// The methods, baselines first, then the linear twin, then the network a seed each.
    pub methods: Vec<Method>,
}

/// Risk as it was predicted for each machine by the others.
pub struct Calibrated {
    /// Groups of rows.
    pub reliability: Vec<Reliability>,
    /// The curve of all machines together, as far as it is claimed.
    pub curve: Vec<stormglass::predict::calibration::RiskPoint>,
    /// Mean squared error of the risk, and that of always saying the mean.
    pub brier: (f64, f64),
}

/// Runs the command.
pub fn run(arguments: &ReportArguments) -> anyhow::Result<()> {
    ensure!(!arguments.seeds.is_empty(), "--seeds needs at least one number");
    let figures = arguments.out.with_file_name("figures");
    std::fs::create_dir_all(&figures).with_context(|| format!("create {}", figures.display()))?;
    let mut sets = Vec::new();
    let machines = series::smd(&arguments.data.join("smd"))?;
    let (smd, outcomes) =
        judge("SMD, eight development machines, one row a minute", &machines, arguments, |series, run| {
            let path = figures.join(format!("{}.png", series.name));
            plots::timeline(&path, &run.surprises, &series.labels, &run.alarms, run.threshold)
        })?;
    let calibrated = calibrate(&outcomes);
    let network = &smd.methods[smd.methods.len() - arguments.seeds.len()];
    let twin = &smd.methods[smd.methods.len() - arguments.seeds.len() - 1];
    let pairs: Vec<Vec<f64>> = (0..smd.series.len())
        .map(|index| vec![twin.results[index].figures.vus_pr, network.results[index].figures.vus_pr])
        .collect();
    plots::bars(&figures.join("vus_pr.png"), &pairs)?;
    plots::reliability(&figures.join("reliability.png"), &calibrated.reliability)?;
    sets.push(smd);
    let folder = arguments.data.join("nab");
    if folder.is_dir() {
        let metrics = series::nab(&folder)?;
        let (nab, _) = judge("NAB, one metric each, one row in five minutes", &metrics, arguments, |_, _| Ok(()))?;
        sets.push(nab);
    }
    if let Some(file) = &arguments.curve {
        crate::publish::write_whole(file, reliability::source_text(&calibrated.curve).as_bytes())?;
    }
    let text = text::render(&sets, &calibrated, &arguments.seeds);
    crate::publish::write_whole(&arguments.out, text.as_bytes())
}

/// Runs every method on every series; `picture` is given the first seed's run.
fn judge(
    name: &'static str,
    all: &[Series],
    arguments: &ReportArguments,
    picture: impl Fn(&Series, &series::Run) -> anyhow::Result<()>,
) -> anyhow::Result<(DataSet, Vec<Outcomes>)> {
    let mut methods: Vec<Method> = Vec::new();
    let mut outcomes = Vec::new();
    let mut set = DataSet { name, series: Vec::new(), events: Vec::new(), methods: Vec::new() };
    for series in all {
        let operations = Operations::new(&series.labels, f64::from(series.step_seconds));
        let mut add = |method: usize, name: String, scores: &[f64], alarms: Option<&[bool]>| {
            if methods.len() == method {
                methods.push(Method { name, results: Vec::new() });
            }
            let figures = Figures::of(&series.labels, scores, f64::from(series.step_seconds))
                .with_context(|| format!("{}: there is no incident", series.name))?;
            let own = alarms.map(|alarms| operations.judge(|row| alarms[row]));
            methods[method].results.push(MethodResult { figures, own });
            anyhow::Ok(())
        };
        let mut method = 0;
        for (name, scores) in baselines::scores(&series.train, &series.test, series.step_seconds) {
            add(method, name.to_owned(), &scores, None)?;
            method += 1;
        }
        let twin = series.run(0, true, arguments.steps)?;
        add(method, "linear twin (no network)".to_owned(), &twin.scores, Some(&twin.alarms))?;
        for (index, seed) in arguments.seeds.iter().enumerate() {
            let run = series.run(*seed, false, arguments.steps)?;
            add(method + 1 + index, format!("LSTM, seed {seed}"), &run.scores, Some(&run.alarms))?;
            if index == 0 {
                picture(series, &run)?;
                let rows = 900 / series.step_seconds as usize;
                let trouble = reliability::trouble_within(&series.labels, rows);
                outcomes.push(Outcomes { surprises: run.surprises, trouble });
            }
        }
        set.series.push(series.name.clone());
        set.events.push(operations.judge(|_| false).events);
    }
    set.methods = methods;
    Ok((set, outcomes))
}

/// Learns the curve without each machine in turn, and judges it there.
fn calibrate(machines: &[Outcomes]) -> Calibrated {
    let predictions = reliability::leave_one_out(machines);
    Calibrated {
        reliability: reliability::reliability(&predictions),
        curve: reliability::claimed(reliability::curve(machines.iter())),
        brier: reliability::brier(&predictions),
    }
}

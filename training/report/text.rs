//! The words and tables of the report.
//!
//! What never enters: a figure that was not computed in this run.

use std::fmt::Write as _;

use super::{Calibrated, DataSet, Method};
use crate::evaluation::{Judgement, median};

/// The report.
pub fn render(sets: &[DataSet], calibrated: &Calibrated, seeds: &[u64]) -> String {
    let mut text = String::new();
    let command: Vec<String> = std::env::args().skip(1).collect();
    let _ = writeln!(
        text,
        "# How good the predictor is\n\n\
         Made by `stormglass-train {}` on {}, version {}, {}.\n\
         Do not edit: the command writes it again. What the figures mean is in [docs/predictor.md](../docs/predictor.md).\n\n\
         Each series is trained on its own training part; its test part is scored in order, with nothing later than the row that is scored.\n\
         There is no point adjustment. \"Best\" figures choose the threshold with the labels and are upper bounds;\n\
         **own alarms** are the product's decisions with one shipped setting for every series.\n\
         The settings were chosen on these very SMD machines (leave one out), so these figures are optimistic; NAB had no part in it, but its figures were seen while rules of the alarm were compared.\n",
        command.join(" "),
        chrono::Utc::now().format("%Y-%m-%d"),
        env!("CARGO_PKG_VERSION"),
        processor(),
    );
    for set in sets {
        data_set(&mut text, set, seeds.len());
    }
    risk(&mut text, calibrated);
    text
}

fn processor() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    format!(
        "{} ({} processors)",
        model.unwrap_or("unknown processor"),
        std::thread::available_parallelism().map_or(1, usize::from)
    )
}

fn mean(method: &Method, figure: impl Fn(&super::MethodResult) -> Option<f64>) -> f64 {
    let values: Vec<f64> = method.results.iter().filter_map(figure).collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// All own alarms of a method together.
fn own(method: &Method) -> Option<Judgement> {
    let own: Vec<Judgement> = method.results.iter().filter_map(|result| result.own.clone()).collect();
    (!own.is_empty()).then(|| own.into_iter().fold(Judgement::default(), Judgement::and))
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn data_set(text: &mut String, set: &DataSet, seeds: usize) {
    let events: usize = set.events.iter().sum();
    let _ = writeln!(
        text,
        "## {}\n\n{} series, {events} incidents. Means over the series; own alarms are pooled.\n\n\
         | method | VUS-PR | AUC-PR | event F1, best | false alarms a day at 50 % | at 80 % | delay at 80 %, s | own alarms: event F1 | recall | false alarms a day | delay, s |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        set.name,
        set.series.len()
    );
    for method in &set.methods {
        let own = own(method);
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.3} | {:.2} | {:.2} | {:.2} | {:.0} | {} | {} | {} | {} |",
            method.name,
            mean(method, |result| Some(result.figures.vus_pr)),
            mean(method, |result| Some(result.figures.auc_pr)),
            mean(method, |result| Some(result.figures.event_f1_best)),
            mean(method, |result| Some(result.figures.false_alarms_per_day_at_50)),
            mean(method, |result| Some(result.figures.false_alarms_per_day_at_80)),
            mean(method, |result| result.figures.delay_seconds_at_80),
            cell(own.as_ref().map(Judgement::event_f1), 3),
            cell(own.as_ref().map(Judgement::recall), 2),
            cell(own.as_ref().map(Judgement::false_alarms_per_day), 2),
            cell(own.as_ref().and_then(Judgement::median_delay_seconds), 0),
        );
    }
    verdict(text, set, seeds);
    spread(text, set, seeds);
    let twin = &set.methods[set.methods.len() - seeds - 1];
    let network = &set.methods[set.methods.len() - seeds];
    let _ = writeln!(
        text,
        "\nEvery series, linear twin / {}:\n\n\
         | series | incidents | VUS-PR | AUC-PR | event F1, best | false alarms a day at 50 % | at 80 % | own alarms: event F1 | caught | false alarms |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        network.name
    );
    for (index, name) in set.series.iter().enumerate() {
        let (left, right) = (&twin.results[index], &network.results[index]);
        let pair = |figure: &dyn Fn(&super::MethodResult) -> f64, digits: usize| {
            format!("{:.digits$} / {:.digits$}", figure(left), figure(right))
        };
        let own = |figure: &dyn Fn(&Judgement) -> f64, digits: usize| {
            pair(&|result: &super::MethodResult| result.own.as_ref().map_or(0.0, figure), digits)
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            set.events[index],
            pair(&|result| result.figures.vus_pr, 3),
            pair(&|result| result.figures.auc_pr, 3),
            pair(&|result| result.figures.event_f1_best, 2),
            pair(&|result| result.figures.false_alarms_per_day_at_50, 2),
            pair(&|result| result.figures.false_alarms_per_day_at_80, 2),
            own(&Judgement::event_f1, 2),
            own(&|judgement| judgement.caught as f64, 0),
            own(&|judgement| judgement.false_alarms as f64, 0),
        );
    }
    text.push('\n');
}

/// Whether the network earned its place, by its mean over the seeds.
fn verdict(text: &mut String, set: &DataSet, seeds: usize) {
    let twin = &set.methods[set.methods.len() - seeds - 1];
    let networks = &set.methods[set.methods.len() - seeds..];
    let f1 = |method: &Method| own(method).map_or(0.0, |own| own.event_f1());
    let vus = |method: &Method| mean(method, |result| Some(result.figures.vus_pr));
    let over = |figure: &dyn Fn(&Method) -> f64| {
        let values: Vec<f64> = networks.iter().map(figure).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        (mean, low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    };
    for (what, twin, (mean, low, high)) in
        [("VUS-PR", vus(twin), over(&vus)), ("Event F1 of the own alarms", f1(twin), over(&f1))]
    {
        let word = if (low - twin).abs().max((high - twin).abs()) < 1e-9 {
            "the network makes no difference"
        } else if low > twin {
            "the network is better with every seed"
        } else if high < twin {
            "**the network does not earn its place**: it is worse with every seed"
        } else {
            "**the network does not earn its place**: the difference lies within its seeds"
        };
        let _ = writeln!(
            text,
            "\n{what}: {mean:.3} over {seeds} seeds ({low:.3} to {high:.3}), linear twin {twin:.3}; {word}."
        );
    }
}

/// How far a mean of false alarms stands for the series: one on which an incident looks like any other minute decides it alone.
fn spread(text: &mut String, set: &DataSet, seeds: usize) {
    let network = &set.methods[set.methods.len() - seeds];
    let over = |figure: &dyn Fn(&super::MethodResult) -> f64| {
        let values: Vec<f64> = network.results.iter().map(figure).collect();
        let greatest = values.iter().copied().reduce(f64::max);
        (cell(median(values), 2), cell(greatest, 2))
    };
    let half = over(&|result| result.figures.false_alarms_per_day_at_50);
    let most = over(&|result| result.figures.false_alarms_per_day_at_80);
    let _ = writeln!(
        text,
        "\nFalse alarms a day of {} over the series: median {} at 50 % and {} at 80 % of the incidents, greatest {} and {}.",
        network.name, half.0, most.0, half.1, most.1
    );
}

fn risk(text: &mut String, calibrated: &Calibrated) {
    let _ = writeln!(
        text,
        "## Risk\n\n\
         Risk is the share of rows with such a surprise in which there was an incident, or one began within 15 minutes.\n\
         For each SMD machine the curve was learnt on the other seven, and judged on it; `shipped` is the curve of all eight, \
         which `--curve src/predict/shipped_curve.rs` writes: where every row was in trouble there were too few to claim it, and the risk of the point before stays.\n\
         Mean squared error (Brier) {:.4}; always saying the mean share would be {:.4}.\n\n\
         ![predicted (right) against observed (up) risk, 0 to 1; the blue line is what it should be](figures/reliability.png)\n\n\
         | predicted | observed | rows |\n|---:|---:|---:|",
        calibrated.brier.0, calibrated.brier.1
    );
    for point in &calibrated.reliability {
        let _ = writeln!(text, "| {:.3} | {:.3} | {} |", point.predicted, point.observed, point.rows);
    }
    let _ = writeln!(text, "\n| surprise | shipped risk |\n|---:|---:|");
    for point in &calibrated.curve {
        let _ = writeln!(text, "| {:.3} | {:.3} |", point.surprise, point.risk);
    }
    let _ = writeln!(
        text,
        "\n## Pictures\n\n\
         VUS-PR of each SMD machine, linear twin (first) and network:\n\n![bars from 0 to 1](figures/vus_pr.png)\n\n\
         Surprise over time (blue), incidents (red), the threshold of alarms (line), alarms (black, at the bottom): `figures/MACHINE.png`."
    );
}

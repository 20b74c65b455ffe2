//! `stormglass-train bench-lstm`: what the LSTM costs, beside candle_nn's and PyTorch's, in one run on one thread.
//!
//! What lives here: cases, the table, and the report. Each time is processor time, the least of many repetitions, in rounds in which the three
//! take turns, so that other work on the machine disturbs all of them or none.
//! What never enters: training for use.

mod cases;
mod torch;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

/// Arguments of `stormglass-train bench-lstm`.
#[derive(Debug, clap::Args)]
pub struct BenchArguments {
    /// Python whose PyTorch is the reference
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    /// How often the three take turns
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: u32,
    /// Seconds for each case, implementation and round
    #[arg(long, default_value_t = 0.4, value_name = "SECONDS")]
    budget: f64,
    /// Write the figures there as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Measure nothing but many nodes with a model of so many layers, in this process, and print that as JSON
    #[arg(long, value_name = "LAYERS", hide = true)]
    nodes_only: Option<usize>,
}

/// One case, in seconds, least of all repetitions.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    case: String,
    ours_seconds: f64,
    candle_seconds: f64,
    torch_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: String,
    instruction_set: &'static str,
    torch: Option<String>,
    cases: Vec<Measured>,
    nodes: Vec<cases::Nodes>,
}

/// Measures and prints.
///
/// # Errors
/// If more than one thread would be used, a computation fails, or the implementations disagree.
pub fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    if candle_core::utils::get_num_threads() != 1 {
        bail!("one thread each: run it with RAYON_NUM_THREADS=1 (make bench does)");
    }
    if let Some(layers) = arguments.nodes_only {
        println!("{}", serde_json::to_string(&cases::nodes(layers)?).context("figures as JSON")?);
        return Ok(());
    }
    let budget = Duration::try_from_secs_f64(arguments.budget).context("--budget is a number of seconds")?;
    let mut cases = cases::all()?;
    let reference = torch::Reference::find(&arguments.python)?;
    let mut measured: Vec<Measured> = cases
        .iter()
        .map(|case| Measured {
            case: case.name.clone(),
            ours_seconds: f64::INFINITY,
            candle_seconds: f64::INFINITY,
            torch_seconds: None,
        })
        .collect();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        let torch = reference.as_ref().map(|reference| reference.measure(&cases, budget)).transpose()?;
        for (index, case) in cases.iter_mut().enumerate() {
            let row = &mut measured[index];
            row.ours_seconds = row.ours_seconds.min(least(budget, &mut case.ours)?);
            row.candle_seconds = row.candle_seconds.min(least(budget, &mut case.candle)?);
            if let Some(seconds) = torch.as_ref().map(|torch| torch[index]) {
                row.torch_seconds = Some(row.torch_seconds.map_or(seconds, |least| least.min(seconds)));
            }
        }
    }
    let nodes = vec![nodes_alone(1)?, nodes_alone(2)?];
    let report = Report {
        machine: machine(),
        instruction_set: stormglass::predict::lstm::instruction_set(),
        torch: reference.map(|reference| reference.version),
        cases: measured,
        nodes,
    };
    print(&report);
    if let Some(path) = &arguments.report {
        let text = serde_json::to_string_pretty(&report).context("figures as JSON")?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Many nodes in a process of their own: in this one the cases left pages behind, in which scorers would seem to take no memory.
fn nodes_alone(layers: usize) -> anyhow::Result<cases::Nodes> {
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program)
        .args(["bench-lstm", "--nodes-only", &layers.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("start this program again for the nodes")?;
    ensure!(output.status.success(), "the nodes were not measured: {}", output.status);
    serde_json::from_slice(&output.stdout).context("understand the figures of the nodes")
}

/// Repetitions of one call that are measured at once are so many that they take this long: reading the clock must not count.
const MEASURED_SECONDS: f64 = 2e-4;

/// The least processor time of one call, over as many as fit into `budget`, at least three.
fn least(budget: Duration, call: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    call()?;
    let first = processor_seconds();
    call()?;
    let repetitions = (MEASURED_SECONDS / (processor_seconds() - first).max(1e-7)).ceil().max(1.0) as u32;
    let begin = processor_seconds();
    let mut least = f64::INFINITY;
    let mut measured = 0;
    while measured < 3 || processor_seconds() - begin < budget.as_secs_f64() {
        let call_begin = processor_seconds();
        for _ in 0..repetitions {
            call()?;
        }
        least = least.min((processor_seconds() - call_begin) / f64::from(repetitions));
        measured += 1;
    }
    Ok(least)
}

/// Processor time of this process so far.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn print(report: &Report) {
    let torch = report.torch.as_deref().unwrap_or("not installed: pip install torch numpy");
    println!("{}; {}; one thread; PyTorch {torch}", report.machine, report.instruction_set);
    println!("{:<34} {:>11} {:>11} {:>11} {:>10} {:>10}", "", "ours", "candle_nn", "PyTorch", "× candle", "× PyTorch");
    for row in &report.cases {
        let ratio = |other: f64| format!("{:.2}", other / row.ours_seconds);
        println!(
            "{:<34} {:>11} {:>11} {:>11} {:>10} {:>10}",
            row.case,
            duration(row.ours_seconds),
            duration(row.candle_seconds),
            row.torch_seconds.map_or("-".to_owned(), duration),
            ratio(row.candle_seconds),
            row.torch_seconds.map_or("-".to_owned(), ratio),
        );
    }
    for nodes in &report.nodes {
        println!(
            "{} nodes × {} features, {} × {} units, a sample scored each every {} s: {:.3} % of one core, {} a sample; \
             {:.1} MB for all scorers, {:.1} MB resident with program and model",
            nodes.nodes,
            nodes.features,
            nodes.layers,
            nodes.units,
            nodes.every_seconds,
            100.0 * nodes.core_ratio,
            duration(nodes.sample_seconds),
            nodes.scorers_bytes as f64 / 1e6,
            nodes.resident_bytes as f64 / 1e6,
        );
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.2} µs", seconds * 1e6) } else { format!("{:.3} ms", seconds * 1e3) }
}

/// The processor, as Linux names it.
fn machine() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

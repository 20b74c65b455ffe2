//! `collect`: samples of nodes from Prometheus as CSV files, split by time into what is trained on and what is held out.
//!
//! What never enters: a sample that Prometheus does not have; gaps stay gaps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use stormglass::adapters::prometheus::{Credentials, PrometheusSettings, PrometheusSource};
use stormglass::adapters::system::SystemClock;
use stormglass::config::features::load_features;
use stormglass::domain::clock::WallTime;
use stormglass::domain::ids::NodeName;
use stormglass::ports::{Clock as _, MetricSource as _};
use stormglass::predict::Samples;

use crate::progress;
use crate::publish::write_whole;
use crate::table::Table;

/// Prometheus answers at most 11,000 points of a series at once.
const STEPS_AT_ONCE: i64 = 5_000;
/// What is not asked for in words: the last four weeks.
const SPAN_DEFAULT: Duration = Duration::from_secs(28 * 86_400);
/// Steps beyond that are a mistake in the times.
const STEPS_MAX: i64 = 20_000_000;
/// One question.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Where samples come from.
#[derive(Debug, Clone, Args)]
pub struct PrometheusArguments {
    /// Base URL of a Prometheus
    #[arg(long, value_name = "URL")]
    pub prometheus: Option<String>,
    /// Take the nodes that have series with this value of the label `cluster`
    #[arg(long, requires = "prometheus")]
    pub cluster: Option<String>,
    /// A value of the label `node`; may be given again
    #[arg(long = "node", value_name = "NODE", requires = "prometheus")]
    pub nodes: Vec<String>,
    /// The first sample, as in 2026-11-01T00:00:00Z; four weeks before the last one if not given
    #[arg(long, requires = "prometheus")]
    pub start: Option<String>,
    /// The last sample; now if not given
    #[arg(long, requires = "prometheus")]
    pub end: Option<String>,
    /// PEM of who signed its certificate
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub ca_file: Option<PathBuf>,
    /// Bearer token
    #[arg(long, env = "STORMGLASS_PROMETHEUS_TOKEN", hide_env_values = true, hide = true)]
    pub prometheus_token: Option<String>,
    /// User
    #[arg(long, env = "STORMGLASS_PROMETHEUS_USER", hide_env_values = true, hide = true)]
    pub prometheus_user: Option<String>,
    /// Password
    #[arg(long, env = "STORMGLASS_PROMETHEUS_PASSWORD", hide_env_values = true, hide = true)]
    pub prometheus_password: Option<String>,
}

/// Arguments of `collect`.
#[derive(Debug, Args)]
pub struct CollectArguments {
    /// Where from
    #[command(flatten)]
    pub source: PrometheusArguments,
    /// Seconds between samples
    #[arg(long)]
    pub step: u32,
    /// Features and their queries: a file like training/features.toml; that one if not given
    #[arg(long)]
    pub features: Option<PathBuf>,
    /// Share of the time, the newest, that is held out of the training
    #[arg(long, default_value_t = 0.25)]
    pub held_out: f64,
    /// A folder: train/NODE.csv and held-out/NODE.csv are written below it
    #[arg(long)]
    pub out: PathBuf,
    /// End when standard input is closed
    #[arg(long)]
    pub while_stdin: bool,
}

impl PrometheusArguments {
    fn settings(&self) -> anyhow::Result<PrometheusSettings> {
        let url = self.prometheus.clone().context("name a Prometheus with --prometheus")?;
        let credentials = match (&self.prometheus_token, &self.prometheus_user, &self.prometheus_password) {
            (Some(token), _, _) => Credentials::Bearer(token.clone()),
            (None, Some(user), Some(password)) => Credentials::Basic { user: user.clone(), password: password.clone() },
            _ => Credentials::None,
        };
        let authority = match &self.ca_file {
            Some(file) => Some(std::fs::read(file).with_context(|| format!("read {}", file.display()))?),
            None => None,
        };
        Ok(PrometheusSettings { url, credentials, authority, timeout: TIMEOUT })
    }

    /// The first and the last second.
    fn seconds(&self) -> anyhow::Result<(i64, i64)> {
        let parse = |name: &str, text: &str| -> anyhow::Result<WallTime> {
            WallTime::try_from(text.to_owned()).with_context(|| format!("read {name}"))
        };
        let end = match &self.end {
            Some(text) => parse("--end", text)?,
            None => SystemClock::new()?.wall(),
        };
        let start = match &self.start {
            Some(text) => parse("--start", text)?,
            None => WallTime(end.0 - i64::try_from(SPAN_DEFAULT.as_micros())?),
        };
        ensure!(start < end, "--start {start} is not before --end {end}");
        Ok((start.0.div_euclid(1_000_000), end.0.div_euclid(1_000_000)))
    }

    /// One table a node, named after it.
    pub fn tables(&self, step: u32, features: Option<&Path>) -> anyhow::Result<Vec<(String, Table)>> {
        ensure!(step > 0, "--step must be at least 1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.pull(step, features))
    }

    async fn pull(&self, step: u32, features: Option<&Path>) -> anyhow::Result<Vec<(String, Table)>> {
        let settings = self.settings()?;
        let features = load_features(features)?;
        let columns: Vec<String> = features.iter().map(|feature| feature.name.clone()).collect();
        let mut nodes = self.nodes.iter().map(|name| NodeName::new(name.as_str())).collect::<Result<Vec<_>, _>>()?;
        if let Some(cluster) = &self.cluster {
            nodes.extend(PrometheusSource::nodes_of(&settings, cluster).await?);
            nodes.sort();
            nodes.dedup();
            ensure!(!nodes.is_empty(), "{}: no series has cluster={cluster:?} and a label node", settings.url);
        }
        ensure!(!nodes.is_empty(), "name nodes with --node, or a cluster with --cluster");
        let (start, end) = self.seconds()?;
        let width = i64::from(step);
        let (first, last) = (start.div_euclid(width) * width, end.div_euclid(width) * width);
        let steps = (last - first) / width + 1;
        ensure!(steps <= STEPS_MAX, "{steps} steps from --start to --end are too many: take a longer --step");
        let source = PrometheusSource::new(&settings, features, nodes.clone())?;
        let empty = || Table { columns: columns.clone(), times: Vec::new(), samples: Samples::new(columns.len()) };
        let mut tables: Vec<(String, Table)> = nodes.iter().map(|node| (node.to_string(), empty())).collect();
        let mut problems = Vec::new();
        let mut from = first;
        while from <= last {
            let to = last.min(from + (STEPS_AT_ONCE - 1) * width);
            let found = source.samples(from..=to, step).await?;
            problems = found.problems;
            for (node, rows) in found.nodes {
                let Some((_, table)) = tables.iter_mut().find(|(name, _)| *name == node.as_str()) else { continue };
                for (at, row) in (from..).step_by(step as usize).zip(rows) {
                    // Before Prometheus knew the node there is nothing to learn from.
                    if table.samples.rows() > 0 || row.iter().any(Option::is_some) {
                        table.times.push(WallTime(at * 1_000_000).to_string());
                        table.samples.push(&row);
                    }
                }
            }
            from = to + width;
            progress::say(&format!("{} of {steps} steps collected", ((from - first) / width).min(steps)));
        }
        for problem in problems {
            progress::note(&problem);
        }
        tables.retain(|(_, table)| table.samples.rows() > 0);
        if tables.is_empty() {
            bail!(
                "{}: no samples of {} between {} and {}: look at its targets, and for the label node",
                settings.url,
                nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "),
                WallTime(first * 1_000_000),
                WallTime(last * 1_000_000)
            );
        }
        Ok(tables)
    }
}

/// Writes rows `from..to` of a table.
fn write(path: &Path, table: &Table, from: usize, to: usize) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(std::iter::once("timestamp").chain(table.columns.iter().map(String::as_str)))?;
    let mut values = Vec::new();
    for row in from..to {
        table.samples.read(row, &mut values);
        let cells = values.iter().map(|cell| cell.map_or_else(String::new, |value| value.to_string()));
        writer.write_record(std::iter::once(table.times[row].clone()).chain(cells))?;
    }
    write_whole(path, &writer.into_inner().map_err(|error| anyhow::anyhow!("write the table: {error}"))?)
}

/// Pulls and writes.
pub fn run(arguments: &CollectArguments) -> anyhow::Result<String> {
    ensure!((0.05..=0.9).contains(&arguments.held_out), "--held-out is a share of the time: 0.05 to 0.9");
    let tables = arguments.source.tables(arguments.step, arguments.features.as_deref())?;
    let (mut rows, mut held) = (0, 0);
    for (node, table) in &tables {
        let all = table.samples.rows();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a number of rows")]
        let split = all - (all as f64 * arguments.held_out) as usize;
        write(&arguments.out.join("train").join(format!("{node}.csv")), table, 0, split)?;
        write(&arguments.out.join("held-out").join(format!("{node}.csv")), table, split, all)?;
        rows += split;
        held += all - split;
    }
    let columns = tables.first().map_or(0, |(_, table)| table.columns.len());
    Ok(format!("{} nodes, {columns} features: {rows} rows to train on, {held} held out", tables.len()))
}

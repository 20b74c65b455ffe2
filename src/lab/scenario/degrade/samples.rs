//! Samples of a run as tables for the trainer: one CSV a node, one column a feature, one row a step.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::baselines::range;
use super::unix_seconds;
use crate::config::features::load_features;
use crate::domain::clock::WallTime;
use crate::domain::feature::AbsentValue;
use crate::domain::ids::NodeName;
use crate::lab::control::Controller;
use crate::lab::layout::Layout;

/// Steps at which samples are written: the lab's, and that of servers, each with the folder of its tables.
const STEPS: [(u32, &str); 2] = [(1, ""), (15, "15s")];

/// A fault that grows on a node.
#[derive(Clone, Copy)]
pub(super) struct Incident<'run> {
    pub node: &'run NodeName,
    pub began: WallTime,
}

/// Writes the samples of the last `length` below `directory`, and beside those of a node with a fault whether it was there, row by row.
pub(super) async fn write(
    layout: &Layout,
    directory: &Path,
    length: Duration,
    incident: Option<Incident<'_>>,
) -> anyhow::Result<()> {
    let until = unix_seconds(Controller::of(layout)?.status().await?.at) - 2;
    let from = until - i64::try_from(length.as_secs()).context("count the seconds of the run")?;
    for (step, folder) in STEPS {
        write_step(layout, &directory.join(folder), (from, until), step, incident).await?;
    }
    Ok(())
}

async fn write_step(
    layout: &Layout,
    directory: &Path,
    (from, until): (i64, i64),
    step_seconds: u32,
    incident: Option<Incident<'_>>,
) -> anyhow::Result<()> {
    let features = load_features(None)?;
    let step = i64::from(step_seconds);
    let rows = usize::try_from((until - from) / step).unwrap_or(0) + 1;
    let mut tables: BTreeMap<String, Vec<Vec<Option<f64>>>> =
        layout.nodes.iter().map(|node| (node.name.to_string(), vec![vec![None; features.len()]; rows])).collect();
    for (column, feature) in features.iter().enumerate() {
        let query = feature.filled_in(layout.nodes.iter().map(|node| node.name.as_str()), step_seconds);
        for (labels, values) in range(layout, &query, from, until, step_seconds.into()).await? {
            let Some(table) = labels.get("node").and_then(|node| tables.get_mut(node)) else { continue };
            for (second, value) in values {
                let place = usize::try_from((second - from) / step).ok();
                if let Some(row) = place.and_then(|place| table.get_mut(place)) {
                    row[column] = Some(value).filter(|value| value.is_finite());
                }
            }
        }
    }
    std::fs::create_dir_all(directory).with_context(|| format!("make the directory {}", directory.display()))?;
    for (node, table) in tables {
        let mut text = features.iter().map(|feature| feature.name.as_str()).collect::<Vec<_>>().join(",") + "\n";
        for row in table {
            let is_known = row.iter().any(Option::is_some);
            let cells = row.iter().zip(&features).map(|(value, feature)| match (value, feature.absent) {
                (Some(value), _) => value.to_string(),
                (None, Some(AbsentValue::Zero)) if is_known => "0".to_owned(),
                (None, _) => String::new(),
            });
            text += &(cells.collect::<Vec<_>>().join(",") + "\n");
        }
        save(&directory.join(format!("{node}.csv")), &text)?;
        if let Some(incident) = incident.filter(|incident| incident.node.as_str() == node) {
            let began = unix_seconds(incident.began);
            let label = |row: usize| i64::try_from(row).is_ok_and(|row| from + row * step >= began);
            let labels = (0..rows).map(|row| format!("{}\n", u8::from(label(row))));
            save(&directory.join(format!("{node}.labels.csv")), &("fault\n".to_owned() + &labels.collect::<String>()))?;
        }
    }
    Ok(())
}

fn save(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

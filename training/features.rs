//! Names, units and directions of columns from a file like `training/features.toml`.
//!
//! What never enters: queries; they are the collector's.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use stormglass::config::features::load_features;
use stormglass::domain::feature;
use stormglass::predict::{Direction, FeatureDescription};

#[derive(Deserialize)]
struct File {
    #[serde(alias = "features")]
    feature: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    unit: String,
    #[serde(default, alias = "bad")]
    direction: Option<String>,
    #[serde(default)]
    spread_min: Option<f32>,
}

/// What the file says of these columns, in their order; an error names the file and the feature.
pub fn read(path: &Path, columns: &[String]) -> anyhow::Result<Vec<FeatureDescription>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let file: File = toml::from_str(&text).with_context(|| path.display().to_string())?;
    columns
        .iter()
        .map(|column| {
            let entry = file
                .feature
                .iter()
                .find(|entry| entry.name == *column)
                .with_context(|| format!("{}: there is no feature {column:?}", path.display()))?;
            let direction = match entry.direction.as_deref() {
                Some("high" | "up" | "higher") => Direction::High,
                Some("low" | "down" | "lower") => Direction::Low,
                Some("both" | "either") | None => Direction::Both,
                Some(other) => {
                    ensure!(false, "{}: feature {column:?}: unknown direction {other:?}", path.display());
                    Direction::Both
                }
            };
            let spread_min = entry.spread_min;
            if let Some(problem) = feature::problem_of_spread(spread_min) {
                bail!("{}: feature {column:?}: {problem}", path.display());
            }
            Ok(FeatureDescription { name: column.clone(), unit: entry.unit.clone(), direction, spread_min })
        })
        .collect()
}

/// What this program's own catalogue says of these columns, in their order.
pub fn built_in(columns: &[String]) -> anyhow::Result<Vec<FeatureDescription>> {
    let known = load_features(None)?;
    let describe = |column: &String| {
        let feature = known
            .iter()
            .find(|feature| feature.name == *column)
            .with_context(|| format!("there is no built-in feature {column:?}: give --features"))?;
        let direction = match feature.direction {
            feature::Direction::High => Direction::High,
            feature::Direction::Low => Direction::Low,
            feature::Direction::Both => Direction::Both,
        };
        let spread_min = feature.spread_min;
        Ok(FeatureDescription { name: column.clone(), unit: feature.unit.clone(), direction, spread_min })
    };
    columns.iter().map(describe).collect()
}

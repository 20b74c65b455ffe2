//! Models of the predictor as text.

use super::{Cell, Look, Table, Tone, tabbed};
use crate::api::risk::{ModelEntry, ModelList};

/// Every model.
pub fn list(list: &ModelList, look: Look) -> String {
    if !look.terminal {
        let line = |model: &ModelEntry| tabbed([&model.name, version(model), &verdict(model), &figures(model)]);
        return list.models.iter().map(line).collect();
    }
    if list.models.is_empty() {
        return "There is no model in predictor.model_directory.\n".to_owned();
    }
    let mut table = Table::new(&["MODEL", "VERSION", "STATE", "SAID SINCE IT WAS LOADED"]);
    for model in &list.models {
        let tone = match (model.scores, &model.problem) {
            (true, _) => Tone::Good,
            (false, Some(_)) => Tone::Warning,
            (false, None) => Tone::Plain,
        };
        let state = Cell::toned(verdict(model), tone);
        table.row(vec![model.name.as_str().into(), version(model).into(), state, figures(model).into()]);
    }
    table.render(look)
}

/// One model with its document.
pub fn one(model: &ModelEntry, look: Look) -> String {
    let document = model.document.as_ref().map_or_else(
        || "its document cannot be read\n".to_owned(),
        |document| serde_json::to_string_pretty(document).expect("a document that was read can be written") + "\n",
    );
    if look.terminal {
        format!("Model    {} {}: {}\n{document}", model.name, version(model), verdict(model))
    } else {
        document
    }
}

fn version(model: &ModelEntry) -> &str {
    model.version.as_deref().unwrap_or("?")
}

/// What it has said; nothing for a model that does not score.
fn figures(model: &ModelEntry) -> String {
    let Some(figures) = &model.figures else { return String::new() };
    let error = figures.forecast_error.map_or_else(|| "-".to_owned(), |error| format!("{error:.2}"));
    let (alarms, samples, silent) = (figures.alarms, figures.samples, figures.silent);
    format!("{alarms} alarms in {samples} samples ({silent} in silence), forecast error {error}")
}

fn verdict(model: &ModelEntry) -> String {
    if model.challenges {
        return "scores beside it, counts for nothing".to_owned();
    }
    match (model.scores, model.promoted, &model.problem) {
        (true, true, _) => "scores, promoted".to_owned(),
        (true, false, _) => "scores".to_owned(),
        (false, _, Some(problem)) => format!("not usable: {problem}"),
        (false, true, None) => "promoted, does not score yet".to_owned(),
        (false, false, None) => "usable".to_owned(),
    }
}

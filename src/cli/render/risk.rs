//! What is expected of a node, as text.

use super::{Look, Tone, tabbed, words};
use crate::api::risk::{NodeRisk, PredictorStatus};
use crate::domain::plan::ReasonCode;

/// The predictor in one line.
pub fn predictor(predictor: &PredictorStatus, look: Look) -> String {
    let model = predictor.model.as_ref().map_or_else(|| "no model".to_owned(), |model| format!("model {model}"));
    match &predictor.abstains {
        None => format!("Predictor {}, {model}\n", predictor.mode),
        Some(problem) => {
            let silent = look.paint(Tone::Warning, &format!("predicts nothing: {problem}"));
            format!("Predictor {}, {model}, {silent}\n", predictor.mode)
        }
    }
}

/// Why the risk of one node is what it is; labels as those of `explain`.
pub fn node(outlook: &NodeRisk, look: Look) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    let risk = match (outlook.risk, &outlook.abstains) {
        (Some(risk), _) => match outlook.alarmed_for_seconds {
            Some(seconds) => {
                let alarm = format!("{:.0}%, an alarm for {}", risk * 100.0, words::span(words::seconds(seconds)));
                look.paint(Tone::Bad, &alarm)
            }
            None => format!("{:.0}%", risk * 100.0),
        },
        (None, Some(why)) => format!("not known: {why}"),
        (None, None) => "not known".to_owned(),
    };
    lines.push(("Risk", risk));
    for (place, driver) in outlook.drivers.iter().enumerate() {
        lines.push((if place == 0 { "Driven by" } else { "" }, driver.to_string()));
    }
    for (place, left) in outlook.exhaustions.iter().enumerate() {
        let line = format!(
            "{} in {}, if it goes on like that",
            left.resource.words(),
            words::span(words::seconds(left.seconds))
        );
        lines.push((if place == 0 { "Runs out" } else { "" }, look.paint(Tone::Warning, &line)));
    }
    // What runs out is said already, with more.
    let others = outlook.evidence.iter().filter(|reason| reason.code != ReasonCode::RunsOut);
    for (place, reason) in others.enumerate() {
        lines.push((if place == 0 { "Besides" } else { "" }, words::reason(reason, Some(&outlook.node))));
    }
    lines.into_iter().map(|(label, line)| format!("{label:<9}{line}\n")).collect()
}

/// One record a line, for pipes; the first field says which kind.
pub fn piped(outlook: &NodeRisk) -> String {
    let node = outlook.node.as_str();
    let risk = outlook.risk.map_or_else(|| "?".to_owned(), |risk| risk.to_string());
    let mut text = tabbed(["risk", node, &risk, outlook.abstains.as_deref().unwrap_or_default()]);
    for driver in &outlook.drivers {
        text.push_str(&tabbed(["driver", node, &driver.feature, &driver.to_string()]));
    }
    for left in &outlook.exhaustions {
        text.push_str(&tabbed(["runs out", node, left.resource.words(), &left.seconds.to_string()]));
    }
    text
}

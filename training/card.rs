//! The model card: what a model's document says, in words, with its limits.
//!
//! What never enters: a figure that is not in the document.

use std::fmt::Write as _;

use stormglass::predict::calibration::NetworkRole;
use stormglass::predict::document::{CalibratedOn, CalibrationFigures, FaultSeen};
use stormglass::predict::{ModelDocument, NetworkKind};

/// The text of a model's `README.md`.
pub fn render(document: &ModelDocument) -> String {
    let mut card = String::new();
    let mut line = |text: String| {
        card += &text;
        card.push('\n');
    };
    let training = &document.training;
    line(format!("# {} {}", document.name, document.version));
    line(String::new());
    line("A model of Stormglass's predictor: it says how unusual a node is, and how likely trouble is.".to_owned());
    line("How it works and what it cannot do is in `docs/predictor.md`.".to_owned());
    line(String::new());
    line("| | |".to_owned());
    line("|---|---|".to_owned());
    let network = match document.architecture.network {
        NetworkKind::None => "none (linear twin)".to_owned(),
        NetworkKind::Lstm { layers, units } => format!("LSTM, {layers} layer(s) of {units} units"),
    };
    let span = match (&training.first, &training.last) {
        (Some(first), Some(last)) => format!("{first} to {last}"),
        _ => "not known".to_owned(),
    };
    for (name, value) in [
        ("network", network),
        ("running mean", format!("{} rows", document.architecture.baseline_rows)),
        ("forecasts", format!("{:?} rows ahead", document.architecture.horizons)),
        ("step", format!("{} s; at another step it abstains", document.step_seconds)),
        ("risk looks ahead", format!("{} s", document.horizon_seconds)),
        ("features", document.features.len().to_string()),
        ("trained on", training.source.clone()),
        ("span", span),
        ("rows, nodes", format!("{}, {}", training.rows, training.nodes)),
        ("seed", training.seed.to_string()),
        ("SHA-256 of the samples", document.data_sha256.clone()),
    ] {
        line(format!("| {name} | {value} |"));
    }
    line(String::new());
    line("## Figures".to_owned());
    line(String::new());
    line("| figure | value |".to_owned());
    line("|---|---|".to_owned());
    for (name, value) in &document.metrics {
        line(format!("| {name} | {value:.4} |"));
    }
    line(String::new());
    line("`held_out_loss_over_linear_twin` below 1 means that the network forecasts better than the running mean alone on the".to_owned());
    line(
        "last tenth of the training rows; 1 means that it adds nothing, and its linear twin would do as well."
            .to_owned(),
    );
    line(String::new());
    line("## Risk".to_owned());
    line(String::new());
    match &document.calibrated_on {
        None => {
            line("The curve from surprise (how many times the score is above what is usual on the node, as a logarithm) to risk was learnt on".to_owned());
            line("labelled incidents of other machines, see `training/REPORT.md`; it was not checked on the machines of this model.".to_owned());
        }
        Some(calibrated) => calibration(document, calibrated, &mut line),
    }
    line(String::new());
    line("| surprise | risk |".to_owned());
    line("|---|---|".to_owned());
    for point in &document.calibration.risk_curve {
        line(format!("| {:.2} | {:.3} |", point.surprise, point.risk));
    }
    line(String::new());
    line("## Features".to_owned());
    line(String::new());
    line("| feature | unit | bad when | usual | spread |".to_owned());
    line("|---|---|---|---|---|".to_owned());
    for (feature, scale) in document.features.iter().zip(&document.scaler) {
        let direction = format!("{:?}", feature.direction).to_lowercase();
        let spread =
            if scale.spread > 0.0 { format!("{:.4}", scale.spread) } else { "never changed: left out".to_owned() };
        line(format!("| {} | {} | {direction} | {:.4} | {spread} |", feature.name, feature.unit, scale.center));
    }
    let _ = writeln!(
        card,
        "\nTo switch it off: `predictor.mode = \"observe\"`, or promote another model (`stormglass model list`)."
    );
    card
}

/// What threshold and risk rest on, and how they did on runs that they were not learnt on.
fn calibration(document: &ModelDocument, calibrated: &CalibratedOn, line: &mut impl FnMut(String)) {
    line(format!(
        "An alarm is a surprise (how many times the score is above what is usual on the node, as a logarithm) of {:.2} or more.",
        document.calibration.alarm_surprise
    ));
    line(format!("Threshold and curve were learnt on: {}.", calibrated.source));
    if document.architecture.network != NetworkKind::None {
        let role = match document.calibration.network_role {
            NetworkRole::Lowers => "can lower the surprise, where it foresaw what came, and never raise it",
            NetworkRole::Decides => "alone says how large the surprise is",
        };
        line(format!(
            "The network {role}: of the two roles, the first unless the second did better on the runs below; so the figures favour it a little."
        ));
    }
    line("The risk is the share of rows with such a surprise in which a fault was growing *in these runs*: they hold far more faults than a".to_owned());
    line("life of a server, so that the order of risks carries over, and the number does not.".to_owned());
    line(String::new());
    line("Every figure is of runs left out one at a time: threshold and curve that judge a run were learnt on the others.".to_owned());
    line("A lead runs from the alarm to the last sample of a run, some seconds after the first failed or slow (over 1 s) commit, or, where none was, the end of the fault.".to_owned());
    line(String::new());
    line("| | this model | its linear twin |".to_owned());
    line("|---|---|---|".to_owned());
    let (own, twin) = (&calibrated.own, calibrated.twin.as_ref());
    let mut row = |name: &str, figure: &dyn Fn(&CalibrationFigures) -> String| {
        line(format!("| {name} | {} | {} |", figure(own), twin.map_or_else(|| "–".to_owned(), figure)));
    };
    row("healthy node-days", &|figures| format!("{:.3}", figures.node_days));
    row("false alarms in them", &|figures| figures.false_alarms.to_string());
    row("at most so many a node and day (95 %)", &|figures| {
        format!("{:.1}", figures.false_alarms_per_node_day_upper_95)
    });
    row("mean squared error of the risk", &|figures| format!("{:.4}", figures.brier));
    row("the same, were the mean always said", &|figures| format!("{:.4}", figures.brier_of_mean));
    for (index, fault) in own.faults.iter().enumerate() {
        row(&format!("{}: seen, shortest lead", fault.fault), &|figures| match figures.faults.get(index) {
            Some(FaultSeen { runs, alarmed, lead_seconds_min: Some(lead), .. }) => {
                format!("{alarmed} of {runs}, {lead:.0} s")
            }
            Some(FaultSeen { runs, alarmed, .. }) => format!("{alarmed} of {runs}"),
            None => "–".to_owned(),
        });
    }
    line(String::new());
    line("So few node-days are no proof that alarms are rare; watch `stormglass_risk_alarm` in mode `observe` before you let it act.".to_owned());
}

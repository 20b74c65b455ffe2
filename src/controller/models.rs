//! The models that an operator sees and chooses from. How they score is not known here.

use super::prediction::{self, Prediction};
use super::replies::done;
use super::state::PredictorState;
use crate::api::risk::{ModelEntry, ModelFigures, ModelList};
use crate::api::wire::{MutationReply, Problem, SCHEMA_VERSION};
use crate::domain::risk::ModelName;
use crate::ports::metrics::ModelStoreError;

/// Every model of the directory, and what `predictor` knows of it.
pub(super) async fn list(prediction: &Prediction, predictor: PredictorState) -> Result<ModelList, Problem> {
    let scores = predictor.model;
    let names = prediction.models.names().await.map_err(internal)?;
    let promoted = prediction.models.promoted().await.map_err(internal)?;
    let mut models = Vec::new();
    for name in names {
        let read = prediction.models.read(&name).await;
        let (version, problem, document) = match read {
            Ok(files) => {
                let (version, problem) = prediction::examine(&files, prediction);
                (version, problem, serde_json::from_str(&files.document).ok())
            }
            Err(error) => (None, Some(error.to_string()), None),
        };
        let is_it = |model: &ModelName| model.name == name && Some(&model.version) == version.as_ref();
        let scores = scores.as_ref().is_some_and(is_it);
        let tallied = predictor.tallied.iter().find(|tallied| is_it(&tallied.model));
        models.push(ModelEntry {
            scores,
            challenges: !scores && tallied.is_some(),
            figures: tallied.map(|tallied| ModelFigures {
                samples: tallied.tally.samples,
                silent: tallied.tally.silent,
                alarms: tallied.tally.alarms,
                forecast_error: tallied.tally.forecast_error(),
            }),
            promoted: promoted.as_ref() == Some(&name),
            name,
            version,
            problem,
            document,
        });
    }
    Ok(ModelList { schema_version: SCHEMA_VERSION, models })
}

/// Makes `name` the model that scores, if it can be used here.
pub(super) async fn promote(prediction: &Prediction, name: &str) -> Result<MutationReply, Problem> {
    let files = prediction.models.read(name).await.map_err(|error| Problem::not_found(error.to_string()))?;
    if let (_, Some(problem)) = prediction::examine(&files, prediction) {
        return Err(Problem::refused(format!("model {name} cannot be used here: {problem}"), Vec::new()));
    }
    prediction.models.promote(name).await.map_err(internal)?;
    Ok(done(format!("model {name} scores from the next step on")))
}

/// Makes the model before it the one that scores again.
pub(super) async fn roll_back(prediction: &Prediction) -> Result<MutationReply, Problem> {
    let refuse = |error: ModelStoreError| Problem::refused(error.to_string(), Vec::new());
    let name = prediction.models.roll_back().await.map_err(refuse)?;
    Ok(done(format!("model {name} scores again from the next step on")))
}

/// The predictor, if which model scores is not fixed by the configuration.
pub(super) fn changeable(prediction: &Prediction) -> Result<&Prediction, Problem> {
    match &prediction.model {
        None => Ok(prediction),
        Some(fixed) => Err(Problem::refused(
            format!(
                "predictor.model = {fixed:?} in the controller's configuration says which model scores: remove it there first"
            ),
            Vec::new(),
        )),
    }
}

fn internal(error: ModelStoreError) -> Problem {
    Problem::internal(error.to_string())
}

//! Settings of the predictor: where the time series are, which model scores them, and what predictions may do.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;
use super::secret::SecretReference;
use super::validate::absolute;
use crate::domain::policy::{PredictionMode, PredictionPolicy};

/// Prometheus counts in whole seconds where it matters here.
const STEP_MIN: Duration = Duration::from_secs(1);
/// Coarser than that, nothing is seen in time.
const STEP_MAX: Duration = Duration::from_secs(300);
/// With less the training program does not even start.
const MEMORY_BYTES_MIN: u64 = 256 << 20;
/// Fewer rows teach nothing.
const ROWS_MIN: u32 = 400;
/// Longer than anybody keeps samples.
const SPAN_MAX: Duration = Duration::from_secs(400 * 86_400);

/// `[prometheus]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrometheusSection {
    /// Base URL, with the path below which Prometheus is served, if there is one.
    pub url: String,
    /// Bearer token, where it asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token: Option<SecretReference>,
    /// User, where it asks for basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretReference>,
    /// Who signed its certificate, as PEM; the system's authorities if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ca_file: Option<PathBuf>,
    /// How long it may take to answer.
    #[serde(default = "default_timeout", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub timeout: Duration,
}

impl PrometheusSection {
    /// Prometheus at `url`, without authentication.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            bearer_token: None,
            user: None,
            password: None,
            ca_file: None,
            timeout: default_timeout(),
        }
    }

    /// Every reference to a secret, with its key.
    pub(super) fn secrets(&self) -> Vec<(String, &SecretReference)> {
        let named = [("prometheus.bearer_token", &self.bearer_token), ("prometheus.password", &self.password)];
        named.into_iter().filter_map(|(key, secret)| Some((key.to_owned(), secret.as_ref()?))).collect()
    }

    pub(super) fn violation(&self) -> Result<(), Violation> {
        let parsed = reqwest::Url::parse(&self.url)
            .map_err(|error| Violation::at("prometheus.url", format!("{:?} is no URL: {error}", self.url)))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            let problem = format!("{:?} must begin with http:// or https:// and name a host", self.url);
            return Err(Violation::at("prometheus.url", problem));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(Violation::at(
                "prometheus.url",
                "holds a user name or password: prometheus.user and prometheus.password are settings of their own",
            ));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(Violation::at("prometheus.url", "no query may follow host and path"));
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(Violation::at("prometheus.user", "needs prometheus.password, and the other way round"));
        }
        if self.user.is_some() && self.bearer_token.is_some() {
            return Err(Violation::at("prometheus.bearer_token", "stands beside prometheus.user: choose one of them"));
        }
        if let Some(file) = &self.ca_file {
            absolute("prometheus.ca_file", file)?;
            if parsed.scheme() != "https" {
                return Err(Violation::at("prometheus.ca_file", "needs an https:// URL"));
            }
        }
        if self.timeout.is_zero() {
            return Err(Violation::at("prometheus.timeout", "must be more than 0s"));
        }
        Ok(())
    }
}

/// `[predictor]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PredictorSection {
    /// `observe`, `advise` or `act`.
    pub mode: PredictionMode,
    /// Where models are: one folder each.
    #[schema(value_type = String)]
    pub model_directory: PathBuf,
    /// The model that scores; what `stormglass model promote` chose if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A model that scores beside it to be compared; nothing rests on its word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenger: Option<String>,
    /// Features and their queries; those that are built in if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub features: Option<PathBuf>,
    /// Time between two samples. The model must have been trained on the same.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub step: Duration,
    /// The least risk that counts, 0 to 1.
    pub risk_min: f64,
    /// An alarm counts once it has lasted for so long; three steps if not given.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub confirm_after: Option<Duration>,
    /// What an agent's own numbers say runs out within this time counts, and has the metric `stormglass_exhaustion_seconds`;
    /// 60 steps if not given.
    #[serde(with = "super::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DurationText>)]
    pub horizon: Option<Duration>,
    /// One predictive switchover in each window of this length.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub budget_window: Duration,
    /// When a model is trained anew, as a cron expression; only when somebody asks if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrain_schedule: Option<String>,
    /// Time zone of the schedule.
    pub retrain_time_zone: String,
    /// Also when the model has not known a node for some time, once a day at most.
    pub retrain_on_drift: bool,
    /// How much of the past is used: the older three quarters to train on, the newest quarter to judge on.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub retrain_span: Duration,
    /// How long the training itself may take.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub retrain_time_limit: Duration,
    /// Address space of the training program, in bytes.
    pub retrain_memory_bytes: u64,
    /// With the LSTM; else its linear twin alone, which trains in seconds.
    pub retrain_network: bool,
    /// The training program; beside `stormglass` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub retrain_program: Option<PathBuf>,
}

impl Default for PredictorSection {
    fn default() -> Self {
        Self {
            mode: PredictionMode::default(),
            model_directory: PathBuf::from("/usr/share/stormglass/models"),
            model: None,
            challenger: None,
            features: None,
            step: Duration::from_secs(15),
            risk_min: 0.5,
            confirm_after: None,
            horizon: None,
            budget_window: PredictionPolicy::default().budget_window,
            retrain_schedule: None,
            retrain_time_zone: "UTC".to_owned(),
            retrain_on_drift: false,
            retrain_span: Duration::from_secs(28 * 86_400),
            retrain_time_limit: Duration::from_secs(4 * 3600),
            retrain_memory_bytes: 2 << 30,
            retrain_network: true,
            retrain_program: None,
        }
    }
}

impl PredictorSection {
    /// The guards of predictions that follow.
    pub(super) fn policy(&self) -> PredictionPolicy {
        let derived = PredictionPolicy::for_step(self.step);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000, which was checked")]
        let risk_per_mille_min = (self.risk_min * 1000.0).round() as u16;
        PredictionPolicy {
            mode: self.mode,
            risk_per_mille_min,
            confirm_after: self.confirm_after.unwrap_or(derived.confirm_after),
            horizon: self.horizon.unwrap_or(derived.horizon),
            budget_window: self.budget_window,
            ..derived
        }
    }

    pub(super) fn violation(&self) -> Result<(), Violation> {
        absolute("predictor.model_directory", &self.model_directory)?;
        if let Some(file) = &self.features {
            absolute("predictor.features", file)?;
        }
        for (key, name) in [("predictor.model", &self.model), ("predictor.challenger", &self.challenger)] {
            if let Some(name) = name.as_ref().filter(|name| !is_folder_name(name)) {
                let problem = format!("{name:?} is no name of a folder in predictor.model_directory");
                return Err(Violation::at(key, problem));
            }
        }
        if self.challenger.is_some() && self.challenger == self.model {
            return Err(Violation::at("predictor.challenger", "is the model that scores anyway: name another one"));
        }
        if self.step < STEP_MIN || self.step > STEP_MAX || self.step.subsec_nanos() != 0 {
            return Err(Violation::at("predictor.step", "must be whole seconds, 1s to 5m"));
        }
        if !(0.0..=1.0).contains(&self.risk_min) {
            return Err(Violation::at("predictor.risk_min", "is a probability: 0 to 1"));
        }
        self.retrain_violation()?;
        if self.horizon.is_some_and(|horizon| horizon < self.step) {
            return Err(Violation::at("predictor.horizon", "must be at least one predictor.step"));
        }
        Ok(())
    }
}

impl PredictorSection {
    fn retrain_violation(&self) -> Result<(), Violation> {
        if let Some(cron) = &self.retrain_schedule
            && let Err(error) = cron.parse::<croner::Cron>()
        {
            let problem = format!("{cron:?} is no cron expression such as \"0 3 * * sun\": {error}");
            return Err(Violation::at("predictor.retrain_schedule", problem));
        }
        if self.retrain_time_zone.parse::<chrono_tz::Tz>().is_err() {
            let problem = format!("{:?} is no time zone such as \"Europe/Berlin\"", self.retrain_time_zone);
            return Err(Violation::at("predictor.retrain_time_zone", problem));
        }
        if let Some(program) = &self.retrain_program {
            absolute("predictor.retrain_program", program)?;
        }
        if self.retrain_memory_bytes < MEMORY_BYTES_MIN {
            return Err(Violation::at("predictor.retrain_memory_bytes", "must be at least 268435456 (256 MiB)"));
        }
        if self.retrain_span < self.step * ROWS_MIN || self.retrain_span > SPAN_MAX {
            let problem = format!("must be {ROWS_MIN} times predictor.step at least, and 400 days at most");
            return Err(Violation::at("predictor.retrain_span", problem));
        }
        if self.retrain_time_limit.is_zero() {
            return Err(Violation::at("predictor.retrain_time_limit", "must be more than 0s"));
        }
        let acts_alone = self.retrain_schedule.is_some() || self.retrain_on_drift;
        if let Some(model) = self.model.as_ref().filter(|_| acts_alone) {
            let problem =
                format!("fixes which model scores ({model}), so that no retraining has an effect: take one out");
            return Err(Violation::at("predictor.model", problem));
        }
        Ok(())
    }
}

/// One part of a path, which cannot lead elsewhere.
fn is_folder_name(name: &str) -> bool {
    let good = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    good && !name.is_empty() && !name.starts_with('.')
}

fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

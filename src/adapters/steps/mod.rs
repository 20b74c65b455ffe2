//! Steps of sequences: templates filled in, secrets resolved, programs and requests run to their end or their time-out.
//!
//! Nothing is decided here, and no secret leaves: what was resolved is cut out of every output and every error.

mod application;
mod http;
mod private;
mod process;
mod programs;
mod sql;
mod template;
mod terraform;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::sequence::{StepAction, StepRun, bounded};
use crate::ports::steps::{StepError, StepRunner};
use process::Program;
use template::Template;

/// Reads a secret by its reference, as in `env:NAME`, `file:/path` or `vault:PATH#FIELD`.
pub type Resolve = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What replaces a secret in outputs and errors.
const MASK: &str = "[secret]";
/// A shorter secret would mask half of every word.
const SECRET_LENGTH_MIN: usize = 4;

/// Runs steps on this host.
pub struct HostSteps {
    resolve: Resolve,
    /// Variables that every program gets, such as `PATH`.
    inherited: BTreeMap<String, String>,
}

impl HostSteps {
    /// With a way to secrets, and the variables that programs inherit: never the whole environment, which holds tokens.
    pub fn new(resolve: Resolve, inherited: BTreeMap<String, String>) -> Self {
        Self { resolve, inherited }
    }
}

/// A step with its templates filled in. References to secrets are resolved only to be run.
struct Prepared<'a> {
    run: &'a StepRun,
    template: Template,
    resolve: Option<&'a Resolve>,
    secrets: std::sync::Mutex<Vec<String>>,
    inherited: &'a BTreeMap<String, String>,
}

impl Prepared<'_> {
    fn text(&self, text: &str) -> Result<String, StepError> {
        self.template.render(text).map_err(StepError::Failed)
    }

    fn texts(&self, texts: &[String]) -> Result<Vec<String>, StepError> {
        texts.iter().map(|text| self.text(text)).collect()
    }

    /// A value that may be a reference to a secret.
    fn secret(&self, value: &str) -> Result<String, StepError> {
        if !["env:", "file:", "vault:"].iter().any(|prefix| value.starts_with(prefix)) {
            return self.text(value);
        }
        let Some(resolve) = self.resolve else { return Ok(format!("[{value}]")) };
        let secret = resolve(value).map_err(|error| StepError::Failed(format!("the secret {value}: {error}")))?;
        if secret.len() >= SECRET_LENGTH_MIN {
            self.secrets.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(secret.clone());
        }
        Ok(secret)
    }

    fn secret_map(&self, values: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, StepError> {
        values.iter().map(|(name, value)| Ok((name.clone(), self.secret(value)?))).collect()
    }

    /// What every program of this step finds in its environment.
    fn environment(&self, own: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, StepError> {
        let mut all = self.inherited.clone();
        for (name, value) in &self.run.variables {
            all.insert(format!("STORMGLASS_{}", name.to_uppercase()), value.clone());
        }
        all.insert("STORMGLASS_OPERATION".to_owned(), self.run.operation.clone());
        all.insert("STORMGLASS_STEP".to_owned(), self.run.step.name.clone());
        all.insert("STORMGLASS_ATTEMPT".to_owned(), self.run.attempt.to_string());
        all.insert("STORMGLASS_IDEMPOTENCY_KEY".to_owned(), self.run.key.clone());
        all.extend(self.secret_map(own)?);
        Ok(all)
    }

    fn masked(&self, text: &str) -> String {
        let secrets = self.secrets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), MASK))
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.run.step.timeout_seconds)
    }
}

#[async_trait]
impl StepRunner for HostSteps {
    fn preview(&self, run: &StepRun) -> Result<String, StepError> {
        let prepared = self.prepare(run, None)?;
        let what = match &run.step.action {
            StepAction::Sql { .. } => sql::preview(&prepared)?,
            StepAction::Command { .. } => words(&command(&prepared)?),
            StepAction::Http { .. } => http::preview(&prepared)?,
            StepAction::Terraform { .. } => terraform::preview(&prepared)?,
            StepAction::Ansible { .. } => programs::preview_ansible(&prepared)?,
            StepAction::Velero { .. } => words(&programs::velero(&prepared)?),
            StepAction::Application { .. } => application::preview(&prepared)?,
            StepAction::Rejoin => "wait until the old primary is a standby again".to_owned(),
            StepAction::Redundancy => "wait until every node streams and the ledger names a standby".to_owned(),
            StepAction::Verify => "a real write through every proxy".to_owned(),
            StepAction::Backup { backup_type } => format!("{backup_type}, then read back"),
            StepAction::Drill => "restore the newest backup where nobody uses it, check it, remove it".to_owned(),
        };
        let when = run.step.condition.as_ref().map_or_else(String::new, |condition| format!(", if {condition}"));
        Ok(format!("{}: {} {what}{when}", run.step.name, run.step.action.label()))
    }

    async fn drifts(&self, stack: &str, program: &str, timeout: Duration) -> Result<bool, String> {
        terraform::drifts(stack, program, self.inherited.clone(), timeout).await
    }

    async fn run(&self, run: &StepRun) -> Result<String, StepError> {
        let prepared = self.prepare(run, Some(&self.resolve))?;
        if let Some(condition) = &run.step.condition
            && !prepared.template.holds(condition).map_err(StepError::Failed)?
        {
            return Ok(format!("passed over: {condition} is false"));
        }
        let result = match &run.step.action {
            StepAction::Sql { .. } => sql::run(&prepared).await,
            StepAction::Command { .. } => match command(&prepared) {
                Ok(program) => program.run(prepared.timeout()).await.and_then(process::Ended::succeeded),
                Err(error) => Err(error),
            },
            StepAction::Http { .. } => http::run(&prepared).await,
            StepAction::Terraform { .. } => terraform::run(&prepared).await,
            StepAction::Ansible { .. } => programs::ansible(&prepared).await,
            StepAction::Velero { .. } => programs::run_velero(&prepared).await,
            StepAction::Application { .. } => application::run(&prepared).await,
            StepAction::Rejoin
            | StepAction::Redundancy
            | StepAction::Verify
            | StepAction::Backup { .. }
            | StepAction::Drill => Err(StepError::Failed("a built-in step is not the runner's".to_owned())),
        };
        match result {
            Ok(text) => Ok(bounded(&prepared.masked(&text))),
            Err(StepError::Failed(text)) => Err(StepError::Failed(bounded(&prepared.masked(&text)))),
            Err(StepError::Unknown(text)) => Err(StepError::Unknown(bounded(&prepared.masked(&text)))),
        }
    }
}

impl HostSteps {
    fn prepare<'a>(&'a self, run: &'a StepRun, resolve: Option<&'a Resolve>) -> Result<Prepared<'a>, StepError> {
        // A preview knows no outputs yet: it shows where they will stand.
        let template = Template::new(run, resolve.is_none());
        Ok(Prepared { run, template, resolve, secrets: std::sync::Mutex::default(), inherited: &self.inherited })
    }
}

fn command(prepared: &Prepared<'_>) -> Result<Program, StepError> {
    let StepAction::Command { command, environment, directory } = &prepared.run.step.action else {
        return Err(StepError::Failed("no command".to_owned()));
    };
    let words = prepared.texts(command)?;
    let Some((program, arguments)) = words.split_first() else {
        return Err(StepError::Failed("the command is empty".to_owned()));
    };
    Ok(Program {
        program: program.clone(),
        arguments: arguments.to_vec(),
        environment: prepared.environment(environment)?,
        directory: directory.as_deref().map(|directory| prepared.text(directory)).transpose()?,
        input: None,
    })
}

fn words(program: &Program) -> String {
    program.to_string()
}

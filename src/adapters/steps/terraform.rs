//! `terraform` steps: init, plan into a file, apply of exactly that file, outputs for later steps.
//!
//! Input variables travel in the environment, never on a command line that others can read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::Prepared;
use super::private::PrivateFile;
use super::process::{Ended, Program};
use crate::domain::sequence::{OUTPUT_MARK, StepAction};
use crate::ports::steps::StepError;

/// `plan -detailed-exitcode`: there is something to do.
const CHANGES: i32 = 2;

/// For a process that nobody sits at.
const UNATTENDED: [(&str, &str); 3] = [("TF_IN_AUTOMATION", "1"), ("TF_INPUT", "0"), ("CHECKPOINT_DISABLE", "1")];

struct Stack<'a> {
    prepared: &'a Prepared<'a>,
    program: String,
    directory: String,
    environment: BTreeMap<String, String>,
}

fn stack<'a>(prepared: &'a Prepared<'a>) -> Result<Stack<'a>, StepError> {
    let StepAction::Terraform { directory, variables, environment, program } = &prepared.run.step.action else {
        return Err(StepError::Failed("no stack".to_owned()));
    };
    let mut all = prepared.environment(environment)?;
    for (name, value) in prepared.secret_map(variables)? {
        all.insert(format!("TF_VAR_{name}"), value);
    }
    all.extend(UNATTENDED.map(|(name, value)| (name.to_owned(), value.to_owned())));
    Ok(Stack {
        prepared,
        program: prepared.text(program.as_deref().unwrap_or("terraform"))?,
        directory: prepared.text(directory)?,
        environment: all,
    })
}

impl Stack<'_> {
    async fn run(&self, arguments: &[&str]) -> Result<Ended, StepError> {
        let program = Program {
            program: self.program.clone(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: self.environment.clone(),
            directory: Some(self.directory.clone()),
            input: None,
        };
        program.run(self.prepared.timeout()).await
    }

    /// What went wrong, with what to do about it.
    fn failed(&self, doing: &str, ended: &Ended) -> StepError {
        let said = ended.said();
        let next = if said.contains("Error acquiring the state lock") {
            let id = said.lines().find_map(|line| line.split_once("ID:")).map_or("LOCK_ID", |(_, id)| id.trim());
            format!(
                "the state is locked by somebody else: wait for them, or, if nobody works on it, terraform -chdir={} force-unlock {id}",
                self.directory
            )
        } else {
            let error =
                said.lines().find_map(|line| line.split_once("Error: ")).map_or("see its output", |(_, error)| error);
            format!("{error}; next: terraform -chdir={} {doing}", self.directory)
        };
        StepError::Failed(format!("terraform {doing} in {} failed: {next}\n{said}", self.directory))
    }
}

pub(super) fn preview(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let stack = stack(prepared)?;
    let names: Vec<&str> = stack.environment.keys().filter_map(|name| name.strip_prefix("TF_VAR_")).collect();
    let with = if names.is_empty() { String::new() } else { format!(" with {}", names.join(", ")) };
    Ok(format!("init, plan and apply of exactly that plan in {}{with}", stack.directory))
}

pub(super) async fn run(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let stack = stack(prepared)?;
    let file = PrivateFile::new("plan")?;
    let plan = file.path();
    let init = stack.run(&["init", "-input=false", "-no-color"]).await?;
    if init.code != Some(0) {
        return Err(stack.failed("init", &init));
    }
    let out = format!("-out={plan}");
    let planned = stack.run(&["plan", "-input=false", "-no-color", "-detailed-exitcode", &out]).await?;
    let mut said = String::new();
    match planned.code {
        Some(0) => said.push_str("nothing to change\n"),
        Some(CHANGES) => {
            let applied = stack.run(&["apply", "-input=false", "-no-color", &plan]).await?;
            if applied.code != Some(0) {
                return Err(stack.failed("apply", &applied));
            }
            said.push_str(&summary(&planned, "Plan: "));
            said.push_str(&applied.said());
            said.push('\n');
        }
        _ => return Err(stack.failed("plan", &planned)),
    }
    let outputs = stack.run(&["output", "-json", "-no-color"]).await?;
    if outputs.code != Some(0) {
        return Err(stack.failed("output", &outputs));
    }
    said.push_str(&output_lines(&outputs.stdout)?);
    Ok(said)
}

/// See [`crate::ports::steps::StepRunner::drifts`].
pub(super) async fn drifts(
    stack: &str,
    program: &str,
    inherited: BTreeMap<String, String>,
    timeout: Duration,
) -> Result<bool, String> {
    let mut environment = inherited;
    environment.extend(UNATTENDED.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let run = async |arguments: &[&str]| {
        let program = Program {
            program: program.to_owned(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: environment.clone(),
            directory: Some(stack.to_owned()),
            input: None,
        };
        let first_line = |error: StepError| error.to_string().lines().next().unwrap_or_default().to_owned();
        program.run(timeout).await.map_err(first_line)
    };
    let why = |doing: &str, ended: &Ended| {
        let said = ended.said();
        let error = said.lines().find_map(|line| line.split_once("Error: ")).map(|(_, error)| error.trim().to_owned());
        format!("terraform {doing}: {}", error.unwrap_or_else(|| "see its output".to_owned()))
    };
    let init = run(&["init", "-input=false", "-no-color"]).await?;
    if init.code != Some(0) {
        return Err(why("init", &init));
    }
    let planned = run(&["plan", "-input=false", "-no-color", "-lock=false", "-detailed-exitcode"]).await?;
    match planned.code {
        Some(0) => Ok(false),
        Some(CHANGES) => Ok(true),
        _ => Err(why("plan", &planned)),
    }
}

fn summary(ended: &Ended, mark: &str) -> String {
    ended.stdout.lines().find(|line| line.starts_with(mark)).map_or_else(String::new, |line| format!("{line}\n"))
}

#[derive(Deserialize)]
struct Output {
    #[serde(default)]
    sensitive: bool,
    value: serde_json::Value,
}

/// Lines for later steps. What Terraform calls sensitive is left out.
fn output_lines(json: &str) -> Result<String, StepError> {
    let outputs: BTreeMap<String, Output> = serde_json::from_str(json)
        .map_err(|error| StepError::Failed(format!("the outputs of terraform are not understood: {error}")))?;
    let lines = outputs.into_iter().filter(|(_, output)| !output.sensitive).map(|(name, output)| {
        let value = match output.value {
            serde_json::Value::String(text) => text.replace('\n', " "),
            other => other.to_string(),
        };
        format!("{OUTPUT_MARK}{name}={value}\n")
    });
    Ok(lines.collect())
}

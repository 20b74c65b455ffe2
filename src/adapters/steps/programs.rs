//! `ansible` and `velero` steps: the command lines of two programs.

use super::Prepared;
use super::private::PrivateFile;
use super::process::{Ended, Program};
use crate::domain::sequence::StepAction;
use crate::ports::steps::StepError;

/// Longest name that Kubernetes takes for the object.
const NAME_LENGTH_MAX: usize = 63;

/// The JSON of a playbook's extra variables. They travel in a private file: a command line could be read, and Ansible opens no pipe.
fn extra_variables(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let StepAction::Ansible { variables, .. } = &prepared.run.step.action else {
        return Err(StepError::Failed("no playbook".to_owned()));
    };
    let mut extra = serde_json::Map::new();
    for (name, value) in &prepared.run.variables {
        extra.insert(format!("stormglass_{name}"), value.clone().into());
    }
    extra.insert("stormglass_idempotency_key".to_owned(), prepared.run.key.clone().into());
    for (name, value) in prepared.secret_map(variables)? {
        extra.insert(name, value.into());
    }
    Ok(serde_json::Value::Object(extra).to_string())
}

/// The playbook with its variables in `file`.
fn playbook(prepared: &Prepared<'_>, file: &str) -> Result<Program, StepError> {
    let StepAction::Ansible { playbook, inventory, environment, program, .. } = &prepared.run.step.action else {
        return Err(StepError::Failed("no playbook".to_owned()));
    };
    let mut all = prepared.environment(environment)?;
    for (name, value) in [("ANSIBLE_NOCOLOR", "1"), ("ANSIBLE_RETRY_FILES_ENABLED", "0"), ("PYTHONUNBUFFERED", "1")] {
        all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    let inventory = prepared.text(inventory.as_deref().unwrap_or("localhost,"))?;
    let (variables, playbook) = (format!("@{file}"), prepared.text(playbook)?);
    let arguments = ["--inventory", &inventory, "--extra-vars", &variables, &playbook];
    Ok(Program {
        program: prepared.text(program.as_deref().unwrap_or("ansible-playbook"))?,
        arguments: arguments.map(str::to_owned).into(),
        environment: all,
        directory: None,
        input: None,
    })
}

pub(super) fn preview_ansible(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let StepAction::Ansible { variables, .. } = &prepared.run.step.action else { return Ok(String::new()) };
    let names: Vec<&str> = variables.keys().map(String::as_str).collect();
    let with = if names.is_empty() { String::new() } else { format!(" with {}", names.join(", ")) };
    Ok(format!("{}{with}", playbook(prepared, "VARIABLES")?))
}

pub(super) async fn ansible(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let variables = PrivateFile::new("variables")?.write(&extra_variables(prepared)?)?;
    playbook(prepared, &variables.path())?.run(prepared.timeout()).await?.succeeded()
}

/// `velero restore create NAME …`; the name is the same for every attempt.
pub(super) fn velero(prepared: &Prepared<'_>) -> Result<Program, StepError> {
    let StepAction::Velero { backup, schedule, arguments, environment, program } = &prepared.run.step.action else {
        return Err(StepError::Failed("no restore".to_owned()));
    };
    let mut words = vec!["restore".to_owned(), "create".to_owned(), name(prepared)];
    match (backup, schedule) {
        (Some(backup), _) => words.extend(["--from-backup".to_owned(), prepared.text(backup)?]),
        (None, Some(schedule)) => words.extend(["--from-schedule".to_owned(), prepared.text(schedule)?]),
        (None, None) => return Err(StepError::Failed("neither backup nor schedule is named".to_owned())),
    }
    words.push("--wait".to_owned());
    words.extend(prepared.texts(arguments)?);
    Ok(Program {
        program: prepared.text(program.as_deref().unwrap_or("velero"))?,
        arguments: words,
        environment: prepared.environment(environment)?,
        directory: None,
        input: None,
    })
}

fn name(prepared: &Prepared<'_>) -> String {
    let raw = format!("stormglass-{}-{}", prepared.run.step.name, prepared.run.operation).to_lowercase();
    let name: String = raw.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    name.chars().take(NAME_LENGTH_MAX).collect::<String>().trim_end_matches('-').to_owned()
}

pub(super) async fn run_velero(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let ended: Ended = velero(prepared)?.run(prepared.timeout()).await?;
    // An attempt whose outcome nobody heard created it: what counts is that it is there.
    if ended.code != Some(0) && ended.said().contains("already exists") {
        return Ok(format!(
            "begun by an earlier attempt: velero restore describe {}\n{}",
            name(prepared),
            ended.said()
        ));
    }
    ended.succeeded()
}

//! `application` steps: a file of `NAME=value` lines is replaced whole on an application host, then its service is restarted.

use super::Prepared;
use super::process::Program;
use crate::domain::sequence::StepAction;
use crate::ports::steps::StepError;

/// Writes beside the file and renames, so that a restart in the middle finds the old file or the new one.
const REPLACE: &str = "umask 027; cat > \"$1.new\" && mv -f \"$1.new\" \"$1\"";

struct Change {
    file: String,
    text: String,
    through: Vec<String>,
    restart: Vec<String>,
}

fn change(prepared: &Prepared<'_>) -> Result<Change, StepError> {
    let StepAction::Application { file, values, restart, through } = &prepared.run.step.action else {
        return Err(StepError::Failed("no file".to_owned()));
    };
    let mut text = format!("# Written by stormglass, operation {}.\n", prepared.run.operation);
    for (name, value) in values {
        let value = prepared.secret(value)?;
        if value.contains(['\n', '\r']) {
            return Err(StepError::Failed(format!("the value of {name} has more than one line")));
        }
        text.push_str(&format!("{name}={value}\n"));
    }
    Ok(Change {
        file: prepared.text(file)?,
        text,
        through: prepared.texts(through)?,
        restart: prepared.texts(restart)?,
    })
}

pub(super) fn preview(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let change = change(prepared)?;
    let host = if change.through.is_empty() { "this host".to_owned() } else { change.through.join(" ") };
    let names: Vec<&str> = change.text.lines().skip(1).collect();
    let restart = if change.restart.is_empty() { "nothing".to_owned() } else { change.restart.join(" ") };
    Ok(format!("on {host}: {} = {}; then {restart}", change.file, names.join(", ")))
}

/// The words behind what leads to the host. `ssh` hands them to a shell, which splits them again.
fn words(change: &Change, words: &[String]) -> Vec<String> {
    if change.through.is_empty() {
        return words.to_vec();
    }
    let quoted = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''")));
    change.through.iter().cloned().chain(quoted).collect()
}

pub(super) async fn run(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let change = change(prepared)?;
    let environment = prepared.environment(&Default::default())?;
    let replace: Vec<String> = ["sh", "-c", REPLACE, "sh", &change.file].map(str::to_owned).into();
    let mut said = String::new();
    for (command, input) in [(replace, Some(change.text.clone())), (change.restart.clone(), None)] {
        let all = words(&change, &command);
        let Some((program, arguments)) = all.split_first().filter(|_| !command.is_empty()) else { continue };
        let program = Program {
            program: program.clone(),
            arguments: arguments.to_vec(),
            environment: environment.clone(),
            directory: None,
            input,
        };
        said.push_str(&program.run(prepared.timeout()).await?.succeeded()?);
    }
    Ok(format!("{} was replaced\n{said}", change.file))
}

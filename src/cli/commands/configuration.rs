//! `config check`, `config show` and `config schema`: no controller is asked.

use super::document;
use crate::cli::arguments::{ConfigCommand, Global, OutputFormat, SchemaKind};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::config::effective::derivation;
use crate::config::schema::{self, FileKind};
use crate::config::{AnyConfig, load_any, read_any};

pub(super) fn run(console: &mut Console, global: &Global, command: &ConfigCommand) -> Result<Exit, Failure> {
    let text = match command {
        ConfigCommand::Check(file) => {
            let path = file.path();
            match load_any(path)? {
                AnyConfig::Controller(settings) => {
                    let mut text = format!("{}: a controller's configuration, can be used\n", path.display());
                    for line in derivation(&settings.policy()?) {
                        text.push_str(&format!("  {line}\n"));
                    }
                    text
                }
                AnyConfig::Agent(_) => format!("{}: an agent's configuration, can be used\n", path.display()),
            }
        }
        ConfigCommand::Schema { kind } => {
            let kind = kind.map(|kind| match kind {
                SchemaKind::Controller => FileKind::Controller,
                SchemaKind::Agent => FileKind::Agent,
            });
            document(global.output, &schema::document(kind))?
        }
        ConfigCommand::Show { file, effective } => {
            let (settings, written) = read_any(file.path())?;
            match (effective, global.output) {
                (true, OutputFormat::Table) => settings.effective()?.text(),
                (false, OutputFormat::Table) => {
                    toml::to_string(&written).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?
                }
                (effective, format) => {
                    let raw = if *effective {
                        serde_json::to_value(settings.effective()?)
                    } else {
                        serde_json::to_value(&written)
                    };
                    document(format, &raw.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?)?
                }
            }
        }
    };
    console.print(&text)?;
    Ok(Exit::Done)
}

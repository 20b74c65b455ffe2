//! The verbs: each fetches, asks, sends and hands documents to `render`.

mod access;
mod cluster;
mod configuration;
mod follow;
mod model;
mod mutate;
mod notification;
mod observe;
mod pki;
mod sequence;
mod watch;

use serde_json::Value;

use super::arguments::{Command, Global, OperationCommand, OutputFormat, SequenceCommand};
use super::console::Console;
use super::exit::{Exit, Failure};
use super::render::Look;
use crate::api::client::Client;
use crate::domain::ids::{ClusterName, NodeName};

/// One run of the command line.
pub(super) struct Session<'c> {
    console: &'c mut Console,
    global: Global,
    client: Client,
}

/// Runs one command to its end.
pub(super) async fn run(console: &mut Console, global: Global, command: Command) -> Result<Exit, Failure> {
    if let Command::Config(command) = command {
        return configuration::run(console, &global, &command);
    }
    if let Command::Pki(command) = command {
        return pki::run(console, &global, &command);
    }
    let client = Client::with_files(&global.controller, console.token.clone(), &global.connection.files())?;
    let mut session = Session { console, global, client };
    match command {
        Command::Status { cluster, check } => session.status(cluster.as_deref(), check).await,
        Command::Watch { cluster } => session.watch(cluster.as_deref()).await,
        Command::Explain { subject } => session.explain(subject.as_deref()).await,
        Command::Doctor { cluster } => session.doctor(cluster.as_deref()).await,
        Command::Sequence(SequenceCommand::List { cluster }) => session.sequences(cluster.as_deref()).await,
        Command::Sequence(SequenceCommand::Run { name, cluster }) => {
            session.sequence_run(&name, cluster.as_deref()).await
        }
        Command::History(list) => session.history(&list).await,
        Command::Events(list) => session.events(&list).await,
        Command::Operation(OperationCommand::List(list)) => session.operations(&list).await,
        Command::Operation(OperationCommand::Show { id, report: true }) => session.operation_report(&id).await,
        Command::Operation(OperationCommand::Show { id, report: false }) => session.operation_show(&id).await,
        Command::Operation(OperationCommand::Watch { id }) => session.operation_watch(&id).await,
        Command::Operation(OperationCommand::Cancel { id }) => session.operation_cancel(&id).await,
        Command::Token(command) => session.token(command).await,
        Command::Audit(command) => session.audit(command).await,
        Command::Cluster(command) => session.kept(command).await,
        Command::Model(command) => session.model(&command).await,
        Command::Notification(command) => session.notification(&command).await,
        Command::Switchover { .. }
        | Command::Failover { .. }
        | Command::Pause { .. }
        | Command::Resume { .. }
        | Command::Fence(_)
        | Command::Unfence(_)
        | Command::Backup { .. }
        | Command::Drill { .. }
        | Command::Retrain { .. }
        | Command::Restore(_)
        | Command::Rejoin { .. } => session.mutate(command).await,
        Command::Backups { cluster } => session.backups(cluster.as_deref()).await,
        Command::Controller { .. } | Command::Agent { .. } | Command::Config(_) | Command::Pki(_) => {
            Err(Failure::new(Exit::Usage, "this command is no client of the controller"))
        }
    }
}

impl Session<'_> {
    fn look(&self) -> Look {
        Look { terminal: self.console.out_is_terminal, colour: self.console.colour, verbose: self.global.verbose > 0 }
    }

    /// How text on stderr looks: always for people.
    fn look_of_notes(&self) -> Look {
        Look { terminal: true, ..self.look() }
    }

    /// Writes the one document of the command: as it came, or as text.
    fn emit(&mut self, raw: &Value, text: impl FnOnce(Look) -> String) -> Result<(), Failure> {
        let look = self.look();
        let text = match self.global.output {
            OutputFormat::Table => text(look),
            format => document(format, raw)?,
        };
        Ok(self.console.print(&text)?)
    }

    /// The cluster that was named, or the only one.
    async fn cluster(&self, given: Option<&str>) -> Result<String, Failure> {
        if let Some(given) = given {
            let name = ClusterName::new(given).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
            return Ok(name.to_string());
        }
        let mut clusters = self.client.clusters().await?;
        match clusters.len() {
            1 => Ok(clusters.remove(0)),
            0 => Err(Failure::new(Exit::NotFound, "the controller keeps no cluster")),
            _ => Err(Failure::new(
                Exit::Usage,
                format!("the controller keeps several clusters, name one: {}", clusters.join(", ")),
            )),
        }
    }
}

/// A document for machines.
fn document(format: OutputFormat, raw: &Value) -> Result<String, Failure> {
    match format {
        OutputFormat::Yaml => {
            serde_yaml_ng::to_string(raw).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
        }
        OutputFormat::Json | OutputFormat::Table => serde_json::to_string_pretty(raw)
            .map(|text| text + "\n")
            .map_err(|error| Failure::new(Exit::Failed, error.to_string())),
    }
}

fn node_name(given: &str) -> Result<NodeName, Failure> {
    NodeName::new(given).map_err(|error| Failure::new(Exit::Usage, error.to_string()))
}

/// Ids stand in paths of URLs.
fn operation_id(given: &str) -> Result<&str, Failure> {
    let good =
        !given.is_empty() && given.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if good {
        return Ok(given);
    }
    Err(Failure::new(Exit::Usage, format!("{given:?} is no id of an operation")).advise("stormglass operation list"))
}

//! Commands that change the cluster: show the view and the plan, ask, send once, follow.

use serde_json::{Value, json};

use super::follow::exit_of;
use super::{Session, node_name};
use crate::api::client::{ClientError, Document};
use crate::api::wire::{
    BackupRequest, ClusterStatus, DrillRequest, FailoverRequest, MutationReply, NodeRequest, PauseRequest,
    RestoreRequest, RetrainRequest, SCHEMA_VERSION, SwitchoverRequest,
};
use crate::cli::arguments::{Command, OutputFormat, RestoreArguments};
use crate::cli::exit::{Exit, Failure, chain};
use crate::cli::render::{self, words};
use crate::domain::ids::NodeName;
use crate::domain::operation::OperationKind;
use crate::domain::plan::Intent;

/// Statuses after which nobody knows whether a request was carried out: 502 of a proxy on the way, 504 of one or of the controller.
const GATEWAY: [u16; 2] = [502, 504];

/// What is asked of the controller.
struct Request {
    cluster: String,
    verb: &'static str,
    body: Value,
    /// The controller can plan it without doing it.
    can_plan: bool,
    /// What this command itself knows of the consequences.
    risks: Vec<String>,
    question: Question,
    /// The next command, once it is done.
    next: String,
}

/// What has to be answered first.
#[derive(PartialEq, Eq)]
enum Question {
    /// Nobody is disturbed by it.
    Nothing,
    /// `[y/N]`.
    Yes,
    /// The cluster's name is to be typed.
    ClusterName,
    /// A human swears that a host is off. `--yes` is no oath.
    Oath,
}

impl Session<'_> {
    pub(super) async fn mutate(&mut self, command: Command) -> Result<Exit, Failure> {
        let request = self.request(command).await?;
        let view = self.client.status(&request.cluster).await?;
        let planned = self.plan(&request, &view.value).await?;
        let risks = self.risks(&request, &view.value);
        let plan = render::plan::render(&planned.value, &risks, self.look_of_notes());
        if self.global.dry_run {
            self.emit(&planned.raw, |_| plan)?;
            return Ok(Exit::Done);
        }
        if self.console.interactive {
            let view = render::status::render(&view.value, self.look_of_notes());
            self.console.note(&view);
        }
        self.ask(&request, &view.value, &planned, &plan).await?;

        let reply = self
            .client
            .mutate(&request.cluster, request.verb, &request.body)
            .await
            .map_err(|error| lost_answer(error, &operations_of(&request.cluster)))?;
        let Some(operation) = reply.value.operation.clone() else {
            self.emit(&reply.raw, |_| format!("{}\n", reply.value.message))?;
            self.console.note(&format!("Next: {}", request.next));
            return Ok(Exit::Done);
        };
        if !self.waits() {
            self.emit(&reply.raw, |_| format!("{}\n", operation.id))?;
            self.console.note(&format!("Begun. Next: stormglass operation watch {}", operation.id));
            return Ok(Exit::Done);
        }
        self.console.note(&format!("Operation {}", operation.id));
        let ended = self.follow(&operation.id.0).await?;
        self.conclude(&request, &ended).await
    }

    /// The final view and the next command.
    async fn conclude(
        &mut self,
        request: &Request,
        ended: &Document<crate::domain::operation::Operation>,
    ) -> Result<Exit, Failure> {
        let exit = exit_of(&ended.value);
        let outcome = render::operation::outcome(&ended.value);
        self.console.note(&outcome);
        // The operation's outcome is the answer; that the view cannot be had changes nothing about it.
        let view = match self.global.output {
            OutputFormat::Table => self.client.status(&request.cluster).await.ok(),
            OutputFormat::Json | OutputFormat::Yaml => None,
        };
        self.emit(&ended.raw, |look| match &view {
            Some(view) => render::status::render(&view.value, look),
            None => format!("{outcome}\n"),
        })?;
        let next = match exit {
            Exit::Done => request.next.clone(),
            _ => format!("stormglass operation show {}", ended.value.id),
        };
        self.console.note(&format!("Next: {next}"));
        Ok(exit)
    }

    async fn request(&self, command: Command) -> Result<Request, Failure> {
        let encode = |body: serde_json::Result<Value>| body.expect("requests are plain data");
        Ok(match command {
            Command::Switchover { cluster, to, site, at, unschedule } => {
                let to = to.as_deref().map(node_name).transpose()?;
                let cluster = self.cluster(cluster.as_deref()).await?;
                Request {
                    next: format!("stormglass status {cluster}"),
                    cluster,
                    verb: "switchover",
                    body: encode(serde_json::to_value(SwitchoverRequest { to, site, at, unschedule, dry_run: false })),
                    can_plan: true,
                    risks: Vec::new(),
                    question: Question::Yes,
                }
            }
            Command::Failover { cluster, to, site, accept_data_loss, old_primary_is_off } => {
                let to = to.as_deref().map(node_name).transpose()?;
                let cluster = self.cluster(cluster.as_deref()).await?;
                let mut risks = Vec::new();
                if accept_data_loss {
                    risks.push("confirmed commits that the new primary lacks are lost for good".to_owned());
                }
                if old_primary_is_off {
                    risks.push(
                        "if the old primary is not off, two nodes accept writes and the data part ways".to_owned(),
                    );
                }
                let body = FailoverRequest { to, site, accept_data_loss, old_primary_is_off, dry_run: false };
                Request {
                    next: format!("stormglass status {cluster}"),
                    cluster,
                    verb: "failover",
                    body: encode(serde_json::to_value(body)),
                    can_plan: true,
                    risks,
                    question: if old_primary_is_off { Question::Oath } else { Question::ClusterName },
                }
            }
            Command::Pause { cluster, duration } => {
                let cluster = self.cluster(cluster.as_deref()).await?;
                // Rounded up: a pause of less than a second is none.
                let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
                Request {
                    next: format!("stormglass resume {cluster}"),
                    cluster,
                    verb: "pause",
                    body: encode(serde_json::to_value(PauseRequest { duration_seconds: Some(seconds) })),
                    can_plan: false,
                    risks: vec!["a primary that is lost meanwhile is not replaced automatically".to_owned()],
                    question: Question::Yes,
                }
            }
            Command::Resume { cluster } => {
                let cluster = self.cluster(cluster.as_deref()).await?;
                Request {
                    next: format!("stormglass status {cluster}"),
                    cluster,
                    verb: "resume",
                    body: json!({}),
                    can_plan: false,
                    risks: Vec::new(),
                    question: Question::Yes,
                }
            }
            Command::Fence(names) => {
                let (cluster, node) = (self.cluster(names.cluster()).await?, node_name(names.node())?);
                let next = format!("stormglass unfence {cluster} {node}");
                node_request(cluster, "fence", &node, false, next)
            }
            Command::Unfence(names) => {
                let (cluster, node) = (self.cluster(names.cluster()).await?, node_name(names.node())?);
                let next = format!("stormglass status {cluster}");
                node_request(cluster, "unfence", &node, false, next)
            }
            Command::Rejoin { node: names, reclone } => {
                let (cluster, node) = (self.cluster(names.cluster()).await?, node_name(names.node())?);
                let next = format!("stormglass status {cluster}");
                node_request(cluster, "rejoin", &node, reclone, next)
            }
            Command::Backup { cluster, backup_type } => {
                let cluster = self.cluster(cluster.as_deref()).await?;
                Request {
                    next: format!("stormglass backups {cluster}"),
                    cluster,
                    verb: "backup",
                    body: encode(serde_json::to_value(BackupRequest {
                        backup_type: Some(backup_type),
                        dry_run: false,
                    })),
                    can_plan: true,
                    risks: Vec::new(),
                    question: Question::Nothing,
                }
            }
            Command::Drill { cluster } => {
                let cluster = self.cluster(cluster.as_deref()).await?;
                Request {
                    next: format!("stormglass history {cluster}"),
                    cluster,
                    verb: "drill",
                    body: encode(serde_json::to_value(DrillRequest::default())),
                    can_plan: true,
                    risks: Vec::new(),
                    question: Question::Nothing,
                }
            }
            Command::Retrain { cluster } => {
                let cluster = self.cluster(cluster.as_deref()).await?;
                Request {
                    next: "stormglass model list".to_owned(),
                    cluster,
                    verb: "retrain",
                    body: encode(serde_json::to_value(RetrainRequest::default())),
                    can_plan: true,
                    risks: Vec::new(),
                    question: Question::Nothing,
                }
            }
            Command::Restore(arguments) => {
                let cluster = self.cluster(arguments.cluster.as_deref()).await?;
                let is_copy = arguments.into.is_some();
                let RestoreArguments { to_time, to_lsn, site, into, .. } = arguments;
                let risk = "commits after the target are not in the restored cluster; the former data lie aside";
                Request {
                    next: format!("stormglass status {cluster}"),
                    cluster,
                    verb: "restore",
                    body: encode(serde_json::to_value(RestoreRequest { to_time, to_lsn, site, into, dry_run: false })),
                    can_plan: true,
                    risks: if is_copy { Vec::new() } else { vec![risk.to_owned()] },
                    question: if is_copy { Question::Nothing } else { Question::ClusterName },
                }
            }
            _ => return Err(Failure::new(Exit::Usage, "this command changes nothing")),
        })
    }

    /// What the controller would do; where it cannot plan, what this command is for.
    async fn plan(&self, request: &Request, view: &ClusterStatus) -> Result<Document<MutationReply>, Failure> {
        if request.can_plan {
            let mut body = request.body.clone();
            body["dry_run"] = Value::Bool(true);
            return Ok(self.client.mutate(&request.cluster, request.verb, &body).await?);
        }
        let message = match request.verb {
            "pause" => {
                let length = request.body["duration_seconds"].as_u64().unwrap_or_default();
                let length = words::span(std::time::Duration::from_secs(length));
                format!("stop automatic operations of {} for {length}; lease and self-fence go on", request.cluster)
            }
            _ if view.automation => format!("resume automatic operations of {}, which are on already", request.cluster),
            _ => format!("resume automatic operations of {}", request.cluster),
        };
        let value =
            MutationReply { schema_version: SCHEMA_VERSION, operation: None, plan: None, expect: Vec::new(), message };
        let raw = serde_json::to_value(&value).expect("a reply is plain data");
        Ok(Document { value, raw })
    }

    fn risks(&self, request: &Request, view: &ClusterStatus) -> Vec<String> {
        let mut risks = request.risks.clone();
        let node = request.body.get("node").and_then(Value::as_str);
        if request.verb == "fence" && node.is_some() && node == view.primary.as_ref().map(|primary| primary.as_str()) {
            risks.push("it is the primary: writes stop until another node has been promoted".to_owned());
        }
        risks
    }

    async fn ask(
        &mut self,
        request: &Request,
        view: &ClusterStatus,
        planned: &Document<MutationReply>,
        plan: &str,
    ) -> Result<(), Failure> {
        match request.question {
            Question::Nothing => Ok(()),
            Question::Yes => self.confirm(&planned.raw, plan, None).await,
            Question::ClusterName => self.confirm(&planned.raw, plan, Some(&request.cluster)).await,
            Question::Oath => {
                if !self.console.interactive {
                    self.emit(&planned.raw, |_| plan.to_owned())?;
                    return Err(Failure::new(
                        Exit::ConfirmationNeeded,
                        "--old-primary-is-off has to be sworn on a terminal, --yes is not enough; nothing was changed",
                    ));
                }
                self.console.note(plan.trim_end());
                let old = old_primary(planned, view).map_or_else(|| "off".to_owned(), |old| old.to_string());
                let question = format!("The old primary is off and stays off. Type {old} to swear it:");
                self.typed(&question, &old).await
            }
        }
    }

    /// Asks before something is changed. `name` has to be typed where it is given.
    pub(super) async fn confirm(&mut self, raw: &Value, plan: &str, name: Option<&str>) -> Result<(), Failure> {
        if self.global.yes {
            self.console.note(plan.trim_end());
            return Ok(());
        }
        if !self.console.interactive {
            self.emit(raw, |_| plan.to_owned())?;
            return Err(Failure::new(Exit::ConfirmationNeeded, "nobody can be asked here, nothing was changed")
                .advise("the same command with --yes"));
        }
        self.console.note(plan.trim_end());
        match name {
            Some(name) => self.typed(&format!("Type the cluster name ({name}) to continue:"), name).await,
            None => {
                let answer = self.answer("Continue? [y/N]").await?;
                if matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(aborted()) }
            }
        }
    }

    async fn typed(&mut self, question: &str, wanted: &str) -> Result<(), Failure> {
        if self.answer(question).await? == wanted { Ok(()) } else { Err(aborted()) }
    }

    async fn answer(&mut self, question: &str) -> Result<String, Failure> {
        tokio::select! {
            answer = self.console.ask(question) => answer.ok_or_else(aborted),
            _ = tokio::signal::ctrl_c() => Err(aborted()),
        }
    }
}

fn node_request(cluster: String, verb: &'static str, node: &NodeName, reclone: bool, next: String) -> Request {
    let body = NodeRequest { node: node.clone(), dry_run: false, reclone };
    let mut risks = Vec::new();
    if reclone {
        risks.push(format!("the data directory of {node} is replaced by a copy of the primary's"));
    }
    Request {
        cluster,
        verb,
        body: serde_json::to_value(body).expect("requests are plain data"),
        can_plan: true,
        risks,
        question: Question::Yes,
        next,
    }
}

/// The primary that an oath is about.
fn old_primary(planned: &Document<MutationReply>, view: &ClusterStatus) -> Option<NodeName> {
    match planned.value.plan.as_ref().map(|plan| &plan.intent) {
        Some(Intent::Start { operation: OperationKind::Failover { from, .. } }) => Some(from.clone()),
        _ => view.primary.clone(),
    }
}

/// A mutation whose answer got lost may have been carried out: that is no failure, and must not be sent again blindly. `look` is the
/// command that shows whether it was.
pub(super) fn lost_answer(error: ClientError, look: &str) -> Failure {
    let failure = match error {
        ClientError::NoAnswer { .. } => {
            Failure::new(Exit::Unknown, format!("the request may have been carried out: {}", chain(&error)))
        }
        ClientError::Malformed { .. } => {
            Failure::new(Exit::Unknown, format!("the request was carried out: {}", chain(&error)))
        }
        // Said by the controller, or by a proxy on the way that does not know what became of the request.
        ClientError::Problem { ref problem } if GATEWAY.contains(&problem.status) => {
            Failure::new(Exit::Unknown, format!("the request may have been carried out: {}", chain(&error)))
        }
        other => return other.into(),
    };
    failure.advise(look)
}

/// The command that shows whether an operation was begun.
pub(super) fn operations_of(cluster: &(impl std::fmt::Display + ?Sized)) -> String {
    format!("stormglass operation list {cluster}")
}

fn aborted() -> Failure {
    Failure::new(Exit::Aborted, "aborted, nothing was changed")
}

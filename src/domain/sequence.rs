//! Sequences: what is to be done after a failover, on an alert or by name, as a list of steps that users write.
//!
//! A step is frozen into the journal when its sequence begins, with templates and references to secrets as they were written: never a
//! secret itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backup::BackupType;

/// Steps of one sequence at most.
pub const STEPS_MAX: usize = 32;
/// How much of a step's output is kept, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 8 * 1024;
/// A line of a step's output that begins so, as in `output: node=n4`, names a value for later steps.
pub const OUTPUT_MARK: &str = "output: ";

/// A sequence as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sequence {
    /// Name, for the command line and the API.
    pub name: String,
    /// What begins it, besides its name.
    pub when: Vec<Trigger>,
    /// What is done, in this order.
    pub steps: Vec<SequenceStep>,
}

/// What begins a sequence by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "trigger", rename_all = "snake_case")]
pub enum Trigger {
    /// A failover to another node succeeded.
    AfterFailover,
    /// This alert fires.
    OnAlert {
        /// `alertname`.
        alert: String,
    },
    /// The primary's risk is at least this.
    OnRisk {
        /// In per cent.
        percent: u32,
    },
}

/// What happens when a step has failed for the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The sequence ends there, as failed.
    #[default]
    Stop,
    /// It goes on; the end says what failed.
    Continue,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SequenceStep {
    /// Name, once in a sequence.
    pub name: String,
    /// What it does.
    #[serde(flatten)]
    pub action: StepAction,
    /// After this its processes are killed, and it has failed.
    pub timeout_seconds: u64,
    /// How often it is tried again after a failure.
    pub retries: u32,
    /// What its failure means.
    pub on_error: OnError,
    /// An expression; the step is passed over where it is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
}

/// What a step does. Every text is a template; values that begin with `env:` or `file:` are references to secrets where it says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepAction {
    /// Statements, on the new primary unless a host is given.
    Sql {
        /// Where; the primary if not given.
        host: Option<String>,
        /// Its port; the primary's if not given.
        port: Option<String>,
        /// Who.
        user: String,
        /// Reference to the password.
        password: Option<String>,
        /// Which database.
        database: String,
        /// What.
        statement: String,
    },
    /// A program with its arguments; no shell.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// Its variables; references to secrets are allowed.
        environment: BTreeMap<String, String>,
        /// Where it runs.
        directory: Option<String>,
    },
    /// One request: Jenkins, AWX, chat.
    Http {
        /// Method.
        method: String,
        /// Whole URL.
        url: String,
        /// Headers; references to secrets are allowed.
        headers: BTreeMap<String, String>,
        /// Body.
        body: Option<String>,
        /// Statuses that count as success; any 2xx if empty.
        expect: Vec<u16>,
    },
    /// `terraform init`, `plan`, and `apply` of exactly that plan; its outputs are there for later steps.
    Terraform {
        /// The stack.
        directory: String,
        /// Its input variables; references to secrets are allowed.
        variables: BTreeMap<String, String>,
        /// Variables of the process; references to secrets are allowed.
        environment: BTreeMap<String, String>,
        /// Another program than `terraform`.
        program: Option<String>,
    },
    /// `ansible-playbook`.
    Ansible {
        /// The playbook.
        playbook: String,
        /// The inventory; `localhost,` if not given.
        inventory: Option<String>,
        /// Extra variables; references to secrets are allowed.
        variables: BTreeMap<String, String>,
        /// Variables of the process; references to secrets are allowed.
        environment: BTreeMap<String, String>,
        /// Another program than `ansible-playbook`.
        program: Option<String>,
    },
    /// `velero restore create … --wait`: brings Kubernetes objects back.
    Velero {
        /// From this backup.
        backup: Option<String>,
        /// Or from the newest of this schedule.
        schedule: Option<String>,
        /// More arguments.
        arguments: Vec<String>,
        /// Variables of the process; references to secrets are allowed.
        environment: BTreeMap<String, String>,
        /// Another program than `velero`.
        program: Option<String>,
    },
    /// An application host is pointed to the new primary: a file of `NAME=value` lines, and a restart.
    Application {
        /// The file, replaced whole.
        file: String,
        /// What is in it.
        values: BTreeMap<String, String>,
        /// What is run after it was replaced.
        restart: Vec<String>,
        /// What leads to the host, such as `ssh app1`; this host if empty.
        through: Vec<String>,
    },
    /// Waits until the old primary is a standby again.
    Rejoin,
    /// Waits until every node streams and the ledger names a standby.
    Redundancy,
    /// A real write through the clients' path.
    Verify,
    /// A backup, as an operation of its own that is waited for.
    Backup {
        /// How much it shall hold.
        backup_type: BackupType,
    },
    /// A drill, as an operation of its own that is waited for.
    Drill,
}

impl StepAction {
    /// As in the configuration.
    pub fn label(&self) -> &'static str {
        match self {
            StepAction::Sql { .. } => "sql",
            StepAction::Command { .. } => "command",
            StepAction::Http { .. } => "http",
            StepAction::Terraform { .. } => "terraform",
            StepAction::Ansible { .. } => "ansible",
            StepAction::Velero { .. } => "velero",
            StepAction::Application { .. } => "application",
            StepAction::Rejoin => "rejoin",
            StepAction::Redundancy => "redundancy",
            StepAction::Verify => "verify",
            StepAction::Backup { .. } => "backup",
            StepAction::Drill => "drill",
        }
    }
}

/// A step that is about to run, with all that its templates may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRun {
    /// The sequence.
    pub sequence: String,
    /// The step.
    pub step: SequenceStep,
    /// The same for every attempt at the step, also by another controller: (operation, step, epoch).
    pub key: String,
    /// The operation.
    pub operation: String,
    /// Counts from 1.
    pub attempt: u32,
    /// `cluster`, `epoch`, `old_primary`, `new_primary`, `site`, ….
    pub variables: BTreeMap<String, String>,
    /// How earlier steps ended: step → `succeeded`, `failed` or `unknown`.
    pub outcomes: BTreeMap<String, String>,
    /// What earlier steps gave: step → name → value.
    pub outputs: BTreeMap<String, BTreeMap<String, String>>,
}

/// What the lines `output: name=value` of a step's text say.
pub fn outputs_of(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(OUTPUT_MARK)?.split_once('='));
    lines.map(|(name, value)| (name.trim().to_owned(), value.to_owned())).collect()
}

/// The last bytes of a text, from the beginning of a line where there is one; lines that name outputs are kept whatever their place.
pub fn bounded(text: &str) -> String {
    let text = text.trim_end();
    if text.len() <= OUTPUT_BYTES_MAX {
        return text.to_owned();
    }
    let mut from = text.len() - OUTPUT_BYTES_MAX;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let from = text[from..].find('\n').map_or(from, |newline| from + newline + 1);
    let named: Vec<&str> = text[..from].lines().filter(|line| line.starts_with(OUTPUT_MARK)).collect();
    let named: String = named.iter().take(STEPS_MAX).map(|line| format!("{line}\n")).collect();
    format!("{named}… {from} bytes before this are not kept\n{}", &text[from..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_survive_the_cut() {
        let long = format!("output: node=n4\n{}\noutput: port=5432", "x".repeat(80).repeat(200));
        let kept = bounded(&long);
        assert!(kept.len() < OUTPUT_BYTES_MAX + 200, "{}", kept.len());
        let found = outputs_of(&kept);
        assert_eq!(found.get("node").map(String::as_str), Some("n4"));
        assert_eq!(found.get("port").map(String::as_str), Some("5432"));
        assert_eq!(bounded("short\n"), "short");
    }

    #[test]
    fn a_step_is_flat_in_json() {
        let step = SequenceStep {
            name: "tell".to_owned(),
            action: StepAction::Redundancy,
            timeout_seconds: 60,
            retries: 0,
            on_error: OnError::Stop,
            condition: None,
        };
        let text = serde_json::to_string(&step).expect("plain data");
        assert!(text.contains("\"kind\":\"redundancy\""), "{text}");
        assert_eq!(serde_json::from_str::<SequenceStep>(&text).expect("the same"), step);
    }
}

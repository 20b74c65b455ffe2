//! `[[sequence]]`: what is done after a failover, on an alert or by name.
//!
//! A step is written flat, as people write lists; a key that its kind does not take is an error, and so is one that it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;
use super::secret::SecretReference;
use crate::domain::backup::BackupType;
use crate::domain::sequence::{OnError, STEPS_MAX, Sequence, SequenceStep, StepAction, Trigger};

/// Longest that a step may take.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Name of what follows a failover where nothing else is configured to.
const DEFAULT_NAME: &str = "redundancy";
/// A large node is cloned anew by then; later than this somebody should look.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(3600);
/// One write through every proxy.
const DEFAULT_VERIFY: Duration = Duration::from_secs(30);
/// More attempts than this are a loop.
const RETRIES_MAX: u32 = 100;

/// `[[sequence]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SequenceSection {
    /// Name, for the command line and the API.
    pub name: String,
    /// `after_failover`, if it begins by itself; by name it can always be begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<SequenceBegin>,
    /// Alerts that begin it: values of `alertname`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<String>,
    /// The primary's risk that begins it, from 0.01 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_min: Option<f64>,
    /// `[[sequence.step]]`.
    #[serde(rename = "step")]
    pub steps: Vec<StepSection>,
}

/// What begins a sequence by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SequenceBegin {
    /// Every failover to another node that succeeded.
    AfterFailover,
}

/// Kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Statements.
    Sql,
    /// A program.
    Command,
    /// A request.
    Http,
    /// A stack.
    Terraform,
    /// A playbook.
    Ansible,
    /// Kubernetes objects.
    Velero,
    /// An application host.
    Application,
    /// The old primary is a standby again.
    Rejoin,
    /// Every node streams.
    Redundancy,
    /// A write through the clients' path.
    Verify,
    /// A backup.
    Backup,
    /// A drill.
    Drill,
}

/// `[[sequence.step]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSection {
    /// Name, once in a sequence; later steps name its outputs by it.
    pub name: String,
    /// What it does.
    pub kind: StepKind,
    /// After this it has failed.
    #[serde(default = "default_timeout", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub timeout: Duration,
    /// How often it is tried again.
    #[serde(default)]
    pub retries: u32,
    /// What its failure means.
    #[serde(default)]
    pub on_error: OnError,
    /// An expression; false: passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// `sql`: where; the primary if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `sql`: its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// `sql`: who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `sql`: the password, by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretReference>,
    /// `sql`: which database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// `sql`: what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// `command`: program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Programs: variables of the process.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// `command`: where it runs; `terraform`: the stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// `http`: method; POST if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// `http`: URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `http`: headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// `http`: body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `http`: statuses that count as success.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<u16>,
    /// `terraform`, `ansible`: input variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// `ansible`: the playbook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub playbook: Option<String>,
    /// `ansible`: the inventory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<String>,
    /// `velero`: from this backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// `backup`: how much it holds; what changed since the last one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_type: Option<BackupType>,
    /// `velero`: from the newest of this schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// `velero`: more arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// `terraform`, `ansible`, `velero`: another program than the one of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// `application`: the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// `application`: its lines.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, String>,
    /// `application`: what is run afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
    /// `application`: what leads to the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub through: Vec<String>,
}

fn default_timeout() -> Duration {
    Duration::from_secs(300)
}

impl SequenceSection {
    /// Every reference to a secret of the sequence at `index`, with its key. One that is none is an error at its key.
    pub(super) fn secrets(&self, index: usize) -> Result<Vec<(String, SecretReference)>, Violation> {
        let mut secrets = Vec::new();
        for (place, step) in self.steps.iter().enumerate() {
            let key = |rest: &str| format!("sequence.{index}.step.{place}.{rest}");
            secrets.extend(step.password.clone().map(|password| (key("password"), password)));
            let maps = [
                ("environment", &step.environment),
                ("headers", &step.headers),
                ("variables", &step.variables),
                ("values", &step.values),
            ];
            for (table, values) in maps {
                for (name, value) in values.iter().filter(|(_, value)| SecretReference::is_meant(value)) {
                    let key = key(&format!("{table}.{name}"));
                    let reference = SecretReference::try_from(value.clone())
                        .map_err(|error| Violation::at(&key, error.to_string()))?;
                    secrets.push((key, reference));
                }
            }
        }
        Ok(secrets)
    }
}

impl StepSection {
    /// Keys that are written, besides those that every kind takes.
    fn written(&self) -> Vec<&'static str> {
        let all = [
            ("host", self.host.is_some()),
            ("port", self.port.is_some()),
            ("user", self.user.is_some()),
            ("password", self.password.is_some()),
            ("database", self.database.is_some()),
            ("statement", self.statement.is_some()),
            ("command", !self.command.is_empty()),
            ("environment", !self.environment.is_empty()),
            ("directory", self.directory.is_some()),
            ("method", self.method.is_some()),
            ("url", self.url.is_some()),
            ("headers", !self.headers.is_empty()),
            ("body", self.body.is_some()),
            ("expect", !self.expect.is_empty()),
            ("variables", !self.variables.is_empty()),
            ("playbook", self.playbook.is_some()),
            ("inventory", self.inventory.is_some()),
            ("backup", self.backup.is_some()),
            ("backup_type", self.backup_type.is_some()),
            ("schedule", self.schedule.is_some()),
            ("arguments", !self.arguments.is_empty()),
            ("program", self.program.is_some()),
            ("file", self.file.is_some()),
            ("values", !self.values.is_empty()),
            ("restart", !self.restart.is_empty()),
            ("through", !self.through.is_empty()),
        ];
        all.into_iter().filter(|(_, is_written)| *is_written).map(|(key, _)| key).collect()
    }

    /// Keys that this kind takes, and those of them that it cannot do without.
    fn takes(&self) -> (&'static [&'static str], &'static [&'static str]) {
        match self.kind {
            StepKind::Sql => {
                (&["host", "port", "user", "password", "database", "statement"], &["user", "database", "statement"])
            }
            StepKind::Command => (&["command", "environment", "directory"], &["command"]),
            StepKind::Http => (&["method", "url", "headers", "body", "expect"], &["url"]),
            StepKind::Terraform => (&["directory", "variables", "environment", "program"], &["directory"]),
            StepKind::Ansible => (&["playbook", "inventory", "variables", "environment", "program"], &["playbook"]),
            StepKind::Velero => (&["backup", "schedule", "arguments", "environment", "program"], &[]),
            StepKind::Application => (&["file", "values", "restart", "through"], &["file", "values"]),
            StepKind::Backup => (&["backup_type"], &[]),
            StepKind::Rejoin | StepKind::Redundancy | StepKind::Verify | StepKind::Drill => (&[], &[]),
        }
    }

    fn step(&self) -> Result<SequenceStep, (String, String)> {
        let (takes, needs) = self.takes();
        let written = self.written();
        if let Some(stray) = written.iter().find(|key| !takes.contains(*key)) {
            let takes = if takes.is_empty() { "none of its own".to_owned() } else { takes.join(", ") };
            return Err(((*stray).to_owned(), format!("a step of this kind takes no `{stray}`: it takes {takes}")));
        }
        if let Some(missing) = needs.iter().find(|key| !written.contains(*key)) {
            return Err(((*missing).to_owned(), "missing: a step of this kind cannot do without it".to_owned()));
        }
        let is_built_in = matches!(
            self.kind,
            StepKind::Rejoin | StepKind::Redundancy | StepKind::Verify | StepKind::Backup | StepKind::Drill
        );
        if is_built_in && self.condition.is_some() {
            return Err((
                "condition".to_owned(),
                "a built-in step takes none: it is done at once where it is so".to_owned(),
            ));
        }
        if self.kind == StepKind::Velero && self.backup.is_some() == self.schedule.is_some() {
            return Err(("backup".to_owned(), "name either a backup or a schedule to restore from".to_owned()));
        }
        if self.timeout < Duration::from_secs(1) || self.timeout > TIMEOUT_MAX {
            return Err(("timeout".to_owned(), "must be from 1s to 24h".to_owned()));
        }
        if self.retries > RETRIES_MAX {
            return Err(("retries".to_owned(), format!("must be at most {RETRIES_MAX}")));
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let action = match self.kind {
            StepKind::Sql => StepAction::Sql {
                host: self.host.clone(),
                port: self.port.clone(),
                user: text(&self.user),
                password: self.password.clone().map(String::from),
                database: text(&self.database),
                statement: text(&self.statement),
            },
            StepKind::Command => StepAction::Command {
                command: self.command.clone(),
                environment: self.environment.clone(),
                directory: self.directory.clone(),
            },
            StepKind::Http => StepAction::Http {
                method: self.method.clone().unwrap_or_else(|| "POST".to_owned()),
                url: text(&self.url),
                headers: self.headers.clone(),
                body: self.body.clone(),
                expect: self.expect.clone(),
            },
            StepKind::Terraform => StepAction::Terraform {
                directory: text(&self.directory),
                variables: self.variables.clone(),
                environment: self.environment.clone(),
                program: self.program.clone(),
            },
            StepKind::Ansible => StepAction::Ansible {
                playbook: text(&self.playbook),
                inventory: self.inventory.clone(),
                variables: self.variables.clone(),
                environment: self.environment.clone(),
                program: self.program.clone(),
            },
            StepKind::Velero => StepAction::Velero {
                backup: self.backup.clone(),
                schedule: self.schedule.clone(),
                arguments: self.arguments.clone(),
                environment: self.environment.clone(),
                program: self.program.clone(),
            },
            StepKind::Application => StepAction::Application {
                file: text(&self.file),
                values: self.values.clone(),
                restart: self.restart.clone(),
                through: self.through.clone(),
            },
            StepKind::Rejoin => StepAction::Rejoin,
            StepKind::Redundancy => StepAction::Redundancy,
            StepKind::Verify => StepAction::Verify,
            StepKind::Backup => StepAction::Backup { backup_type: self.backup_type.unwrap_or(BackupType::Incr) },
            StepKind::Drill => StepAction::Drill,
        };
        Ok(SequenceStep {
            name: self.name.clone(),
            action,
            timeout_seconds: self.timeout.as_secs(),
            retries: self.retries,
            on_error: self.on_error,
            condition: self.condition.clone(),
        })
    }
}

/// Every sequence, proven.
pub(super) fn sequences(sections: &[SequenceSection]) -> Result<Vec<Sequence>, Violation> {
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let at = |key: &str, problem: String| Violation::at(&format!("sequence.{index}.{key}"), problem);
        if !is_name(&section.name) || !names.insert(section.name.as_str()) {
            return Err(at(
                "name",
                "must be its own, of letters, digits, - and _: it stands in paths of URLs".to_owned(),
            ));
        }
        if section.steps.is_empty() || section.steps.len() > STEPS_MAX {
            return Err(at("step", format!("a sequence has 1 to {STEPS_MAX} steps")));
        }
        let mut steps: Vec<SequenceStep> = Vec::new();
        for (place, step) in section.steps.iter().enumerate() {
            if !is_name(&step.name) || steps.iter().any(|other| other.name == step.name) {
                let problem = "must be its own, of letters, digits, - and _: later steps name its outputs by it";
                return Err(at(&format!("step.{place}.name"), problem.to_owned()));
            }
            steps.push(step.step().map_err(|(key, problem)| at(&format!("step.{place}.{key}"), problem))?);
        }
        let mut when: Vec<Trigger> = section.when.iter().map(|_| Trigger::AfterFailover).collect();
        if section.alerts.iter().any(String::is_empty) {
            return Err(at("alerts", "must be values of `alertname`, none of them empty".to_owned()));
        }
        when.extend(section.alerts.iter().map(|alert| Trigger::OnAlert { alert: alert.clone() }));
        if let Some(risk) = section.risk_min {
            if !(0.01..=1.0).contains(&risk) {
                return Err(at("risk_min", "must be from 0.01 to 1".to_owned()));
            }
            when.push(Trigger::OnRisk { percent: (risk * 100.0).round() as u32 });
        }
        all.push(Sequence { name: section.name.clone(), when, steps });
    }
    let follows = all.iter().any(|sequence: &Sequence| sequence.when.contains(&Trigger::AfterFailover));
    if !follows && !names.contains(DEFAULT_NAME) {
        all.push(after_failover());
    }
    Ok(all)
}

/// What follows a failover where nothing else is configured to: redundancy must be back in time, and a write must pass every proxy.
/// Nodes come back, and the new primary's backup is taken, without it.
fn after_failover() -> Sequence {
    let step = |name: &str, action, timeout_seconds, retries| SequenceStep {
        name: name.to_owned(),
        action,
        timeout_seconds,
        retries,
        on_error: OnError::Stop,
        condition: None,
    };
    let steps = vec![
        step("redundancy", StepAction::Redundancy, DEFAULT_PATIENCE.as_secs(), 0),
        step("verify", StepAction::Verify, DEFAULT_VERIFY.as_secs(), 3),
    ];
    Sequence { name: DEFAULT_NAME.to_owned(), when: vec![Trigger::AfterFailover], steps }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Sequence>, String> {
        #[derive(Deserialize)]
        struct File {
            sequence: Vec<SequenceSection>,
        }
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        sequences(&file.sequence).map_err(|violation| format!("{}: {}", violation.key.join("."), violation.problem))
    }

    const HEAD: &str =
        "[[sequence]]\nname = \"restore\"\nwhen = \"after_failover\"\n[[sequence.step]]\nname = \"one\"\n";

    #[test]
    fn a_sequence_is_read_with_its_defaults() {
        let found = read(&format!("{HEAD}kind = \"command\"\ncommand = [\"true\"]\n")).expect("a sequence");
        assert_eq!(found[0].when, [Trigger::AfterFailover]);
        let step = &found[0].steps[0];
        assert_eq!((step.timeout_seconds, step.retries, step.on_error), (300, 0, OnError::Stop));
        assert_eq!(step.action.label(), "command");
        let found = read(&format!("{HEAD}kind = \"backup\"\n")).expect("a sequence");
        assert_eq!(found[0].steps[0].action, StepAction::Backup { backup_type: BackupType::Incr });
    }

    #[test]
    fn redundancy_is_waited_for_after_a_failover_unless_something_else_is_configured_to_follow() {
        let names = |text: &str| {
            let found = if text.is_empty() { sequences(&[]).map_err(|_| String::new()) } else { read(text) };
            let found = found.expect("sequences");
            let follows = |sequence: &&Sequence| sequence.when.contains(&Trigger::AfterFailover);
            found.iter().filter(follows).map(|sequence| sequence.name.clone()).collect::<Vec<_>>()
        };
        let own = format!("{HEAD}kind = \"verify\"\n");
        assert_eq!(names(""), ["redundancy"]);
        assert_eq!(names(&own), ["restore"]);
        let by_name = own.replacen("when = \"after_failover\"\n", "", 1);
        assert_eq!(names(&by_name), ["redundancy"], "what begins by name only follows no failover");
        assert_eq!(names(&by_name.replacen("restore", "redundancy", 1)), [""; 0], "the name is taken");
        let steps: Vec<_> = after_failover().steps.iter().map(|step| step.action.label()).collect();
        assert_eq!(steps, ["redundancy", "verify"]);
    }

    #[test]
    fn what_begins_a_sequence_is_read_and_a_risk_that_nobody_could_miss_is_refused() {
        let text = |trigger: &str| HEAD.replacen("when = \"after_failover\"", trigger, 1) + "kind = \"verify\"\n";
        let found = read(&text("alerts = [\"Down\", \"Slow\"]\nrisk_min = 0.6")).expect("a sequence");
        let alert = |name: &str| Trigger::OnAlert { alert: name.to_owned() };
        assert_eq!(found[0].when, [alert("Down"), alert("Slow"), Trigger::OnRisk { percent: 60 }]);
        for risk in ["0.0", "0.004", "1.01", "-1.0", "nan"] {
            let error = read(&text(&format!("risk_min = {risk}"))).expect_err(risk);
            assert!(error.contains("sequence.0.risk_min: must be from 0.01 to 1"), "{risk}: {error}");
        }
        let error = read(&text("alerts = [\"\"]")).expect_err("no name");
        assert!(error.contains("sequence.0.alerts: "), "{error}");
    }

    #[test]
    fn what_a_kind_does_not_take_or_lacks_is_an_error() {
        for (step, problem) in [
            ("kind = \"command\"", "sequence.0.step.0.command: missing"),
            (
                "kind = \"sql\"\nuser = \"a\"\ndatabase = \"b\"\nstatement = \"c\"\nurl = \"d\"",
                "step.0.url: a step of this",
            ),
            ("kind = \"rejoin\"\nfile = \"x\"", "takes none of its own"),
            ("kind = \"drill\"\nbackup_type = \"full\"", "takes none of its own"),
            ("kind = \"backup\"\nbackup_type = \"some\"", "unknown variant"),
            ("kind = \"backup\"\ncondition = \"true\"", "a built-in step takes none"),
            ("kind = \"velero\"", "either a backup or a schedule"),
            ("kind = \"redundancy\"\ntimeout = \"10ms\"", "from 1s to 24h"),
            ("kind = \"sql\"\nuser = \"a\"\npassword = \"hunter2\"", "must be a reference"),
            ("kind = \"sql\"\nuzer = \"a\"", "unknown field"),
        ] {
            let error = read(&format!("{HEAD}{step}\n")).expect_err(step);
            assert!(error.contains(problem), "{step}: {error}");
        }
        let twice = format!("{HEAD}kind = \"verify\"\n[[sequence.step]]\nname = \"one\"\nkind = \"verify\"\n");
        assert!(read(&twice).expect_err("twice").contains("step.1.name"));
    }
}

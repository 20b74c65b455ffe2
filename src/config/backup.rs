//! Settings of backups: what an agent needs to reach the repository, and when a controller has backups and drills made.
//!
//! Neither is needed: without them nothing is archived, and nothing is scheduled.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::duration::DurationText;
use super::error::Violation;
use super::secret::SecretReference;
use crate::domain::backup::BackupType;
use crate::domain::ids::NodeName;

/// Options of pgBackRest that the agent sets from its own settings, or that would lead past them.
const OWN_OPTIONS: &[&str] = &[
    "stanza",
    "config",
    "repo1-type",
    "repo1-path",
    "repo1-cipher-type",
    "repo1-cipher-pass",
    "repo1-s3-key",
    "repo1-s3-key-secret",
    "repo1-retention-full",
    "repo1-retention-diff",
    "lock-path",
    "log-path",
    "spool-path",
    "log-level-console",
];

/// `[backup]` of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentBackupSection {
    /// pgBackRest's name for the cluster; the cluster's own name if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stanza: Option<String>,
    /// A directory that every host of the cluster sees. Either this or `[backup.s3]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// Encrypts what is stored (AES-256). Cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher_passphrase: Option<SecretReference>,
    /// Full backups that are kept; older ones, what rests on them and their WAL are removed.
    #[serde(default = "default_retention_full")]
    pub retention_full: u32,
    /// Differential backups that are kept; all of them if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_diff: Option<u32>,
    /// Processes that compress and transfer at the same time.
    #[serde(default = "default_processes")]
    pub processes: u32,
    /// WAL is archived at least so often while there are writes: what a total loss costs at most.
    #[serde(default = "default_archive_timeout", with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub archive_timeout: Duration,
    /// The program.
    #[serde(default = "default_program")]
    #[schema(value_type = String)]
    pub program: PathBuf,
    /// Further options, as pgBackRest names them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// `[backup.s3]`: a bucket instead of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Section>,
    /// `[[backup.peer]]`: the other nodes, for backups from a standby.
    #[serde(rename = "peer", default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerSection>,
    /// `[backup.drill]`: what drills check.
    #[serde(default)]
    pub drill: DrillSection,
}

/// `[backup.s3]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Section {
    /// Host of the service, and its port if that is not 443. pgBackRest speaks TLS only, and the certificate must name this host.
    pub endpoint: String,
    /// Bucket.
    pub bucket: String,
    /// Region.
    pub region: String,
    /// Path within the bucket.
    #[serde(default = "default_s3_path")]
    pub path: String,
    /// Access key; without it the host's own role is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretReference>,
    /// Secret of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_secret: Option<SecretReference>,
    /// Certificates that the service's is checked against, beside the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ca_file: Option<PathBuf>,
    /// The bucket stands in the path, not in the host's name.
    #[serde(default)]
    pub path_style: bool,
}

/// `[[backup.peer]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    /// The node.
    pub node: NodeName,
    /// Its host, where pgBackRest is reached by SSH (or TLS, by options); none if it is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its PGDATA.
    #[schema(value_type = String)]
    pub data_directory: PathBuf,
    /// Port of its PostgreSQL.
    pub port: u16,
    /// Directory of its socket; the system's usual one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket_directory: Option<PathBuf>,
}

/// `[backup.drill]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrillSection {
    /// Where copies are made; `<state_directory>/drill` if not given. Needs room for the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub directory: Option<PathBuf>,
    /// Tables that only grow: their rows are counted in the live cluster and in the copy.
    #[serde(rename = "ledger", skip_serializing_if = "Vec::is_empty")]
    pub ledgers: Vec<LedgerSection>,
    /// `[[backup.drill.check]]`.
    #[serde(rename = "check", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckSection>,
}

/// `[[backup.drill.ledger]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LedgerSection {
    /// Database.
    pub database: String,
    /// Table, with its schema.
    pub table: String,
}

/// `[[backup.drill.check]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckSection {
    /// For people.
    pub name: String,
    /// Database.
    pub database: String,
    /// A question that must be answered with true.
    pub sql: String,
}

/// `[backup]` of a controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerBackupSection {
    /// Time zone of the schedules, as in `Europe/Berlin`.
    pub time_zone: String,
    /// Backups are taken from a standby where one streams; its agent needs `[[backup.peer]]`.
    pub from_standby: bool,
    /// What a total loss may cost: older WAL in the repository is a violation.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub rpo: Duration,
    /// A backup that failed is tried again after this.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub retry_after: Duration,
    /// The repository is looked at this often.
    #[serde(with = "super::duration")]
    #[schema(value_type = DurationText)]
    pub look_interval: Duration,
    /// After a failover, take an incremental backup of the new primary.
    pub after_failover: bool,
    /// `[[backup.schedule]]`.
    #[serde(rename = "schedule", skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<ScheduleSection>,
}

/// `[[backup.schedule]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSection {
    /// When: minute, hour, day of the month, month, day of the week.
    pub cron: String,
    /// What.
    #[serde(rename = "do")]
    pub job: Job,
}

/// What a schedule begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// A full backup.
    Full,
    /// A differential one.
    Diff,
    /// An incremental one.
    Incr,
    /// A drill.
    Drill,
}

impl Job {
    /// The type of backup; `None` for a drill.
    pub fn backup_type(self) -> Option<BackupType> {
        match self {
            Job::Full => Some(BackupType::Full),
            Job::Diff => Some(BackupType::Diff),
            Job::Incr => Some(BackupType::Incr),
            Job::Drill => None,
        }
    }
}

impl Default for ControllerBackupSection {
    fn default() -> Self {
        Self {
            time_zone: "UTC".to_owned(),
            from_standby: false,
            rpo: Duration::from_secs(300),
            retry_after: Duration::from_secs(300),
            look_interval: Duration::from_secs(30),
            after_failover: true,
            schedules: Vec::new(),
        }
    }
}

impl AgentBackupSection {
    /// References to secrets, with their keys.
    pub(super) fn secrets(&self) -> Vec<(String, &SecretReference)> {
        let s3 = self.s3.as_ref();
        [
            ("backup.cipher_passphrase", self.cipher_passphrase.as_ref()),
            ("backup.s3.key", s3.and_then(|s3| s3.key.as_ref())),
            ("backup.s3.key_secret", s3.and_then(|s3| s3.key_secret.as_ref())),
        ]
        .into_iter()
        .filter_map(|(key, reference)| Some((key.to_owned(), reference?)))
        .collect()
    }

    /// The first rule that is broken.
    pub(super) fn violation(&self) -> Result<(), Violation> {
        let absolute = |key: &str, path: &PathBuf| match path.is_absolute() {
            true => Ok(()),
            false => Err(Violation::at(key, format!("{} must be an absolute path", path.display()))),
        };
        match (&self.path, &self.s3) {
            (Some(path), None) => absolute("backup.path", path)?,
            (None, Some(s3)) if s3.key.is_some() != s3.key_secret.is_some() => {
                return Err(Violation::at("backup.s3.key", "key and key_secret belong together: give both or neither"));
            }
            (None, Some(_)) => {}
            (Some(_), Some(_)) => {
                return Err(Violation::at(
                    "backup.path",
                    "a repository is a directory or a bucket: give path or [backup.s3]",
                ));
            }
            (None, None) => {
                return Err(Violation::at("backup", "where is the repository? Give path, or [backup.s3]"));
            }
        }
        if let Some(stanza) = &self.stanza
            && !is_stanza(stanza)
        {
            return Err(Violation::at("backup.stanza", "must be letters, digits, '-' and '_'"));
        }
        absolute("backup.program", &self.program)?;
        if let Some(directory) = &self.drill.directory {
            absolute("backup.drill.directory", directory)?;
        }
        if self.retention_full == 0 {
            return Err(Violation::at("backup.retention_full", "must be at least 1: nothing could be restored"));
        }
        if self.processes == 0 {
            return Err(Violation::at("backup.processes", "must be at least 1"));
        }
        if self.archive_timeout.as_secs() == 0 {
            return Err(Violation::at("backup.archive_timeout", "must be at least 1s"));
        }
        for (name, value) in &self.options {
            let key = format!("backup.options.{name}");
            let is_name = !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
            if !is_name || value.contains('\n') {
                return Err(Violation::at(&key, "is no option of pgBackRest"));
            }
            if OWN_OPTIONS.contains(&name.as_str()) {
                return Err(Violation::at(&key, "is set by the agent from its own settings: take it out"));
            }
        }
        Ok(())
    }
}

/// True for what pgBackRest takes as a name, and a shell as a word.
pub(super) fn is_stanza(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_'))
}

impl ControllerBackupSection {
    /// The first rule that is broken.
    pub(super) fn violation(&self) -> Result<(), Violation> {
        if self.time_zone.parse::<chrono_tz::Tz>().is_err() {
            let problem = format!("{:?} is no time zone such as \"Europe/Berlin\" or \"UTC\"", self.time_zone);
            return Err(Violation::at("backup.time_zone", problem));
        }
        for (index, schedule) in self.schedules.iter().enumerate() {
            if let Err(error) = schedule.cron.parse::<croner::Cron>() {
                let problem = format!("{:?} is no cron expression such as \"30 2 * * sun\": {error}", schedule.cron);
                return Err(Violation::at(&format!("backup.schedule.{index}.cron"), problem));
            }
        }
        for (key, duration) in [
            ("backup.rpo", self.rpo),
            ("backup.retry_after", self.retry_after),
            ("backup.look_interval", self.look_interval),
        ] {
            if duration.as_secs() == 0 {
                return Err(Violation::at(key, "must be at least 1s"));
            }
        }
        Ok(())
    }
}

fn default_retention_full() -> u32 {
    2
}

fn default_processes() -> u32 {
    2
}

fn default_archive_timeout() -> Duration {
    Duration::from_secs(60)
}

fn default_program() -> PathBuf {
    PathBuf::from("/usr/bin/pgbackrest")
}

fn default_s3_path() -> String {
    "/pgbackrest".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(text: &str) -> Result<(), String> {
        let section: AgentBackupSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section.violation().map_err(|violation| violation.problem)
    }

    #[test]
    fn a_repository_is_one_directory_or_one_bucket() {
        let bucket = "[s3]\nendpoint = 'localhost:21443'\nbucket = 'b'\nregion = 'r'\n";
        assert_eq!(agent("path = '/backup'"), Ok(()));
        assert_eq!(agent(bucket), Ok(()));
        for (text, word) in [
            (String::new(), "where is the repository"),
            (format!("path = '/backup'\n{bucket}"), "a directory or a bucket"),
            ("path = 'backup'".to_owned(), "absolute"),
            (format!("{bucket}key = 'env:KEY'"), "belong together"),
            ("path = '/b'\nretention_full = 0".to_owned(), "at least 1"),
            ("path = '/b'\nstanza = 'a b'".to_owned(), "letters"),
            ("path = '/b'\n[options]\nrepo1-path = '/c'".to_owned(), "by the agent"),
            ("path = '/b'\nretentoin = 1".to_owned(), "retentoin"),
        ] {
            let problem = agent(&text).expect_err(&text);
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }

    #[test]
    fn schedules_are_cron_expressions_in_a_time_zone() {
        let check = |text: &str| {
            let section: ControllerBackupSection = toml::from_str(text).map_err(|error| error.to_string())?;
            section.violation().map_err(|violation| violation.problem)
        };
        assert_eq!(check("time_zone = 'Europe/Berlin'\n[[schedule]]\ncron = '30 2 * * sun'\ndo = 'full'"), Ok(()));
        assert!(check("time_zone = 'Berlin'").expect_err("no zone").contains("Europe/Berlin"));
        assert!(
            check("[[schedule]]\ncron = 'at night'\ndo = 'full'").expect_err("no cron").contains("cron expression")
        );
        assert!(check("[[schedule]]\ncron = '0 3 * * *'\ndo = 'pray'").is_err());
    }
}

//! Notifications: what people are told where they are, which channel wants it, and the words of a message.
//!
//! Nothing is sent here, and no address or secret of a channel enters.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::WallTime;
use super::epoch::Epoch;
use super::ids::{ClusterName, OperationId};

/// What a notice is about: the words of `on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// An operation began.
    OperationStarted,
    /// An operation ended well.
    OperationSucceeded,
    /// An operation ended otherwise: failed, refused, stuck or cancelled.
    OperationFailed,
    /// A backup did not end well.
    BackupFailed,
    /// A drill did not end well.
    DrillFailed,
    /// The primary accepts no writes any more.
    PrimaryLost,
    /// In `sync` mode the primary confirms commits alone.
    Alone,
    /// A total loss would cost more than the cluster is promised.
    RpoViolated,
    /// The model expects trouble of a node.
    Risk,
    /// Load strains a node, or a way to it is lost.
    Strain,
    /// An alert whose route says `notify`.
    Alert,
}

impl NoticeKind {
    /// Every kind.
    pub const ALL: [NoticeKind; 11] = [
        NoticeKind::OperationStarted,
        NoticeKind::OperationSucceeded,
        NoticeKind::OperationFailed,
        NoticeKind::BackupFailed,
        NoticeKind::DrillFailed,
        NoticeKind::PrimaryLost,
        NoticeKind::Alone,
        NoticeKind::RpoViolated,
        NoticeKind::Risk,
        NoticeKind::Strain,
        NoticeKind::Alert,
    ];

    /// Word in the configuration and in messages.
    pub fn label(self) -> &'static str {
        match self {
            NoticeKind::OperationStarted => "operation_started",
            NoticeKind::OperationSucceeded => "operation_succeeded",
            NoticeKind::OperationFailed => "operation_failed",
            NoticeKind::BackupFailed => "backup_failed",
            NoticeKind::DrillFailed => "drill_failed",
            NoticeKind::PrimaryLost => "primary_lost",
            NoticeKind::Alone => "alone",
            NoticeKind::RpoViolated => "rpo_violated",
            NoticeKind::Risk => "risk",
            NoticeKind::Strain => "strain",
            NoticeKind::Alert => "alert",
        }
    }
}

impl fmt::Display for NoticeKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

/// Something that people may want to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The same for the same thing, whoever tells it: of an operation, the operation and its outcome.
    pub key: String,
    /// What it is about; the first is the most exact.
    pub kinds: Vec<NoticeKind>,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its epoch.
    pub epoch: Epoch,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// A few words.
    pub subject: String,
    /// A sentence.
    pub text: String,
    /// The operation, if it is about one.
    pub operation: Option<OperationId>,
    /// Its kind, as `failover`.
    pub operation_kind: Option<String>,
    /// When.
    pub at: WallTime,
}

/// What one channel wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// What it wants to be told.
    pub on: BTreeSet<NoticeKind>,
    /// Of operations only of these kinds; of all if empty.
    pub operations: BTreeSet<String>,
    /// Only of these clusters; of all if empty.
    pub clusters: Vec<ClusterName>,
    /// Where the API and the dashboard are, as people reach them.
    pub link: Option<String>,
}

impl Channel {
    /// True if this channel wants it.
    pub fn wants(&self, notice: &Notice) -> bool {
        let is_cluster = self.clusters.is_empty() || self.clusters.contains(&notice.cluster);
        let is_kind = notice.kinds.iter().any(|kind| self.on.contains(kind));
        let is_operation = match &notice.operation_kind {
            Some(kind) => self.operations.is_empty() || self.operations.contains(kind),
            None => true,
        };
        is_cluster && is_kind && is_operation
    }

    /// The notice as this channel sends it.
    pub fn message(&self, notice: Notice) -> Message {
        let base = self.link.as_deref().map(|link| link.trim_end_matches('/'));
        let link = base.map(|base| match &notice.operation {
            Some(operation) => format!("{base}/?operation={operation}"),
            None => format!("{base}/"),
        });
        Message { notice, link }
    }

    /// What is sent to see whether it arrives.
    pub fn trial(&self, cluster: &ClusterName, epoch: Epoch, at: WallTime, who: &str) -> Message {
        self.message(Notice {
            key: format!("test/{}/{at}", self.name),
            kinds: Vec::new(),
            cluster: cluster.clone(),
            epoch,
            severity: "info".to_owned(),
            subject: "test of a notification".to_owned(),
            text: format!("This is a test of the channel {}, as {who} asked: nothing happened.", self.name),
            operation: None,
            operation_kind: None,
            at,
        })
    }
}

/// A notice on its way to one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What happened.
    pub notice: Notice,
    /// Where to read more.
    pub link: Option<String>,
}

impl Message {
    /// One line, for the subject of a mail.
    pub fn subject(&self) -> String {
        let notice = &self.notice;
        let subject = format!("[Stormglass] {}: {}", notice.cluster, notice.subject);
        subject.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
    }

    /// The whole message as plain text.
    pub fn text(&self) -> String {
        let notice = &self.notice;
        let mut text = format!("{}\n\nCluster    {}, epoch {}\n", notice.text, notice.cluster, notice.epoch);
        if let Some(operation) = &notice.operation {
            text.push_str(&format!("Operation  {operation}\n"));
        }
        text.push_str(&format!("Time       {}\nSeverity   {}\n", notice.at, notice.severity));
        if let Some(link) = &self.link {
            text.push_str(&format!("Read more  {link}\n"));
        }
        if let Some(operation) = &notice.operation {
            text.push_str(&format!("Or run     stormglass operation show {operation}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(kinds: &[NoticeKind], operation: Option<&str>) -> Notice {
        Notice {
            key: "0190/failed".to_owned(),
            kinds: kinds.to_vec(),
            cluster: ClusterName::new("main").expect("valid"),
            epoch: Epoch(4),
            severity: "warning".to_owned(),
            subject: "backup of db2 failed".to_owned(),
            text: "The backup of db2 ended as failed after 3.000 s: no room.".to_owned(),
            operation: operation.map(|_| OperationId("0190".to_owned())),
            operation_kind: operation.map(str::to_owned),
            at: WallTime(1_795_000_000_000_000),
        }
    }

    fn channel(on: &[NoticeKind]) -> Channel {
        Channel {
            name: "dba".to_owned(),
            on: on.iter().copied().collect(),
            operations: BTreeSet::new(),
            clusters: Vec::new(),
            link: Some("https://stormglass.example.org/".to_owned()),
        }
    }

    #[test]
    fn a_channel_gets_what_it_names_and_nothing_else() {
        let failed = notice(&[NoticeKind::BackupFailed, NoticeKind::OperationFailed], Some("backup"));
        for (on, wanted) in [
            (&[NoticeKind::BackupFailed][..], true),
            (&[NoticeKind::OperationFailed], true),
            (&[NoticeKind::OperationStarted, NoticeKind::DrillFailed], false),
            (&[], false),
        ] {
            assert_eq!(channel(on).wants(&failed), wanted, "{on:?}");
        }
        let all = channel(&NoticeKind::ALL);
        let only = |kinds: &[&str]| Channel {
            operations: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            ..all.clone()
        };
        assert!(only(&["failover", "backup"]).wants(&failed) && !only(&["failover"]).wants(&failed));
        assert!(only(&["failover"]).wants(&notice(&[NoticeKind::Risk], None)), "a risk is of no operation");
        let of = |name: &str| Channel { clusters: vec![ClusterName::new(name).expect("valid")], ..all.clone() };
        assert!(of("main").wants(&failed) && !of("other").wants(&failed));
    }

    #[test]
    fn words_of_a_message() {
        let message = channel(&NoticeKind::ALL).message(notice(&[NoticeKind::BackupFailed], Some("backup")));
        assert_eq!(message.subject(), "[Stormglass] main: backup of db2 failed");
        assert_eq!(
            message.text(),
            "The backup of db2 ended as failed after 3.000 s: no room.\n\n\
             Cluster    main, epoch 4\n\
             Operation  0190\n\
             Time       2026-11-18T11:06:40Z\n\
             Severity   warning\n\
             Read more  https://stormglass.example.org/?operation=0190\n\
             Or run     stormglass operation show 0190\n"
        );
        let mut odd = notice(&[NoticeKind::Alert], None);
        odd.subject = "disk\r\nBcc: everybody".to_owned();
        let message = Channel { link: None, ..channel(&[]) }.message(odd);
        assert_eq!(message.subject(), "[Stormglass] main: disk  Bcc: everybody", "one line, whatever an alert says");
        assert!(!message.text().contains("Read more"));
    }

    #[test]
    fn kinds_are_named_as_they_are_written() {
        for kind in NoticeKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("text"), kind.label());
        }
    }
}

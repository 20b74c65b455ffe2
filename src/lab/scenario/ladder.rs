//! Faults of `rejoin-ladder`: every rung of the way back. WAL that parted ways is rewound, removed data is cloned, a host that is gone
//! is replaced by Terraform.
//!
//! Who brings it back is the product alone: the scenario only breaks things, and looks at what was done.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use super::faults::kill_primary;
use crate::domain::clock::Moment;
use crate::domain::incident::sequence_lines;
use crate::domain::operation::{OperationKind, OperationStatus};
use crate::lab::client::{self, Session};
use crate::lab::clock;
use crate::lab::ladder::PROVISION;
use crate::lab::layout::NodeLayout;
use crate::lab::process::{self, postgres_family};
use crate::lab::up::Lab;

/// A replacement waits for the old host first, then Terraform starts, then all data is copied.
pub(super) const REPLACEMENT_TIMEOUT: Duration = Duration::from_secs(120);
/// A directory whose last files are being written is removed again.
const REMOVALS: usize = 50;
/// Writer of the rows that part ways; no client writes under it.
const DIVERGENT_WRITER: u32 = 901;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LadderFault {
    Diverge,
    RemoveData,
    RemoveHost,
}

/// All, from the lowest rung to the highest.
pub(super) const ALL: [LadderFault; 3] = [LadderFault::Diverge, LadderFault::RemoveData, LadderFault::RemoveHost];

impl LadderFault {
    /// Name in the report.
    pub(super) fn label(self) -> &'static str {
        match self {
            LadderFault::Diverge => "divergent-wal",
            LadderFault::RemoveData => "data-directory-removed",
            LadderFault::RemoveHost => "host-gone",
        }
    }

    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            LadderFault::Diverge => "the primary dies with commits that no standby received",
            LadderFault::RemoveData => "the primary dies, and its data directory is removed",
            LadderFault::RemoveHost => "the primary's host is gone with everything on it",
        }
    }

    /// Does it.
    pub(super) async fn inject(self, lab: &mut Lab, node: &NodeLayout, at: &mut Moment) -> anyhow::Result<()> {
        match self {
            LadderFault::Diverge => diverge(lab, node, at).await,
            LadderFault::RemoveData => {
                kill_primary(lab, node, at)?;
                remove(&node.data_directory()).await
            }
            LadderFault::RemoveHost => {
                *at = clock::now();
                process::kill_all_of(lab.manifest.uid, &node.directory);
                remove(&node.directory).await
            }
        }
    }

    /// Looks at how it was brought back; an error says what is not as it should be.
    pub(super) async fn inspect(self, lab: &Lab, node: &NodeLayout, at: Moment) -> anyhow::Result<()> {
        let history = lab.controller.history().await?;
        let sequence = history
            .iter()
            .filter(|one| one.decided_at >= at && matches!(one.kind, OperationKind::Sequence { .. }))
            .max_by_key(|one| one.decided_at)
            .context("no restore sequence followed the failover")?;
        let message = sequence.message.as_deref().unwrap_or("it has not ended");
        ensure!(sequence.status == OperationStatus::Succeeded, "the restore sequence did not succeed: {message}");
        let lines = sequence_lines(sequence);
        let provision = lines.iter().find(|line| line.step == PROVISION).context("the sequence has no such step")?;
        let is_passed_over = provision.detail.as_deref().is_some_and(|detail| detail.starts_with("passed over"));
        let replaces = self == LadderFault::RemoveHost;
        ensure!(is_passed_over != replaces, "step {PROVISION}: {}", provision.detail.as_deref().unwrap_or("-"));
        if self == LadderFault::Diverge {
            let kept = node.directory.join("state/divergent");
            let is_kept = std::fs::read_dir(&kept).is_ok_and(|mut entries| entries.next().is_some());
            ensure!(is_kept, "no divergent WAL was kept in {}", kept.display());
        }
        Ok(())
    }
}

/// WAL senders are stopped, rows are committed that wait for nobody, and everything is killed.
async fn diverge(lab: &Lab, node: &NodeLayout, at: &mut Moment) -> anyhow::Result<()> {
    let senders: Vec<_> = postgres_family(lab.manifest.uid, &node.data_directory())
        .into_iter()
        .filter(|process| process.arguments.join(" ").contains("walsender"))
        .collect();
    if senders.is_empty() {
        bail!("the primary has no WAL sender");
    }
    let session = Session::open(&node.postgres, "lab-divergent").await.map_err(|error| anyhow::anyhow!("{error}"))?;
    for sender in &senders {
        sender.identity.signal(Signal::STOP);
    }
    let insert = format!(
        "INSERT INTO {} (run, writer, sequence) SELECT 'divergent', {DIVERGENT_WRITER}, n FROM generate_series(1, 1000) AS n",
        client::TABLE
    );
    for statement in ["SET synchronous_commit = local", insert.as_str()] {
        let done = session.execute(statement).await;
        done.map_err(|error| anyhow::anyhow!("{error}")).context("commit what no standby receives")?;
    }
    kill_primary(lab, node, at).map(|_| ())
}

async fn remove(directory: &Path) -> anyhow::Result<()> {
    for _ in 0..REMOVALS {
        match std::fs::remove_dir_all(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    bail!("{} cannot be removed", directory.display())
}

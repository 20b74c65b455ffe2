//! Coming back as a standby: rewind, reclone, start.
//!
//! While the data directory is neither the old nor the new one, the memory says so, and nothing starts it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Agent;
use super::assignment::CHANGE_TIMEOUT;
use super::commands::{Outcome, Trouble};
use super::start::Role;
use super::tasks::Progress;
use crate::domain::backup::WalSegment;
use crate::domain::command::CommandOutput;
use crate::domain::epoch::Epoch;
use crate::domain::ids::{Address, NodeName, SystemIdentifier};
use crate::domain::incident::IN_PLACE;
use crate::domain::lsn::History;
use crate::ports::BackupRepository;
use crate::ports::postgres::{CopySource, DataChange, PostgresError, Presence, RewindOutcome, StartMode, Upstream};

/// A standby that has not streamed by then has lost WAL or its primary: the step is told so.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);

/// A rewind needs a stopped standby; it may take so long to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at the WAL receiver.
const LOOK: Duration = Duration::from_millis(20);

#[async_trait]
impl DataChange for Agent {
    async fn begins(&self) -> Result<(), PostgresError> {
        let stored = self.keeper.change(|memory| memory.half_rejoined = true).await;
        stored.map_err(|error| PostgresError::Failed {
            action: "remember that the data directory changes",
            problem: error.to_string(),
        })
    }

    fn kept(&self, words: &str) {
        self.local().divergent = Some(words.to_owned());
    }
}

/// The backup repository as a source of copies.
struct FromRepository(Arc<dyn BackupRepository>);

#[async_trait]
impl CopySource for FromRepository {
    async fn bring(
        &self,
        system_identifier: SystemIdentifier,
        history: &History,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(String, WalSegment), String> {
        self.0.bring_standby(system_identifier, history, change, progress).await.map_err(|error| error.to_string())
    }
}

impl Agent {
    pub(super) async fn rewind(self: &Arc<Self>, primary: &NodeName, address: &Address) -> Outcome {
        let upstream = self.upstream_for_rejoin(primary, address)?;
        if self.keeper.read(|memory| memory.half_rejoined) {
            // Half of it may look whole: nothing that is read from it can be trusted.
            let why = "a rewind or reclone of the node did not finish: reclone it";
            return Err(Trouble::Refused(why.to_owned()));
        }
        self.stop_for_rejoin().await?;
        let outcome = self.postgres.rewind(&upstream, self.as_ref()).await?;
        self.keeper.change(|memory| memory.half_rejoined = false).await?;
        self.refresh_control().await;
        let note = match outcome {
            RewindOutcome::NotNeeded => IN_PLACE,
            RewindOutcome::Rewound => "rewound",
        };
        Ok(CommandOutput { lsn: None, note: Some(self.with_divergent(note)) })
    }

    pub(super) async fn reclone(
        self: &Arc<Self>,
        primary: &NodeName,
        address: &Address,
        progress: Progress,
    ) -> Outcome {
        let upstream = self.upstream_for_rejoin(primary, address)?;
        self.stop_for_rejoin().await?;
        let told = progress.clone();
        let copied = self.copy_from_repository(&upstream, &move |text| told.tell(text)).await;
        let done = match copied {
            Some(Ok(words)) => format!("recloned {words}"),
            without => {
                progress.tell("taking a base backup");
                self.postgres.reclone(&upstream, self.as_ref(), &move |text| progress.tell(text)).await?;
                match without {
                    Some(Err(error)) => format!("recloned from {primary}, because {error}"),
                    _ => format!("recloned from {primary}"),
                }
            }
        };
        self.keeper.change(|memory| memory.half_rejoined = false).await?;
        self.local().is_empty = false;
        self.refresh_control().await;
        Ok(CommandOutput { lsn: None, note: Some(self.with_divergent(&done)) })
    }

    /// A copy from the repository costs the primary nothing, and uses what is there. `None`: there is no repository, or such a copy did not
    /// stream before.
    async fn copy_from_repository(
        self: &Arc<Self>,
        upstream: &Upstream,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Option<Result<String, PostgresError>> {
        let repository = self.backup.clone()?;
        if std::mem::replace(&mut self.local().copied_in_vain, true) {
            return None;
        }
        let source = FromRepository(repository);
        let copied = self.postgres.reclone_from(upstream, &source, self.as_ref(), progress).await;
        if let Err(error) = &copied {
            tracing::warn!(%error, "no copy from the repository: the primary is asked for a base backup");
        }
        Some(copied)
    }

    /// What was done, and what was kept aside before it.
    fn with_divergent(&self, done: &str) -> String {
        match self.local().divergent.take() {
            Some(kept) => format!("{done}; {kept}"),
            None => done.to_owned(),
        }
    }

    pub(super) async fn start_as_standby(
        self: &Arc<Self>,
        epoch: Epoch,
        primary: &NodeName,
        address: &Address,
    ) -> Outcome {
        let forbidden = self.keeper.read(|memory| {
            if memory.half_rejoined {
                Some("a rewind or reclone of the node did not finish: rejoin it")
            } else if memory.operator_fenced {
                Some("an operator fenced the node: unfence it")
            } else {
                None
            }
        });
        if let Some(reason) = forbidden {
            return Err(Trouble::Refused(reason.to_owned()));
        }
        let upstream = self.upstream_for_rejoin(primary, address)?;
        let (runs, follows) = {
            let local = self.local();
            (local.postmaster.is_some(), local.following.as_ref() == Some(&upstream))
        };
        if runs && follows {
            // Started for this primary already; it may not take connections yet.
        } else if runs {
            self.follow_when_up(&upstream).await?;
            self.local().following = Some(upstream);
        } else {
            self.local().failed_starts = 0;
            self.start_postgres(&StartMode::Standby { upstream: Some(upstream) }).await?;
        }
        self.local().frozen = None;
        self.await_streaming(epoch).await
    }

    /// A standby that was just rewound replays for a while before it listens to anybody: no reason to clone it anew.
    async fn follow_when_up(&self, upstream: &Upstream) -> Result<(), PostgresError> {
        let end = self.now().plus(STREAM_TIMEOUT);
        loop {
            match self.postgres.follow(Some(upstream), CHANGE_TIMEOUT).await {
                Err(PostgresError::NotAccepting { .. }) if self.local().postmaster.is_some() && self.now() < end => {
                    tokio::time::sleep(LOOK).await;
                }
                result => return result.map(drop),
            }
        }
    }

    async fn await_streaming(self: &Arc<Self>, epoch: Epoch) -> Outcome {
        let end = self.now().plus(STREAM_TIMEOUT);
        loop {
            self.observe_once().await;
            let (runs, received) = {
                let local = self.local();
                let streams = local
                    .live
                    .as_ref()
                    .filter(|live| live.receiver.as_ref().is_some_and(|receiver| receiver.streaming));
                (local.postmaster.is_some(), streams.map(|live| live.flush_lsn))
            };
            if let Some(lsn) = received {
                self.local().copied_in_vain = false;
                return Ok(CommandOutput { lsn: Some(lsn), note: None });
            }
            if !runs {
                return Err(Trouble::Failed("the standby ended while it started: read its log".to_owned()));
            }
            if self.keeper.read(|memory| memory.highest_epoch) > epoch {
                let newer = "the standby runs; the cluster has moved on, and it follows the next primary".to_owned();
                return Err(Trouble::Failed(newer));
            }
            if self.now() >= end {
                return Err(Trouble::Failed(format!(
                    "the standby runs and does not stream after {STREAM_TIMEOUT:?}: read its log; if WAL is missing on \
                     the primary, reclone it"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn upstream_for_rejoin(&self, primary: &NodeName, address: &Address) -> Result<Upstream, Trouble> {
        let local = self.local();
        if *primary == self.settings.node {
            return Err(Trouble::Refused("a node cannot follow itself".to_owned()));
        }
        if local.is_primary() || local.leases.valid(self.now()).is_some() {
            return Err(Trouble::Refused("the node is the primary: demote it first".to_owned()));
        }
        Ok(Upstream { node: primary.clone(), address: address.clone() })
    }

    /// A running standby is stopped; whatever else is left is killed.
    pub(super) async fn stop_for_rejoin(self: &Arc<Self>) -> Result<(), Trouble> {
        if self.postgres.presence().await == Presence::NoData {
            return Ok(());
        }
        let was_standby = {
            let mut local = self.local();
            local.stopping = true;
            local.postmaster.is_some() && local.role == Some(Role::Standby)
        };
        if was_standby && let Err(error) = self.postgres.stop_fast(STOP_TIMEOUT).await {
            tracing::warn!(%error, "the standby does not stop: killing it");
        }
        self.postgres.kill_family(STOP_TIMEOUT).await?;
        self.local().ended();
        Ok(())
    }
}

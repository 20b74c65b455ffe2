//! The real PostgreSQL of this host: its files, its processes, its SQL. Implements [`LocalPostgres`].
//!
//! What never enters: decisions, leases, epochs. Nothing here opens PostgreSQL but [`LocalPostgres::start`].

mod admission;
mod adopt;
mod archiving;
mod configuration;
mod control_data;
mod divergent;
mod errors;
mod files;
mod lane;
mod observe;
mod parameters;
mod process;
mod programs;
mod reclone;
mod replication;
mod rewind;
mod session;
mod settings;
mod upstream;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;
use tokio_postgres::error::SqlState;

pub use settings::{Owner as FileOwner, Password, PostgresSettings, discover_bin_directory};

use self::errors::{failed, from_client, within};
use self::session::{Held, Session};
use self::settings::Setup;
use crate::adapters::system::{Family, memory, wait_for_exit};
use crate::domain::epoch::RecordNumber;
use crate::domain::ids::NodeName;
use crate::domain::lsn::Lsn;
use crate::domain::report::{ControlData, DiskReport, LiveReport, MemoryReport, SynchronousReport};
use crate::ports::LocalPostgres;
use crate::ports::postgres::{CopySource, DataChange, PostgresError, Presence, RewindOutcome, StartMode, Upstream};

/// A healthy filesystem says in microseconds how full it is; a stalled one is not waited for.
const DISK_TIMEOUT: Duration = Duration::from_millis(200);

/// A crashed primary waits for this answer, and is fenced without it.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(1);

/// A few small files are read, and rarely one is written and flushed; only a stalled disk takes longer.
const CONFIGURATION_TIMEOUT: Duration = Duration::from_secs(5);

/// The write probe: takes a transaction id and flushes WAL at commit, and changes no table. WAL segments are made in
/// advance, so that it succeeds on a full disk for a long time: room for data is asked for beside it.
const WRITE_PROBE: &str = "select pg_logical_emit_message(true, 'stormglass', '')";

/// The PostgreSQL of this host.
pub struct Postgres {
    setup: Arc<Setup>,
    /// One connection each, so that a slow question holds up neither a promotion nor a probe.
    observer: Held,
    writer: Held,
    controller: Held,
    /// One change of configuration or data directory at a time.
    changing: tokio::sync::Mutex<()>,
    applied: Mutex<Option<Applied>>,
}

/// The last acknowledged change of the synchronous standbys, and the setting that it made.
struct Applied {
    setting: String,
    report: SynchronousReport,
}

impl Postgres {
    /// Checks the settings. Touches nothing.
    pub fn new(settings: PostgresSettings) -> Result<Self, PostgresError> {
        Ok(Self {
            setup: Arc::new(Setup::new(settings)?),
            observer: Held::default(),
            writer: Held::default(),
            controller: Held::default(),
            changing: tokio::sync::Mutex::default(),
            applied: Mutex::default(),
        })
    }

    /// What a fence has to kill: for the guard process.
    pub fn family(&self) -> &Family {
        &self.setup.family
    }

    /// Whose files and processes PostgreSQL's are.
    pub fn owner(&self) -> FileOwner {
        self.setup.owner
    }

    /// The agent's own socket directory.
    pub fn private_socket_directory(&self) -> &Path {
        &self.setup.settings.private_socket_directory
    }
}

#[async_trait]
impl LocalPostgres for Postgres {
    async fn presence(&self) -> Presence {
        process::presence(&self.setup).await
    }

    async fn control_data(&self) -> Result<Option<ControlData>, PostgresError> {
        Ok(control_data::read(&self.setup).await?.map(|control| control.data))
    }

    async fn secure_configuration(&self) -> Result<(), PostgresError> {
        let _changing = self.changing.lock().await;
        let setup = self.setup.clone();
        let secure = {
            let setup = setup.clone();
            move || if setup.has_data() { configuration::secure(&setup, &setup.data, None) } else { Ok(()) }
        };
        setup.lanes.configuration.run(CONFIGURATION_TIMEOUT, "secure the configuration", secure).await
    }

    async fn start(&self, mode: &StartMode) -> Result<i32, PostgresError> {
        let _changing = self.changing.lock().await;
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = None;
        process::start(&self.setup, mode).await
    }

    async fn ended_after_crash(&self) -> bool {
        let setup = self.setup.clone();
        // A postmaster that was killed leaves its lock file; one that ends because a child crashed removes it last.
        let look = move || {
            let is_locked = setup.data.join("postmaster.pid").try_exists();
            is_locked.map(|is_locked| !is_locked && setup.has_data()).map_err(|error| errors::failed("look", error))
        };
        let lane = &self.setup.lanes.presence;
        let is_orderly = lane.run(DISK_TIMEOUT, "look at how PostgreSQL ended", look).await.unwrap_or(false);
        if !is_orderly || self.presence().await != Presence::Stopped {
            return false;
        }
        // Somebody's `pg_ctl stop` also removes the lock file; a crash leaves no shutdown checkpoint.
        let read = within(CONTROL_TIMEOUT, "look at how PostgreSQL ended", self.control_data()).await;
        read.is_ok_and(|control| control.is_some_and(|control| !control.is_shut_down()))
    }

    async fn is_closed_to_clients(&self) -> bool {
        admission::is_closed(&self.setup)
    }

    async fn open_to_clients(&self, timeout: Duration) -> Result<(), PostgresError> {
        within(timeout, "open PostgreSQL to clients", admission::open(&self.setup)).await
    }

    async fn wait_for_exit(&self, postmaster: i32) {
        wait_for_exit(postmaster).await;
    }

    async fn stop_fast(&self, timeout: Duration) -> Result<(), PostgresError> {
        process::stop_fast(&self.setup, timeout).await
    }

    async fn stop_immediate(&self) {
        process::signal_postmaster(&self.setup, Signal::QUIT).await;
    }

    async fn kill_family(&self, timeout: Duration) -> Result<Duration, PostgresError> {
        process::kill_family(&self.setup, timeout).await
    }

    async fn observe(&self, timeout: Duration) -> Result<LiveReport, PostgresError> {
        let question = self.observer.ask(&self.setup, observe::ACTION, observe::QUERY);
        let (mut report, setting) = observe::read(within(timeout, observe::ACTION, question).await?)?;
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        report.synchronous = applied
            .as_ref()
            .filter(|applied| applied.setting == setting && !report.in_recovery)
            .map(|applied| applied.report.clone());
        Ok(report)
    }

    async fn probe_connect(&self, timeout: Duration) -> Result<(), PostgresError> {
        const ACTION: &str = "probe with a new connection";
        within(timeout, ACTION, async {
            match Session::connect(&self.setup).await {
                Ok(session) => {
                    session.query(ACTION, "select 1").await?;
                    session.close().await;
                    Ok(())
                }
                // The server is alive and full, reserved connections included: moving it would move the storm with it.
                Err(error) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                    tracing::warn!(%error, "PostgreSQL has no connection left, not even for the superuser");
                    Ok(())
                }
                // The same of processes and memory: those that it has go on, and the writes of the other probe with them.
                Err(error) if error.code() == Some(&SqlState::OUT_OF_MEMORY) => {
                    tracing::warn!(%error, "PostgreSQL has no memory left for a new connection");
                    Ok(())
                }
                Err(error) if error.code().is_none() && session::cannot_fork(&self.setup).await => {
                    tracing::warn!(%error, "PostgreSQL cannot start a process for a new connection");
                    Ok(())
                }
                Err(error) => Err(from_client(ACTION, &error)),
            }
        })
        .await
    }

    async fn probe_write(&self, timeout: Duration) -> Result<(), PostgresError> {
        const ACTION: &str = "probe with a write";
        within(timeout, ACTION, async {
            let setup = self.setup.clone();
            let take_room = move || files::take_room(&setup.data).map_err(|error| errors::failed(ACTION, error));
            let room = self.setup.lanes.room.run(timeout, ACTION, take_room);
            tokio::try_join!(self.writer.ask(&self.setup, ACTION, WRITE_PROBE), room).map(drop)
        })
        .await
    }

    async fn checkpoint(&self, timeout: Duration) -> Result<Lsn, PostgresError> {
        const ACTION: &str = "checkpoint";
        const REDO: &str = "select redo_lsn from pg_catalog.pg_control_checkpoint()";
        within(timeout, ACTION, async {
            let session = Session::open(&self.setup, ACTION).await?;
            session.query(ACTION, "checkpoint").await?;
            let redo = session.query(ACTION, REDO).await?.unwrap_or_default();
            session.close().await;
            redo.parse().map_err(|error| failed(ACTION, error))
        })
        .await
    }

    async fn follow(&self, upstream: Option<&Upstream>, timeout: Duration) -> Result<Lsn, PostgresError> {
        const ACTION: &str = "follow another primary";
        within(timeout, ACTION, async {
            let _changing = self.changing.lock().await;
            let session = self.session(ACTION).await?;
            let received = replication::follow(&self.setup, &session, upstream).await?;
            self.controller.put_back(session);
            Ok(received)
        })
        .await
    }

    async fn promote(&self, block_when_alone: bool, timeout: Duration) -> Result<Lsn, PostgresError> {
        const ACTION: &str = "promote PostgreSQL";
        within(timeout, ACTION, async {
            let _changing = if block_when_alone { Some(self.changing.lock().await) } else { None };
            let session = self.session(ACTION).await?;
            let first = replication::promote(&self.setup, &session, block_when_alone).await?;
            self.controller.put_back(session);
            self.checkpoint_in_background();
            Ok(first)
        })
        .await
    }

    async fn apply_synchronous(
        &self,
        names: &BTreeSet<NodeName>,
        number: RecordNumber,
        block_when_alone: bool,
        timeout: Duration,
    ) -> Result<SynchronousReport, PostgresError> {
        const ACTION: &str = "set the synchronous standbys";
        within(timeout, ACTION, async {
            let _changing = self.changing.lock().await;
            // What was acknowledged is no longer what is asked for, whether or not the change succeeds.
            *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let session = self.session(ACTION).await?;
            let report = replication::apply_synchronous(&self.setup, &session, names, number, block_when_alone).await?;
            self.controller.put_back(session);
            let setting = configuration::render_synchronous(names, block_when_alone);
            *self.applied.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Applied { setting, report: report.clone() });
            Ok(report)
        })
        .await
    }

    async fn tend_slots(&self, peers: &BTreeSet<NodeName>, timeout: Duration) -> Result<(), PostgresError> {
        const ACTION: &str = "tend replication slots";
        within(timeout, ACTION, async {
            let session = self.session(ACTION).await?;
            replication::tend_slots(&session, peers).await?;
            self.controller.put_back(session);
            Ok(())
        })
        .await
    }

    async fn reserve_slots(&self, peers: &BTreeSet<NodeName>, timeout: Duration) -> Result<(), PostgresError> {
        const ACTION: &str = "reserve replication slots";
        within(timeout, ACTION, async {
            let session = self.session(ACTION).await?;
            replication::reserve_slots(&session, peers).await?;
            self.controller.put_back(session);
            Ok(())
        })
        .await
    }

    async fn wal_gone(&self, upstream: &Upstream, position: Lsn) -> Result<Option<String>, PostgresError> {
        upstream::wal_gone(&self.setup, upstream, position).await
    }

    async fn rewind(&self, upstream: &Upstream, change: &dyn DataChange) -> Result<RewindOutcome, PostgresError> {
        let _changing = self.changing.lock().await;
        rewind::rewind(&self.setup, upstream, change).await
    }

    async fn reclone(
        &self,
        upstream: &Upstream,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), PostgresError> {
        let _changing = self.changing.lock().await;
        reclone::reclone(&self.setup, upstream, change, progress).await
    }

    async fn reclone_from(
        &self,
        upstream: &Upstream,
        source: &dyn CopySource,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<String, PostgresError> {
        let _changing = self.changing.lock().await;
        reclone::reclone_from(&self.setup, upstream, source, change, progress).await
    }

    async fn set_aside(&self, name: &str) -> Result<Option<PathBuf>, PostgresError> {
        let _changing = self.changing.lock().await;
        adopt::set_aside(&self.setup, name).await
    }

    async fn adopt_copy(&self, copy: &Path, name: &str) -> Result<Option<PathBuf>, PostgresError> {
        let _changing = self.changing.lock().await;
        adopt::adopt(&self.setup, copy, name).await
    }

    async fn disk(&self) -> Option<DiskReport> {
        const ACTION: &str = "ask for free space";
        let setup = self.setup.clone();
        let ask = move || {
            let free = |path: &Path| {
                let found = rustix::fs::statvfs(path).map_err(|error| errors::failed(ACTION, error))?;
                Ok(found.f_bavail.saturating_mul(found.f_frsize))
            };
            Ok(DiskReport { data_free_bytes: free(&setup.data)?, wal_free_bytes: free(&setup.data.join("pg_wal"))? })
        };
        self.setup.lanes.space.run(DISK_TIMEOUT, ACTION, ask).await.ok()
    }

    async fn memory(&self, postmaster: i32) -> Option<MemoryReport> {
        const ACTION: &str = "ask for free memory";
        // The kernel adds statistics up for it, and is slowest at that where memory is short.
        let ask = move || memory::left_to(postmaster).map_err(|error| errors::failed(ACTION, error));
        self.setup.lanes.memory.run(DISK_TIMEOUT, ACTION, ask).await.ok()
    }
}

impl Postgres {
    /// Puts the new timeline into the control file, where pg_rewind of the former primary looks for it. The server's own
    /// checkpoint after a promotion is spread over minutes.
    fn checkpoint_in_background(&self) {
        const ACTION: &str = "checkpoint after the promotion";
        let setup = self.setup.clone();
        tokio::spawn(async move {
            let outcome = match Session::open(&setup, ACTION).await {
                Ok(session) => session.query(ACTION, "checkpoint").await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "the former primary can be rewound only after the next checkpoint");
            }
        });
    }

    /// The held connection for steering, known to work: a lost one is replaced before anything is changed.
    async fn session(&self, action: &'static str) -> Result<Session, PostgresError> {
        let (session, was_held) = self.controller.take(&self.setup, action).await?;
        if was_held && session.ask("select 1").await.is_err() {
            return Session::open(&self.setup, action).await;
        }
        Ok(session)
    }
}

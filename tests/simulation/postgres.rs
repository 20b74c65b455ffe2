//! The local PostgreSQL as its agent handles it, on top of the simulated server.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use stormglass::domain::epoch::RecordNumber;
use stormglass::domain::ids::{NodeName, SystemIdentifier};
use stormglass::domain::lsn::Lsn;
use stormglass::domain::report::*;
use stormglass::ports::postgres::*;

use super::agents::HostPort;
use super::mutants::Mutant;
use super::network::Place;
use super::server::{Disk, Hang, lsn};
use super::world::{HOSTS, State, address, index_at, node};

/// How often a server that hangs is looked at.
const AWAKE_LOOK: Duration = Duration::from_millis(100);

pub const SYSTEM: SystemIdentifier = SystemIdentifier(7);

fn not_accepting(action: &'static str) -> PostgresError {
    PostgresError::NotAccepting { action, problem: "it does not run, or starts".to_owned() }
}

fn failed(action: &'static str, problem: &str) -> PostgresError {
    PostgresError::Failed { action, problem: problem.to_owned() }
}

/// How a question to the server goes.
enum Answers {
    Yes,
    NotYet,
    Never,
}

impl HostPort {
    fn answers(&self, new_connection: bool) -> Answers {
        let state = self.world.lock();
        let now = state.now();
        let Some(run) = &state.hosts[self.host].server.run else { return Answers::NotYet };
        match run.hang {
            Hang::All => Answers::Never,
            Hang::Postmaster if new_connection => Answers::Never,
            _ if now < run.accepts_at || run.stopping => Answers::NotYet,
            _ => Answers::Yes,
        }
    }

    /// Waits as long as the server would make a client wait.
    async fn question(
        &self,
        action: &'static str,
        timeout: Duration,
        new_connection: bool,
    ) -> Result<(), PostgresError> {
        self.process.pass().await;
        let takes = self.world.lock().random.millis(0, 2);
        tokio::time::sleep(takes).await;
        self.process.pass().await;
        let began = tokio::time::Instant::now();
        loop {
            match self.answers(new_connection) {
                Answers::Yes => return Ok(()),
                Answers::NotYet => return Err(not_accepting(action)),
                Answers::Never if began.elapsed() >= timeout => {
                    return Err(PostgresError::NoAnswer { action, timeout });
                }
                Answers::Never => {
                    let mut running = self.world.lock().hosts[self.host].server.postmaster.subscribe();
                    running.get_and_update();
                    // Its death ends the wait, and so does its waking up.
                    let left = timeout.saturating_sub(began.elapsed()).min(AWAKE_LOOK);
                    let ended = tokio::time::timeout(left, running.changed()).await.is_ok();
                    self.process.pass().await;
                    if ended {
                        return Err(not_accepting(action));
                    }
                }
            }
        }
    }

    async fn takes(&self, low: u64, high: u64) {
        self.process.pass().await;
        let takes = self.world.lock().random.millis(low, high);
        tokio::time::sleep(takes).await;
        self.process.pass().await;
    }

    /// The primary to copy from, reachable now.
    fn source(&self, upstream: &Upstream, state: &State) -> Option<usize> {
        let primary = index_at(&upstream.address)?;
        let there = state.network.open(Place::Host(primary), Place::Host(self.host));
        let back = state.network.open(Place::Host(self.host), Place::Host(primary));
        (there
            && back
            && state.hosts[primary].server.accepts(state.now())
            && state.hosts[primary].server.writes(state.now()))
        .then_some(primary)
    }

    fn live(&self, state: &State) -> Option<LiveReport> {
        let now = state.now();
        let server = &state.hosts[self.host].server;
        let (run, data) = (server.run.as_ref()?, server.data.as_ref()?);
        let receiver = run.upstream.filter(|_| run.recovery && run.streams).map(|primary| ReceiverReport {
            sender: Some(address(primary)),
            streaming: true,
            last_message_age: Some(Duration::from_micros(now.saturating_sub(run.last_message))),
        });
        let standbys = (0..HOSTS)
            .filter_map(|other| Some((node(other), run.standbys[other]?)))
            .map(|(name, flushed)| {
                let named = run.names.contains(&name);
                let sync_state = if named { "sync" } else { "async" };
                StandbyRow {
                    node: name.to_string(),
                    state: "streaming".to_owned(),
                    sync_state: sync_state.to_owned(),
                    flush_lsn: Some(lsn(flushed)),
                    replay_lsn: Some(lsn(flushed)),
                }
            })
            .collect();
        Some(LiveReport {
            system_identifier: SYSTEM,
            in_recovery: run.recovery,
            history: data.history.clone(),
            started_at_unix_seconds: None,
            major_version: 15,
            flush_lsn: lsn(data.wal.len()),
            replay_lsn: lsn(data.wal.len()),
            replay_paused: false,
            receiver,
            standbys: if run.recovery { Vec::new() } else { standbys },
            synchronous: run.applied.clone(),
            waits: None,
            upkeep: None,
            work: None,
            connections: None,
            clock: Default::default(),
        })
    }
}

#[async_trait]
impl LocalPostgres for HostPort {
    async fn presence(&self) -> Presence {
        self.process.pass().await;
        let state = self.world.lock();
        let server = &state.hosts[self.host].server;
        match (&server.data, &server.run) {
            (_, Some(run)) => Presence::Running { postmaster: run.postmaster },
            (Some(_), None) => Presence::Stopped,
            (None, None) => Presence::NoData,
        }
    }

    async fn control_data(&self) -> Result<Option<ControlData>, PostgresError> {
        self.takes(0, 3).await;
        let state = self.world.lock();
        Ok(state.hosts[self.host].server.data.as_ref().map(|data| ControlData {
            system_identifier: SYSTEM,
            cluster_state: data.state.to_owned(),
            timeline: data.history.timeline,
            checkpoint: data.checkpoint,
            major_version: 15,
        }))
    }

    async fn secure_configuration(&self) -> Result<(), PostgresError> {
        self.process.pass().await;
        Ok(())
    }

    async fn start(&self, mode: &StartMode) -> Result<i32, PostgresError> {
        self.takes(5, 40).await;
        let mut state = self.world.lock();
        if state.hosts[self.host].server.disk == Disk::Full {
            return Err(failed("start PostgreSQL", "no space left on device"));
        }
        let (recovery, upstream) = match mode {
            StartMode::Standby { upstream } => {
                (true, upstream.as_ref().and_then(|upstream| index_at(&upstream.address)))
            }
            StartMode::Primary { .. } | StartMode::Recovering { .. } => (false, None),
        };
        let started = state.start_server(self.host, recovery, upstream);
        let postmaster = started.map_err(|problem| failed("start PostgreSQL", &problem))?;
        if let (StartMode::Primary { synchronous, block_when_alone }, Some(run)) =
            (mode, state.hosts[self.host].server.run.as_mut())
        {
            (run.names, run.block_when_alone) = (synchronous.clone(), *block_when_alone);
        }
        Ok(postmaster)
    }

    async fn wait_for_exit(&self, postmaster: i32) {
        let mut running = self.world.lock().hosts[self.host].server.postmaster.subscribe();
        let _ = running.wait_for(|running| running != Some(postmaster)).await;
        self.process.pass().await;
    }

    async fn stop_fast(&self, timeout: Duration) -> Result<(), PostgresError> {
        self.takes(1, 10).await;
        let began = self.world.lock().now();
        {
            let mut state = self.world.lock();
            let Some(run) = state.hosts[self.host].server.run.as_mut() else { return Ok(()) };
            if run.hang == Hang::No {
                run.stopping = true;
                run.waiting.clear();
                let recovery = run.recovery;
                if !recovery {
                    // The shutdown record.
                    state.append(self.host);
                }
            }
        }
        loop {
            self.takes(5, 10).await;
            let mut state = self.world.lock();
            let now = state.now();
            let sent = {
                let server = &state.hosts[self.host].server;
                let records = server.records();
                let Some(run) = &server.run else { return Ok(()) };
                let sent = run.standbys.iter().flatten().all(|flushed| *flushed >= records);
                run.hang == Hang::No && run.stopping && server.disk == Disk::Fine && sent
            };
            if sent && now - began > 30_000 {
                state.shut_down_server(self.host);
                return Ok(());
            }
            if now - began > u64::try_from(timeout.as_micros()).expect("short") {
                return Err(PostgresError::NoAnswer { action: "stop PostgreSQL", timeout });
            }
        }
    }

    async fn stop_immediate(&self) {
        self.process.pass().await;
        let mut state = self.world.lock();
        let server = &state.hosts[self.host].server;
        if server.disk != Disk::Stalled && server.run.as_ref().is_some_and(|run| run.hang == Hang::No) {
            state.kill_server(self.host, "immediate shutdown");
        }
    }

    async fn kill_family(&self, _timeout: Duration) -> Result<Duration, PostgresError> {
        self.takes(1, 40).await;
        if !self.world.is(Mutant::KillLeavesBackends) {
            self.world.lock().kill_server(self.host, "killed by its agent");
        }
        Ok(Duration::from_millis(20))
    }

    async fn observe(&self, timeout: Duration) -> Result<LiveReport, PostgresError> {
        self.question("observe", timeout, false).await?;
        let state = self.world.lock();
        self.live(&state).ok_or_else(|| not_accepting("observe"))
    }

    async fn probe_connect(&self, timeout: Duration) -> Result<(), PostgresError> {
        self.question("connect", timeout, true).await
    }

    async fn probe_write(&self, timeout: Duration) -> Result<(), PostgresError> {
        self.question("write", timeout, false).await?;
        let disk = {
            let mut state = self.world.lock();
            let server = &state.hosts[self.host].server;
            if !server.writes(state.now()) {
                return Err(failed("write", "cannot execute in a read-only transaction"));
            }
            let disk = server.disk;
            if disk == Disk::Fine {
                state.append(self.host);
            }
            disk
        };
        match disk {
            Disk::Fine => Ok(()),
            Disk::Full => Err(failed("write", "no space left on device")),
            Disk::Stalled => {
                tokio::time::sleep(timeout).await;
                Err(PostgresError::NoAnswer { action: "write", timeout })
            }
        }
    }

    async fn checkpoint(&self, timeout: Duration) -> Result<Lsn, PostgresError> {
        self.question("checkpoint", timeout, false).await?;
        self.takes(10, 200).await;
        let state = self.world.lock();
        let server = &state.hosts[self.host].server;
        match server.disk {
            Disk::Fine => Ok(server.data.as_ref().map_or(Lsn(0), |data| lsn(data.wal.len()))),
            Disk::Full | Disk::Stalled => Err(failed("checkpoint", "the disk is sick")),
        }
    }

    async fn follow(&self, upstream: Option<&Upstream>, timeout: Duration) -> Result<Lsn, PostgresError> {
        self.question("follow", timeout, false).await?;
        self.takes(1, 10).await;
        let mut state = self.world.lock();
        let now = state.now();
        let server = &mut state.hosts[self.host].server;
        let records = server.records();
        let Some(run) = server.run.as_mut().filter(|run| run.recovery) else { return Err(not_accepting("follow")) };
        let next = upstream.and_then(|upstream| index_at(&upstream.address));
        if run.upstream != next {
            (run.upstream, run.streams, run.connect_at) = (next, false, now);
        }
        Ok(lsn(records))
    }

    async fn promote(&self, block_when_alone: bool, timeout: Duration) -> Result<Lsn, PostgresError> {
        self.question("promote", timeout, false).await?;
        self.takes(10, 100).await;
        if !matches!(self.world.lock().hosts[self.host].server.disk, Disk::Fine) {
            return Err(failed("promote", "the disk is sick"));
        }
        let mut state = self.world.lock();
        let first = state.promote_server(self.host).ok_or_else(|| not_accepting("promote"))?;
        if let Some(run) = state.hosts[self.host].server.run.as_mut() {
            run.block_when_alone = block_when_alone;
        }
        Ok(first)
    }

    async fn apply_synchronous(
        &self,
        names: &BTreeSet<NodeName>,
        number: RecordNumber,
        block_when_alone: bool,
        timeout: Duration,
    ) -> Result<SynchronousReport, PostgresError> {
        self.question("apply synchronous_standby_names", timeout, false).await?;
        self.takes(0, 20).await;
        {
            let mut state = self.world.lock();
            let now = state.now();
            let server = &mut state.hosts[self.host].server;
            if !server.works(now) {
                return Err(not_accepting("apply synchronous_standby_names"));
            }
            let run = server.run.as_mut().expect("works");
            run.applied = None;
            (run.names, run.block_when_alone) = (names.clone(), block_when_alone);
            state.note(&format!("{} synchronous_standby_names {names:?}, number {number}", node(self.host)));
        }
        self.takes(0, 20).await;
        let mut state = self.world.lock();
        let barrier_lsn = lsn(state.hosts[self.host].server.records());
        let report = SynchronousReport { number, names: names.iter().cloned().collect(), barrier_lsn };
        if let Some(run) = state.hosts[self.host].server.run.as_mut() {
            run.applied = Some(report.clone());
        }
        Ok(report)
    }

    async fn tend_slots(&self, _peers: &BTreeSet<NodeName>, timeout: Duration) -> Result<(), PostgresError> {
        self.question("tend slots", timeout, false).await
    }

    async fn reserve_slots(&self, _peers: &BTreeSet<NodeName>, timeout: Duration) -> Result<(), PostgresError> {
        self.question("reserve slots", timeout, false).await
    }

    async fn rewind(&self, upstream: &Upstream, change: &dyn DataChange) -> Result<RewindOutcome, PostgresError> {
        self.takes(20, 100).await;
        {
            let mut state = self.world.lock();
            let Some(primary) = self.source(upstream, &state) else {
                return Err(failed("rewind", "the primary is out of reach"));
            };
            let theirs = state.hosts[primary].server.data.clone().expect("it runs");
            let Some(own) = state.hosts[self.host].server.data.as_mut() else {
                return Err(failed("rewind", "there is no data"));
            };
            if !own.torn
                && theirs.history.contains(own.history.timeline, lsn(own.wal.len()))
                && own.wal.len() <= theirs.wal.len()
            {
                // Two promotions from one point took the same number: the adapter tells them apart by their first records.
                if own.wal.last() != own.wal.len().checked_sub(1).and_then(|last| theirs.wal.get(last)) {
                    return Err(failed("rewind", "the same timeline and different histories: reclone the node"));
                }
                own.state = "in archive recovery";
                return Ok(RewindOutcome::NotNeeded);
            }
        }
        change.begins().await?;
        let copied = {
            let mut state = self.world.lock();
            let Some(primary) = self.source(upstream, &state) else {
                return Err(failed("rewind", "the primary is out of reach"));
            };
            let theirs = state.hosts[primary].server.data.clone().expect("it runs");
            let Some(own) = state.hosts[self.host].server.data.as_mut() else {
                return Err(failed("rewind", "there is no data"));
            };
            own.torn = true;
            theirs
        };
        self.takes(100, 1_500).await;
        let mut state = self.world.lock();
        if self.source(upstream, &state).is_none() {
            return Err(failed("rewind", "the primary went away"));
        }
        state.note(&format!("{} rewound", node(self.host)));
        state.hosts[self.host].server.data =
            Some(super::server::Data { state: "in archive recovery", torn: false, ..copied });
        Ok(RewindOutcome::Rewound)
    }

    async fn reclone(
        &self,
        upstream: &Upstream,
        change: &dyn DataChange,
        _progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), PostgresError> {
        self.takes(300, 2_500).await;
        change.begins().await?;
        let mut state = self.world.lock();
        let Some(primary) = self.source(upstream, &state) else {
            return Err(failed("reclone", "the primary is out of reach"));
        };
        let copied = state.hosts[primary].server.data.clone().expect("it runs");
        state.note(&format!("{} recloned", node(self.host)));
        state.hosts[self.host].server.data =
            Some(super::server::Data { state: "in archive recovery", torn: false, ..copied });
        Ok(())
    }

    async fn disk(&self) -> Option<DiskReport> {
        None
    }
}

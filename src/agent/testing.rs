//! Fakes of our own ports, for tests of the shell. What talks to real servers is tested on real servers.
//! Length: one fake for each port, and the bench that joins them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};

use super::{Agent, AgentParts};
use crate::adapters::agent_memory::MemoryFile;
use crate::config::AgentConfig;
use crate::domain::clock::{BootId, Moment, WallTime};
use crate::domain::command::{
    AssignedRole, Assignment, Command, CommandEnvelope, CommandState, HeartbeatReply, PromiseReply, PromiseRequest,
    ProxyAssignment,
};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName, NodeName, OperationId, SystemIdentifier};
use crate::domain::lease::{Grant, LeaseTimers};
use crate::domain::lsn::{History, Lsn, Timeline};
use crate::domain::operation::StepName;
use crate::domain::report::{
    ControlData, DiskReport, LiveReport, ProxyReport, ReceiverReport, Report, StandbyRow, SynchronousReport,
};
use crate::ports::agent::{
    AgentMemory, ControllerLink, GuardError, GuardEvent, GuardLink, HeldLease, LinkError, Memory, PeerLink,
    StampedMoment,
};
use crate::ports::clock::Clock;
use crate::ports::postgres::{DataChange, LocalPostgres, PostgresError, Presence, RewindOutcome, StartMode, Upstream};

/// The host's real clock.
pub(super) struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> Moment {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Moment(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000)
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn boot(&self) -> BootId {
        BootId("test".to_owned())
    }
}

/// Waits for a condition, with an end.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}

/// A PostgreSQL that does at once what it is told.
pub(super) struct FakePostgres {
    pub cluster_state: Mutex<&'static str>,
    pub running: watch::Sender<Option<i32>>,
    pub in_recovery: AtomicBool,
    pub hangs: AtomicBool,
    pub calls: Mutex<Vec<String>>,
    /// Commands that begin wait here while it is set.
    pub held_back: Notify,
    pub holds_back: AtomicBool,
    /// It ends as it does when one of its processes crashed.
    pub crashes_in_order: AtomicBool,
    /// No primary can be asked.
    pub is_cut_off: AtomicBool,
    /// How far the standby n2 has flushed; 0: it does not stream.
    pub standby_flushed: AtomicU64,
    /// The names in force since the start.
    pub synchronous: Mutex<Option<SynchronousReport>>,
}

impl FakePostgres {
    pub(super) fn running(in_recovery: bool) -> Arc<Self> {
        let fake = Self::stopped(if in_recovery { "in archive recovery" } else { "in production" });
        fake.in_recovery.store(in_recovery, Ordering::SeqCst);
        fake.running.send_replace(Some(100));
        fake
    }

    pub(super) fn stopped(cluster_state: &'static str) -> Arc<Self> {
        Arc::new(Self {
            cluster_state: Mutex::new(cluster_state),
            running: watch::channel(None).0,
            in_recovery: AtomicBool::new(true),
            hangs: AtomicBool::new(false),
            calls: Mutex::default(),
            held_back: Notify::new(),
            holds_back: AtomicBool::new(false),
            crashes_in_order: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            standby_flushed: AtomicU64::new(0),
            synchronous: Mutex::default(),
        })
    }

    pub(super) fn crash(&self) {
        self.running.send_replace(None);
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.borrow().is_some()
    }

    pub(super) fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|made| made.starts_with(call)).count()
    }

    fn standbys(&self) -> Vec<StandbyRow> {
        let flushed = self.standby_flushed.load(Ordering::SeqCst);
        let row = StandbyRow {
            node: "n2".to_owned(),
            state: "streaming".to_owned(),
            sync_state: "sync".to_owned(),
            flush_lsn: Some(Lsn(flushed)),
            replay_lsn: None,
        };
        if flushed == 0 { Vec::new() } else { vec![row] }
    }

    fn call(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    async fn begin(&self) {
        if self.holds_back.load(Ordering::SeqCst) {
            self.held_back.notified().await;
        }
    }
}

fn not_accepting() -> PostgresError {
    PostgresError::NotAccepting { action: "ask", problem: "it does not run".to_owned() }
}

#[async_trait]
impl LocalPostgres for FakePostgres {
    async fn presence(&self) -> Presence {
        self.running.borrow().map_or(Presence::Stopped, |postmaster| Presence::Running { postmaster })
    }
    async fn control_data(&self) -> Result<Option<ControlData>, PostgresError> {
        Ok(Some(ControlData {
            system_identifier: SystemIdentifier(7),
            cluster_state: (*self.cluster_state.lock().unwrap()).to_owned(),
            timeline: Timeline(1),
            checkpoint: Lsn(500),
            major_version: 15,
        }))
    }
    async fn secure_configuration(&self) -> Result<(), PostgresError> {
        Ok(())
    }
    async fn start(&self, mode: &StartMode) -> Result<i32, PostgresError> {
        self.call(format!("start {mode:?}"));
        *self.synchronous.lock().unwrap() = None;
        let is_standby = matches!(mode, StartMode::Standby { .. });
        self.in_recovery.store(is_standby, Ordering::SeqCst);
        *self.cluster_state.lock().unwrap() = if is_standby { "in archive recovery" } else { "in production" };
        self.running.send_replace(Some(200));
        Ok(200)
    }
    async fn wait_for_exit(&self, postmaster: i32) {
        let mut running = self.running.subscribe();
        let _gone = running.wait_for(|running| *running != Some(postmaster)).await;
    }
    async fn stop_fast(&self, timeout: Duration) -> Result<(), PostgresError> {
        self.call("stop_fast");
        if self.hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(timeout).await;
            return Err(PostgresError::NoAnswer { action: "stop", timeout });
        }
        let stopped = if self.in_recovery.load(Ordering::SeqCst) { "shut down in recovery" } else { "shut down" };
        *self.cluster_state.lock().unwrap() = stopped;
        self.running.send_replace(None);
        Ok(())
    }
    async fn stop_immediate(&self) {
        self.call("stop_immediate");
    }
    async fn kill_family(&self, _timeout: Duration) -> Result<Duration, PostgresError> {
        self.call("kill_family");
        self.running.send_replace(None);
        Ok(Duration::from_millis(1))
    }
    async fn observe(&self, _timeout: Duration) -> Result<LiveReport, PostgresError> {
        if !self.is_running() {
            return Err(not_accepting());
        }
        let in_recovery = self.in_recovery.load(Ordering::SeqCst);
        let receiver = ReceiverReport { sender: None, streaming: true, last_message_age: None };
        Ok(LiveReport {
            system_identifier: SystemIdentifier(7),
            in_recovery,
            history: History::root(Timeline(1)),
            started_at_unix_seconds: None,
            major_version: 15,
            flush_lsn: Lsn(1_000),
            replay_lsn: Lsn(1_000),
            replay_paused: false,
            receiver: in_recovery.then_some(receiver),
            standbys: self.standbys(),
            synchronous: self.synchronous.lock().unwrap().clone(),
            waits: None,
            upkeep: None,
            work: None,
            connections: None,
            clock: Default::default(),
        })
    }
    async fn ended_after_crash(&self) -> bool {
        self.crashes_in_order.load(Ordering::SeqCst)
    }
    async fn open_to_clients(&self, _timeout: Duration) -> Result<(), PostgresError> {
        self.call("open_to_clients");
        Ok(())
    }
    async fn probe_connect(&self, _timeout: Duration) -> Result<(), PostgresError> {
        if self.is_running() { Ok(()) } else { Err(not_accepting()) }
    }
    async fn probe_write(&self, _timeout: Duration) -> Result<(), PostgresError> {
        let writes = self.is_running() && !self.in_recovery.load(Ordering::SeqCst);
        if writes { Ok(()) } else { Err(not_accepting()) }
    }
    async fn checkpoint(&self, _timeout: Duration) -> Result<Lsn, PostgresError> {
        self.call("checkpoint");
        self.begin().await;
        if self.is_running() { Ok(Lsn(0)) } else { Err(not_accepting()) }
    }
    async fn follow(&self, upstream: Option<&Upstream>, _timeout: Duration) -> Result<Lsn, PostgresError> {
        self.call(format!("follow {}", upstream.map_or("nobody", |upstream| upstream.node.as_str())));
        Ok(Lsn(1_000))
    }
    async fn promote(&self, block_when_alone: bool, _timeout: Duration) -> Result<Lsn, PostgresError> {
        self.call(if block_when_alone { "promote, blocked" } else { "promote" });
        self.in_recovery.store(false, Ordering::SeqCst);
        Ok(Lsn(1_024))
    }
    async fn apply_synchronous(
        &self,
        names: &BTreeSet<NodeName>,
        number: RecordNumber,
        _block_when_alone: bool,
        _timeout: Duration,
    ) -> Result<SynchronousReport, PostgresError> {
        self.call("apply_synchronous");
        let report = SynchronousReport { number, names: names.iter().cloned().collect(), barrier_lsn: Lsn(1_000) };
        *self.synchronous.lock().unwrap() = Some(report.clone());
        Ok(report)
    }
    async fn tend_slots(&self, _peers: &BTreeSet<NodeName>, _timeout: Duration) -> Result<(), PostgresError> {
        Ok(())
    }
    async fn reserve_slots(&self, peers: &BTreeSet<NodeName>, _timeout: Duration) -> Result<(), PostgresError> {
        let peers: Vec<&str> = peers.iter().map(NodeName::as_str).collect();
        // It takes some flushes, in which nobody stands still.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.call(format!("reserve slots for {}", peers.join(", ")));
        Ok(())
    }
    async fn rewind(&self, _upstream: &Upstream, change: &dyn DataChange) -> Result<RewindOutcome, PostgresError> {
        self.call("rewind");
        if self.is_cut_off.load(Ordering::SeqCst) {
            return Err(PostgresError::Failed { action: "rewind", problem: "nobody answers".to_owned() });
        }
        change.begins().await?;
        if self.hangs.load(Ordering::SeqCst) {
            return Err(PostgresError::Failed { action: "rewind", problem: "killed".to_owned() });
        }
        *self.cluster_state.lock().unwrap() = "in archive recovery";
        Ok(RewindOutcome::Rewound)
    }
    async fn reclone(
        &self,
        _upstream: &Upstream,
        change: &dyn DataChange,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), PostgresError> {
        self.call("reclone");
        change.begins().await?;
        progress("copying".to_owned());
        *self.cluster_state.lock().unwrap() = "in archive recovery";
        Ok(())
    }
    async fn disk(&self) -> Option<DiskReport> {
        None
    }
}

/// Controllers that answer what the test put there, and the reports they heard.
#[derive(Default)]
pub(super) struct FakeControllers {
    pub reply: Mutex<Option<HeartbeatReply>>,
    pub heard: Mutex<Vec<Report>>,
}

#[async_trait]
impl ControllerLink for FakeControllers {
    async fn heartbeat(&self, report: &Report, _timeout: Duration) -> Result<HeartbeatReply, LinkError> {
        self.heard.lock().unwrap().push(report.clone());
        let reply = self.reply.lock().unwrap().clone();
        reply.ok_or_else(|| LinkError::NoAnswer { problems: "silent".to_owned() })
    }
    async fn proxy_heartbeat(&self, _: &ProxyReport, _: Duration) -> Result<ProxyAssignment, LinkError> {
        Err(LinkError::NoAnswer { problems: "no proxies".to_owned() })
    }
}

/// A guard that only notes down.
#[derive(Default)]
pub(super) struct FakeGuard {
    pub held: Mutex<Option<HeldLease>>,
    pub released: Mutex<Option<Epoch>>,
    pub is_gone: AtomicBool,
}

#[async_trait]
impl GuardLink for FakeGuard {
    fn at_start(&self) -> (Option<HeldLease>, Option<Epoch>) {
        (*self.held.lock().unwrap(), None)
    }
    async fn hold(&self, held: HeldLease) -> Result<(), GuardError> {
        if self.is_gone.load(Ordering::SeqCst) {
            return Err(GuardError("gone".to_owned()));
        }
        *self.held.lock().unwrap() = Some(held);
        Ok(())
    }
    fn release(&self, epoch: Epoch) {
        *self.released.lock().unwrap() = Some(epoch);
        *self.held.lock().unwrap() = None;
    }
    fn paused(&self, _paused: bool) {}
    async fn next_event(&self) -> GuardEvent {
        std::future::pending().await
    }
}

/// An agent with everything around it.
pub(super) struct Bench {
    pub agent: Arc<Agent>,
    pub postgres: Arc<FakePostgres>,
    pub controllers: Arc<FakeControllers>,
    pub peers: Arc<FakePeers>,
    pub guard: Arc<FakeGuard>,
    pub directory: tempfile::TempDir,
    loops: tokio::task::JoinSet<()>,
}

pub(super) fn cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

pub(super) fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub(super) fn timers() -> LeaseTimers {
    LeaseTimers::for_rto(Duration::from_secs(2))
}

pub(super) fn grant(epoch: u64) -> Grant {
    Grant { epoch: Epoch(epoch), number: RecordNumber(epoch), timers: timers() }
}

/// A memory old enough to consent.
pub(super) fn memory(epoch: u64) -> Memory {
    let since = StampedMoment { boot: BootId("earlier".to_owned()), at: Moment(0) };
    let mut memory = Memory::new(cluster(), node("n1"), since);
    memory.highest_epoch = Epoch(epoch);
    memory.timers = Some(timers());
    memory
}

pub(super) fn assignment(epoch: u64, number: u64, role: AssignedRole) -> Assignment {
    Assignment {
        cluster: cluster(),
        system_identifier: SystemIdentifier(7),
        epoch: Epoch(epoch),
        number: RecordNumber(number),
        role,
        eligible: BTreeSet::new(),
        renewers: None,
        peers: BTreeSet::from([node("n2")]),
    }
}

/// The same, with these renewers.
pub(super) fn renewed_by(names: &[&str], assignment: Assignment) -> Assignment {
    let agents = names.iter().map(|name| (node(name), format!("http://{name}"))).collect();
    Assignment { renewers: Some(agents), ..assignment }
}

pub(super) fn standby_of(primary: &str) -> AssignedRole {
    AssignedRole::Standby { primary: node(primary), primary_address: Address::new("127.0.0.1", 5433) }
}

pub(super) fn primary_role() -> AssignedRole {
    AssignedRole::Primary {
        synchronous: BTreeSet::from([node("n2")]),
        synchronous_number: RecordNumber(1),
        block_when_alone: false,
    }
}

pub(super) fn envelope(epoch: u64, step: StepName, command: Command) -> CommandEnvelope {
    CommandEnvelope {
        cluster: cluster(),
        epoch: Epoch(epoch),
        operation: OperationId("operation-1".to_owned()),
        step,
        attempt: 1,
        command,
    }
}

/// How the agent of a standby takes a request for a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Promises,
    Refuses,
    /// Takes the request and never answers.
    Hangs,
}

/// Agents of standbys. One that the test did not put there cannot be reached.
#[derive(Default)]
pub(super) struct FakePeers {
    pub agents: Mutex<BTreeMap<NodeName, Peer>>,
    pub asked: Mutex<Vec<(String, PromiseRequest)>>,
}

impl FakePeers {
    pub(super) fn put(&self, name: &str, peer: Peer) {
        self.agents.lock().unwrap().insert(node(name), peer);
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl PeerLink for FakePeers {
    async fn promise(
        &self,
        peer: &NodeName,
        agent: &str,
        request: &PromiseRequest,
        timeout: Duration,
    ) -> Result<PromiseReply, LinkError> {
        self.asked.lock().unwrap().push((agent.to_owned(), request.clone()));
        let there = self.agents.lock().unwrap().get(peer).copied();
        let problem = match there {
            Some(Peer::Promises) => return Ok(PromiseReply::Promised),
            Some(Peer::Refuses) => return Ok(PromiseReply::Refused { reason: "it consented".to_owned() }),
            Some(Peer::Hangs) => {
                tokio::time::sleep(timeout).await;
                "operation timed out"
            }
            None => "connection refused",
        };
        Err(LinkError::Peer { peer: peer.clone(), problem: problem.to_owned() })
    }
}

impl Bench {
    pub(super) async fn begin(postgres: Arc<FakePostgres>, memory: Memory, guarded: Option<HeldLease>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        MemoryFile::new(directory.path(), cluster(), node("n1")).store(&memory).await.unwrap();
        Self::begin_in(directory, postgres, guarded).await
    }

    async fn begin_in(directory: tempfile::TempDir, postgres: Arc<FakePostgres>, guarded: Option<HeldLease>) -> Self {
        let file = MemoryFile::new(directory.path(), cluster(), node("n1"));
        let config: AgentConfig = toml::from_str(&format!(
            "[agent]\ncluster = \"main\"\nsite = \"a\"\nlisten = \"127.0.0.1:0\"\nstate_directory = {:?}\n\
             controllers = []\ntoken = \"env:NONE\"\n\
             [postgresql]\nnode = \"n1\"\ndata_directory = \"/nowhere\"\naddress = {{ host = \"127.0.0.1\", port = 5432 }}\n\
             listen_addresses = \"127.0.0.1\"\nprobe_interval = \"20ms\"\n",
            directory.path()
        ))
        .unwrap();
        let controllers = Arc::new(FakeControllers::default());
        let peers = Arc::new(FakePeers::default());
        let guard = Arc::new(FakeGuard { held: Mutex::new(guarded), ..FakeGuard::default() });
        let parts = AgentParts {
            backup: None,
            protection: tokio::sync::watch::channel(Default::default()).1,
            config,
            clock: Arc::new(HostClock),
            postgres: postgres.clone(),
            memory: Arc::new(file),
            controllers: controllers.clone(),
            peers: peers.clone(),
            guard: guard.clone(),
        };
        let agent = Agent::new(parts).await.unwrap();
        agent.begin().await.unwrap();
        let mut loops = tokio::task::JoinSet::new();
        agent.spawn_loops(&mut loops);
        Self { agent, postgres, controllers, peers, guard, directory, loops }
    }

    /// Kills the agent, and begins another one on what is on disk, with what the guard holds.
    pub(super) async fn restart(mut self) -> Self {
        self.loops.shutdown().await;
        let guarded = *self.guard.held.lock().unwrap();
        Self::begin_in(self.directory, self.postgres, guarded).await
    }

    /// No controller answers any more.
    pub(super) fn silence(&self) {
        *self.controllers.reply.lock().unwrap() = None;
    }

    pub(super) async fn command(&self, envelope: CommandEnvelope) -> CommandState {
        self.agent.run_command(envelope, Duration::from_secs(5)).await
    }

    pub(super) fn stored(&self) -> Memory {
        MemoryFile::new(self.directory.path(), cluster(), node("n1")).load().unwrap().unwrap()
    }

    pub(super) fn answer(&self, assignment: Option<Assignment>, grant: Option<Grant>) {
        *self.controllers.reply.lock().unwrap() =
            Some(HeartbeatReply { assignment, grant, paused: false, may_leave: true, primary_flush_lsn: None });
    }

    pub(super) fn tasks(&self) -> BTreeMap<String, crate::domain::report::TaskState> {
        self.agent.report().tasks
    }
}

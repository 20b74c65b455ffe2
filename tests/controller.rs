//! A real controller on a real store: what it tells, once a change, and what it says of a cancel that comes too late.
//!
//! Its agents are out of reach; their reports are handed to it as HTTP would. No decision is judged here.

#[path = "controller/alerts.rs"]
mod alerts;
#[path = "controller/notifications.rs"]
mod notifications;
#[path = "controller/receivers.rs"]
mod receivers;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use stormglass::adapters::control::{HttpControl, TcpPrimaryProbe};
use stormglass::adapters::store::SqliteStore;
use stormglass::adapters::system::SystemClock;
use stormglass::api::authentication::Caller;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::{PauseRequest, Problem};
use stormglass::controller::{self, ConfiguredNode, ControllerHandle, ControllerParts, Notifications, WaysIn};
use stormglass::domain::access::Role;
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::command::HeartbeatReply;
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::evidence::{Occasion, Witness};
use stormglass::domain::ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SiteName, SystemIdentifier};
use stormglass::domain::lsn::Timeline;
use stormglass::domain::operation::{
    JOURNAL_FORMAT, Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState,
};
use stormglass::domain::policy::{DurabilityMode, Policy};
use stormglass::domain::record::{ClusterRecord, RECORD_FORMAT};
use stormglass::domain::report::{
    ControlData, PostgresReport, PostgresState, Probes, ProxyReport, Report, Standing, Tags,
};
use stormglass::domain::trail::AuditRow;
use stormglass::ports::{Card, Clock, Drawer, Sole, Store, Term};
use stormglass::telemetry::metrics::ControllerMetrics;
use tokio::sync::watch;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const IDENTIFIER: SystemIdentifier = SystemIdentifier(7);
/// A port that refuses: reserved, and nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:1";

struct Running {
    handle: ControllerHandle,
    store: Arc<dyn Store>,
    directory: tempfile::TempDir,
    sequence: std::sync::atomic::AtomicU64,
    shutdown: watch::Sender<bool>,
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

fn record() -> ClusterRecord {
    ClusterRecord {
        format: RECORD_FORMAT,
        cluster: cluster(),
        system_identifier: IDENTIFIER,
        epoch: Epoch(3),
        number: RecordNumber(1),
        holder: node("n1"),
        holder_address: Address::new("n1", 5432),
        holder_confirmed: true,
        eligible: Default::default(),
        proposed: Default::default(),
        durability: DurabilityMode::SyncStrict,
        synchronous: Default::default(),
        synchronous_number: RecordNumber(1),
        alone_since: None,
        paused_until: None,
        fenced: Default::default(),
        members: Default::default(),
        holder_since: WallTime(0),
        longest_wait: Duration::ZERO,
        left_running: false,
    }
}

/// A term that nobody keeps alive.
struct Ending {
    sole: Sole,
    until: Moment,
}

#[async_trait]
impl Term for Ending {
    fn store(&self) -> Arc<dyn Store> {
        self.sole.store()
    }
    fn leads_until(&self) -> Option<Moment> {
        Some(self.until)
    }
    async fn ended(&self) {
        self.sole.ended().await;
    }
    async fn resign(&self) {}
}

/// A controller whose store holds `record` and `operations`.
async fn start(stale_after: Duration, operations: &[Operation]) -> Running {
    start_for(None, stale_after, operations).await
}

/// The same; with `leads_for`, one of several that leads for no longer.
async fn start_for(leads_for: Option<Duration>, stale_after: Duration, operations: &[Operation]) -> Running {
    start_with(leads_for, stale_after, operations, WaysIn::default(), &[]).await
}

/// The same, with ways in beside the API, and alerts that an earlier controller accepted.
async fn start_with(
    leads_for: Option<Duration>,
    stale_after: Duration,
    operations: &[Operation],
    ways: WaysIn,
    accepted: &[Card],
) -> Running {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&directory.path().join("store.db")).expect("a new store"));
    store.swap_record(None, &record()).await.expect("stored");
    for operation in operations {
        store.save_operation(operation).await.expect("stored");
    }
    for card in accepted {
        store.insert_card(Drawer::Alerts, card).await.expect("stored");
    }
    run_on(directory, store, leads_for, stale_after, ways, Notifications::default()).await
}

/// A controller on a store that is there.
async fn run_on(
    directory: tempfile::TempDir,
    store: Arc<dyn Store>,
    leads_for: Option<Duration>,
    stale_after: Duration,
    ways: WaysIn,
    notifications: Notifications,
) -> Running {
    let configured = |name: &str| ConfiguredNode {
        name: node(name),
        site: SiteName::new("a").expect("valid"),
        agent: NOWHERE.to_owned(),
    };
    let proxy = ProxyName::new("proxy1").expect("valid");
    let nodes = ["n1", "n2"].map(|name| (node(name), NOWHERE.to_owned()));
    let control = HttpControl::new(nodes.into(), [(proxy.clone(), NOWHERE.to_owned())].into(), "token").expect("good");
    let control = Arc::new(control);
    let (shutdown, stopped) = watch::channel(false);
    let policy = Policy {
        durability: DurabilityMode::SyncStrict,
        report_stale_after: stale_after,
        ..Policy::for_rto(Duration::from_secs(5))
    };
    let clock = Arc::new(SystemClock::new().expect("a clock"));
    let sole = Sole::new(store.clone());
    let term: Arc<dyn Term> = match leads_for {
        None => Arc::new(sole),
        Some(leads_for) => Arc::new(Ending { sole, until: clock.now().plus(leads_for) }),
    };
    let parts = ControllerParts {
        backup: None,
        name: "controller-1".to_owned(),
        cluster: cluster(),
        policy,
        circumstances: Default::default(),
        protection: tokio::sync::watch::channel(Default::default()).1,
        sequences: Default::default(),
        nodes: vec![configured("n1"), configured("n2")],
        traffic: Default::default(),
        proxies: vec![proxy],
        clock,
        term,
        node_control: control.clone(),
        proxy_control: control,
        primary_probe: Arc::new(TcpPrimaryProbe),
        name_service: None,
        metrics: Arc::new(ControllerMetrics::new("test")),
        ways: Arc::new(ways),
        notifications,
        prediction: None,
    };
    let handle = controller::start(parts, stopped).await.expect("starts");
    Running { handle, store, directory, sequence: Default::default(), shutdown }
}

impl Running {
    async fn hear(&self, name: &str, change: impl FnOnce(&mut Report)) {
        self.answer(name, change).await.expect("heard");
    }

    async fn answer(&self, name: &str, change: impl FnOnce(&mut Report)) -> Result<HeartbeatReply, Problem> {
        let mut report = Report {
            cluster: cluster(),
            node: node(name),
            site: SiteName::new("a").expect("valid"),
            address: Address::new(name, 5432),
            boot: BootId("boot".to_owned()),
            incarnation: "1".to_owned(),
            sequence: self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            sent_at: Moment(1),
            version: "0".to_owned(),
            standing: Standing { highest_epoch: Epoch(3), ..Standing::default() },
            postgres: PostgresReport {
                state: PostgresState::Running,
                control: Some(ControlData {
                    system_identifier: IDENTIFIER,
                    cluster_state: "in production".to_owned(),
                    timeline: Timeline(1),
                    checkpoint: stormglass::domain::Lsn(1),
                    major_version: 15,
                }),
                live: None,
                probes: Probes::default(),
                disk: None,
            },
            tags: Tags::default(),
            tasks: Default::default(),
            protection: None,
        };
        change(&mut report);
        self.handle.heartbeat(report).await
    }

    async fn hear_proxy(&self, leads_to: &str, error: Option<&str>) {
        let report = ProxyReport {
            cluster: cluster(),
            proxy: ProxyName::new("proxy1").expect("valid"),
            site: SiteName::new("a").expect("valid"),
            write_address: Address::new("proxy1", 5000),
            sequence: self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            incarnation: "1".to_owned(),
            write_target: Some(Address::new(leads_to, 5432)),
            holding: false,
            epoch: Epoch(3),
            error: error.map(str::to_owned),
            path: None,
            traffic: None,
            protection: None,
        };
        self.handle.proxy_heartbeat(report).await.expect("heard");
        // The proxies are judged once a turn, after what was heard in it.
        self.handle.status("main").await.expect("answers");
    }

    /// Messages of the events of this name, oldest first.
    async fn told(&self, event: &str) -> Vec<String> {
        let rows = self.handle.events("main", 1000).await.expect("listed");
        rows.into_iter().rev().filter(|row| row.event == event).map(|row| row.message).collect()
    }

    /// Waits until so many events of this name were stored, and returns them.
    async fn until_told(&self, event: &str, count: usize) -> Vec<String> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.told(event).await.len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{event} was not told {count} times"));
        self.told(event).await
    }
}

fn caller() -> Caller {
    Caller { name: "on-call".to_owned(), role: Role::Operator, peer: ([127, 0, 0, 1], 1).into() }
}

#[tokio::test]
async fn what_changes_is_told_once() {
    let controller = start(PATIENCE, &[]).await;
    assert_eq!(controller.until_told("controller_started", 1).await.len(), 1);
    let started = "stormglass_controller_start_timestamp_seconds ";
    let metrics = controller.handle.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix(started)).expect("a sample");
    assert!(value.parse::<f64>().expect("a number") > 1e9, "{value}");

    let leased = |report: &mut Report| {
        (report.standing.lease_epoch, report.standing.lease_remaining) = (Some(Epoch(3)), Some(Duration::from_secs(1)));
    };
    for _ in 0..3 {
        controller.hear("n1", leased).await;
        controller
            .hear("n2", |report| {
                report.postgres.control.as_mut().expect("there").system_identifier = SystemIdentifier(8)
            })
            .await;
    }
    let unrenewed = controller.until_told("lease_not_renewed", 1).await;
    assert_eq!(unrenewed, ["The lease of n1 was not renewed: it has not consented to this epoch."]);
    let refused = controller.until_told("node_refused", 1).await;
    assert!(refused[0].starts_with("Node n2 cannot be used: other system identifier (8, "), "{refused:?}");
    let consenting = |report: &mut Report| {
        leased(report);
        report.standing.consented = Some(Epoch(3));
    };
    controller.hear("n1", consenting).await;
    controller.hear("n1", leased).await;
    assert_eq!(controller.until_told("lease_not_renewed", 2).await.len(), 2, "a new refusal after a renewal is news");

    for (leads_to, error) in
        [("n1", None), ("n2", None), ("n2", None), ("n2", Some("no answer")), ("n2", Some("still"))]
    {
        controller.hear_proxy(leads_to, error).await;
    }
    assert_eq!(controller.until_told("proxy_failed", 1).await, ["Proxy proxy1 does not follow: no answer."]);
    assert_eq!(controller.until_told("proxy_redirected", 1).await, ["Proxy proxy1 leads writes to n2:5432."]);
    for event in ["lease_not_renewed", "node_refused", "proxy_failed", "proxy_redirected", "controller_started"] {
        assert_eq!(controller.told(event).await.len(), 1 + usize::from(event == "lease_not_renewed"), "{event}");
    }
}

#[tokio::test]
async fn pauses_are_told_with_who_asked_and_when_they_expire() {
    let controller = start(PATIENCE, &[]).await;
    controller.handle.resume("main", &caller()).await.expect("harmless");
    let pause = |seconds| PauseRequest { duration_seconds: Some(seconds) };
    controller.handle.pause("main", pause(3600), &caller()).await.expect("stored");
    let paused = controller.until_told("paused_until", 1).await;
    assert!(paused[0].ends_with(", as on-call asked."), "{paused:?}");
    controller.handle.resume("main", &caller()).await.expect("stored");
    let resumed = controller.until_told("resumed", 1).await;
    assert_eq!(resumed, ["Automatic operations are on again, as on-call asked."]);
    controller.handle.pause("main", pause(1), &caller()).await.expect("stored");
    let resumed = controller.until_told("resumed", 2).await;
    assert_eq!(resumed[1], "Automatic operations are on again: the pause expired.");
}

#[tokio::test]
async fn silence_is_told_once_and_so_is_its_end() {
    let controller = start(Duration::from_millis(200), &[]).await;
    controller.hear("n2", |_| {}).await;
    let silent = |rows: Vec<String>| rows.into_iter().filter(|row| row.contains(" n2 ")).count();
    let until = async |count| {
        while silent(controller.told("agent_silent").await) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until(1)).await.expect("its silence is told");
    controller.hear("n2", |_| {}).await;
    assert_eq!(controller.until_told("agent_heard", 2).await[1], "The agent of n2 reports.");
    tokio::time::timeout(PATIENCE, until(2)).await.expect("the next silence is another one");
}

#[tokio::test]
async fn a_store_that_takes_no_writes_is_told_once() {
    let controller = start(PATIENCE, &[]).await;
    controller.until_told("controller_started", 1).await;
    let file = rusqlite::Connection::open(controller.directory.path().join("store.db")).expect("the controller's file");
    file.busy_timeout(PATIENCE).expect("set");
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(FAIL, 'no room'); END";
    file.execute_batch(refuse).expect("made");
    let row = || AuditRow {
        wall: WallTime(0),
        who: "on-call".to_owned(),
        from: "here".to_owned(),
        what: "test".to_owned(),
        outcome: "none".to_owned(),
    };
    for _ in 0..3 {
        controller.handle.record_audit(row()).await;
    }
    let failed = controller.until_told("store_failed", 1).await;
    assert!(failed[0].contains("no room"), "{failed:?}");
    file.execute_batch("DROP TRIGGER refuse").expect("dropped");
    controller.handle.record_audit(row()).await;
    file.execute_batch(refuse).expect("made");
    controller.handle.record_audit(row()).await;
    assert_eq!(controller.until_told("store_failed", 2).await.len(), 2, "news only after a write that was taken");
    let metrics = controller.handle.metrics();
    for action in ["append_audit", "append_event", "load_record"] {
        let sample = format!("stormglass_store_seconds_count{{action=\"{action}\"}} ");
        assert!(metrics.contains(&sample), "{action} is not timed:\n{metrics}");
    }
}

/// A failover from n1 to n2, as the store of a controller that went away would hold it.
fn failover(epoch_after: Option<Epoch>, journal: Vec<StepEvent>) -> Operation {
    Operation {
        format: JOURNAL_FORMAT,
        id: OperationId("op-1".to_owned()),
        cluster: cluster(),
        kind: OperationKind::Failover {
            from: node("n1"),
            to: node("n2"),
            accept_data_loss: true,
            old_primary_is_off: false,
        },
        status: OperationStatus::Running,
        origin: "on-call".to_owned(),
        reasons: Vec::new(),
        epoch_before: Epoch(3),
        epoch_after,
        cancel_requested: false,
        detected_at: Moment(1),
        decided_at: Moment(1),
        begun_wall: WallTime(0),
        ended_at: None,
        ended_wall: None,
        message: None,
        journal,
        evidence: Vec::new(),
    }
}

#[tokio::test]
async fn a_cancel_is_accepted_only_where_it_is_honoured() {
    let controller = start(PATIENCE, &[failover(None, Vec::new())]).await;
    let reply = controller.handle.cancel("op-1", &caller()).await.expect("accepted");
    assert!(reply.message.starts_with("the failover ends before the epoch is raised"), "{}", reply.message);
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            let operation = controller.handle.operation("op-1").await.expect("there");
            if operation.status.is_final() {
                return operation;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(ended.await.expect("it ends").status, OperationStatus::Cancelled);

    let at = StepEvent {
        step: StepName::AdvanceEpoch,
        attempt: 1,
        state: StepState::Unknown { error: "the store did not answer".to_owned() },
        epoch: Epoch(4),
        at: Moment(1),
        wall: WallTime(0),
    };
    let fenced = StepEvent {
        step: StepName::Fence,
        state: StepState::Succeeded { output: Default::default() },
        epoch: Epoch(3),
        ..at.clone()
    };
    let controller = start(PATIENCE, &[failover(None, vec![fenced, at])]).await;
    let refused = controller.handle.cancel("op-1", &caller()).await.expect_err("it may have risen");
    assert_eq!(refused.status, 409);
    assert!(refused.detail.contains("it only goes forward"), "{}", refused.detail);
    let operation = controller.handle.operation("op-1").await.expect("there");
    assert!(!operation.cancel_requested, "a refused wish is not written down");
}

#[tokio::test]
async fn an_operation_keeps_what_was_known_when_it_was_decided() {
    let controller = start(PATIENCE, &[]).await;
    controller.hear_proxy("n1", None).await;
    controller.hear("n2", |_| {}).await;
    // Its agent says that nothing runs: with nobody eligible, the primary is restarted in place.
    controller.hear("n1", |report| report.postgres.state = PostgresState::Stopped).await;
    let begun = tokio::time::timeout(PATIENCE, async {
        loop {
            let operations = controller.handle.operations(Some("main"), 10).await.expect("listed");
            if let Some(operation) = operations.into_iter().find(|operation| operation.kind.label() == "failover") {
                return operation;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let operation = begun.await.expect("a failover begins");
    let said = |witness, source: &str, words: &str| {
        operation.evidence.iter().any(|said| {
            (said.occasion, said.witness) == (Occasion::Decided, witness)
                && said.source == source
                && said.statement.contains(words)
        })
    };
    for (witness, source, words) in [
        (Witness::Agent, "n1", "PostgreSQL is stopped, holds no lease"),
        (Witness::Agent, "n2", "PostgreSQL runs"),
        (Witness::Controller, "controller", "no proof yet that it cannot write: n1: lease may run"),
        (Witness::Controller, "controller", "record 1 of epoch 3: holder n1, eligible nobody, proposed nobody"),
        (Witness::Controller, "controller", "has renewed no lease of it"),
        (Witness::Proxy, "proxy1", "writes lead to n1:5432"),
    ] {
        assert!(said(witness, source, words), "{witness:?} {source} did not say {words:?}: {:#?}", operation.evidence);
    }
    let decided: Vec<_> = operation.evidence.iter().filter(|said| said.occasion == Occasion::Decided).collect();
    assert!(decided.iter().all(|said| said.at == decided[0].at && said.at >= operation.decided_at), "one moment");
}

#[tokio::test]
async fn a_leadership_with_no_time_for_a_lease_is_none() {
    let stale_after = Duration::from_secs(5);
    let several = start_for(Some(Duration::from_secs(3600)), stale_after, &[]).await;
    several.hear("n1", |_| {}).await;
    let ending = start_for(Some(Duration::ZERO), stale_after, &[]).await;
    let problem =
        ending.answer("n1", |_| {}).await.expect_err("an answer would keep the holder from asking its standbys");
    assert!(problem.is_not_the_leader(), "{problem:?}");
}

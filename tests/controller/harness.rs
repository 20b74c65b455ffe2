//! The controller that these tests start: a real one on a real store, with agents out of reach. Asserts nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use stormglass::adapters::control::{HttpControl, TcpPrimaryProbe};
use stormglass::adapters::steps::HostSteps;
use stormglass::adapters::store::SqliteStore;
use stormglass::adapters::system::SystemClock;
use stormglass::api::authentication::Caller;
use stormglass::api::controller::ControllerHandler;
use stormglass::api::wire::Problem;
use stormglass::config::backup::ControllerBackupSection;
use stormglass::controller::{
    self, ConfiguredNode, ControllerHandle, ControllerParts, Notifications, Prediction, Sequences, WaysIn,
};
use stormglass::domain::access::Role;
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::command::HeartbeatReply;
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::{Address, ClusterName, NodeName, ProxyName, SiteName, SystemIdentifier};
use stormglass::domain::lsn::Timeline;
use stormglass::domain::operation::Operation;
use stormglass::domain::policy::{DurabilityMode, Policy, PredictionPolicy};
use stormglass::domain::record::ClusterRecord;
use stormglass::domain::report::{
    ControlData, PostgresReport, PostgresState, Probes, ProxyReport, Report, Standing, Tags,
};
use stormglass::domain::sequence::Sequence;
use stormglass::ports::{Card, Clock, Drawer, Sole, Store, Term};
use stormglass::telemetry::metrics::ControllerMetrics;
use tokio::sync::watch;

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const IDENTIFIER: SystemIdentifier = SystemIdentifier(7);
/// A port that refuses: reserved, and nothing listens there.
pub const NOWHERE: &str = "http://127.0.0.1:1";

pub struct Running {
    pub handle: ControllerHandle,
    pub store: Arc<dyn Store>,
    pub directory: tempfile::TempDir,
    pub sequence: std::sync::atomic::AtomicU64,
    pub shutdown: watch::Sender<bool>,
}

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("valid")
}

pub fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

pub fn record() -> ClusterRecord {
    ClusterRecord {
        epoch: Epoch(3),
        holder_confirmed: true,
        ..ClusterRecord::first(cluster(), IDENTIFIER, node("n1"), Address::new("n1", 5432), DurabilityMode::SyncStrict)
    }
}

/// A term that nobody keeps alive.
pub struct Ending {
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
pub async fn start(stale_after: Duration, operations: &[Operation]) -> Running {
    start_for(None, stale_after, operations).await
}

/// The same; with `leads_for`, one of several that leads for no longer.
pub async fn start_for(leads_for: Option<Duration>, stale_after: Duration, operations: &[Operation]) -> Running {
    start_with(leads_for, stale_after, operations, WaysIn::default(), &[]).await
}

/// The same, with ways in beside the API, and alerts that an earlier controller accepted.
pub async fn start_with(
    leads_for: Option<Duration>,
    stale_after: Duration,
    operations: &[Operation],
    ways: WaysIn,
    accepted: &[Card],
) -> Running {
    let setting = Setting { leads_for, stale_after, operations, ways, accepted, ..Setting::default() };
    start_in(setting).await
}

/// What a controller finds when it starts, and how it is configured.
pub struct Setting<'a> {
    pub leads_for: Option<Duration>,
    pub stale_after: Duration,
    pub operations: &'a [Operation],
    pub ways: WaysIn,
    pub accepted: &'a [Card],
    pub sequences: Vec<Sequence>,
    pub backup: Option<ControllerBackupSection>,
    pub prediction: Option<Prediction>,
    pub notifications: Notifications,
    /// Where the audit log is; in the controller's own store if not given.
    pub audit: Option<Arc<dyn Store>>,
    /// So much later it is by its wall clock.
    pub later: Arc<AtomicI64>,
    /// Of the predictor; it looks ahead sixty of them.
    pub step: Duration,
}

impl Default for Setting<'_> {
    fn default() -> Self {
        Self {
            leads_for: None,
            stale_after: PATIENCE,
            operations: &[],
            ways: WaysIn::default(),
            accepted: &[],
            sequences: Vec::new(),
            backup: None,
            prediction: None,
            notifications: Notifications::default(),
            audit: None,
            later: Default::default(),
            step: Duration::from_secs(1),
        }
    }
}

/// A wall clock that a test puts forward.
pub struct WallClock {
    host: SystemClock,
    later: Arc<AtomicI64>,
}

impl Clock for WallClock {
    fn now(&self) -> Moment {
        self.host.now()
    }
    fn wall(&self) -> WallTime {
        WallTime(self.host.wall().0 + self.later.load(Ordering::Relaxed))
    }
    fn boot(&self) -> BootId {
        self.host.boot()
    }
}

pub async fn start_in(setting: Setting<'_>) -> Running {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&directory.path().join("store.db")).expect("a new store"));
    store.swap_record(None, &record()).await.expect("stored");
    for operation in setting.operations {
        store.save_operation(operation).await.expect("stored");
    }
    for card in setting.accepted {
        store.insert_card(Drawer::Alerts, card).await.expect("stored");
    }
    run_in(directory, store, setting).await
}

/// A controller on a store that is there.
pub async fn run_on(
    directory: tempfile::TempDir,
    store: Arc<dyn Store>,
    leads_for: Option<Duration>,
    stale_after: Duration,
    ways: WaysIn,
    notifications: Notifications,
) -> Running {
    run_in(directory, store, Setting { leads_for, stale_after, ways, notifications, ..Setting::default() }).await
}

/// The same, however it is configured; what the store shall hold is there already.
pub async fn run_in(directory: tempfile::TempDir, store: Arc<dyn Store>, setting: Setting<'_>) -> Running {
    let Setting {
        leads_for, stale_after, ways, sequences, backup, prediction, notifications, audit, later, step, ..
    } = setting;
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
        prediction: PredictionPolicy::for_step(step),
        ..Policy::for_rto(Duration::from_secs(5))
    };
    let clock = Arc::new(WallClock { host: SystemClock::new().expect("a clock"), later });
    let resolve = |reference: &str| Err(format!("no secret is needed, and {reference} is asked for"));
    #[expect(clippy::disallowed_methods, reason = "what a step runs is found where the test's own programs are")]
    let path = std::env::var("PATH").expect("a path");
    let runner = HostSteps::new(Arc::new(resolve), [("PATH".to_owned(), path)].into());
    let sole = Sole::new(store.clone());
    let term: Arc<dyn Term> = match leads_for {
        None => Arc::new(sole),
        Some(leads_for) => Arc::new(Ending { sole, until: clock.now().plus(leads_for) }),
    };
    let parts = ControllerParts {
        audit,
        backup,
        name: "controller-1".to_owned(),
        cluster: cluster(),
        policy,
        definition: Default::default(),
        circumstances: Default::default(),
        protection: watch::channel(Default::default()).1,
        sequences: Sequences { all: sequences.into(), runner: Arc::new(runner), stacks: Default::default() },
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
        prediction,
    };
    let handle = controller::start(parts, stopped).await.expect("starts");
    Running { handle, store, directory, sequence: Default::default(), shutdown }
}

impl Running {
    pub async fn hear(&self, name: &str, change: impl FnOnce(&mut Report)) {
        self.answer(name, change).await.expect("heard");
    }

    pub async fn answer(&self, name: &str, change: impl FnOnce(&mut Report)) -> Result<HeartbeatReply, Problem> {
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
                damage: None,
                live: None,
                probes: Probes::default(),
                disk: None,
                memory: None,
            },
            tags: Tags::default(),
            tasks: Default::default(),
            protection: None,
        };
        change(&mut report);
        self.handle.heartbeat(report).await
    }

    pub async fn hear_proxy(&self, leads_to: &str, error: Option<&str>) {
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

    /// The primary accepts writes.
    pub async fn hear_a_healthy_primary(&self) {
        self.hear("n1", |report| {
            let standing = &mut report.standing;
            (standing.lease_epoch, standing.consented) = (Some(Epoch(3)), Some(Epoch(3)));
            standing.lease_remaining = Some(Duration::from_secs(3600));
        })
        .await;
    }

    /// Waits until so many operations of this kind have ended, and returns them, the oldest first.
    pub async fn until_ended(&self, kind: &str, count: usize) -> Vec<Operation> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let mut found = self.handle.operations(None, 100).await.expect("listed");
                found.retain(|operation| operation.kind.label() == kind && operation.status.is_final());
                if found.len() >= count {
                    found.sort_by_key(|operation| operation.begun_wall);
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{count} operations of the kind {kind} did not end"))
    }

    /// Messages of the events of this name, oldest first.
    pub async fn told(&self, event: &str) -> Vec<String> {
        let rows = self.handle.events("main", 1000).await.expect("listed");
        rows.into_iter().rev().filter(|row| row.event == event).map(|row| row.message).collect()
    }

    /// Waits until so many events of this name were stored, and returns them.
    pub async fn until_told(&self, event: &str, count: usize) -> Vec<String> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.told(event).await.len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{event} was not told {count} times"));
        self.told(event).await
    }
}

/// Looks until there is something to see.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

pub fn caller() -> Caller {
    Caller { name: "on-call".to_owned(), role: Role::Operator, clusters: Vec::new(), peer: ([127, 0, 0, 1], 1).into() }
}

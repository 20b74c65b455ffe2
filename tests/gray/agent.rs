//! A whole agent on a stalled disk: the real loops and the real PostgreSQL, with a controller that only grants.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use stormglass::adapters::agent_memory::MemoryFile;
use stormglass::adapters::postgres::Postgres;
use stormglass::adapters::system::{SystemClock, boot_time, family};
use stormglass::agent::{self, AgentParts};
use stormglass::config::AgentConfig;
use stormglass::domain::command::*;
use stormglass::domain::epoch::{Epoch, RecordNumber};
use stormglass::domain::ids::{ClusterName, NodeName, OperationId};
use stormglass::domain::lease::{Grant, LeaseTimers};
use stormglass::domain::operation::StepName;
use stormglass::domain::report::{ProxyReport, Report};
use stormglass::ports::agent::*;
use stormglass::ports::{LocalPostgres, postgres::Presence};
use tokio::task::JoinSet;

use super::support::{Node, PATIENCE, Place};
use super::volume::Volume;

const EPOCH: Epoch = Epoch(1);

/// Grants to whoever reports, and remembers the last report.
#[derive(Default)]
struct Controller {
    heard: AtomicU64,
    last: Mutex<Option<Report>>,
}

impl Controller {
    /// Whether the last report, if there was one, is as described.
    fn last_is(&self, described: impl Fn(&Report) -> bool) -> bool {
        self.last.lock().expect("unpoisoned").as_ref().is_some_and(described)
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::SeqCst)
    }
}

fn cluster() -> ClusterName {
    ClusterName::new("main").expect("valid")
}

fn no_answer() -> LinkError {
    LinkError::NoAnswer { problems: "nobody is there".to_owned() }
}

#[async_trait]
impl ControllerLink for Controller {
    async fn heartbeat(&self, report: &Report, _: Duration) -> Result<HeartbeatReply, LinkError> {
        *self.last.lock().expect("unpoisoned") = Some(report.clone());
        self.heard.fetch_add(1, Ordering::SeqCst);
        let system_identifier = report.postgres.control.as_ref().ok_or_else(no_answer)?.system_identifier;
        let number = RecordNumber(1);
        let role =
            AssignedRole::Primary { synchronous: BTreeSet::new(), synchronous_number: number, block_when_alone: false };
        let assignment = Assignment {
            cluster: cluster(),
            system_identifier,
            epoch: EPOCH,
            number,
            role,
            eligible: BTreeSet::new(),
            renewers: None,
            peers: BTreeSet::new(),
        };
        let timers = LeaseTimers::for_rto(Duration::from_secs(10));
        let grant = Some(Grant { epoch: EPOCH, number, timers });
        Ok(HeartbeatReply {
            assignment: Some(assignment),
            grant,
            paused: false,
            may_leave: false,
            primary_flush_lsn: None,
        })
    }

    async fn proxy_heartbeat(&self, _: &ProxyReport, _: Duration) -> Result<ProxyAssignment, LinkError> {
        Err(no_answer())
    }
}

struct NoPeers;

#[async_trait]
impl PeerLink for NoPeers {
    async fn promise(&self, _: &NodeName, _: &str, _: &PromiseRequest, _: Duration) -> Result<PromiseReply, LinkError> {
        Err(no_answer())
    }
}

struct PatientGuard;

#[async_trait]
impl GuardLink for PatientGuard {
    fn at_start(&self) -> (Option<HeldLease>, Option<Epoch>) {
        (None, None)
    }
    async fn hold(&self, _: HeldLease) -> Result<(), GuardError> {
        Ok(())
    }
    fn release(&self, _: Epoch) {}
    fn paused(&self, _: bool) {}
    async fn next_event(&self) -> GuardEvent {
        std::future::pending().await
    }
}

fn config(node: &Node, state: &std::path::Path) -> AgentConfig {
    let text = format!(
        "[agent]\ncluster = \"main\"\nsite = \"a\"\nlisten = \"127.0.0.1:0\"\nstate_directory = \"{}\"\n\
         controllers = []\ntoken = \"env:NONE\"\n\
         [postgresql]\nnode = \"{}\"\ndata_directory = \"{}\"\n\
         address = {{ host = \"{}\", port = {} }}\nlisten_addresses = \"*\"\n",
        state.display(),
        node.name,
        node.data().display(),
        node.settings.address.host,
        node.settings.address.port,
    );
    toml::from_str(&text).expect("a valid configuration")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begin = boot_time();
    while !condition() {
        assert!(boot_time() - begin < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn nothing_that_matters_waits_for_a_stalled_disk() {
    let place = Place::new();
    let Some(volume) = Volume::ext4(&place, "volume") else { return };
    let node = place.node_at("n1", &[], volume.directory.join("data"));
    node.init_primary().await;
    node.sql("create table kept (number int)").await;
    // The agent's own state is on another disk.
    let state = place.directory("state");
    let controller = Arc::new(Controller::default());
    let config = config(&node, &state);
    let parts = AgentParts {
        backup: None,
        protection: tokio::sync::watch::channel(Default::default()).1,
        clock: Arc::new(SystemClock::new().expect("a clock")),
        postgres: Arc::new(Postgres::new(node.settings.clone()).expect("good settings")),
        memory: Arc::new(MemoryFile::new(&state, cluster(), node.name.clone())),
        controllers: controller.clone(),
        peers: Arc::new(NoPeers),
        guard: Arc::new(PatientGuard),
        config,
    };
    let mut loops = JoinSet::new();
    let agent = agent::spawn(parts, &mut loops).await.expect("begins");
    until("the agent holds a lease and its write probe passed", || {
        controller.last_is(|report| {
            report.standing.lease_epoch == Some(EPOCH) && report.postgres.probes.write.last_success_age.is_some()
        })
    })
    .await;

    volume.freeze();
    let client = node.client().await.expect("connects");
    let hung = tokio::spawn(async move { client.batch_execute("insert into kept values (1)").await });
    until("the write probe fails", || controller.last_is(|report| report.postgres.probes.write.failing_for.is_some()))
        .await;
    assert!(!hung.is_finished(), "the disk is not stalled");
    // Many probes later: heartbeats go on, and renew.
    let heard = controller.heard();
    until("heartbeats go on", || controller.heard() >= heard + 8).await;
    assert!(controller.last_is(|report| report.standing.lease_epoch == Some(EPOCH)), "the lease was not renewed");

    let envelope = CommandEnvelope {
        cluster: cluster(),
        epoch: EPOCH,
        operation: OperationId("1".to_owned()),
        step: StepName::Fence,
        attempt: 1,
        command: Command::Fence,
    };
    let reply = agent.command(envelope, PATIENCE).await;
    assert!(matches!(reply.state, CommandState::Succeeded { .. }), "{:?}", reply.state);
    assert_eq!(family::scan(&node.family()).expect("/proc"), Vec::<i32>::new(), "somebody may run again");
    until("the fence is told", || controller.last_is(|report| report.standing.fence_confirmed == Some(EPOCH))).await;

    volume.thaw();
    hung.await.expect("not cancelled").expect_err("its server was killed before the disk answered");
    loops.shutdown().await;
    // What was killed while it waited for the disk counts as gone, and leaves once the disk answers.
    node.until("what was killed has left", async |node| node.postgres.presence().await == Presence::Stopped).await;
    node.start_primary().await;
    assert_eq!(
        node.sql("select count(*) from kept").await.as_deref(),
        Some("0"),
        "nothing was committed after the fence"
    );
}

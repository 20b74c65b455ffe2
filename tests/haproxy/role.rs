//! The proxy role over its HTTP, with a real HAProxy.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stormglass::adapters::haproxy::HaproxySettings;
use stormglass::agent::proxy::{self, ProxyError};
use stormglass::domain::command::{Command, CommandEnvelope, CommandReply, CommandState, ProxyAssignment, ProxyReply};
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::{Address, OperationId};
use stormglass::domain::operation::StepName;
use stormglass::domain::report::ProxyReport;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::{self, FakeController, Lab, TOKEN, assignment, until};

pub struct Running {
    task: JoinHandle<Result<(), ProxyError>>,
    stop: Option<oneshot::Sender<()>>,
    agent: Address,
    client: reqwest::Client,
}

impl Running {
    pub fn start(lab: &mut Lab, controller: &Arc<FakeController>, verify: Option<&str>) -> Self {
        let parts = lab.parts(Arc::clone(controller), verify);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(proxy::run(parts, async {
            let _dropped_or_sent = stopped.await;
        }));
        Self {
            task,
            stop: Some(stop),
            agent: lab.agent.clone(),
            client: reqwest::Client::builder().no_proxy().build().expect("client"),
        }
    }

    async fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> T {
        let url = format!("http://{}{path}", self.agent);
        let answer = self.client.post(url).bearer_auth(TOKEN).json(body).send().await.expect("answers");
        assert_eq!(answer.status(), 200);
        answer.json().await.expect("a document")
    }

    pub async fn assign(&self, assignment: &ProxyAssignment) -> ProxyReply {
        self.post("/v1/proxy/assignment", assignment).await
    }

    pub async fn verify(&self, epoch: u64, expect: &Address) -> CommandState {
        let envelope = CommandEnvelope {
            cluster: harness::cluster(),
            epoch: Epoch(epoch),
            operation: OperationId("test".to_owned()),
            step: StepName::Verify,
            attempt: 1,
            command: Command::VerifyWrite { expect: expect.clone() },
        };
        self.post::<CommandReply>("/v1/command", &envelope).await.state
    }

    async fn text(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.agent);
        self.client.get(url).send().await.expect("answers").text().await.expect("text")
    }

    pub async fn report(&self) -> ProxyReport {
        serde_json::from_str(&self.text("/health").await).expect("a report")
    }

    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.expect("no panic").expect("orderly");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn assignments_are_put_in_force_older_ones_refused_and_the_highest_survives_a_restart() {
    let mut lab = Lab::new();
    let controller = Arc::new(FakeController::default());
    let role = Running::start(&mut lab, &controller, None);
    let first = role.assign(&assignment(2, 5, Some(&lab.a.address), false)).await;
    assert_eq!((first.error, first.report.write_target), (None, Some(lab.a.address.clone())));
    let begun = Instant::now();
    let second = role.assign(&assignment(3, 6, Some(&lab.b.address), false)).await;
    println!("assignment over HTTP, stored and in force: {:?}", begun.elapsed());
    assert_eq!((second.error, second.report.write_target), (None, Some(lab.b.address.clone())));
    assert_eq!(lab.connect().await.server, "B");
    for (epoch, number) in [(2, 9), (3, 5)] {
        let refused = role.assign(&assignment(epoch, number, Some(&lab.a.address), false)).await;
        assert!(refused.error.expect("refused").contains("older than epoch 3 record 6"));
    }
    let mut elsewhere = assignment(9, 9, Some(&lab.a.address), false);
    elsewhere.cluster = stormglass::domain::ClusterName::new("other").expect("valid");
    assert!(role.assign(&elsewhere).await.error.expect("refused").contains("serves cluster main"));
    assert_eq!(lab.connect().await.server, "B");
    until("the change is told", async || {
        let reports = controller.reports.lock().expect("lock");
        reports
            .last()
            .is_some_and(|report| report.epoch == Epoch(3) && report.write_target == Some(lab.b.address.clone()))
    })
    .await;

    // The agent dies, HAProxy and its clients stay; the next agent adopts it and has forgotten nothing.
    let session = lab.connect().await;
    let master = lab.processes().await.master;
    role.stop().await;
    assert!(session.is_open());
    let role = Running::start(&mut lab, &controller, None);
    until("adopted", async || role.report().await.write_target == Some(lab.b.address.clone())).await;
    let refused = role.assign(&assignment(2, 9, Some(&lab.a.address), false)).await;
    assert!(refused.error.is_some());
    assert_eq!(lab.processes().await.master, master);
    assert!(session.is_open(), "adoption cut a session");
    assert!(role.text("/metrics").await.contains("stormglass_proxy_up 1"));
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_repaired_and_a_dead_haproxy_comes_back_where_it_should() {
    let mut lab = Lab::new();
    lab.settings.answer_timeout = HaproxySettings::ANSWER_TIMEOUT;
    let controller = Arc::new(FakeController::default());
    *controller.answer.lock().expect("lock") = Some(assignment(1, 1, Some(&lab.a.address), false));
    let role = Running::start(&mut lab, &controller, None);
    until("led to a", async || role.report().await.write_target == Some(lab.a.address.clone())).await;

    let by_hand = format!("set server pg_write/primary addr {} port {}", lab.b.address.host, lab.b.address.port);
    lab.runtime().ask("test", &by_hand).await.expect("answers");
    until("put right", async || lab.connect().await.server == "A").await;
    assert!(role.text("/metrics").await.contains("stormglass_proxy_drift_repairs_total"));

    lab.runtime().ask("test", "set server pg_write/primary state maint").await.expect("answers");
    let runtime = lab.runtime();
    until("taken back into service", async || {
        runtime.server("test", "pg_write", "primary").await.is_ok_and(|state| state.is_open)
    })
    .await;

    let master = lab.processes().await.master;
    let begun = Instant::now();
    harness::kill(master, rustix::process::Signal::KILL);
    until("started again", async || {
        lab.master().await.is_some_and(|now| now != master)
            && runtime.server("test", "pg_write", "primary").await.is_ok()
    })
    .await;
    println!("HAProxy killed, answers again after {:?}", begun.elapsed());
    until("leads again", async || lab.connect().await.server == "A").await;

    until("adopted", async || role.report().await.error.is_none()).await;

    // A worker that hangs is replaced without being asked to.
    harness::freeze(lab.processes().await.workers[0]).await;
    let begun = Instant::now();
    until("replaced", async || {
        let served = tokio::time::timeout(Duration::from_millis(200), harness::served_by(&lab.settings.write)).await;
        served == Ok(Some("A".to_owned()))
    })
    .await;

    println!("worker frozen, clients served again after {:?}", begun.elapsed());

    // Held by assignment, released by the next one.
    *controller.answer.lock().expect("lock") = Some(assignment(1, 2, Some(&lab.a.address), true));
    until("holding", async || role.report().await.holding).await;
    let client = tokio::spawn(lab.connect());
    let reply = role.assign(&assignment(2, 3, Some(&lab.b.address), false)).await;
    assert_eq!(reply.error, None);
    assert_eq!(client.await.expect("served").server, "B");
    role.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_removed_is_told_and_the_write_port_moved_all_the_same() {
    for is_master in [false, true] {
        let mut lab = Lab::new();
        let socket = if is_master { &lab.settings.master_socket } else { &lab.settings.stats_socket }.clone();
        let controller = Arc::new(FakeController::default());
        *controller.answer.lock().expect("lock") = Some(assignment(1, 1, Some(&lab.a.address), false));
        let role = Running::start(&mut lab, &controller, None);
        until("led to a", async || role.report().await.write_target == Some(lab.a.address.clone())).await;
        assert_eq!(lab.connect().await.server, "A");
        std::fs::remove_file(&socket).expect("it was there");

        let word = assignment(2, 2, Some(&lab.b.address), false);
        *controller.answer.lock().expect("lock") = Some(word.clone());
        let reply = role.assign(&word).await;
        assert_eq!((reply.error, reply.report.write_target), (None, Some(lab.b.address.clone())));
        assert_eq!(lab.connect().await.server, "B");
        let name = socket.display().to_string();
        until("told", async || role.report().await.error.is_some_and(|error| error.contains(&name))).await;
        role.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_the_only_node_that_calls_itself_primary_is_followed() {
    let mut lab = Lab::new();
    let controller = Arc::new(FakeController::default());
    let role = Running::start(&mut lab, &controller, None);
    assert_eq!(role.assign(&assignment(1, 1, Some(&lab.a.address), false)).await.error, None);
    lab.agent_a.is_primary.store(false, Ordering::SeqCst);
    until("nobody is named", async || {
        role.report().await.error.is_some_and(|error| error.contains("no node says that it is the primary"))
    })
    .await;
    assert_eq!(role.report().await.write_target, Some(lab.a.address.clone()), "it stays where it is");
    lab.agent_b.is_primary.store(true, Ordering::SeqCst);
    until("followed", async || role.report().await.write_target == Some(lab.b.address.clone())).await;
    until("said", async || role.report().await.error.is_none()).await;
    // Now both: it stays with the one whose agent still says yes.
    lab.agent_a.is_primary.store(true, Ordering::SeqCst);
    assert_eq!(lab.connect().await.server, "B");
    role.stop().await;
}

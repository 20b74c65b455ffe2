//! Three controllers as processes: one leads, the others say who; whoever is killed, stopped or told to go is replaced.
//! And the way from an embedded store to etcd, as a DBA walks it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stormglass::adapters::store::SqliteStore;
use stormglass::adapters::store::etcd::EtcdStore;
use stormglass::domain::clock::{BootId, Moment};
use stormglass::domain::ids::{Address, NodeName, SiteName};
use stormglass::domain::operation::OperationStatus;
use stormglass::domain::report::{PostgresReport, PostgresState, Probes, Report, Standing, Tags};
use stormglass::ports::Store;
use tokio::task::JoinSet;

use super::contract::{self, cluster, operation};
use super::server::{Etcd, until};

/// A controller's process.
struct Controller {
    url: String,
    child: Child,
}

impl Controller {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not 0");
        kill_process(pid, signal).expect("signalled");
    }

    async fn get(&self, path: &str) -> Option<(u16, Value)> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
        let request = client.expect("client").get(format!("{}{path}", self.url)).bearer_auth("viewer-secret");
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.ok()?))
    }

    /// What Alertmanager sends to each controller of its receiver, in the words that were recorded of it.
    async fn alert(&self) -> (u16, Value) {
        let starts = chrono::Utc::now().format("%Y-%m-%dT%H:00:00Z").to_string();
        let post = include_str!("../../fuzz/seeds/webhook/firing.json").replace("2026-11-20T09:51:49.439Z", &starts);
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().expect("client");
        let request = client.post(format!("{}/webhooks/alertmanager", self.url)).bearer_auth("operator-secret");
        let answer = request.header("content-type", "application/json").body(post).send().await.expect("it runs");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    async fn leads(&self) -> bool {
        self.get("/ready").await.is_some_and(|(status, _)| status == 200)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a configuration; without `etcd`, that of a single controller.
fn configuration(home: &Path, name: &str, listen: &str, etcd: Option<&Etcd>) -> PathBuf {
    let at = home.display();
    for secret in ["agent", "viewer", "operator"] {
        std::fs::write(home.join(secret), format!("{secret}-secret")).expect("write");
    }
    let store = etcd.map_or(String::new(), |etcd| {
        format!("[store]\nkind = \"etcd\"\nendpoints = {:?}\nleadership_ttl = \"2s\"\n", etcd.urls())
    });
    let text = format!(
        "[controller]\nname = \"{name}\"\nlisten = \"{listen}\"\ndata_directory = \"{at}/{name}\"\n{store}\
         [cluster]\nname = \"main\"\n[failover]\nrto = \"2s\"\n\
         [authentication]\nagent_token = \"file:{at}/agent\"\n\
         [[authentication.token]]\nname = \"viewer\"\nrole = \"viewer\"\nsecret = \"file:{at}/viewer\"\n\
         [[authentication.token]]\nname = \"alertmanager\"\nrole = \"operator\"\nsecret = \"file:{at}/operator\"\n\
         [[webhook.route]]\nmatch = {{ alertname = \"*\" }}\naction = \"notify\"\n\
         [[node]]\nname = \"db1\"\nsite = \"a\"\nagent = \"http://127.0.0.1:9\"\n"
    );
    let path = home.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("write");
    path
}

fn start(home: &Path, name: &str, etcd: &Etcd) -> Controller {
    // Freed at once: a port that another test takes meanwhile would be reported by the process.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = listener.local_addr().expect("bound").to_string();
    let path = configuration(home, name, &listen, Some(etcd));
    drop(listener);
    let log = std::fs::File::create(home.join(format!("{name}.log"))).expect("a log");
    let child = stormglass()
        .args(["controller", "--config"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("built");
    Controller { url: format!("http://{listen}"), child }
}

fn stormglass() -> Command {
    Command::new(env!("CARGO_BIN_EXE_stormglass"))
}

/// Speaks as the agent of a host without data to each of `controllers`, for as long as what it returns lives.
fn agent(controllers: &[Controller]) -> JoinSet<()> {
    let report = |sequence| Report {
        cluster: cluster(),
        node: NodeName::new("db1").expect("valid"),
        site: SiteName::new("a").expect("valid"),
        address: Address::new("db1", 5432),
        boot: BootId("boot".to_owned()),
        incarnation: "1".to_owned(),
        sequence,
        sent_at: Moment(sequence),
        version: "0".to_owned(),
        standing: Standing::default(),
        postgres: PostgresReport {
            state: PostgresState::NoData,
            control: None,
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
    let mut speaking = JoinSet::new();
    for controller in controllers {
        let url = format!("{}/api/v1/clusters/main/heartbeat", controller.url);
        speaking.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build().expect("client");
            for sequence in 1.. {
                // Followers refuse, and a controller may be stopped or gone.
                let _ = client.post(&url).bearer_auth("agent-secret").json(&report(sequence)).send().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    speaking
}

/// Waits until exactly one of `among` leads, and returns its place.
async fn the_leader(controllers: &[Controller], among: &[usize]) -> usize {
    let found = std::cell::Cell::new(None);
    until("one of the controllers leads", async || {
        let mut leading = Vec::new();
        for place in among {
            if controllers[*place].leads().await {
                leading.push(*place);
            }
        }
        assert!(leading.len() <= 1, "{leading:?} lead");
        found.set(leading.first().copied());
        found.get().is_some()
    })
    .await;
    found.get().expect("waited for")
}

/// `place` answers that `leader` leads.
async fn follows(controllers: &[Controller], place: usize, leader: usize) {
    let (follower, leader) = (&controllers[place], format!("c{leader}"));
    until("a follower names the leader", async || {
        // It may still be starting.
        let Some((health, _)) = follower.get("/health").await else { return false };
        assert_eq!(health, 200, "a follower is healthy");
        let Some((status, problem)) = follower.get("/api/v1/clusters/main").await else { return false };
        status == 503 && problem["title"] == "not the leader" && problem["leader"]["name"] == leader.as_str()
    })
    .await;
    let (status, problem) = follower.get("/ready").await.expect("it runs");
    assert_eq!(status, 503);
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(&leader)), "{problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_leads_and_is_replaced() {
    let etcd = Etcd::start(1).await;
    let home = tempfile::tempdir().expect("a directory");
    let controllers: Vec<Controller> = (0..3).map(|number| start(home.path(), &format!("c{number}"), &etcd)).collect();
    let urls: Vec<&str> = controllers.iter().map(|controller| controller.url.as_str()).collect();
    let _agent = agent(&controllers);
    let all = [0, 1, 2];
    let first = the_leader(&controllers, &all).await;
    let others: Vec<usize> = all.into_iter().filter(|place| *place != first).collect();
    for place in &others {
        follows(&controllers, *place, first).await;
    }

    // The command line finds the leader, whoever is named first.
    let status = |urls: &str| {
        let output = stormglass()
            .args(["--controller", urls, "status", "main"])
            .env("STORMGLASS_TOKEN", "viewer-secret")
            .output()
            .expect("built");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let dead = "http://127.0.0.1:9";
    let (code, text) = status(&format!("{dead},{}", urls.join(",")));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&format!("leader\tc{first}\t{}", urls[first])), "{text}");
    let (code, text) = status(urls[others[0]]);
    assert_eq!(code, Some(5), "a follower alone is no controller in charge: {text}");

    // Alertmanager sends to all of them: the one that leads takes the alert, the others say 503, which is sent again.
    for place in &others {
        let (status, problem) = controllers[*place].alert().await;
        assert_eq!((status, &problem["title"]), (503, &Value::from("not the leader")), "{problem}");
    }
    let (status, reply) = controllers[first].alert().await;
    assert_eq!((status, &reply["accepted"]), (202, &Value::from(1)), "{reply}");

    // Stopped: replaced. Thawed: it follows, and has written nothing.
    controllers[first].signal(Signal::STOP);
    let second = the_leader(&controllers, &others).await;
    let record = etcd.ctl(&["get", "--prefix", "/stormglass/record/"]);
    controllers[first].signal(Signal::CONT);
    follows(&controllers, first, second).await;
    assert_eq!(etcd.ctl(&["get", "--prefix", "/stormglass/record/"]), record);

    // The alert is known to whoever leads next.
    let (status, reply) = controllers[second].alert().await;
    assert_eq!((status, &reply["accepted"], &reply["repeated"]), (202, &Value::from(0), &Value::from(1)), "{reply}");

    // Killed: replaced.
    controllers[second].signal(Signal::KILL);
    let left: Vec<usize> = all.into_iter().filter(|place| *place != second).collect();
    let third = the_leader(&controllers, &left).await;
    let last: Vec<usize> = left.into_iter().filter(|place| *place != third).collect();
    follows(&controllers, last[0], third).await;

    // Told to go: it gives the leadership back first.
    controllers[third].signal(Signal::TERM);
    assert_eq!(the_leader(&controllers, &last).await, last[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_no_agent_lets_another_one_lead() {
    let etcd = Etcd::start(1).await;
    let home = tempfile::tempdir().expect("a directory");
    let controllers: Vec<Controller> = (0..2).map(|number| start(home.path(), &format!("c{number}"), &etcd)).collect();
    let deaf = the_leader(&controllers, &[0, 1]).await;
    let other = 1 - deaf;
    assert_eq!(the_leader(&controllers, &[other]).await, other);
    let log = std::fs::read_to_string(home.path().join(format!("c{deaf}.log"))).expect("a log");
    assert!(log.contains("no agent reaches this controller"), "{log}");
    // Once the other one is heard, the deaf one follows.
    let _agent = agent(&controllers[other..=other]);
    follows(&controllers, deaf, other).await;
}

fn migrate(config: &Path, from: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = stormglass()
        .args(["controller", "migrate-store", "--config"])
        .arg(config)
        .arg("--from")
        .arg(from)
        .args(more)
        .output()
        .expect("built");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_store_is_copied_once_and_only_when_unused() {
    let etcd = Etcd::start(1).await;
    let home = tempfile::tempdir().expect("a directory");
    let config = configuration(home.path(), "c0", "127.0.0.1:1", Some(&etcd));
    let from = home.path().join("stormglass.db");
    let (code, text) = migrate(&config, &from, &[]);
    assert!(code == Some(1) && text.contains("there is no store"), "{text}");
    assert!(!from.exists(), "looking made a store");

    let source = SqliteStore::open(&from).expect("opened");
    contract::write_everything(&source).await;
    for (id, status) in [("z", OperationStatus::Succeeded), ("a", OperationStatus::Running)] {
        source.save_operation(&operation(id, status)).await.expect("saved");
    }
    let (code, text) = migrate(&config, &from, &[]);
    assert!(code == Some(1) && text.contains("has it open"), "a store in use: {text}");
    drop(source);

    let target = EtcdStore::reader(&etcd.settings()).expect("settings are good");
    let (code, text) = migrate(&config, &from, &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("would copy") && text.contains("2 operations (1 under way)"), "{text}");
    assert!(target.is_empty().await.expect("asked"), "a dry run wrote");

    let controller = start(home.path(), "c1", &etcd);
    let speaking = agent(std::slice::from_ref(&controller));
    until("a controller leads", async || controller.leads().await).await;
    let (code, text) = migrate(&config, &from, &[]);
    assert!(code == Some(1) && text.contains("c1 leads on this etcd already"), "{text}");
    drop((speaking, controller));
    until("it is forgotten", async || etcd.ctl(&["get", "--prefix", "/stormglass/leaders/"]).is_empty()).await;
    // It has told events; the refusal says how to remove them.
    let (code, text) = migrate(&config, &from, &[]);
    assert!(code == Some(1) && text.contains("etcdctl del --prefix /stormglass/"), "{text}");
    etcd.ctl(&["del", "--prefix", "/stormglass/"]);

    let (code, text) = migrate(&config, &from, &[]);
    assert_eq!(code, Some(0), "{text}");
    contract::find_everything(&target).await;
    let operations = target.list_operations(&cluster(), 10).await.expect("list");
    assert_eq!(operations.iter().map(|each| each.id.0.as_str()).collect::<Vec<_>>(), ["a", "z"], "in their order");
    assert_eq!(target.unfinished_operations(&cluster()).await.expect("list").len(), 1);

    let (code, text) = migrate(&config, &from, &[]);
    assert!(code == Some(1) && text.contains("already"), "copied twice: {text}");
    contract::find_everything(&SqliteStore::open(&from).expect("the source is as it was")).await;
}

//! One controller process that keeps several clusters from a directory of files: the directories that it refuses, and clusters that
//! come and go while it runs.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stormglass::domain::clock::{BootId, Moment};
use stormglass::domain::ids::{Address, ClusterName, NodeName, SiteName, SystemIdentifier};
use stormglass::domain::report::{ControlData, PostgresReport, PostgresState, Probes, Report, Standing, Tags};
use stormglass::domain::{Lsn, Timeline};
use tokio::time::Instant;

/// Longer than a start takes on a busy machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "admin-secret";

fn stormglass(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stormglass"));
    command
        .env("STORMGLASS_TOKEN", TOKEN)
        .env("AGENT_TOKEN", "agent-secret")
        .args(["controller", "--config"])
        .arg(directory)
        .stdin(Stdio::null());
    command
}

/// A controller that ends with the test.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")).expect("not 0");
        let _gone = kill_process(pid, Signal::TERM);
        let _ended = self.0.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

/// A cluster of one node whose agent is not there: `1.toml` has it on port 1.
fn write(directory: &Path, file: &str, cluster: &str, listen: &str) {
    let agent = format!("http://127.0.0.1:{}", file.trim_end_matches(".toml"));
    std::fs::write(directory.join(file), definition(directory, cluster, listen, &agent)).expect("written");
}

fn definition(directory: &Path, cluster: &str, listen: &str, agent: &str) -> String {
    format!(
        "[controller]\nname = \"c\"\nlisten = \"{listen}\"\ndata_directory = \"{}\"\n\
         [cluster]\nname = \"{cluster}\"\n\
         [authentication]\nagent_token = \"env:AGENT_TOKEN\"\n\
         [[authentication.token]]\nname = \"t\"\nrole = \"admin\"\nsecret = \"env:STORMGLASS_TOKEN\"\n\
         [[node]]\nname = \"{cluster}-1\"\nsite = \"a\"\nagent = \"{agent}\"\n",
        directory.join("store").display()
    )
}

/// The answer of `path`, as soon as the controller gives one.
async fn answer(listen: &str, path: &str) -> (u16, Value) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match http.get(format!("http://{listen}{path}")).bearer_auth(TOKEN).send().await {
            Ok(response) => return (response.status().as_u16(), response.json().await.expect("JSON")),
            Err(error) => assert!(Instant::now() < deadline, "no answer to {path}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_directory_of_files_is_kept_as_several_clusters_each_with_its_own_store() {
    let home = tempfile::tempdir().expect("a directory");
    let listen = free_address();
    write(home.path(), "1.toml", "main", &listen);
    write(home.path(), "2.toml", "orders", &listen);
    let _controller = Controller(stormglass(home.path()).stderr(Stdio::null()).spawn().expect("built"));
    let (status, all) = answer(&listen, "/api/v1/clusters").await;
    let names: Vec<&Value> = all.as_array().into_iter().flatten().map(|one| &one["cluster"]).collect();
    assert_eq!((status, names), (200, vec![&Value::from("main"), &Value::from("orders")]));
    for cluster in ["main", "orders"] {
        let (status, document) = answer(&listen, &format!("/api/v1/clusters/{cluster}")).await;
        assert_eq!((status, &document["nodes"][0]["name"]), (200, &format!("{cluster}-1").into()), "{document:#}");
    }
    assert_eq!(answer(&listen, "/api/v1/clusters/billing").await.0, 404);
    assert!(home.path().join("store/clusters/orders").is_dir());
}

#[test]
fn directories_that_cannot_be_kept_are_refused_with_the_file_and_what_to_do() {
    let refused = |prepare: &dyn Fn(&Path), says: &str| {
        let home = tempfile::tempdir().expect("a directory");
        prepare(home.path());
        let output = stormglass(home.path()).output().expect("built");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.contains(says), "{says}: {words}");
    };
    refused(&|_| {}, "write one for each cluster");
    refused(
        &|home| {
            write(home, "1.toml", "main", "127.0.0.1:18432");
            write(home, "2.toml", "main", "127.0.0.1:18432");
        },
        "both keep the cluster main",
    );
    refused(
        &|home| {
            write(home, "1.toml", "main", "127.0.0.1:18432");
            write(home, "2.toml", "orders", "127.0.0.1:18433");
        },
        "[controller] differs",
    );
    refused(
        &|home| {
            let definition = |cluster| definition(home, cluster, "127.0.0.1:18432", "http://127.0.0.1:1");
            std::fs::write(home.join("1.toml"), definition("main")).expect("written");
            std::fs::write(home.join("2.toml"), definition("orders")).expect("written");
        },
        "its agent http://127.0.0.1:1 is that of node main-1 of the cluster main",
    );
}

/// A run of the command line against the controller: exit code, stdout, stderr.
async fn ask(listen: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_stormglass"));
    command.env("STORMGLASS_TOKEN", TOKEN).env("STORMGLASS_CONTROLLER", format!("http://{listen}"));
    let output = command.args(arguments).stdin(Stdio::null()).output().await.expect("built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

/// What the controller says to a report of the cluster's only node, whose PostgreSQL is stopped, or runs as a primary.
async fn heartbeat(listen: &str, cluster: &str, is_primary: bool) -> u16 {
    let data = ControlData {
        system_identifier: SystemIdentifier(7),
        cluster_state: "in production".to_owned(),
        timeline: Timeline(1),
        checkpoint: Lsn(1),
        major_version: 15,
    };
    let report = Report {
        cluster: ClusterName::new(cluster).expect("valid"),
        node: NodeName::new(format!("{cluster}-1")).expect("valid"),
        site: SiteName::new("a").expect("valid"),
        address: Address::new("127.0.0.1", 5432),
        boot: BootId("boot".to_owned()),
        incarnation: "1".to_owned(),
        sequence: 1,
        sent_at: Moment(1),
        version: "0".to_owned(),
        standing: Standing::default(),
        postgres: PostgresReport {
            state: if is_primary { PostgresState::Running } else { PostgresState::Stopped },
            control: is_primary.then_some(data),
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
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{listen}/api/v1/clusters/{cluster}/heartbeat");
    let answer = http.post(url).bearer_auth("agent-secret").json(&report).send().await.expect("an answer");
    answer.status().as_u16()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_cluster_comes_is_kept_over_a_restart_and_goes() {
    let home = tempfile::tempdir().expect("a directory");
    let listen = free_address();
    write(home.path(), "1.toml", "main", &listen);
    let file = home.path().join("orders.definition");
    let write_orders = |text: &str| std::fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let good = definition(home.path(), "orders", &listen, "http://127.0.0.1:2");
    let begin = || Controller(stormglass(home.path()).stderr(Stdio::null()).spawn().expect("built"));
    let controller = begin();
    answer(&listen, "/api/v1/clusters").await;

    // What is wrong changes nothing, and is told as config check tells it.
    write_orders(&good.replace("site = \"a\"", "sitee = \"a\""));
    let (exit, _, words) = ask(&listen, &["cluster", "add", path]).await;
    assert!(exit == 2 && words.contains("did you mean `site`?") && words.contains("definition:"), "{exit}: {words}");
    write_orders(&good.replace("env:AGENT_TOKEN", "env:NOWHERE"));
    let (exit, _, words) = ask(&listen, &["cluster", "add", path]).await;
    assert!(exit == 2 && words.contains("NOWHERE is not set"), "{exit}: {words}");
    write_orders(&good.replace("name = \"c\"", "name = \"d\""));
    let (exit, _, words) = ask(&listen, &["cluster", "add", path]).await;
    assert!(exit == 2 && words.contains("[controller] differs"), "{exit}: {words}");
    write_orders(&definition(home.path(), "main", &listen, "http://127.0.0.1:1/"));
    let (exit, _, words) = ask(&listen, &["cluster", "add", path]).await;
    assert_eq!(exit, 9, "{words}");
    assert!(words.contains("kept already") && words.contains("is that of node main-1"), "both are told: {words}");
    write_orders(&good);
    let (exit, out, words) = ask(&listen, &["cluster", "add", path, "--dry-run"]).await;
    assert!(exit == 0 && out.contains("would keep the cluster orders"), "{exit}: {out}{words}");
    assert_eq!(names_in(home.path()), ["1.toml", "orders.definition", "store"]);
    assert_eq!(heartbeat(&listen, "orders", false).await, 404);

    let (exit, out, words) = ask(&listen, &["cluster", "add", path]).await;
    assert!(exit == 0 && out.contains("kept from now on"), "{exit}: {out}{words}");
    assert_eq!(std::fs::read_to_string(home.path().join("orders.toml")).expect("written"), good);
    assert_eq!(heartbeat(&listen, "orders", false).await, 200, "its agents are heard without a restart");
    let (exit, out, words) = ask(&listen, &["cluster", "list"]).await;
    assert_eq!(exit, 0, "{words}");
    assert!(out.lines().count() == 2 && out.contains("orders\t"), "{out}");
    let (exit, out, words) = ask(&listen, &["cluster", "show", "orders", "--output", "json"]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((exit, &shown["nodes"][0]["agent"]), (0, &"http://127.0.0.1:2".into()), "{words}");
    assert_eq!((&shown["policy"]["timers"]["lease"], &shown["is_first"]), (&"3s".into(), &false.into()), "{out}");
    assert!(!out.contains("agent-secret") && !out.contains("env:"), "neither a secret nor a reference: {out}");

    drop(controller);
    let _controller = begin();
    let (status, all) = answer(&listen, "/api/v1/clusters").await;
    assert_eq!((status, all.as_array().map(Vec::len)), (200, Some(2)), "kept over a restart: {all}");
    let (exit, _, words) = ask(&listen, &["cluster", "remove", "main", "--yes"]).await;
    assert!(exit == 9 && words.contains("the first cluster"), "{exit}: {words}");
    let (exit, _, words) = ask(&listen, &["cluster", "remove", "orders"]).await;
    assert_eq!(exit, 3, "nobody is there to confirm: {words}");
    let (exit, out, words) = ask(&listen, &["cluster", "remove", "orders", "--dry-run"]).await;
    assert!(exit == 0 && out.contains("no epoch yet"), "{exit}: {out}{words}");
    assert_eq!(heartbeat(&listen, "orders", false).await, 200);
    let (exit, out, words) = ask(&listen, &["cluster", "remove", "orders", "--yes"]).await;
    assert!(exit == 0 && out.contains("kept no longer") && words.contains("its store"), "{exit}: {out}{words}");
    assert_eq!(heartbeat(&listen, "orders", false).await, 404, "no lease is renewed any more");
    assert!(home.path().join("store/clusters/orders/stormglass.db").is_file(), "the store stays");
    let names = names_in(home.path());
    assert!(names.iter().any(|name| name.starts_with("orders.toml.removed-")), "{names:?}");
    assert!(!names.contains(&"orders.toml".to_owned()), "{names:?}");
    let (_, text) = metrics(&listen).await;
    assert!(text.contains("cluster=\"main\"") && !text.contains("cluster=\"orders\""), "{text}");

    // And back again, on the store that it had.
    let (exit, out, words) = ask(&listen, &["cluster", "add", path]).await;
    assert!(exit == 0 && words.contains("gone on with"), "{exit}: {out}{words}");
    let (_, audit) = answer(&listen, "/api/v1/audit").await;
    let rows = audit.to_string();
    assert!(rows.contains("cluster-add") && rows.contains("cluster-remove orders"), "{rows}");
    assert!(!rows.contains("[[node]]"), "the definition itself is not written down: {rows}");
}

#[tokio::test]
async fn a_cluster_with_an_operation_under_way_is_not_let_go() {
    let home = tempfile::tempdir().expect("a directory");
    let listen = free_address();
    write(home.path(), "1.toml", "main", &listen);
    write(home.path(), "2.toml", "orders", &listen);
    let _controller = Controller(stormglass(home.path()).stderr(Stdio::null()).spawn().expect("built"));
    answer(&listen, "/api/v1/clusters").await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(heartbeat(&listen, "orders", true).await, 200);
        // The first epoch begins, and its holder, whose agent answers nobody, cannot be used: a failover is begun that cannot end.
        let (_, status) = answer(&listen, "/api/v1/clusters/orders").await;
        if status["operations"].as_array().is_some_and(|operations| !operations.is_empty()) {
            break;
        }
        assert!(Instant::now() < deadline, "nothing is under way: {status:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (exit, _, words) = ask(&listen, &["cluster", "remove", "orders", "--yes"]).await;
    assert!(exit == 9 && words.contains("is under way"), "{exit}: {words}");
    assert_eq!(names_in(home.path()), ["1.toml", "2.toml", "store"], "its file is where it was");
    assert_eq!(heartbeat(&listen, "orders", true).await, 200, "and it is kept");
}

async fn metrics(listen: &str) -> (u16, String) {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = http.get(format!("http://{listen}/metrics")).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

#[tokio::test]
async fn a_controller_of_one_file_keeps_that_and_says_how_to_keep_more() {
    let home = tempfile::tempdir().expect("a directory");
    let listen = free_address();
    write(home.path(), "1.toml", "main", &listen);
    let path = home.path().join("1.toml");
    let _controller = Controller(stormglass(&path).stderr(Stdio::null()).spawn().expect("built"));
    answer(&listen, "/api/v1/clusters").await;
    let file = path.to_str().expect("UTF-8");
    for arguments in [&["cluster", "add", file][..], &["cluster", "remove", "main", "--yes"]] {
        let (exit, _, words) = ask(&listen, arguments).await;
        assert!(exit == 9 && words.contains("controller --config DIRECTORY"), "{exit}: {words}");
    }
    let (exit, out, words) = ask(&listen, &["cluster", "show"]).await;
    assert!(exit == 0 && out.contains(&format!("file\t{file}\n")), "{exit}: {out}{words}");
}

#[tokio::test]
async fn a_service_comes_before_the_sessions_of_others() {
    let home = tempfile::tempdir().expect("a directory");
    let listen = free_address();
    write(home.path(), "1.toml", "main", &listen);
    let service = stormglass(home.path());
    let mut command = Command::new("setsid");
    command.arg(service.get_program()).args(service.get_args());
    command.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let controller = Controller(command.stderr(Stdio::null()).spawn().expect("util-linux"));
    answer(&listen, "/api/v1/clusters").await;
    let process = format!("/proc/{}", controller.0.id());
    let stat = std::fs::read_to_string(format!("{process}/stat")).expect("it runs");
    let nice =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(16)).expect("field 19").to_owned();
    match std::fs::read_to_string(format!("{process}/autogroup")) {
        Ok(group) => assert_eq!(group.trim().rsplit(' ').next(), Some(nice.as_str()), "{group}"),
        Err(error) => eprintln!("skipped: this kernel does not group processes by session: {error}"),
    }
}

/// As in a container's `exec`: getsid(2) says 0 there, and a raised service asked it.
#[tokio::test]
async fn a_service_starts_where_its_session_was_begun_outside_of_the_container() {
    const UNSHARE: [&str; 4] = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !Command::new("unshare").args(UNSHARE).arg("true").output().is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: a namespace of processes needs root, and unshare(1)");
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let listen = free_address();
    write(home.path(), "1.toml", "main", &listen);
    let service = stormglass(home.path());
    let mut command = Command::new("unshare");
    command.args(UNSHARE).arg(service.get_program()).args(service.get_args());
    command.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let mut container = command.stderr(Stdio::null()).spawn().expect("util-linux");
    answer(&listen, "/api/v1/clusters").await;
    container.kill().expect("its processes go with it");
    container.wait().expect("a child");
}

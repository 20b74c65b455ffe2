//! A controller and the agent of a proxy host as processes that have certificates and no token between them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::support::{Authority, client};

/// Longer than anything takes on a busy machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "viewer-secret";

fn stormglass() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stormglass"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("STORMGLASS_TOKEN", TOKEN);
    command
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(home: &Path, arguments: [&str; 2], configuration: &Path) -> Self {
        let log = std::fs::File::create(home.join(format!("{}.log", arguments[0]))).expect("a log");
        let mut command = stormglass();
        command.args(arguments).arg(configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("built"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")).expect("not 0");
        // Asked first, so that an agent takes its HAProxy along where it may.
        let _gone = kill_process(pid, Signal::TERM);
        let _ended = self.0.wait();
    }
}

/// HAProxy outlives its agent by design, and must not outlive the test.
struct Haproxy(PathBuf);

impl Drop for Haproxy {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains("haproxy") && line.contains(&*self.0.to_string_lossy()) {
                let _gone = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
            }
        }
    }
}

/// Distinct free ports, held until all are found.
fn ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.each_ref().map(|listener| listener.local_addr().expect("bound").port())
}

struct Cluster {
    authority: Authority,
    home: tempfile::TempDir,
    controller: u16,
    agent: u16,
    processes: Vec<Process>,
    _haproxy: Haproxy,
}

impl Cluster {
    fn start(certificate_of_agent: &str) -> Self {
        let home = tempfile::Builder::new().prefix("sg-").tempdir_in("/tmp").expect("a short path");
        let authority = Authority::new();
        authority.issue("c1", "controller");
        authority.issue(certificate_of_agent, "agent");
        std::fs::write(home.path().join("viewer"), TOKEN).expect("written");
        let [controller, agent, write, read, checked, stats] = ports();
        let at = home.path().display();
        let tls = |name: &str| {
            let pki = authority.directory().display();
            format!(
                "[tls]\ncertificate = \"{pki}/{name}.crt\"\nkey = \"{pki}/{name}.key\"\n\
                 client_authorities = \"{pki}/authorities.crt\"\n"
            )
        };
        let of_controller = format!(
            "[controller]\nname = \"c1\"\nlisten = \"127.0.0.1:{controller}\"\ndata_directory = \"{at}/store\"\n\
             [cluster]\nname = \"main\"\n[authentication]\n\
             [[authentication.token]]\nname = \"viewer\"\nrole = \"viewer\"\nsecret = \"file:{at}/viewer\"\n\
             [[node]]\nname = \"db1\"\nsite = \"a\"\nagent = \"https://127.0.0.1:9\"\n\
             [[proxy]]\nname = \"p1\"\nsite = \"a\"\nagent = \"https://127.0.0.1:{agent}\"\n{}",
            tls("c1")
        );
        let port = |key: &str, port: u16| format!("{key} = {{ host = \"127.0.0.1\", port = {port} }}\n");
        let of_agent = format!(
            "[agent]\ncluster = \"main\"\nsite = \"a\"\nlisten = \"127.0.0.1:{agent}\"\nstate_directory = \"{at}/state\"\n\
             controllers = [\"https://127.0.0.1:{controller}\"]\n{}[proxy]\nname = \"p1\"\nmanage_process = true\n\
             stats_socket = \"{at}/stats.sock\"\nmaster_socket = \"{at}/master.sock\"\nconfig_file = \"{at}/haproxy.cfg\"\n\
             {}{}{}{}",
            tls(certificate_of_agent),
            port("write", write),
            port("read", read),
            port("checked", checked),
            port("stats", stats)
        );
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let (of_controller, of_agent) = (write("controller.toml", &of_controller), write("agent.toml", &of_agent));
        let processes = vec![
            Process::start(home.path(), ["controller", "--config"], &of_controller),
            Process::start(home.path(), ["agent", "--config"], &of_agent),
        ];
        let haproxy = Haproxy(home.path().join("haproxy.cfg"));
        Self { authority, home, controller, agent, processes, _haproxy: haproxy }
    }

    /// The command line, with the authority's bundle.
    fn run(&self, arguments: &[&str]) -> Output {
        let url = format!("https://127.0.0.1:{}", self.controller);
        let authorities = self.authority.path("authorities.crt");
        let mut command = stormglass();
        command.args(arguments).args(["--controller", &url]).env("STORMGLASS_CACERT", authorities);
        command.output().expect("built")
    }

    /// Checks of this name, as `doctor` shows them.
    fn checks(&self, name: &str) -> Vec<Value> {
        let output = self.run(&["doctor", "--output", "json"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let checks = document["checks"].as_array().cloned().unwrap_or_default();
        checks.into_iter().filter(|check| check["check"] == name).collect()
    }

    fn log(&self, process: &str) -> String {
        std::fs::read_to_string(self.home.path().join(format!("{process}.log"))).unwrap_or_default()
    }

    async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition().await {
            let logs = [self.log("controller"), self.log("agent")].join("\n");
            assert!(Instant::now() < end, "never came: {what}\n{logs}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn certificates_alone_carry_reports_and_the_doctor_knows_them_all() {
    let cluster = Cluster::start("p1");
    let is_heard = async || {
        let agents = cluster.checks("agents");
        !agents.is_empty() && agents.iter().all(|check| check["subject"] != "p1")
    };
    cluster.until("the proxy is heard", is_heard).await;
    assert_eq!(cluster.checks("transport")[0]["verdict"], "ok", "{:?}", cluster.checks("transport"));
    let certificates = cluster.checks("certificates");
    assert_eq!(certificates[0]["verdict"], "ok", "{certificates:?}");
    assert!(certificates[0]["detail"].as_str().expect("text").starts_with("4 in use"), "{certificates:?}");

    let operator = client(&cluster.authority.tls("ann", "client"));
    let metrics = async |port: u16| {
        let answer = operator.get(format!("https://127.0.0.1:{port}/metrics")).send().await.expect("an answer");
        answer.text().await.expect("text")
    };
    for (port, subject) in [(cluster.controller, "controller c1"), (cluster.agent, "agent p1")] {
        let series = format!("stormglass_certificate_expiry_timestamp_seconds{{subject=\"{subject}\"}}");
        let shown = async || metrics(port).await.contains(&series);
        cluster.until(&series, shown).await;
    }

    // What ends soon is told by the doctor, with what to do, as soon as the process has taken it.
    cluster.authority.done("rotate", &["p1", "--valid", "10d"]);
    cluster.until("the doctor warns", async || cluster.checks("certificates")[0]["verdict"] == "warning").await;
    let warning = &cluster.checks("certificates")[0];
    assert_eq!((&warning["subject"], &warning["next"]), (&json!("agent p1"), &json!("stormglass pki rotate p1")));
    assert!(cluster.log("agent").contains("took a new certificate"), "{}", cluster.log("agent"));
}

#[tokio::test]
async fn a_certificate_of_another_name_reports_for_nobody_else() {
    let cluster = Cluster::start("p2");
    let refused = async || cluster.log("agent").contains("the certificate is that of agent p2");
    cluster.until("the agent is told why", refused).await;
    assert_eq!(cluster.checks("agents").iter().filter(|check| check["subject"] == "p1").count(), 1, "never heard");
}

#[tokio::test]
async fn who_does_not_know_the_authority_is_told_so() {
    let cluster = Cluster::start("p1");
    cluster.until("the controller answers", async || !cluster.checks("agents").is_empty()).await;
    let url = format!("https://127.0.0.1:{}", cluster.controller);
    let mut command = stormglass();
    let output = command.args(["status", "--controller", &url]).output().expect("built");
    assert_eq!(output.status.code(), Some(5));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("--ca-file"), "{words}");
    let missing = stormglass().args(["status", "--controller", &url, "--ca-file", "/nowhere"]).output().expect("built");
    assert_eq!(missing.status.code(), Some(2), "{}", String::from_utf8_lossy(&missing.stderr));
    assert_eq!(cluster.processes.len(), 2);
}

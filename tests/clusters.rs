//! One controller process that keeps several clusters from a directory of files, and the directories that it refuses.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
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

/// A cluster of one node whose agent is not there.
fn write(directory: &Path, file: &str, cluster: &str, listen: &str) {
    let text = format!(
        "[controller]\nname = \"c\"\nlisten = \"{listen}\"\ndata_directory = \"{}\"\n\
         [cluster]\nname = \"{cluster}\"\n\
         [authentication]\nagent_token = \"env:AGENT_TOKEN\"\n\
         [[authentication.token]]\nname = \"t\"\nrole = \"admin\"\nsecret = \"env:STORMGLASS_TOKEN\"\n\
         [[node]]\nname = \"{cluster}-1\"\nsite = \"a\"\nagent = \"http://127.0.0.1:1\"\n",
        directory.join("store").display()
    );
    std::fs::write(directory.join(file), text).expect("written");
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
}

//! The guard with real child processes: the test program itself plays the agent.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::agent::testing::HostClock;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_millis(1500);
const KILL_BUDGET: Duration = Duration::from_millis(300);

/// Not a test: what the guard starts as its agent. Its arguments say how it behaves; it notes down what it heard.
#[test]
fn fake_agent() {
    let argument = |name: &str| std::env::args().find_map(|text| text.strip_prefix(name).map(str::to_owned));
    let Some(state) = argument("state=") else { return };
    let behaviour = argument("does=").unwrap_or_default();
    let mut stream = UnixStream::connect(Path::new(&state).join(SOCKET)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let hello = lines.next().unwrap().unwrap();
    let ToAgent::Hello { held, fenced, .. } = serde_json::from_str(&hello).unwrap() else { panic!("{hello}") };
    let port = take_listener().unwrap();
    if held.is_none() && fenced.is_none() {
        let deadline = HostClock.now().plus(LEASE);
        let held = HeldLease { epoch: Epoch(5), deadline, kill_at: deadline.minus(KILL_BUDGET) };
        stream.write_all(&line(&ToGuard::Hold { held, sequence: 1 })).unwrap();
        let answer = lines.next().unwrap().unwrap();
        if answer.contains("stop") {
            std::process::exit(0);
        }
        assert!(answer.contains("held"), "{answer}");
    }
    if behaviour == "releases" {
        stream.write_all(&line(&ToGuard::Release { epoch: Epoch(5) })).unwrap();
    }
    let mut notes =
        std::fs::OpenOptions::new().append(true).create(true).open(Path::new(&state).join("notes")).unwrap();
    let note = serde_json::json!({
        "pid": std::process::id(),
        "held": held,
        "fenced": fenced,
        "port": port.local_addr().unwrap().port(),
    });
    notes.write_all(format!("{note}\n").as_bytes()).unwrap();
    if behaviour == "crashes" {
        std::process::abort();
    }
    while let Some(Ok(text)) = lines.next() {
        if text.contains("stop") {
            std::process::exit(0);
        }
    }
}

struct Stage {
    directory: tempfile::TempDir,
    stop: UnixStream,
    kills: mpsc::Receiver<Moment>,
    thread: Option<JoinHandle<ExitCode>>,
}

impl Stage {
    fn new(behaviour: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (stop, stop_receiver) = UnixStream::pair().unwrap();
        let (killed, kills) = mpsc::channel();
        let arguments = ["agent::guard::tests::fake_agent", "--exact", "--nocapture", "--"];
        let settings = GuardSettings {
            executable: std::env::current_exe().unwrap(),
            arguments: arguments
                .iter()
                .map(OsString::from)
                .chain([format!("state={}", directory.path().display()).into(), format!("does={behaviour}").into()])
                .collect(),
            state_directory: directory.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            adopt: None,
        };
        let killer = move |_: Duration| {
            killed.send(HostClock.now()).map_err(|error| error.to_string())?;
            Ok(Duration::ZERO)
        };
        let mut guard = Guard::new(settings, Arc::new(HostClock), Box::new(killer), stop_receiver).unwrap();
        let thread = std::thread::spawn(move || guard.run());
        Self { directory, stop, kills, thread: Some(thread) }
    }

    /// What the agent with this number, from 0, noted down.
    fn note(&self, number: usize) -> serde_json::Value {
        let end = HostClock.now().plus(PATIENCE);
        while HostClock.now() < end {
            let notes = std::fs::read_to_string(self.directory.path().join("notes")).unwrap_or_default();
            if let Some(note) = notes.split_inclusive('\n').filter(|note| note.ends_with('\n')).nth(number) {
                return serde_json::from_str(note).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("agent {number} never came");
    }

    fn end(mut self) -> Vec<Moment> {
        self.stop.write_all(b"s").unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.kills.try_iter().collect()
    }
}

fn kill_agent(note: &serde_json::Value, signal: Signal) {
    let pid = i32::try_from(note["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn a_killed_agent_is_replaced_and_finds_deadline_and_port() {
    let stage = Stage::new("waits");
    let first = stage.note(0);
    kill_agent(&first, Signal::KILL);
    let port = u16::try_from(first["port"].as_u64().unwrap()).unwrap();
    TcpStream::connect(("127.0.0.1", port)).expect("health checks are delayed, not refused");
    let second = stage.note(1);
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(second["held"]["epoch"], 5);
    assert_eq!(second["port"], first["port"]);
}

#[test]
fn silence_is_a_fence_before_the_lease_ends() {
    let stage = Stage::new("waits");
    let first = stage.note(0);
    kill_agent(&first, Signal::STOP);
    let killed_at = stage.kills.recv_timeout(PATIENCE).unwrap();
    let second = stage.note(1);
    assert_eq!(second["fenced"], 5, "the next agent learns what the guard did");
    assert_eq!(second["held"], serde_json::Value::Null);
    assert_ne!(second["pid"], first["pid"], "a hung agent is replaced");
    // The agent's lease began when it was asked for, before the note was written.
    assert!(killed_at < HostClock.now());
    assert!(stage.end().is_empty(), "one kill is enough");
}

#[test]
fn the_guard_kills_within_the_kill_budget_although_agents_crash() {
    let began = HostClock.now();
    let stage = Stage::new("crashes");
    let noted = stage.note(0);
    let killed_at = stage.kills.recv_timeout(PATIENCE).unwrap();
    let second = stage.note(1);
    let deadline = Moment(second["held"]["deadline"].as_u64().unwrap());
    let kill_at = Moment(second["held"]["kill_at"].as_u64().unwrap());
    assert!(killed_at >= kill_at && killed_at < deadline, "killed {:?} after its time", killed_at.since(kill_at));
    assert!(killed_at.since(began) >= LEASE - KILL_BUDGET);
    assert!(noted["held"].is_null());
}

#[test]
fn a_lease_given_back_is_not_watched_over() {
    let stage = Stage::new("releases");
    stage.note(0);
    assert!(stage.kills.recv_timeout(LEASE * 2).is_err());
    assert!(stage.end().is_empty());
}

#[test]
fn stopping_the_service_ends_what_was_not_given_back() {
    let stage = Stage::new("waits");
    stage.note(0);
    assert_eq!(stage.end().len(), 1);
}

#[test]
fn a_second_guard_is_refused() {
    let stage = Stage::new("waits");
    let settings = GuardSettings {
        executable: "/bin/true".into(),
        arguments: Vec::new(),
        state_directory: stage.directory.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        adopt: None,
    };
    let (stop, _sender) = UnixStream::pair().unwrap();
    let second = Guard::new(settings, Arc::new(HostClock), Box::new(|_: Duration| Ok(Duration::ZERO)), stop);
    assert!(matches!(second.err(), Some(GuardStartError::Locked(_))));
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Ends the agent with the guard; a thread that is gone already needs no stop.
        let _gone = self.stop.write_all(b"s");
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Not a test: a guard that adopts its parent, in a process that can be killed.
#[test]
fn fake_guard() {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(state) = arguments.iter().find_map(|text| text.strip_prefix("state=")) else { return };
    let Some(at) = arguments.iter().position(|text| text == "--guard-of") else { return };
    let parent = rustix::process::getppid();
    std::thread::spawn(move || {
        while rustix::process::getppid() == parent {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::process::exit(0);
    });
    let settings = GuardSettings {
        executable: "/bin/true".into(),
        arguments: Vec::new(),
        state_directory: state.into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        adopt: Some(arguments[at + 1].parse().unwrap()),
    };
    let (_sender, stop) = UnixStream::pair().unwrap();
    let killer = |_: Duration| Err("not in this test".to_owned());
    Guard::new(settings, Arc::new(HostClock), Box::new(killer), stop).unwrap().run();
}

#[tokio::test]
async fn a_dead_guard_is_replaced_and_watches_over_the_same_lease() {
    use crate::ports::agent::GuardLink;
    use link::{GuardClient, GuardReplacement};

    let directory = tempfile::tempdir().unwrap();
    let health_port = TcpListener::bind("127.0.0.1:0").unwrap();
    let arguments: Vec<OsString> = ["agent::guard::tests::fake_guard", "--exact", "--nocapture", "--"]
        .into_iter()
        .map(OsString::from)
        .chain([format!("state={}", directory.path().display()).into()])
        .collect();
    let executable = std::env::current_exe().unwrap();
    let mut first = std::process::Command::new(&executable)
        .args(&arguments)
        .args(["--guard-of", &std::process::id().to_string()])
        .stdin(OwnedFd::from(health_port.try_clone().unwrap()))
        .spawn()
        .unwrap();
    let replacement = GuardReplacement { executable, arguments, health_port };
    let client = GuardClient::connect(directory.path().to_owned(), replacement).await.unwrap();
    assert_eq!(client.at_start(), (None, None));
    let deadline = HostClock.now().plus(Duration::from_secs(300));
    let held = HeldLease { epoch: Epoch(5), deadline, kill_at: deadline };
    client.hold(held).await.unwrap();

    first.kill().unwrap();
    first.wait().unwrap();
    let end = HostClock.now().plus(PATIENCE);
    while client.hold(held).await.is_err() {
        assert!(HostClock.now() < end, "no new guard came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stream = UnixStream::connect(directory.path().join(SOCKET)).unwrap();
    let hello = BufReader::new(stream).lines().next().unwrap().unwrap();
    let ToAgent::Hello { guard, held: watched, .. } = serde_json::from_str(&hello).unwrap() else { panic!("{hello}") };
    assert_eq!(watched, Some(held));
    assert_ne!(guard, first.id());
    drop(client);
    kill_process(Pid::from_raw(i32::try_from(guard).unwrap()).unwrap(), Signal::KILL).unwrap();
}

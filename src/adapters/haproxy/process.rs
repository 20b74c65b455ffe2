//! HAProxy's process: checks a file with it, starts it so that it outlives the agent.
//!
//! A HAProxy that works is never stopped here: clients' sessions outlive agents.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::HaproxySettings;
use crate::adapters::system::wait_for_exit;
use crate::ports::traffic::TrafficError;

/// `haproxy -c` takes 30 to 200 ms; a name that does not resolve in the file makes it wait for the resolver.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// A process without open disk I/O is gone within a millisecond.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Lines of HAProxy's own words in an error.
const WORDS_LINES_MAX: usize = 6;

/// Longest socket path that HAProxy can bind: it appends `.PID.tmp` within the 108 bytes of a socket address.
const SOCKET_PATH_BYTES_MAX: usize = 92;

/// Where distributions put it; ordinary users have no /usr/sbin in their PATH.
const USUAL_PLACES: [&str; 3] = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy", "/usr/bin/haproxy"];

/// The program to run.
pub fn program(settings: &HaproxySettings) -> PathBuf {
    settings.program.clone().unwrap_or_else(|| {
        let usual = USUAL_PLACES.iter().map(PathBuf::from).find(|path| path.exists());
        usual.unwrap_or_else(|| PathBuf::from("haproxy"))
    })
}

/// `haproxy -c -f FILE`.
pub async fn check(settings: &HaproxySettings, file: &Path) -> Result<(), TrafficError> {
    const ACTION: &str = "check HAProxy's configuration";
    let failed = |problem: String| TrafficError::Failed { action: ACTION, problem };
    let program = program(settings);
    if let Some(problem) = version(&program).await.as_deref().and_then(super::backends::too_old) {
        return Err(failed(format!("{problem}; the file in force stays, the write port is still moved")));
    }
    let run = Command::new(&program).args(["-c", "-f"]).arg(file).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(CHECK_LIMIT, run)
        .await
        .map_err(|_| failed(format!("{} -c did not end within {CHECK_LIMIT:?}", program.display())))?
        .map_err(|error| failed(format!("run {}: {error}; install haproxy 2.4 or later", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{} is not valid, the file in force stays: {}", file.display(), last_words(&words))))
}

/// What the program says of itself; `None` if it does not run or says it in other words.
async fn version(program: &Path) -> Option<String> {
    let run = Command::new(program).arg("-v").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(CHECK_LIMIT, run).await.ok()?.ok()?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    // "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", before 2.4 "HA-Proxy version …".
    words.split_once("version ").and_then(|(_, rest)| rest.split_whitespace().next()).map(str::to_owned)
}

/// Starts master and worker in a session of their own.
pub fn start(settings: &HaproxySettings) -> Result<Child, TrafficError> {
    const ACTION: &str = "start HAProxy";
    let failed = |problem: String| TrafficError::Failed { action: ACTION, problem };
    for socket in [&settings.stats_socket, &settings.master_socket] {
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(failed(format!(
                "the socket path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes: choose a shorter directory",
                socket.display()
            )));
        }
        if let Some(directory) = socket.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|error| failed(format!("make {}: {error}", directory.display())))?;
        }
    }
    let log_file = settings.log_file();
    let open_log = || OpenOptions::new().create(true).append(true).open(&log_file);
    let (output, errors) = open_log()
        .and_then(|output| Ok((output, open_log()?)))
        .map_err(|error| failed(format!("open {}: {error}", log_file.display())))?;
    // setsid(1) rather than a process group: no signal of the agent's terminal or service must reach HAProxy.
    Command::new("setsid")
        .arg(program(settings))
        .args(["-W", "-S"])
        .arg(&settings.master_socket)
        .arg("-p")
        .arg(settings.pid_file())
        .arg("-f")
        .arg(&settings.config_file)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| failed(format!("run setsid: {error}; install util-linux")))
}

/// Every process that HAProxy runs as from our file: master, workers, old workers. Zombies do not count.
///
/// Blocking, in `/proc` only.
pub fn running(settings: &HaproxySettings) -> Vec<i32> {
    let wanted = settings.config_file.as_os_str().as_bytes();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        // A process that ends meanwhile has no such file, a zombie an empty one.
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim_end() == "haproxy" && arguments.split(|byte| *byte == 0).any(|argument| argument == wanted)
    })
    .collect()
}

/// Ends workers that answer nobody: hung ones, or ones that outlived their master. Returns when they are gone, and with
/// them the sockets on which the kernel would go on giving them clients.
pub async fn kill_workers(workers: &[i32]) {
    for &worker in workers {
        tracing::warn!(worker, "killing a HAProxy worker that does not answer");
        if let Some(Err(error)) = Pid::from_raw(worker).map(|pid| kill_process(pid, Signal::KILL)) {
            // Gone meanwhile, or another user's: then its owner must look.
            tracing::debug!(worker, %error, "not killed");
            continue;
        }
        if timeout(KILL_LIMIT, wait_for_exit(worker)).await.is_err() {
            tracing::error!(worker, "a killed HAProxy worker is not gone: clients may still be given to it");
        }
    }
}

/// What HAProxy said last, as one line.
pub async fn last_log(settings: &HaproxySettings) -> String {
    let bytes = tokio::fs::read(settings.log_file()).await.unwrap_or_default();
    last_words(&String::from_utf8_lossy(&bytes))
}

fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(WORDS_LINES_MAX)..].join(" | ")
}

//! Moves the write port: the runtime API first, the file after it, a reload last.
//!
//! Invariant: the file never holds a configuration that HAProxy would not start with, and a reload never happens while
//! connections wait (the old worker would keep them, retrying an address that can no longer be changed).

mod lifecycle;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::socket::{
    MasterSocket, RuntimeSocket, ServerState, server_state, starting_sessions, unexpected, waiting_connections,
};
use super::{HaproxySettings, backends, file, process, template};
use crate::adapters::host_names::sockets;
use crate::adapters::system::wait_for_exit;
use crate::domain::ids::Address;
use crate::ports::traffic::{Arrangement, Inspection, Route, Settled, TrafficError, TrafficRouter};

/// The backend behind the write port, as the template names it.
const BACKEND: &str = "pg_write";
/// Its only server.
const SERVER: &str = "primary";
/// Between two looks at connections that are just being made.
const LOOK_FOR_QUIET: Duration = Duration::from_millis(2);
/// A name server that does not answer must not hold a redirect; nodes should be given by address.
const RESOLVE_LIMIT: Duration = Duration::from_secs(1);

/// The HAProxy of this host.
#[derive(Debug, Clone)]
pub struct HaproxyRouter {
    settings: Arc<HaproxySettings>,
    runtime: RuntimeSocket,
    master: MasterSocket,
    memory: Arc<Mutex<Memory>>,
    /// Held while the file is written or HAProxy is started or reloaded; never by the fast part of a redirect.
    slow: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Memory {
    /// The last primary.
    target: Option<Target>,
    holding: bool,
    /// Reads and applications, as last asked for.
    wanted: Arrangement,
    /// The file's content when HAProxy last read it.
    loaded: Option<String>,
    /// The workers that read it: others were made by somebody else.
    workers: Vec<i32>,
    /// What the last reload did not survive.
    refused: Option<Refused>,
    /// HAProxy's master.
    master: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    named: Address,
    socket: SocketAddr,
}

#[derive(Debug)]
struct Refused {
    shape: String,
    at: Instant,
    error: TrafficError,
}

impl HaproxyRouter {
    /// Touches nothing before its first call.
    pub fn new(settings: HaproxySettings) -> Self {
        let master = MasterSocket::new(&settings.master_socket, settings.answer_timeout);
        Self {
            runtime: RuntimeSocket::new(&settings.stats_socket, settings.answer_timeout).or_through(&master),
            master,
            settings: Arc::new(settings),
            memory: Arc::default(),
            slow: Arc::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no code panics while it holds this lock")
    }

    async fn resolve(&self, action: &'static str, address: &Address) -> Result<Target, TrafficError> {
        let failed = |problem: String| TrafficError::Failed { action, problem };
        match timeout(RESOLVE_LIMIT, sockets(&address.host, address.port)).await {
            Ok(Ok(found)) => match found.first() {
                Some(socket) => Ok(Target { named: address.clone(), socket: *socket }),
                None => Err(failed(format!("resolve {}: the name has no address", address.host))),
            },
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("resolve {}: no answer within {RESOLVE_LIMIT:?}", address.host))),
        }
    }

    /// Points the write server somewhere and makes sure that it is so.
    async fn point(&self, action: &'static str, socket: SocketAddr) -> Result<(), TrafficError> {
        let (address, port) = (socket.ip(), socket.port());
        let commands = format!(
            "set server {BACKEND}/{SERVER} addr {address} port {port};set server {BACKEND}/{SERVER} state ready;\
             show servers state {BACKEND}"
        );
        let answer = self.runtime.ask(action, &commands).await?;
        let state =
            server_state(&answer, BACKEND, SERVER).ok_or_else(|| unexpected(action, BACKEND, SERVER, &answer))?;
        if state == (ServerState { address: socket, is_open: true }) {
            return Ok(());
        }
        let words: Vec<&str> = answer.lines().map(str::trim).take_while(|line| !line.starts_with('1')).collect();
        Err(TrafficError::Failed {
            action,
            problem: format!(
                "the write server still leads to {}: HAProxy said {:?}",
                state.address,
                words.join(" ").trim()
            ),
        })
    }

    async fn see(&self, action: &'static str) -> Result<backends::Seen, TrafficError> {
        let questions = backends::questions(&self.settings.map_file().display().to_string());
        Ok(backends::Seen::read(&self.runtime.ask(action, &questions).await?))
    }

    /// HAProxy makes the socket when it starts, and never again.
    fn without_socket(&self) -> Option<String> {
        let path = self.settings.stats_socket.display();
        (!self.runtime.exists()).then(|| {
            format!("the stats socket {path} was removed: HAProxy is moved by way of its master; restart it when that suits its clients")
        })
    }

    /// Ends the sessions that lead elsewhere than to `keep`, in workers of former configurations too.
    async fn cut_strays(&self, action: &'static str, keep: SocketAddr) -> Result<(), TrafficError> {
        let mut sessions = self.runtime.cut_strays(action, BACKEND, keep).await?;
        for worker in self.master.processes(action).await?.old_workers {
            sessions += self.master.cut_strays(action, worker, BACKEND, keep).await?;
        }
        if sessions > 0 {
            tracing::info!(sessions, primary = %keep, "cut the sessions that led elsewhere");
        }
        Ok(())
    }
}

#[async_trait]
impl TrafficRouter for HaproxyRouter {
    async fn ensure_running(&self, last: Option<&Address>, wanted: &Arrangement) -> Result<(), TrafficError> {
        const ACTION: &str = "adopt HAProxy";
        let _slow = self.slow.lock().await;
        self.memory().wanted = wanted.clone();
        if self.memory().target.is_none()
            && let Some(last) = last
        {
            let target = self.resolve(ACTION, last).await?;
            self.memory().target = Some(target);
        }
        let before = tokio::fs::read_to_string(&self.settings.config_file).await.ok();
        let written = self.write_file().await;
        match self.runtime.server(ACTION, BACKEND, SERVER).await {
            Ok(_) => {
                if let Err(error) = &written {
                    // `settle` says so again and again; the write port can be moved all the same.
                    tracing::warn!(%error, "HAProxy is adopted with the file that it has");
                }
                let processes = self.master.processes(ACTION).await?;
                let mut memory = self.memory();
                (memory.master, memory.workers) = (Some(processes.master), processes.workers);
                if memory.loaded.is_none() {
                    memory.loaded = before;
                }
                Ok(())
            }
            Err(TrafficError::NotRunning { .. }) if self.settings.manage_process => match (written, before) {
                (Ok(content), _) => self.revive(content).await,
                (Err(error), Some(before)) => {
                    tracing::warn!(%error, "HAProxy is started with the file that is there");
                    self.revive(before).await
                }
                (Err(error), None) => Err(error),
            },
            Err(TrafficError::NotRunning { action, location, problem }) => Err(TrafficError::NotRunning {
                action,
                location,
                problem: format!(
                    "{problem}; start it with `haproxy -W -S {} -f {}`, or set manage_process = true",
                    self.settings.master_socket.display(),
                    self.settings.config_file.display()
                ),
            }),
            Err(error) => Err(error),
        }
    }

    async fn arrange(&self, wanted: &Arrangement) -> Result<(), TrafficError> {
        const ACTION: &str = "arrange reads and applications";
        self.memory().wanted = wanted.clone();
        let map_file = self.settings.map_file().display().to_string();
        let commands = backends::commands(&map_file, wanted);
        if !commands.is_empty() {
            self.runtime.ask(ACTION, &commands).await?;
        }
        let mut seen = self.see(ACTION).await?;
        if let (None, true, Some(site)) = (&seen.active_site, seen.has_map, &wanted.active_site) {
            self.runtime.ask(ACTION, &backends::first_site(&map_file, site)).await?;
            seen = self.see(ACTION).await?;
        }
        let differences = seen.differences(wanted);
        if differences.is_empty() {
            return Ok(());
        }
        Err(TrafficError::Failed { action: ACTION, problem: differences.join("; ") })
    }

    async fn inspect(&self) -> Result<Inspection, TrafficError> {
        const ACTION: &str = "inspect HAProxy";
        // What is being changed at this moment is no drift.
        let is_calm = || self.slow.try_lock().is_ok();
        let was_calm = is_calm();
        let content = self.rendered(ACTION);
        let on_disk = tokio::fs::read_to_string(&self.settings.config_file).await.ok();
        let sites = tokio::fs::read_to_string(self.settings.map_file()).await.ok();
        let seen = self.see(ACTION).await?;
        let processes = self.master.processes(ACTION).await?;
        let is_calm = was_calm && is_calm();
        let mut memory = self.memory();
        let mut drift = seen.differences(&memory.wanted);
        if is_calm && memory.workers != processes.workers {
            if !memory.workers.is_empty() {
                drift.push("HAProxy was reloaded or restarted by somebody else".to_owned());
            }
            // Nobody knows what these have read.
            (memory.master, memory.workers, memory.loaded) = (Some(processes.master), processes.workers, None);
        }
        let file = self.settings.config_file.display();
        let is_other = content.as_ref().is_ok_and(|content| on_disk.as_ref() != Some(content));
        if is_calm && is_other && memory.refused.is_none() {
            drift.push(format!("{file} is not what the agent wrote"));
        }
        if is_calm && sites.as_ref() != Some(&template::map(&memory.wanted)) {
            drift.push(format!("{} is not what the agent wrote", self.settings.map_file().display()));
        }
        let shape = |text: &String| template::shape(text);
        let is_loaded = content.as_ref().is_ok_and(|content| memory.loaded.as_ref().map(shape) == Some(shape(content)));
        Ok(Inspection {
            is_settled: is_calm && is_loaded && drift.is_empty(),
            drift,
            problem: seen.version.as_deref().and_then(backends::too_old).or_else(|| self.without_socket()),
            active_site: seen.active_site.clone(),
            applications: seen.applications(&memory.wanted),
            version: seen.version,
        })
    }

    async fn quiet(&self, within: Duration) {
        const ACTION: &str = "wait for connections that are just being made";
        let end = Instant::now() + within;
        while let Ok(listed) = self.runtime.ask(ACTION, "show sess all").await {
            if starting_sessions(&listed, BACKEND) == 0 || Instant::now() >= end {
                return;
            }
            sleep(LOOK_FOR_QUIET).await;
        }
    }

    async fn route(&self) -> Result<Route, TrafficError> {
        let state = self.runtime.server("ask HAProxy where the write port leads", BACKEND, SERVER).await?;
        if !state.is_open {
            return Ok(Route::Closed);
        }
        if state.address == template::HOLD {
            return Ok(Route::Holding);
        }
        let known = self.memory().target.clone().filter(|target| target.socket == state.address);
        Ok(Route::Leads(
            known.map_or_else(
                || Address::new(state.address.ip().to_string(), state.address.port()),
                |target| target.named,
            ),
        ))
    }

    async fn redirect(&self, target: &Address) -> Result<(), TrafficError> {
        const ACTION: &str = "redirect the write port";
        let target = self.resolve(ACTION, target).await?;
        {
            let mut memory = self.memory();
            memory.holding = false;
            memory.target = Some(target.clone());
        }
        match self.point(ACTION, target.socket).await {
            Err(cause @ (TrafficError::NotRunning { .. } | TrafficError::NoAnswer { .. })) => {
                self.redirect_by_file(cause).await?;
                // One that was only reloading has come up from the file before.
                self.point(ACTION, target.socket).await?;
            }
            other => other?,
        }
        if let Err(error) = self.cut_strays(ACTION, target.socket).await {
            // The former primary is fenced: such sessions can do no harm, their clients only wait until the next try.
            tracing::warn!(%error, "sessions to the former primary may be left");
        }
        Ok(())
    }

    async fn hold(&self) -> Result<(), TrafficError> {
        self.memory().holding = true;
        self.point("hold new connections to the write port", template::HOLD).await
    }

    async fn settle(&self) -> Result<Settled, TrafficError> {
        const ACTION: &str = "settle HAProxy's configuration";
        let later = |reason: &str| Ok(Settled::Later { reason: reason.to_owned() });
        let _slow = self.slow.lock().await;
        let content = self.rendered(ACTION)?;
        if let Some(error) = self.refused(&content) {
            return self.put_back().await.and(Err(error));
        }
        let content = self.write_file().await?;
        let led_to = {
            let memory = self.memory();
            memory.target.as_ref().map(|target| target.socket).filter(|_| !memory.holding)
        };
        if let Some(target) = led_to {
            // Once more: a connection to the former primary may have come about since.
            self.cut_strays(ACTION, target).await?;
        }
        let holding = {
            let memory = self.memory();
            if memory.loaded.as_deref().map(template::shape) == Some(template::shape(&content)) {
                return Ok(Settled::Done);
            }
            memory.holding
        };
        if holding {
            return later("a hold is in force");
        }
        let statistics = self.runtime.ask(ACTION, "show stat").await?;
        if waiting_connections(&statistics, BACKEND).unwrap_or(0) > 0 {
            return later("connections wait for a primary");
        }
        self.reload(content).await?;
        // A redirect or hold that came meanwhile may have reached the old worker only.
        let (wanted, holding) = {
            let memory = self.memory();
            (memory.target.as_ref().map(|target| target.socket), memory.holding)
        };
        let wanted = if holding { Some(template::HOLD) } else { wanted };
        if let Some(wanted) = wanted {
            self.point(ACTION, wanted).await?;
        }
        let arrangement = self.memory().wanted.clone();
        self.arrange(&arrangement).await?;
        let loaded = self.memory().loaded.clone().unwrap_or_default();
        if template::shape(&self.rendered(ACTION)?) == template::shape(&loaded) {
            Ok(Settled::Done)
        } else {
            later("the target changed during the reload")
        }
    }

    async fn exited(&self) {
        let master = self.memory().master;
        match master {
            Some(pid) => {
                wait_for_exit(pid).await;
                // Whatever runs next is adopted as a stranger.
                let mut memory = self.memory();
                (memory.master, memory.loaded) = (None, None);
                memory.workers.clear();
            }
            None => std::future::pending().await,
        }
    }
}

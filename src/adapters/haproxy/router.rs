//! Moves the write port: the runtime API first, the file after it, a reload last.
//!
//! Invariant: the file never holds a configuration that HAProxy would not start with, and a reload never happens while
//! connections wait (the old worker would keep them, retrying an address that can no longer be changed).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::socket::{MasterSocket, RuntimeSocket, ServerState, server_state, unexpected, waiting_connections};
use super::{HaproxySettings, file, process, template};
use crate::adapters::system::wait_for_exit;
use crate::domain::ids::Address;
use crate::ports::traffic::{Route, Settled, TrafficError, TrafficRouter};

/// The backend behind the write port, as the template names it.
const BACKEND: &str = "pg_write";
/// Its only server.
const SERVER: &str = "primary";
/// From the start of the process until its socket answers; measured 30 to 60 ms, 1 s on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(5);
/// From `reload` until the new worker answers; measured 50 ms, 0.9 s on a busy machine.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a HAProxy that was told to end, or whose master was killed, may take to be gone.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at a process that starts or reloads. Not on the path of a failover.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
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
    /// The file's content when HAProxy last read it.
    loaded: Option<String>,
    /// HAProxy's master.
    master: Option<i32>,
    resolved: HashMap<Address, SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    named: Address,
    socket: SocketAddr,
}

impl HaproxyRouter {
    /// Touches nothing before its first call.
    pub fn new(settings: HaproxySettings) -> Self {
        Self {
            runtime: RuntimeSocket::new(&settings.stats_socket, settings.answer_timeout),
            master: MasterSocket::new(&settings.master_socket, settings.answer_timeout),
            settings: Arc::new(settings),
            memory: Arc::default(),
            slow: Arc::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no code panics while it holds this lock")
    }

    async fn resolve(&self, action: &'static str, address: &Address) -> Result<Target, TrafficError> {
        let named = address.clone();
        if let Ok(literal) = address.host.parse::<IpAddr>() {
            return Ok(Target { named, socket: SocketAddr::new(literal, address.port) });
        }
        let lookup = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((address.host.as_str(), address.port))).await;
        let problem = match lookup {
            Ok(Ok(mut found)) => match found.next() {
                Some(socket) => {
                    self.memory().resolved.insert(named.clone(), socket);
                    return Ok(Target { named, socket });
                }
                None => "the name has no address".to_owned(),
                // A name server that fails now is no reason to leave clients at a dead primary.
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the name server did not answer within {RESOLVE_LIMIT:?}"),
        };
        let known = self.memory().resolved.get(address).copied();
        known
            .map(|socket| Target { named, socket })
            .ok_or_else(|| TrafficError::Failed { action, problem: format!("resolve {}: {problem}", address.host) })
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

    fn rendered(&self, action: &'static str) -> Result<String, TrafficError> {
        let failed = |problem: String| TrafficError::Failed { action, problem };
        let (text, source) = match &self.settings.template {
            None => (template::BUILT_IN.to_owned(), "the built-in template".to_owned()),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
                (text, path.display().to_string())
            }
        };
        let target = self.memory().target.as_ref().map(|target| target.socket);
        template::render(&self.settings, &text, target).map_err(|error| failed(format!("{source}, {error}")))
    }

    /// Brings the file up to date and returns its content. The caller holds `slow`.
    async fn write_file(&self) -> Result<String, TrafficError> {
        const ACTION: &str = "write HAProxy's configuration";
        let path = &self.settings.config_file;
        let failed = |error: &dyn std::fmt::Display| TrafficError::Failed {
            action: ACTION,
            problem: format!(
                "{}: {error}; see that the agent may write there and that the disk has space",
                path.display()
            ),
        };
        let content = self.rendered(ACTION)?;
        let (settings, wanted) = (Arc::clone(&self.settings), content.clone());
        let staged = spawn_blocking(move || {
            if std::fs::read_to_string(settings.lua_file()).ok().as_deref() != Some(template::WAIT_PRIMARY_LUA) {
                file::replace(&settings.lua_file(), template::WAIT_PRIMARY_LUA.as_bytes())?;
            }
            if !settings.state_file().exists() {
                file::replace(&settings.state_file(), b"1\n")?;
            }
            if std::fs::read_to_string(&settings.config_file).is_ok_and(|present| present == wanted) {
                return Ok(None);
            }
            file::stage(&settings.config_file, wanted.as_bytes()).map(Some)
        })
        .await
        .map_err(|error| failed(&error))?
        .map_err(|error: std::io::Error| failed(&error))?;
        if let Some(staged) = staged {
            process::check(&self.settings, &staged).await?;
            let path = path.clone();
            spawn_blocking(move || file::publish(&staged, &path))
                .await
                .map_err(|error| failed(&error))?
                .map_err(|error| failed(&error))?;
        }
        Ok(content)
    }

    /// Nothing listens on the stats socket: finds out what is left and makes one HAProxy of it. The caller holds `slow`
    /// and has written the file.
    async fn revive(&self, content: String) -> Result<(), TrafficError> {
        const ACTION: &str = "start HAProxy";
        let end = Instant::now() + DYING_LIMIT;
        loop {
            let master = self.master.processes(ACTION).await;
            if self.runtime.server(ACTION, BACKEND, SERVER).await.is_ok() {
                // It was only reloading.
                self.memory().master = master.ok().map(|processes| processes.master);
                return Ok(());
            }
            let settings = Arc::clone(&self.settings);
            let running = spawn_blocking(move || process::running(&settings)).await.unwrap_or_default();
            // Never a second one beside the first: both would bind the ports, and the kernel would deal clients out to both.
            match master {
                Err(TrafficError::NotRunning { .. }) if running.is_empty() => return self.start(content).await,
                Err(TrafficError::NotRunning { .. }) if Instant::now() > end => {
                    process::kill_workers(&running).await;
                }
                Ok(_) if Instant::now() > end => return self.reload(content).await,
                Err(error) if Instant::now() > end => return Err(error),
                _ => {}
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Starts HAProxy and waits until it answers. The caller holds `slow` and has written the file.
    async fn start(&self, content: String) -> Result<(), TrafficError> {
        const ACTION: &str = "start HAProxy";
        let mut child = process::start(&self.settings)?;
        let answers = async {
            loop {
                if self.runtime.server(ACTION, BACKEND, SERVER).await.is_ok()
                    && let Ok(processes) = self.master.processes(ACTION).await
                {
                    return Ok(processes.master);
                }
                tokio::select! {
                    status = child.wait() => return Err(status.map_or_else(|error| error.to_string(), |status| status.to_string())),
                    () = sleep(LOOK_AGAIN) => {}
                }
            }
        };
        let outcome =
            timeout(START_LIMIT, answers).await.unwrap_or_else(|_| Err(format!("no answer in {START_LIMIT:?}")));
        match outcome {
            Ok(master) => {
                let mut memory = self.memory();
                memory.master = Some(master);
                memory.loaded = Some(content);
                memory.holding = false;
                drop(memory);
                // Reaped when it ends; until then it belongs to nobody.
                tokio::spawn(async move { child.wait().await });
                Ok(())
            }
            Err(problem) => Err(TrafficError::Failed {
                action: ACTION,
                problem: format!("{problem}; it said: {}", process::last_log(&self.settings).await),
            }),
        }
    }

    /// Reloads and waits until the new worker answers. The caller holds `slow`.
    async fn reload(&self, content: String) -> Result<(), TrafficError> {
        const ACTION: &str = "reload HAProxy";
        let failed = |problem: String| TrafficError::Failed { action: ACTION, problem };
        // So that the new worker does not take standbys for primaries until its first checks are back.
        let states = self.runtime.ask(ACTION, "show servers state").await.ok();
        if let Some(states) = states {
            let path = self.settings.state_file();
            spawn_blocking(move || file::replace(&path, states.as_bytes()))
                .await
                .map_err(|error| failed(error.to_string()))?
                .map_err(|error| failed(error.to_string()))?;
        }
        let before = self.master.processes(ACTION).await?;
        self.master.ask(ACTION, "reload").await?;
        let finished = async {
            loop {
                // The master executes itself anew: for a moment it may not answer.
                if let Ok(now) = self.master.processes(ACTION).await {
                    if now.reloads_failed > before.reloads_failed {
                        return Err(process::last_log(&self.settings).await);
                    }
                    let is_new =
                        now.reloads > before.reloads && now.workers.iter().any(|pid| !before.workers.contains(pid));
                    if is_new && self.runtime.server(ACTION, BACKEND, SERVER).await.is_ok() {
                        return Ok(());
                    }
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        match timeout(RELOAD_LIMIT, finished).await {
            Ok(Ok(())) => {
                self.memory().loaded = Some(content);
                Ok(())
            }
            Ok(Err(words)) => Err(failed(format!("it failed and the former worker goes on: {words}"))),
            Err(_) => Err(failed(format!("no new worker answered within {RELOAD_LIMIT:?}"))),
        }
    }

    /// The way when the runtime API did not do it: the file, and a process that reads it.
    async fn redirect_by_file(&self, cause: TrafficError) -> Result<(), TrafficError> {
        const ACTION: &str = "redirect by file";
        let _slow = self.slow.lock().await;
        let content = self.write_file().await?;
        match cause {
            TrafficError::NotRunning { .. } if self.settings.manage_process => self.revive(content).await,
            TrafficError::NoAnswer { .. } => {
                let replaced = async {
                    let hung = self.master.processes(ACTION).await?.workers;
                    self.reload(content).await?;
                    // It cannot hand its sockets over: clients that the kernel gives to it would hang with it.
                    process::kill_workers(&hung).await;
                    Ok(())
                };
                replaced.await.map_err(|problem: TrafficError| TrafficError::Failed {
                    action: ACTION,
                    problem: format!("{cause}; the file is written, and then: {problem}; restart HAProxy on this host"),
                })
            }
            other => Err(other),
        }
    }
}

#[async_trait]
impl TrafficRouter for HaproxyRouter {
    async fn ensure_running(&self, last: Option<&Address>) -> Result<(), TrafficError> {
        const ACTION: &str = "adopt HAProxy";
        let _slow = self.slow.lock().await;
        if self.memory().target.is_none()
            && let Some(last) = last
        {
            let target = self.resolve(ACTION, last).await?;
            self.memory().target = Some(target);
        }
        let before = tokio::fs::read_to_string(&self.settings.config_file).await.ok();
        let content = self.write_file().await?;
        match self.runtime.server(ACTION, BACKEND, SERVER).await {
            Ok(_) => {
                let master = self.master.processes(ACTION).await?.master;
                let mut memory = self.memory();
                memory.master = Some(master);
                if memory.loaded.is_none() {
                    memory.loaded = before;
                }
                Ok(())
            }
            Err(TrafficError::NotRunning { .. }) if self.settings.manage_process => self.revive(content).await,
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
            if memory.loaded.as_ref() == Some(&content) {
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
        if self.rendered(ACTION)? == self.memory().loaded.clone().unwrap_or_default() {
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
            }
            None => std::future::pending().await,
        }
    }
}

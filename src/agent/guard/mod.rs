//! The guard: a small process that holds the lease's deadline and the health port while agents come and go.
//!
//! One thread waits in `poll`. On the way to a kill it opens no file, asks nobody and waits for no lock.

pub mod link;
mod process;
mod protocol;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::domain::clock::Moment;
use crate::domain::epoch::Epoch;
use crate::ports::agent::{HeldLease, KillFamily};
use crate::ports::clock::Clock;
use process::AgentProcess;
pub use process::take_listener;
use protocol::{LINE_BYTES_MAX, LOCK, SOCKET, ToAgent, ToGuard, line};

/// Agents that crash one after the other are started again after these pauses; the last one is kept.
const RESTART_PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// An agent that lived so long did not crash at start.
const LIVED: Duration = Duration::from_secs(10);

/// How long an agent may take to stop the service.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// One attempt of the guard at killing PostgreSQL.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// Exit status of an agent that cannot work with its configuration or memory.
const EXIT_USAGE: i32 = 2;

/// How a guard is run.
#[derive(Debug, Clone)]
pub struct GuardSettings {
    /// The program to run as agent: the path, so that an upgrade takes the new file.
    pub executable: PathBuf,
    /// Its arguments, without the hidden ones.
    pub arguments: Vec<OsString>,
    /// Where socket and lock are; must exist.
    pub state_directory: PathBuf,
    /// The health port.
    pub listen: SocketAddr,
    /// Take over this running agent and the listening socket on standard input (`--guard-of`).
    pub adopt: Option<i32>,
}

/// Why a guard cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum GuardStartError {
    /// Another one runs.
    #[error("another agent service runs with the state directory {0}: stop it first")]
    Locked(PathBuf),
    /// The port cannot be had.
    #[error("listen on {address} for health checks: stop what uses the port, or change agent.listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Something else.
    #[error("{action}")]
    System {
        /// Verb and object.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

fn system(action: &'static str) -> impl Fn(std::io::Error) -> GuardStartError {
    move |source| GuardStartError::System { action, source }
}

/// Runs the guard until the service is stopped by SIGTERM or SIGINT.
pub fn run(settings: GuardSettings, clock: Arc<dyn Clock>, killer: Box<dyn KillFamily>) -> ExitCode {
    let result = process::stop_signals()
        .map_err(system("wait for signals"))
        .and_then(|stop| Guard::new(settings, clock, killer, stop));
    match result {
        Ok(mut guard) => {
            process::protect();
            guard.run()
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, source, "the agent service cannot begin");
            ExitCode::from(2)
        }
    }
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

struct Guard {
    settings: GuardSettings,
    clock: Arc<dyn Clock>,
    killer: Box<dyn KillFamily>,
    health_port: TcpListener,
    socket: UnixListener,
    stop: UnixStream,
    timer: OwnedFd,
    oom_score_adjust: i32,
    _lock: std::fs::File,
    agent: Option<AgentProcess>,
    connection: Option<Connection>,
    held: Option<HeldLease>,
    /// Leases of this epoch and before are given back for good.
    released: Option<Epoch>,
    fenced: Option<Epoch>,
    paused: bool,
    started_at: Moment,
    crashes: usize,
    start_at: Option<Moment>,
    stop_by: Option<Moment>,
    has_connected: bool,
}

impl Guard {
    fn new(
        settings: GuardSettings,
        clock: Arc<dyn Clock>,
        killer: Box<dyn KillFamily>,
        stop: UnixStream,
    ) -> Result<Self, GuardStartError> {
        let lock = process::lock(&settings.state_directory.join(LOCK))
            .map_err(system("lock the state directory"))?
            .ok_or_else(|| GuardStartError::Locked(settings.state_directory.clone()))?;
        let health_port = match settings.adopt {
            Some(_) => take_listener().map_err(system("take over the health port"))?,
            None => TcpListener::bind(settings.listen)
                .map_err(|source| GuardStartError::Listen { address: settings.listen, source })?,
        };
        let socket = process::bind_private(&settings.state_directory.join(SOCKET))
            .map_err(system("open the guard's socket in the state directory"))?;
        stop.set_nonblocking(true).map_err(system("wait for signals"))?;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)
            .map_err(|error| system("make a timer")(error.into()))?;
        let agent = match settings.adopt {
            Some(pid) => Some(AgentProcess::adopt(pid).map_err(system("watch the running agent"))?),
            None => None,
        };
        let now = clock.now();
        Ok(Self {
            start_at: agent.is_none().then_some(now),
            settings,
            clock,
            killer,
            health_port,
            socket,
            stop,
            timer,
            oom_score_adjust: process::oom_score_adjust(),
            _lock: lock,
            agent,
            connection: None,
            held: None,
            released: None,
            fenced: None,
            paused: false,
            started_at: now,
            crashes: 0,
            stop_by: None,
            has_connected: false,
        })
    }

    fn run(&mut self) -> ExitCode {
        loop {
            if let Some(code) = self.turn() {
                return code;
            }
            if let Err(error) = self.wait() {
                tracing::error!(%error, "the guard cannot wait for events");
            }
        }
    }

    /// Everything that is due. `Some` ends the guard.
    fn turn(&mut self) -> Option<ExitCode> {
        self.keep_the_lease();
        self.read_messages();
        self.accept();
        if self.stop_was_asked() && self.stop_by.is_none() {
            tracing::info!("stopping the agent service");
            self.stop_by = Some(self.clock.now().plus(STOP_PATIENCE));
            self.tell(&ToAgent::Stop);
        }
        if let Some(status) = self.agent.as_mut().and_then(AgentProcess::ended) {
            self.agent = None;
            // What it wrote before it died still counts.
            self.read_messages();
            self.connection = None;
            if let Some(code) = self.after_agent(status) {
                return Some(code);
            }
        }
        let now = self.clock.now();
        if self.stop_by.is_some_and(|by| now >= by || self.agent.is_none()) {
            return Some(self.end());
        }
        if self.start_at.is_some_and(|at| now >= at) {
            self.start_agent();
        }
        None
    }

    /// Kills at the last moment. A renewal that lies in the socket is read first: a guard that was stopped for a while must
    /// not kill a primary that renewed in time.
    fn keep_the_lease(&mut self) {
        let is_due = |guard: &Self| guard.held.filter(|held| guard.clock.now() >= held.kill_at);
        if is_due(self).is_some() {
            self.read_messages();
        }
        if let Some(held) = is_due(self) {
            self.fence(held.epoch);
        }
    }

    /// The agent first: one that hangs must not start PostgreSQL when it wakes up.
    fn fence(&mut self, epoch: Epoch) {
        if let Some(agent) = &self.agent {
            agent.kill();
        }
        loop {
            match self.killer.kill_family(KILL_TIMEOUT) {
                Ok(took) => {
                    tracing::error!(%epoch, kill_seconds = took.as_secs_f64(), "the agent did not renew the lease: the guard fenced PostgreSQL");
                    break;
                }
                Err(error) => tracing::error!(%epoch, error, "PostgreSQL cannot be killed: power the host off"),
            }
        }
        self.held = None;
        self.fenced = self.fenced.max(Some(epoch));
        self.released = self.released.max(Some(epoch));
    }

    fn after_agent(&mut self, status: Option<std::process::ExitStatus>) -> Option<ExitCode> {
        if self.stop_by.is_some() {
            return None;
        }
        let now = self.clock.now();
        let refused = status.and_then(|status| status.code()) == Some(EXIT_USAGE);
        if refused && !self.has_connected && self.held.is_none() {
            return Some(ExitCode::from(2));
        }
        if now.since(self.started_at) >= LIVED {
            self.crashes = 0;
        }
        let pause = RESTART_PAUSES[self.crashes.min(RESTART_PAUSES.len() - 1)];
        self.crashes += 1;
        tracing::warn!(?status, ?pause, "the agent ended: starting it again");
        self.start_at = Some(now.plus(pause));
        None
    }

    fn start_agent(&mut self) {
        self.started_at = self.clock.now();
        match AgentProcess::start(&self.settings, &self.health_port) {
            Ok(agent) => {
                self.agent = Some(agent);
                self.start_at = None;
            }
            Err(error) => {
                let pause = RESTART_PAUSES[self.crashes.clamp(1, RESTART_PAUSES.len() - 1)];
                self.crashes += 1;
                tracing::error!(%error, program = %self.settings.executable.display(), "the agent cannot be started");
                self.start_at = Some(self.started_at.plus(pause));
            }
        }
    }

    /// The service ends: a lease that was not given back is ended here, unless the cluster is paused.
    fn end(&mut self) -> ExitCode {
        if let Some(held) = self.held
            && !self.paused
        {
            self.fence(held.epoch);
        } else if let Some(agent) = &self.agent {
            agent.kill();
        }
        ExitCode::SUCCESS
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.socket.accept() {
            let peer = rustix::net::sockopt::socket_peercred(&stream).map(|peer| peer.pid.as_raw_nonzero().get());
            let is_agent = self.agent.as_ref().is_some_and(|agent| peer == Ok(agent.pid()));
            if !is_agent || stream.set_nonblocking(true).is_err() {
                tracing::warn!(?peer, "a stranger spoke to the guard");
                continue;
            }
            self.connection = Some(Connection { stream, buffer: Vec::with_capacity(LINE_BYTES_MAX) });
            self.has_connected = true;
            let hello = ToAgent::Hello {
                guard: std::process::id(),
                held: self.held,
                fenced: self.fenced,
                oom_score_adjust: self.oom_score_adjust,
            };
            self.tell(&hello);
            if self.stop_by.is_some() {
                self.tell(&ToAgent::Stop);
            }
        }
    }

    /// A short line fits the socket's buffer; an agent that does not read is as good as none.
    fn tell(&mut self, message: &ToAgent) {
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.stream.write_all(&line(message))
        {
            tracing::warn!(%error, "the agent does not listen to its guard");
            self.connection = None;
        }
    }

    fn read_messages(&mut self) {
        let mut chunk = [0; 1024];
        while let Some(connection) = &mut self.connection {
            match connection.stream.read(&mut chunk) {
                Ok(0) => self.connection = None,
                Ok(count) => {
                    connection.buffer.extend_from_slice(&chunk[..count]);
                    self.take_lines();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.connection = None,
            }
        }
    }

    fn take_lines(&mut self) {
        while let Some(connection) = &mut self.connection {
            let Some(end) = connection.buffer.iter().position(|byte| *byte == b'\n') else {
                if connection.buffer.len() > LINE_BYTES_MAX {
                    self.connection = None;
                }
                return;
            };
            let message = serde_json::from_slice::<ToGuard>(&connection.buffer[..end]);
            connection.buffer.drain(..=end);
            match message {
                Ok(message) => self.hear(message),
                Err(error) => tracing::error!(%error, "the agent says what the guard does not understand"),
            }
        }
    }

    fn hear(&mut self, message: ToGuard) {
        match message {
            ToGuard::Hold { held, sequence } => {
                if self.released.is_some_and(|released| released >= held.epoch) {
                    tracing::warn!(epoch = %held.epoch, "a lease of an epoch that was left");
                    return;
                }
                let is_later = self.held.is_none_or(|before| {
                    held.epoch > before.epoch || held.epoch == before.epoch && held.deadline >= before.deadline
                });
                if is_later {
                    // Not at the kill: a directory that was moved or detached by then leads to nobody.
                    if self.held.is_none_or(|before| held.epoch > before.epoch) {
                        self.killer.look();
                    }
                    self.held = Some(held);
                }
                self.tell(&ToAgent::Held { sequence });
            }
            ToGuard::Release { epoch } => {
                self.released = self.released.max(Some(epoch));
                self.held = self.held.filter(|held| held.epoch > epoch);
            }
            ToGuard::Paused { paused } => self.paused = paused,
        }
    }

    fn stop_was_asked(&mut self) -> bool {
        let mut byte = [0; 8];
        matches!(self.stop.read(&mut byte), Ok(count) if count > 0)
    }

    /// Sleeps until something happens or is due. The timer runs on the lease's own clock, which counts on while the host
    /// sleeps.
    fn wait(&self) -> rustix::io::Result<()> {
        let due = [self.held.map(|held| held.kill_at), self.start_at, self.stop_by].into_iter().flatten().min();
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A timer set to zero is off; a moment at boot is long past, so that the first microsecond will do.
        let at = due.map_or(zero, |due| timespec(due.0.max(1)));
        let setting = Itimerspec { it_interval: zero, it_value: at };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting)?;
        let mut events = Vec::with_capacity(5);
        let fixed = [self.timer.as_fd(), self.socket.as_fd(), self.stop.as_fd()];
        events.extend(fixed.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        events.extend(self.agent.as_ref().map(|agent| PollFd::from_borrowed_fd(agent.pidfd(), PollFlags::IN)));
        events.extend(
            self.connection
                .as_ref()
                .map(|connection| PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN)),
        );
        match poll(&mut events, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn timespec(microseconds: u64) -> Timespec {
    let seconds = i64::try_from(microseconds / 1_000_000).unwrap_or(i64::MAX);
    let rest = i64::try_from(microseconds % 1_000_000 * 1_000).expect("less than a second in nanoseconds");
    Timespec { tv_sec: seconds, tv_nsec: rest }
}

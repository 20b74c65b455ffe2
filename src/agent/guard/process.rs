//! Processes as the guard handles them: the agent it starts and watches, signals, locks, its own protection.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Signal, getrlimit, pidfd_open, pidfd_send_signal};

use super::GuardSettings;

/// Where a process says how much the OOM killer likes it.
const OOM_SCORE_ADJUST: &str = "/proc/self/oom_score_adj";

/// The agent under a guard.
pub(super) struct AgentProcess {
    pid: Pid,
    pidfd: OwnedFd,
    /// `None` for one that another guard started.
    child: Option<Child>,
}

impl AgentProcess {
    /// Starts an agent with the health port as its standard input, in a process group of its own: Ctrl-C reaches the guard.
    pub(super) fn start(settings: &GuardSettings, health_port: &TcpListener) -> std::io::Result<Self> {
        let child = Command::new(&settings.executable)
            .args(&settings.arguments)
            .arg("--under-guard")
            .stdin(Stdio::from(OwnedFd::from(health_port.try_clone()?)))
            .process_group(0)
            .spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())?, child: Some(child) })
    }

    /// Watches an agent that runs.
    pub(super) fn adopt(pid: i32) -> std::io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())?, child: None })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// SIGKILL; one that has ended already is just as well.
    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL) {
            tracing::debug!(%error, "the agent was gone before it was killed");
        }
    }

    /// `Some` once it has ended; with its status if it was our child.
    pub(super) fn ended(&mut self) -> Option<Option<ExitStatus>> {
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut event = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut event, Some(&now)) {
            Ok(count) if count > 0 => Some(self.child.as_mut().and_then(|child| child.wait().ok())),
            _ => None,
        }
    }
}

/// Takes the listening socket from standard input and puts /dev/null there, so that no child keeps the port open.
pub fn take_listener() -> std::io::Result<TcpListener> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    if rustix::net::sockopt::socket_acceptconn(&socket) != Ok(true) {
        return Err(std::io::Error::other(
            "standard input is no listening socket: start the service without hidden flags",
        ));
    }
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(TcpListener::from(socket))
}

/// `None` if another process holds the lock. It goes with the process, however that ends.
pub(super) fn lock(path: &Path) -> std::io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A socket that only the own user can open, in place of what a dead guard left behind.
pub(super) fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A stream on which a byte arrives with every SIGTERM and SIGINT. The runtime behind it only turns signals into bytes.
pub(super) fn stop_signals() -> std::io::Result<UnixStream> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut sender, receiver) = UnixStream::pair()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).stack_size(256 * 1024).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if sender.write_all(b"s").is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(receiver)
}

/// What this process has from its parent; the agent gets it back.
pub(super) fn oom_score_adjust() -> i32 {
    std::fs::read_to_string(OOM_SCORE_ADJUST).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Undoes the guard's protection for an agent and what it starts.
pub(super) fn set_oom_score_adjust(value: i32) -> std::io::Result<()> {
    std::fs::write(OOM_SCORE_ADJUST, value.to_string())
}

/// Locks memory and leaves the OOM killer's reach, as far as the host allows.
pub(super) fn protect() {
    use rustix::mm::{MlockAllFlags, mlockall};
    // With a limit, locking what comes later would make a later allocation fail, and that ends the process.
    let unlimited = rustix::process::geteuid().is_root() || getrlimit(Resource::Memlock).current.is_none();
    let flags = if unlimited { MlockAllFlags::CURRENT | MlockAllFlags::FUTURE } else { MlockAllFlags::CURRENT };
    if let Err(error) = mlockall(flags) {
        tracing::warn!(%error, "the guard's memory is not locked: allow it with LimitMEMLOCK=infinity");
    }
    if let Err(error) = set_oom_score_adjust(-1000) {
        tracing::warn!(%error, "the guard is within the OOM killer's reach: set OOMScoreAdjust=-1000 for the service");
    }
}

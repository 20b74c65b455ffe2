//! The scheduler's priority of this process: what keeps a lease alive must run on a host whose processors are all taken.
//!
//! PostgreSQL never inherits it: `ordinary` is what its programs are started with. No decision enters.

use std::fs;

use rustix::process::{getpid, getpriority_process, getsid, setpriority_process};

/// Nice value of guard, agent and controller, where the host allows it (`LimitNICE=-10`, or root).
/// Ten steps are a share of about ten to one against processes at 0, and need no real-time scheduling.
const RAISED: i32 = -10;
/// Where the kernel groups processes by session (Debian's does), nice values count within a session alone, and each session has one of
/// its own: sched(7), "The autogroup feature". Other kernels, and cgroups with shares of processor time, do without.
const SESSION: &str = "/proc/self/autogroup";

/// Raises the priority of this process and of what it starts; a process that has it already keeps it.
/// True if it has it now.
pub fn raise() -> bool {
    if nice() <= RAISED || setpriority_process(None, RAISED).is_ok() {
        raise_own_session();
        return true;
    }
    tracing::info!(
        "the service runs at ordinary priority: with Nice=-10 and LimitNICE=-10 it keeps its lease on a host that is short of processors"
    );
    false
}

/// A service has a session of its own, and PostgreSQL another one. What was started beside others in theirs raises only itself.
fn raise_own_session() {
    if getsid(None) != Ok(getpid()) {
        return;
    }
    match fs::write(SESSION, RAISED.to_string()) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::debug!(%error, "{SESSION} cannot be written: nice values count within this session alone")
        }
    }
}

/// By how much a child must raise its nice value to run at ordinary priority; `None` if it does already.
pub fn ordinary() -> Option<i32> {
    Some(-nice()).filter(|steps| *steps > 0)
}

fn nice() -> i32 {
    getpriority_process(None).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_raised_process_starts_can_be_ordinary() {
        let is_allowed = raise();
        let Some(steps) = ordinary() else {
            assert!(!is_allowed, "a raised process must lower its children");
            return;
        };
        let child = std::process::Command::new("nice").args(["-n", &steps.to_string(), "nice"]).output().expect("nice");
        assert_eq!(String::from_utf8_lossy(&child.stdout).trim(), "0");
    }
}

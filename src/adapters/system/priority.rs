//! The scheduler's priority of this process: what keeps a lease alive must run on a host whose processors are all taken.
//!
//! PostgreSQL never inherits it: `ordinary` is what its programs are started with. No decision enters.

use std::fs;

use rustix::process::{getpriority_process, setpriority_process};

/// Nice value of guard, agent and controller, where the host allows it (`LimitNICE=-10`, or root).
/// Ten steps are a share of about ten to one against processes at 0, and need no real-time scheduling.
const RAISED: i32 = -10;
/// Where the kernel groups processes by session (Debian's does), nice values count within a session alone, and each session has one of
/// its own: sched(7), "The autogroup feature". Other kernels, and cgroups with shares of processor time, do without.
const SESSION: &str = "/proc/self/autogroup";
/// Asked instead of getsid(2), which says 0 in a container whose session was begun outside of it: rustix takes that for impossible.
const OWN_STATE: &str = "/proc/self/stat";

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
    if !fs::read_to_string(OWN_STATE).is_ok_and(|state| leads_its_session(&state)) {
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

/// Whether the process described in the words of proc_pid_stat(5) began the session that it is in.
fn leads_its_session(state: &str) -> bool {
    // The second field is the program's name, which may hold anything.
    let process = state.split(' ').next();
    let session = state.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
    session.is_some() && session == process
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
    fn who_began_its_session_raises_it_and_nobody_else() {
        for (state, leads) in [
            ("812 (stormglass) S 1 812 812 0 -1", true),
            ("812 (a ) S 1 1 1 1) S 1 812 812 0 -1", true),
            ("812 (stormglass) S 700 812 700 0 -1", false),
            ("2 (stormglass) S 1 2 0 0 -1", false),
            ("812", false),
            ("", false),
        ] {
            assert_eq!(leads_its_session(state), leads, "{state}");
        }
    }

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

//! The scheduler's priority of this process: what keeps a lease alive must run on a host whose processors are all taken.
//!
//! PostgreSQL never inherits it: `ordinary` is what its programs are started with. No decision enters.

use rustix::process::{getpriority_process, setpriority_process};

/// Nice value of guard, agent and controller, where the host allows it (`LimitNICE=-10`, or root).
/// Ten steps are a share of about ten to one against processes at 0, and need no real-time scheduling.
const RAISED: i32 = -10;

/// Raises the priority of this process and of what it starts; a process that has it already keeps it.
/// True if it has it now.
pub fn raise() -> bool {
    if nice() <= RAISED || setpriority_process(None, RAISED).is_ok() {
        return true;
    }
    tracing::info!(
        "the service runs at ordinary priority: with Nice=-10 and LimitNICE=-10 it keeps its lease on a host that is short of processors"
    );
    false
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

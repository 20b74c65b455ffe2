//! What agent and guard say to each other over the guard's socket: one JSON document a line.

use serde::{Deserialize, Serialize};

use crate::domain::epoch::Epoch;
use crate::ports::agent::HeldLease;

/// Name of the socket in the state directory.
pub(super) const SOCKET: &str = "guard.sock";

/// Name of the lock file in the state directory: one guard at a time.
pub(super) const LOCK: &str = "guard.lock";

/// A line longer than this is no message of ours.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// Agent to guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum ToGuard {
    /// Watch over this lease; answered with [`ToAgent::Held`].
    Hold {
        /// The lease.
        held: HeldLease,
        /// Comes back in the answer.
        sequence: u64,
    },
    /// PostgreSQL is fenced in this epoch and before: watch over nothing.
    Release {
        /// The epoch.
        epoch: Epoch,
    },
    /// The cluster is paused, or is not any more.
    Paused {
        /// Which.
        paused: bool,
    },
}

/// Guard to agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum ToAgent {
    /// First line on a new connection.
    Hello {
        /// The guard.
        guard: u32,
        /// What it watches over.
        held: Option<HeldLease>,
        /// The newest epoch in which it killed PostgreSQL by itself.
        fenced: Option<Epoch>,
        /// What the agent and its children shall have instead of the guard's own protection from the OOM killer.
        oom_score_adjust: i32,
    },
    /// The lease with this sequence is watched over.
    Held {
        /// From [`ToGuard::Hold`].
        sequence: u64,
    },
    /// The service is being stopped.
    Stop,
}

/// A message as it goes over the socket.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages hold nothing that JSON cannot");
    line.push(b'\n');
    line
}
